"""To the accelerator: uint8 pixels in page-locked memory, copied without waiting where there is one."""

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


def empty_pixels(n: int, patch_px: int, *, device: torch.device) -> Tensor:
    """Host memory for ``n`` patches, (n, P, P, 3) uint8; page-locked when they go to a CUDA device."""
    return torch.empty((n, patch_px, patch_px, 3), dtype=torch.uint8, pin_memory=device.type == "cuda")


def to_device(pixels_nPPC: Tensor, device: torch.device) -> Tensor:
    """The pixels on ``device``; from page-locked memory the copy runs beside what follows."""
    return pixels_nPPC.to(device, non_blocking=device.type == "cuda")
