"""How exactly a device calculates, and whether it gives the same bits each time.

PyTorch's defaults on NVIDIA cards: matrix products in float32, convolutions in TF32 (10 bits of mantissa instead
of 23, several times faster), and algorithms that may add up in another order each time.

Memory for pixels that is used again once nobody looks at it.

Fresh memory costs as much as decoding a JPEG tile into it (the system has to clear every page), and arrays of
one size that come and go let a heap grow. Nobody has to give anything back: an array returns by itself when
the last view of it is gone.

To the accelerator: uint8 pixels in page-locked memory, copied without waiting where there is one.
"""

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ips.errors import ConfigError

WORKSPACE = ":4096:8"
"""What cuBLAS needs to be told, in the environment, before it adds up in one order."""


def numerics(*, deterministic: bool = False) -> dict[str, bool]:
    """What holds in this process, or would under :func:`calculating`, for a run's description: TF32 in
    convolutions and in matrix products, and whether only deterministic algorithms are used."""
    with calculating(deterministic=deterministic):
        return {
            "tf32_convolutions": torch.backends.cudnn.allow_tf32,
            "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }


@contextmanager
def calculating(*, deterministic: bool) -> Iterator[None]:
    """For the time of the block, with ``deterministic``, the same bits each time on the same kind of card.

    No TF32, no search for the fastest convolution, deterministic algorithms only; it takes longer. Otherwise
    everything is left as it is. Raises :class:`ConfigError` where the network needs an operation that has no
    deterministic algorithm.
    """
    if not deterministic:
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (
        cudnn.allow_tf32,
        matmul.allow_tf32,
        cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
    )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACE)
    cudnn.allow_tf32 = matmul.allow_tf32 = cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = str(error).split(". ")[0]
        raise ConfigError(f"deterministic: true cannot be kept ({reason}); set it to false") from error
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before[:3]
        torch.use_deterministic_algorithms(before[3])


class PixelPool:
    """Hands out uint8 arrays of one shape, uninitialised. Safe from several threads.

    ``spare``: how many unused arrays are kept. ``pinned``: page-locked, for copies to a CUDA device.
    """

    def __init__(self, shape: tuple[int, ...], *, spare: int, pinned: bool = False) -> None:
        self._shape = shape
        self._pinned = pinned
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=spare)

    def take(self) -> NDArray[np.uint8]:
        """An array of the pool's shape; it comes back when neither it nor a view of it is referenced."""
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = self._fresh()
        return np.asarray(_Lease(buffer, self._free))

    def _fresh(self) -> NDArray[np.uint8]:
        if self._pinned:
            pinned: NDArray[np.uint8] = torch.empty(self._shape, dtype=torch.uint8, pin_memory=True).numpy()
            return pinned
        return np.empty(self._shape, np.uint8)


class _Lease:
    """What an array from the pool is a view of (NumPy's array interface); its end is the array's return."""

    def __init__(self, buffer: NDArray[np.uint8], free: deque[NDArray[np.uint8]]) -> None:
        self.__array_interface__ = buffer.__array_interface__
        self._buffer = buffer
        self._free = free

    def __del__(self) -> None:
        self._free.append(self._buffer)


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

    The host memory of a copy under way is held until the copy has ended, since it is used again afterwards:
    whoever owns that memory keeps this object as long. On CUDA, whoever asks for copies may run ahead of the
    device, which is handed work and does it later; it has to wait where more than three chunks would lie there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._under_way: deque[_UnderWay] = deque()
        self._handed_over: deque[torch.cuda.Event] = deque()
        self._seconds = 0.0

    @property
    def run_beside(self) -> bool:
        """Whether a copy goes on while its caller does something else."""
        return self._stream is not None

    def to_device(self, pixels_nPPC: Tensor) -> Tensor:
        """The pixels on the device, uint8 as they are; for CUDA from page-locked memory, without waiting."""
        if self._stream is None:
            started = perf_counter()
            copied_nPPC = pixels_nPPC.to(self._device)
            self._seconds += perf_counter() - started
            return copied_nPPC
        self._let_go()
        consumer = torch.cuda.current_stream(self._device)
        self._wait_for(consumer)
        with torch.cuda.stream(self._stream):
            begun = torch.cuda.Event(enable_timing=True)
            begun.record(self._stream)
            copied_nPPC = pixels_nPPC.to(self._device, non_blocking=True)
            done = torch.cuda.Event(enable_timing=True)
            done.record(self._stream)
        # The consumer's kernels come after the copy, and the copy's memory lives until they have run.
        consumer.wait_event(done)
        copied_nPPC.record_stream(consumer)
        self._under_way.append(_UnderWay(begun, done, pixels_nPPC))
        return copied_nPPC

    def settle(self) -> None:
        """Wait for all copies under way, but not for what is done with the pixels."""
        while self._under_way:
            self._under_way[0].done.synchronize()
            self._let_go()

    def take_seconds(self) -> float:
        """Seconds that copies took, of those that ended since this was last asked; on CUDA by its own clock."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _let_go(self) -> None:
        while self._under_way and self._under_way[0].done.query():
            ended = self._under_way.popleft()
            self._seconds += ended.begun.elapsed_time(ended.done) / 1e3

    def _wait_for(self, consumer: torch.cuda.Stream) -> None:
        """Wait until the consumer's device has done what was handed to it before the last chunk was asked for."""
        handed_over = torch.cuda.Event()
        handed_over.record(consumer)
        self._handed_over.append(handed_over)
        while len(self._handed_over) > 1:
            self._handed_over.popleft().synchronize()


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A copy with the host memory that it reads."""

    begun: torch.cuda.Event
    done: torch.cuda.Event
    pixels_nPPC: Tensor


class DeviceTimer:
    """How long work takes: on CUDA by the card's own events, elsewhere by the clock.

    A card is handed its work and does it later, so that the clock would tell how long handing over takes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._running: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what is done, or handed over, in the block."""
        if self._device.type != "cuda":
            started = perf_counter()
            yield
            self._seconds += perf_counter() - started
            return
        begun = self._mark()
        yield
        self._running.append((begun, self._mark()))
        while self._running and self._running[0][1].query():
            self._count()

    def seconds(self) -> float:
        """Seconds so far. Waits for the card."""
        while self._running:
            self._running[0][1].synchronize()
            self._count()
        return self._seconds

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _count(self) -> None:
        begun, ended = self._running.popleft()
        self._seconds += begun.elapsed_time(ended) / 1e3
