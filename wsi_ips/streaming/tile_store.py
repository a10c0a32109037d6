"""Decoded tiles that patches still to come will need, in a bounded number of bytes."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from wsi_ips.slides.base import RgbImage


class TileStore:
    """Decodes a tile when it is first borrowed and forgets it when it has been borrowed for the last time.

    Patches come row by row, so a tile is needed by its neighbours at once, and again one row of patches later.
    A quarter of the bytes holds the tiles touched last; what leaves it is kept for the next row while there is
    room and dropped otherwise: of a row too long to keep, a part is then decoded once, where keeping the
    newest would have thrown out each tile just before its turn.

    Safe from several threads: a tile that one of them decodes is waited for by the others.
    """

    def __init__(self, uses: NDArray[np.int32], *, tiles: int) -> None:
        """uses: how often each tile will be borrowed; counted down here. tiles: how many are held at most."""
        self._uses_of = uses
        self._uses = uses.data  # single numbers are read several times faster through it
        self._recent: OrderedDict[int, _Tile] = OrderedDict()
        self._recent_limit = max(1, tiles // 4)
        self._kept: dict[int, _Tile] = {}
        self._kept_limit = max(0, tiles - self._recent_limit)
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._recent) + len(self._kept)

    def lacks(self, number: int) -> bool:
        """Whether borrowing the tile now would decode it."""
        return number not in self._recent and number not in self._kept

    def claim_own(self, numbers_n: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these tiles are needed by nobody else, (n,); they are counted as used and never stored."""
        with self._lock:
            own_n: NDArray[np.bool_] = self._uses_of[numbers_n] == 1
            self._uses_of[numbers_n[own_n]] = 0
        return own_n

    def borrow(self, numbers: Sequence[int], decode: Callable[[int], RgbImage]) -> list[RgbImage]:
        """The tiles' pixels, not to be written to; ``decode(number)`` makes those that nobody has yet.

        Raises what ``decode`` raises.
        """
        with self._lock:
            claims = [self._claim(number) for number in numbers]
        # One's own first, then waiting for others: nobody waits for someone who waits.
        for number, (tile, mine) in zip(numbers, claims, strict=True):
            if mine:
                try:
                    tile.pixels = decode(number)
                finally:
                    tile.busy.release()
        return [tile.wait() for tile, _ in claims]

    def _claim(self, number: int) -> "tuple[_Tile, bool]":
        self._uses[number] -= 1
        last = self._uses[number] <= 0
        tile = self._kept.get(number)
        if tile is not None:
            if last:
                del self._kept[number]
            return tile, False
        tile = self._recent.get(number)
        if tile is not None:
            if last:
                del self._recent[number]
            else:
                self._recent.move_to_end(number)
            return tile, False
        tile = _Tile()
        if not last:
            self._recent[number] = tile
            if len(self._recent) > self._recent_limit:
                oldest, spilled = self._recent.popitem(last=False)
                if len(self._kept) < self._kept_limit:
                    self._kept[oldest] = spilled
        return tile, True


class _Tile:
    __slots__ = ("busy", "pixels")

    def __init__(self) -> None:
        self.pixels: RgbImage | None = None
        self.busy = Lock()
        self.busy.acquire()

    def wait(self) -> RgbImage:
        """The pixels, once they are there."""
        if self.pixels is None:
            with self.busy:  # another thread is decoding it
                pass
            if self.pixels is None:
                raise RuntimeError("a tile was given up by the thread that decoded it")
        return self.pixels
