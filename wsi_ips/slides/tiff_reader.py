"""Tiled pyramidal TIFF and Aperio SVS, read by their own tiles.

Equal to OpenSlide pixel for pixel, and only used where that holds: JPEG, LZW, Deflate, uncompressed, Aperio's
RGB JPEG 2000; the rest is refused with a reason and left to OpenSlide. One difference is meant: where a
position falls between two pixels of a level, OpenSlide interpolates and this reader takes the nearest pixel.
A tile without data is white here and transparent, so white too, in OpenSlide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from wsi_ips.byte_cache import ByteCache
from wsi_ips.errors import SlideClosed, SlideReadError, UnsupportedSlide
from wsi_ips.slides.base import RgbImage, SlideInfo
from wsi_ips.slides.region import WHITE, ClosingReader, check_region, level_pixel, paste, white_region
from wsi_ips.slides.tiff_layout import TiffLayout, TileLayout, read_layout
from wsi_ips.slides.tile_codec import TileDecoder, TileError, refusal
from wsi_ips.slides.tile_file import TileFile
from wsi_ips.units import L0Point, Size

CACHE_BYTES = 32 << 20
HEADER_BYTES = 1 << 16
"""How much of a level's first tile is read on opening: JPEG headers end long before."""


class TiffReader(ClosingReader):
    """``TiffReader(path)``: see :mod:`wsi_ips.slides.tiff_reader`.

    A :class:`TiledReader`, for callers who plan their own reading, tile by tile. Raises
    :class:`UnsupportedSlide`, or its kind :class:`DamagedSlide` where no other reader should be asked.
    """

    _state: "_Opened | None"

    def __init__(self, path: Path | str, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._path = Path(path)
        self._cache_bytes = cache_bytes
        self._closed = False
        self._unopened()
        self._state = self._open()
        layout = self._state.layout
        self._info = SlideInfo(
            path=self._path,
            reader="tiff",
            vendor=layout.vendor,
            levels=layout.described_levels(),
            mpp=layout.mpp,
        )

    @property
    def info(self) -> SlideInfo:
        return self._info

    def read(self, l0_xy: L0Point, *, level: int, size_px: Size) -> RgbImage:
        """See :meth:`SlideReader.read`. ``l0_xy / downsample`` is rounded to a whole pixel of the level."""
        check_region(self._info, level=level, size_px=size_px)
        tiles = self._opened().layout.levels[level]
        lv_x, lv_y = level_pixel(l0_xy, self._info.levels[level].downsample)
        tile_width, tile_height = tiles.tile_size
        first_col, first_row = max(0, lv_x // tile_width), max(0, lv_y // tile_height)
        end_col = min(tiles.cols, (lv_x + size_px[0] - 1) // tile_width + 1)
        end_row = min(tiles.rows, (lv_y + size_px[1] - 1) // tile_height + 1)
        if tuple(size_px) == tiles.tile_size and (end_col - first_col, end_row - first_row) == (1, 1) and (
            (lv_x, lv_y) == (first_col * tile_width, first_row * tile_height)
        ):  # fmt: skip
            # A patch that is one tile, the case to be fast in: nothing is copied or kept.
            return self.read_tile(level, first_col, first_row)
        region = white_region(size_px)
        for row in range(first_row, end_row):
            for col in range(first_col, end_col):
                tile = self._cached(level, col, row)
                paste(region, tile, at=(col * tile_width - lv_x, row * tile_height - lv_y))
        return region

    def tile_layout(self, level: int) -> TileLayout:
        """See :meth:`TiledReader.tile_layout`."""
        check_region(self._info, level=level, size_px=(1, 1))
        return self._opened().layout.levels[level]

    def tile_scales(self, level: int) -> tuple[int, ...]:
        """See :meth:`TiledReader.tile_scales`."""
        check_region(self._info, level=level, size_px=(1, 1))
        return self._opened().decoders[level].scales

    def read_tile(self, level: int, col: int, row: int) -> RgbImage:
        """One whole tile, (tile height, tile width, 3) uint8, white beyond the level's edge; a new array.

        Goes past the cache. Raises :class:`SlideReadError` where it cannot be decoded, ``IndexError`` where
        there is no such tile.
        """
        layout = self.tile_layout(level)
        if not (0 <= col < layout.cols and 0 <= row < layout.rows):
            raise IndexError(f"level {level} has {layout.cols}x{layout.rows} tiles, no ({col}, {row})")
        number = row * layout.cols + col
        tile = white_region(layout.tile_size)
        self.decode_tile(level, number, self.fetch_tiles(level, [number])[0], tile)
        return tile

    def fetch_tiles(self, level: int, numbers: Sequence[int]) -> list[memoryview]:
        """See :meth:`TiledReader.fetch_tiles`."""
        opened = self._opened()
        tiles = opened.layout.levels[level]
        chosen = np.asarray(numbers, np.int64)
        parts = list(zip(tiles.offsets[chosen].tolist(), tiles.byte_counts[chosen].tolist(), strict=True))
        try:
            return opened.file.read_parts(parts)
        except OSError as error:
            raise SlideReadError(self._path, f"cannot be read: {error.strerror or error}") from error

    def decode_tile(self, level: int, number: int, data: memoryview, out: RgbImage) -> None:
        """See :meth:`TiledReader.decode_tile`."""
        opened = self._opened()
        tiles = opened.layout.levels[level]
        row, col = divmod(number, tiles.cols)
        count = tiles.byte_counts[number]
        if not count:
            out[:] = WHITE
            return
        try:
            if len(data) < count:
                raise TileError("the file has become shorter")
            opened.decoders[level].decode(data, out)
        except TileError as error:
            raise self._unreadable(level, number, tiles, error) from error
        scale = tiles.tile_size[1] // len(out)
        if row == tiles.rows - 1:
            out[max(0, -(-tiles.level_size[1] // scale) - row * len(out)) :] = WHITE
        if col == tiles.cols - 1:
            out[:, max(0, -(-tiles.level_size[0] // scale) - col * out.shape[1]) :] = WHITE

    def tile_jpeg(self, level: int, number: int, data: memoryview) -> bytes | None:
        """See :meth:`JpegTiledReader.tile_jpeg`."""
        opened = self._opened()
        tiles = opened.layout.levels[level]
        count = tiles.byte_counts[number]
        if not count:
            return None
        try:
            if len(data) < count:
                raise TileError("the file has become shorter")
            return opened.decoders[level].jpeg(data)
        except TileError as error:
            raise self._unreadable(level, number, tiles, error) from error

    def _unreadable(self, level: int, number: int, tiles: TileLayout, error: TileError) -> SlideReadError:
        row, col = divmod(number, tiles.cols)
        return SlideReadError(
            self._path,
            f"tile ({col}, {row}) of level {level}, {tiles.byte_counts[number]} bytes at byte "
            f"{tiles.offsets[number]}, is unreadable: {error}",
            "the file is damaged; copy it again, or leave the slide out",
        )

    def reopen(self) -> None:
        """See :meth:`TiledReader.reopen`."""
        with self._lock:
            if self._closed:
                raise SlideClosed(self._path)
            try:
                fresh = self._open()
            except UnsupportedSlide as error:
                raise SlideReadError(*error.args) from error
            if fresh.layout.described_levels() != self._info.levels:
                raise SlideReadError(
                    self._path,
                    "is another file now than when it was opened",
                    "do not write to it while it is read",
                )
            self._state = fresh

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._state = None
            self._cache = _cache_of(0)

    def _cached(self, level: int, col: int, row: int) -> RgbImage:
        key = (level, col, row)
        cache = self._cache
        tile = cache.get(key)
        if tile is None:
            tile = self.read_tile(level, col, row)
            tile.flags.writeable = False  # everyone gets the same array
            cache.put(key, tile)
        return tile

    def _opened(self) -> "_Opened":
        state = self._state
        if state is None:
            with self._lock:
                if self._closed:
                    raise SlideClosed(self._path)
                try:
                    state = self._state = self._state or self._open()
                except UnsupportedSlide as error:  # it was a slide when the reader was pickled
                    raise SlideReadError(*error.args) from error
        return state

    def _open(self) -> "_Opened":
        if self._path.is_dir():
            raise UnsupportedSlide(self._path, "a folder, not a TIFF file")
        try:
            file = TileFile(self._path)
            layout = read_layout(self._path, file_size=file.size)
            _refuse_odd_tiles(self._path, file, layout)
        except OSError as error:
            raise UnsupportedSlide(self._path, f"cannot be read: {error.strerror or error}") from error
        return _Opened(file, layout, tuple(TileDecoder(tiles.tile) for tiles in layout.levels))

    def _unopened(self) -> None:
        self._lock = RLock()
        self._state = None
        self._cache = _cache_of(self._cache_bytes)

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in ("_path", "_cache_bytes", "_closed", "_info")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._unopened()  # the first read opens


@dataclass(frozen=True, slots=True)
class _Opened:
    file: TileFile
    layout: TiffLayout
    decoders: tuple[TileDecoder, ...]  # one a level


def _cache_of(limit: int) -> ByteCache[tuple[int, int, int], RgbImage]:
    """By level, column, row: four regions around one tile do not decode it four times."""
    return ByteCache(limit, size=lambda tile: tile.nbytes)


def _refuse_odd_tiles(path: Path, file: TileFile, layout: TiffLayout) -> None:
    """Look at one tile header a level, so that an unusual kind of JPEG goes to OpenSlide from the start."""
    for number, tiles in enumerate(layout.levels):
        written = tiles.byte_counts.nonzero()[0]
        if len(written):
            count = min(HEADER_BYTES, int(tiles.byte_counts[written[0]]))
            reason = refusal(file.read(int(tiles.offsets[written[0]]), count), tiles.tile)
            if reason:
                raise UnsupportedSlide(path, f"level {number} has {reason}")
