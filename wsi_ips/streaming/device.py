"""To the accelerator: uint8 pixels in page-locked memory, copied without waiting where there is one."""

from collections import deque

import torch
from torch import Tensor

from wsi_ips.errors import ConfigError


def pick_device(name: str = "auto") -> torch.device:
    """``auto``: CUDA, then Apple's MPS, then the CPU. Called once, at the edge of the program.

    Raises :class:`ConfigError` for a device that is not there.
    """
    if name != "auto":
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"device {name!r} cannot be used ({reason}); try auto or cpu") from None
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


class DeviceCopies:
    """Copies chunks to a device; on CUDA beside the encoder's work, on a stream of their own.

    The host memory of a copy under way is held until the copy has ended, since it is used again afterwards.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._under_way: deque[tuple[torch.cuda.Event, Tensor]] = deque()

    def to_device(self, pixels_nPPC: Tensor) -> Tensor:
        """The pixels on the device, uint8 as they are; for CUDA from page-locked memory, without waiting."""
        if self._stream is None:
            return pixels_nPPC.to(self._device)
        while self._under_way and self._under_way[0][0].query():
            self._under_way.popleft()
        consumer = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            copied_nPPC = pixels_nPPC.to(self._device, non_blocking=True)
            done = torch.cuda.Event()
            done.record(self._stream)
        # The consumer's kernels come after the copy, and the copy's memory lives until they have run.
        consumer.wait_event(done)
        copied_nPPC.record_stream(consumer)
        self._under_way.append((done, pixels_nPPC))
        return copied_nPPC
