"""Decoded tiles that patches still to come will need, in a bounded number of bytes."""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from wsi_ips.slides.base import RgbImage

SPARE_BUFFERS = 16


class Tile:
    """A decoded tile on loan. Its memory is used for another one when nobody holds the tile any more.

    Hold the tile itself, not only its pixels, for as long as they are looked at.
    """

    __slots__ = ("_begun", "_busy", "_error", "_free", "pixels", "ready")

    def __init__(self, pixels: RgbImage, free: deque[RgbImage]) -> None:
        self.pixels = pixels
        self.ready = False
        self._error: BaseException | None = None
        self._begun = Lock()
        self._busy = Lock()
        self._busy.acquire()
        self._free = free

    def decode_unless_begun(self, decode: Callable[[RgbImage], None]) -> None:
        """Fill the pixels, unless a thread is at it or has been. Raises what ``decode`` raises."""
        if self.ready or not self._begun.acquire(blocking=False):
            return
        try:
            decode(self.pixels)
            self.ready = True
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._busy.release()

    def wait(self) -> None:
        """Until the thread that decodes it is done. Raises what that thread raised, if it gave the tile up."""
        with self._busy:
            pass
        if self._error is not None:
            raise self._error

    def __del__(self) -> None:
        self._free.append(self.pixels)


class TileStore:
    """Decodes a tile when it is first borrowed and forgets it when it has been borrowed for the last time.

    Patches come row by row, so a tile is needed by its neighbours at once, and again one row of patches later.
    A quarter of the tiles are those that came last; what leaves them is kept for the next row while there is
    room and dropped otherwise: of a row too long to keep, a part is then decoded once, where keeping the
    newest would have thrown out each tile just before its turn.

    Safe from several threads: a tile that one of them decodes is waited for by the others, and what one has
    asked for and not begun is decoded by whoever needs it first.
    """

    def __init__(self, uses: NDArray[np.int32], *, tile_shape: tuple[int, int, int], tiles: int) -> None:
        """uses: how often each tile will be borrowed; counted down here. tiles: how many are held at most."""
        self._uses = uses.data  # single numbers are read several times faster through it
        self._shape = tile_shape
        self._recent: OrderedDict[int, Tile] = OrderedDict()
        self._recent_limit = max(1, tiles // 4)
        self._kept: dict[int, Tile] = {}
        self._kept_limit = max(0, tiles - self._recent_limit)
        self._free: deque[RgbImage] = deque(maxlen=SPARE_BUFFERS)
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._recent) + len(self._kept)

    def lacks(self, number: int) -> bool:
        """Whether borrowing the tile now would decode it."""
        return number not in self._recent and number not in self._kept

    def borrow(self, numbers: Sequence[int], decode: Callable[[int, RgbImage], None]) -> list[Tile]:
        """The tiles, their pixels not to be written to; ``decode(number, out)`` fills those that nobody has yet.

        Raises what ``decode`` raises, for everyone who waits for one of these tiles.
        """
        tiles: list[Tile] = []
        uses, kept, recent = self._uses, self._kept, self._recent
        with self._lock:
            for number in numbers:
                left = uses[number] = uses[number] - 1
                tile = kept.get(number) or recent.get(number)
                if tile is None:
                    tile = Tile(self._buffer(), self._free)
                    if left > 0:
                        self._admit(number, tile)
                elif left <= 0 and kept.pop(number, None) is None:
                    del recent[number]
                tiles.append(tile)
        # First whatever nobody has begun, though another thread may have asked for it earlier: two threads under
        # one row of large tiles then decode half of them each. Then waiting, and only for tiles under way, so
        # that nobody waits for someone who waits.
        for number, tile in zip(numbers, tiles, strict=True):
            if not tile.ready:
                tile.decode_unless_begun(partial(decode, number))
        for tile in tiles:
            if not tile.ready:
                tile.wait()
        return tiles

    def _buffer(self) -> RgbImage:
        try:
            return self._free.pop()
        except IndexError:
            return np.empty(self._shape, np.uint8)

    def _admit(self, number: int, tile: Tile) -> None:
        self._recent[number] = tile
        if len(self._recent) > self._recent_limit:
            oldest, spilled = self._recent.popitem(last=False)
            if len(self._kept) < self._kept_limit:
                self._kept[oldest] = spilled
