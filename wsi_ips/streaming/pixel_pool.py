"""Memory for pixels that is used again once nobody looks at it.

Fresh memory costs as much as decoding a JPEG tile into it (the system has to clear every page), and arrays of
one size that come and go let a heap grow. Nobody has to give anything back: an array returns by itself when
the last view of it is gone.
"""

from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray


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
