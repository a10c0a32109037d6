"""Devices: choosing one (:func:`pick_device`), its numerics, and copying pixels to it.

- :func:`calculating` and :func:`numerics`: how exactly a device calculates, and whether it gives the same bits
  each time. On NVIDIA cards PyTorch's defaults are matrix products in float32, convolutions in TF32 (10 bits of
  mantissa instead of 23, several times faster), and algorithms that may add up in another order each time.
- :class:`PixelPool`: memory for pixels that is reused once nobody refers to it. Fresh memory costs as much as
  decoding a JPEG tile into it, because the system has to clear every page, and arrays of one size that come and go
  let a heap grow.
- :class:`DeviceCopies` copies chunks of pixels to the device, on CUDA beside the encoder's work;
  :class:`DeviceTimer` measures work there.
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
from wsi_ips.timeline import span, staged

WORKSPACE = ":4096:8"
"""Value of ``CUBLAS_WORKSPACE_CONFIG`` with which cuBLAS always adds up in one order."""


def pick_device(name: str = "auto") -> torch.device:
    """The torch device with this name; ``auto`` is CUDA, then Apple's MPS, then the CPU.

    Called once, at the edge of the program. Raises :class:`ConfigError` for a device that cannot be used.
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


def device_of_worker(name: str, place: int) -> torch.device:
    """The device of the worker with the number ``place``, from 0.

    Workers take turns on the devices that ``name`` lists ("cuda:0,cuda:1"), and on all GPUs where it is ``auto``
    or ``cuda``. Raises :class:`ConfigError` for a device that cannot be used.
    """
    names = [each.strip() for each in name.split(",")]
    mine = names[place % len(names)]
    if mine in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", place % max(1, torch.cuda.device_count()))
    return pick_device(mine)


def count_devices(name: str) -> int:
    """On how many devices workers take turns, see :func:`device_of_worker`."""
    names = name.split(",")
    return torch.cuda.device_count() if name in ("auto", "cuda") else len(names)


@contextmanager
def calculating(*, deterministic: bool) -> Iterator[None]:
    """Context manager: with ``deterministic``, the block gives the same bits each time on the same kind of GPU.

    Inside there is no TF32, no search for the fastest convolution, and only deterministic algorithms are used,
    which takes longer. Without ``deterministic`` nothing is changed. Raises :class:`ConfigError` if the network
    needs an operation without a deterministic algorithm.
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


def numerics(*, deterministic: bool = False) -> dict[str, bool]:
    """How numbers are computed in this process, or inside :func:`calculating`, for a run's description.

    Returns whether convolutions and matrix products use TF32, and whether only deterministic algorithms are used.
    """
    with calculating(deterministic=deterministic):
        return {
            "tf32_convolutions": torch.backends.cudnn.allow_tf32,
            "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }


class PixelPool:
    """Hands out uninitialised uint8 arrays of one shape. Safe to use from several threads.

    Nothing has to be given back: an array returns to the pool when neither it nor a view of it is referenced.
    ``spare`` is the number of unused arrays that are kept; ``pinned`` makes them page-locked, for copies to a CUDA
    device.
    """

    def __init__(self, shape: tuple[int, ...], *, spare: int, pinned: bool = False) -> None:
        self._shape = shape
        self._pinned = pinned
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=spare)

    def take(self) -> NDArray[np.uint8]:
        """An array of the pool's shape."""
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = self._fresh()
        return np.asarray(_Lease(buffer, self._free))

    def forget(self) -> None:
        """Free the arrays that nobody uses."""
        self._free.clear()

    def _fresh(self) -> NDArray[np.uint8]:
        if self._pinned:
            pinned: NDArray[np.uint8] = torch.empty(self._shape, dtype=torch.uint8, pin_memory=True).numpy()
            return pinned
        return np.empty(self._shape, np.uint8)


class _Lease:
    """What an array from the pool is a view of (by NumPy's array interface); when it is freed, the array
    returns.
    """

    def __init__(self, buffer: NDArray[np.uint8], free: deque[NDArray[np.uint8]]) -> None:
        self.__array_interface__ = buffer.__array_interface__
        self._buffer = buffer
        self._free = free

    def __del__(self) -> None:
        self._free.append(self._buffer)


class DeviceCopies:
    """Copies chunks to a device; on CUDA on a stream of its own, beside the encoder's work.

    The host memory of a copy under way is held until the copy has ended, because it is reused afterwards. The
    owner of that memory has to keep this object as long. On CUDA, the caller may run ahead of the device, which is
    handed work and does it later; it has to wait once more than three chunks would lie there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._under_way: deque[_UnderWay] = deque()
        self._handed_over: deque[torch.cuda.Event] = deque()
        self._seconds = 0.0

    @property
    def run_beside(self) -> bool:
        """Whether a copy runs while its caller does something else."""
        return self._stream is not None

    @staged("copy to device")
    def to_device(self, pixels_nPPC: Tensor) -> Tensor:
        """The same uint8 pixels on the device; on CUDA copied from page-locked memory without waiting."""
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
            with span("wait for device"):
                self._under_way[0].done.synchronize()
            self._let_go()

    def take_seconds(self) -> float:
        """Seconds of the copies that ended since the last call; on CUDA by the GPU's clock."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _let_go(self) -> None:
        while self._under_way and self._under_way[0].done.query():
            ended = self._under_way.popleft()
            self._seconds += ended.begun.elapsed_time(ended.done) / 1e3

    def _wait_for(self, consumer: torch.cuda.Stream) -> None:
        """Wait until the device has done what it was handed before the last chunk was asked for."""
        handed_over = torch.cuda.Event()
        handed_over.record(consumer)
        self._handed_over.append(handed_over)
        while len(self._handed_over) > 1:
            with span("wait for device"):
                self._handed_over.popleft().synchronize()


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A copy with the host memory that it reads."""

    begun: torch.cuda.Event
    done: torch.cuda.Event
    pixels_nPPC: Tensor


class DeviceTimer:
    """Measures how long work takes: on CUDA by the GPU's own events, elsewhere by the clock.

    A GPU is handed its work and does it later, so that the clock would measure how long handing over takes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._running: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context manager: count what is done, or handed over, in the block."""
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
        """Seconds so far. Waits for the GPU."""
        while self._running:
            with span("wait for device"):
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
