"""The tiles decoded last, so that four patches around one tile do not decode it four times."""

from collections import OrderedDict
from threading import Lock

from wsi_ips.slides.base import RgbImage

TileKey = tuple[int, int, int]
"""(level, column, row)."""


class TileCache:
    """Holds ``limit`` bytes of pixels at most; the tile that was asked for longest ago goes first.

    Safe from several threads. Tiles are marked read-only: everyone gets the same array.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._tiles: OrderedDict[TileKey, RgbImage] = OrderedDict()
        self._lock = Lock()

    def get(self, key: TileKey) -> RgbImage | None:
        with self._lock:
            tile = self._tiles.get(key)
            if tile is not None:
                self._tiles.move_to_end(key)
            return tile

    def put(self, key: TileKey, tile: RgbImage) -> None:
        tile.flags.writeable = False
        with self._lock:
            if key in self._tiles or tile.nbytes > self._limit:
                return
            self._tiles[key] = tile
            self._held += tile.nbytes
            while self._held > self._limit:
                _, oldest = self._tiles.popitem(last=False)
                self._held -= oldest.nbytes

    def __len__(self) -> int:
        return len(self._tiles)
