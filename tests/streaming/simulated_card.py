"""A CUDA card that is not there: what it is handed happens late, in the order that streams and events allow.

PyTorch's own simulated tensors have no values and no time. Here copies and kernels are queued, and run only when
somebody waits for an event behind them: as late as a real card may be, so that memory that is used again too soon
shows in the pixels.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ips.streaming.device import PixelPool


class Stream:
    """Work in order."""

    def __init__(self, *_: Any) -> None:
        self.queue: list[Callable[[], None]] = []
        self.done = 0

    def wait_event(self, event: "Event") -> None:
        self.queue.append(event.synchronize)

    def run(self, to: int) -> None:
        while self.done < to:
            work = self.queue[self.done]
            self.done += 1
            work()


class Event:
    """A place in a stream's work."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.enable_timing = enable_timing
        self.stream: Stream | None = None
        self.place = 0

    def record(self, stream: Stream) -> None:
        self.stream, self.place = stream, len(stream.queue)

    def query(self) -> bool:
        return self.stream is None or self.stream.done >= self.place

    def synchronize(self) -> None:
        if self.stream is not None:
            self.stream.run(self.place)

    def elapsed_time(self, end: "Event") -> float:
        assert self.enable_timing
        assert end.enable_timing
        assert self.query()
        assert end.query()
        return 2.0


class SimulatedCard:
    """What ``torch.cuda`` is made of for the time of a test. copies: how many began."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self.current = Stream()
        self.copies = 0
        self._pinned: list[NDArray[np.uint8]] = []
        self._to = Tensor.to
        patched.setattr(torch.cuda, "Stream", Stream)
        patched.setattr(torch.cuda, "Event", Event)
        patched.setattr(torch.cuda, "current_stream", lambda *_: self.current)
        patched.setattr(torch.cuda, "stream", self._working_on)
        patched.setattr(Tensor, "record_stream", lambda *_: None)
        patched.setattr(Tensor, "to", lambda tensor, *args, **options: self._moved(tensor, *args, **options))
        patched.setattr(PixelPool, "_fresh", lambda pool: self._fresh(pool))

    def launch(self, work: Callable[[], None]) -> None:
        """Hand over a kernel."""
        self.current.queue.append(work)

    def finish(self) -> None:
        """Wait for all that was handed over."""
        self.current.run(len(self.current.queue))

    @contextmanager
    def _working_on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def _fresh(self, pool: PixelPool) -> NDArray[np.uint8]:
        self._pinned.append(np.empty(pool._shape, np.uint8))
        return self._pinned[-1]

    def _moved(self, tensor: Tensor, *args: Any, non_blocking: bool = False, **options: Any) -> Tensor:
        if not (args and isinstance(args[0], torch.device) and args[0].type == "cuda"):
            return self._to(tensor, *args, non_blocking=non_blocking, **options)
        assert non_blocking
        self.copies += 1
        there = torch.zeros_like(tensor)
        # By its address, as the card reads it: nothing here keeps the memory from being used again.
        n_bytes = tensor.numel()
        address = tensor.data_ptr()

        def land() -> None:
            here = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (n_bytes,))
            there.view(-1)[:] = torch.from_numpy(here.copy())

        self.current.queue.append(land)
        return there
