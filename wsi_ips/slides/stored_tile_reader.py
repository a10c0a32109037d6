"""Base class of readers that read a slide by its stored tiles, whatever container the tiles lie in.

The parser of a container says where the tiles are (:class:`wsi_ips.slides.tile_layout.SlideLayout`). Fetching and
decoding them, and cutting regions out of them, is done here for all containers. A new container needs a subclass
of :class:`StoredTileReader` with :meth:`~StoredTileReader.read_layout`.

Pixels equal those of OpenSlide where OpenSlide is right, and those of tifffile where OpenSlide is wrong (16-bit
grey, tiles that it turns) or opens nothing (WebP, JPEG XL). What is not read here is left to OpenSlide. One
difference is intended: if a position falls between two pixels of a level, OpenSlide interpolates, and this reader
takes the nearest pixel. A tile without data is white here; OpenSlide makes it transparent, and so white too.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from wsi_ips.errors import SlideClosed, SlideInterrupted, SlideReadError, UnsupportedSlide
from wsi_ips.slides.base import (
    WHITE,
    ClosingReader,
    RgbImage,
    SlideInfo,
    check_associated,
    check_region,
    level_pixel,
    white_region,
)
from wsi_ips.slides.codecs.base import Parts, TileDecoder, TileError
from wsi_ips.slides.tile_layout import SlideLayout, TileFile, TileLayout, read_tiles
from wsi_ips.slides.tile_places import TilePlaces
from wsi_ips.storage.byte_cache import ByteCache
from wsi_ips.storage.disk_cache import DiskCache
from wsi_ips.storage.files import OutsideCause, outside_cause, system_cause
from wsi_ips.storage.location import Location, Url
from wsi_ips.units import L0Point, Size

CACHE_BYTES = 32 << 20
"""Bytes of decoded tiles that a reader keeps by default."""

HEADER_BYTES = 1 << 16
"""How much of the first tile of a level is read when a slide is opened. JPEG headers end long before."""


class StoredTileReader(ClosingReader):
    """A reader of stored tiles.

    Implements :class:`TiledReader`, :class:`JpegTiledReader` and :class:`AssociatedReader`.

    A subclass sets ``name`` and implements :meth:`read_layout`. ``cache_bytes`` is how many bytes of decoded tiles
    are kept. The reader can be pickled, and reopens the file on its first read: it then calls :meth:`read_layout`
    without ``__init__``, so that ``read_layout`` may use :attr:`path` and class attributes, and nothing that
    ``__init__`` of a subclass has set.

    All files of the layout are opened when the slide is opened, and stay open as long as it is.

    Opening raises :class:`UnsupportedSlide`, or :class:`DamagedSlide` or :class:`RefusedSlide` if no other reader
    should be tried.
    """

    name = ""
    _state: "_Opened | None"

    def __init__(self, path: Location | str, *, cache_bytes: int = CACHE_BYTES) -> None:
        if isinstance(path, Url):
            raise UnsupportedSlide(path, "reads files, not URLs")
        self._path = Path(path)
        self._cache_bytes = cache_bytes
        self._closed = False
        self._disk_cache: DiskCache | None = None
        self._unopened()
        self._state = self._open()
        layout = self._state.layout
        self._info = SlideInfo(
            path=self._path,
            reader=self.name,
            vendor=layout.vendor,
            levels=layout.described_levels(),
            mpp_xy=layout.mpp_xy,
            bounds=layout.bounds,
            associated=tuple((name, picture.size) for name, picture in layout.associated.items()),
            left_out=layout.left_out,
            icc_profile=layout.icc_profile,
        )

    @property
    def path(self) -> Path:
        """The file or folder of the slide."""
        return self._path

    def called(self, reader: str) -> None:
        """Say in the description which reader opened the slide, if the class has no ``name``."""
        if not self.name:
            self._info = replace(self._info, reader=reader)

    def read_layout(self) -> SlideLayout:
        """Read from the headers of the container where the tiles lie. A subclass implements this.

        It is also called where the reader was pickled and comes back, without ``__init__``: see the class.

        May raise :class:`UnsupportedSlide`, :class:`DamagedSlide`, :class:`RefusedSlide`, and ``OSError``.
        """
        raise NotImplementedError

    @property
    def info(self) -> SlideInfo:
        """The description of the slide."""
        return self._info

    def read(self, l0_xy: L0Point, *, level: int, size_px: Size) -> RgbImage:
        """Read a region of a level.

        ``size_px`` is (width, height) in pixels of ``level``, ``l0_xy`` its top left corner in level-0 pixels.
        ``l0_xy / downsample`` is rounded to a whole pixel of the level. What lies outside the slide is white.
        Returns (height, width, 3) uint8, a new array.

        Raises :class:`ConfigError` if there is no such level or the size has no pixels, :class:`SlideReadError` if
        a tile cannot be decoded, and :class:`SlideClosed` after :meth:`close`.
        """
        check_region(self._info, level=level, size_px=size_px)
        width, height = int(size_px[0]), int(size_px[1])
        lv_x, lv_y = level_pixel(l0_xy, self._info.levels[level].downsample)
        places = self._opened().places[level]
        painting = places.painting((lv_x, lv_y, width, height))
        if (width, height) == places.tile_size and painting.is_one_whole_tile(places.tile_size):
            # A patch that is exactly one tile is the case that has to be fast, so nothing is copied or cached.
            return self._tile(level, painting.numbers[0])
        region = white_region(size_px)
        uses = Counter(place for place, _, _ in painting.moves)
        held: dict[int, RgbImage] = {}
        for place, into, window in painting.moves:
            tile = held.pop(place, None)
            if tile is None:
                tile = self._cached(level, painting.numbers[place])
            uses[place] -= 1
            if uses[place]:  # keep a tile of several pieces, so that it is decoded only once
                held[place] = tile
            region[into] = tile[window]
        return region

    def read_associated(self, name: str) -> RgbImage:
        """Read the label, macro or thumbnail as (height, width, 3) uint8.

        Raises :class:`ConfigError` if the slide has no image of this name, and :class:`SlideReadError` if it
        cannot be decoded.
        """
        check_associated(self._info, name)
        return self._opened().layout.associated[name].read(self._path)

    def tile_layout(self, level: int) -> TileLayout:
        """The tiles of a level: their size, number, places, and where their bytes lie."""
        check_region(self._info, level=level, size_px=(1, 1))
        return self._opened().layout.levels[level]

    def tile_scales(self, level: int) -> tuple[int, ...]:
        """The whole factors by which the tiles of a level can be decoded smaller. 1 is among them."""
        check_region(self._info, level=level, size_px=(1, 1))
        opened = self._opened()
        return tuple(s for s in opened.decoders[level].scales if opened.places[level].divides(s))

    def read_tile(self, level: int, col: int, row: int) -> RgbImage:
        """Read one whole tile, past the cache.

        Returns (tile height, tile width, 3) uint8, a new array that is white beyond the edge of the level. Raises
        ``IndexError`` if there is no such tile, and :class:`SlideReadError` if it cannot be decoded.
        """
        layout = self.tile_layout(level)
        if not (0 <= col < layout.cols and 0 <= row < layout.rows):
            raise IndexError(f"level {level} has {layout.cols}x{layout.rows} tiles, no ({col}, {row})")
        return self._tile(level, row * layout.cols + col)

    def _tile(self, level: int, number: int) -> RgbImage:
        tile = white_region(self._opened().places[level].tile_size)
        self.decode_tile(level, number, self.fetch_tiles(level, [number])[0], tile)
        return tile

    def read_through(self, cache: DiskCache) -> None:
        """Fetch the stored bytes of tiles through a cache on a local disk, if the slide lies on slow storage.

        Headers are read from the file itself, and so is everything after :meth:`reopen`, in case what the cache
        holds was read wrongly; it then replaces what the cache holds. A reader that is pickled forgets the cache.

        Raises :class:`SlideInterrupted` if the file cannot be read.
        """
        with self._lock:
            if self._disk_cache is cache:
                return
            opened = self._opened()
            try:
                for file in opened.files:
                    file.read_through(cache)
            except (OSError, MemoryError) as error:
                raise self._interrupted(error) from error
            self._disk_cache = cache

    def fetch_tiles(self, level: int, numbers: Sequence[int]) -> list[memoryview]:
        """Read the stored bytes of these tiles, whose numbers must ascend. A tile that was never written is empty.

        Raises :class:`SlideInterrupted` if the file cannot be read.
        """
        opened = self._opened()
        try:
            return read_tiles(opened.files, opened.layout.levels[level], np.asarray(numbers, np.int64))
        except (OSError, MemoryError) as error:
            raise self._interrupted(error) from error

    def decode_tile(self, level: int, number: int, data: memoryview, out: RgbImage) -> None:
        """Decode a fetched tile into ``out``, a contiguous array (tile height, tile width, 3 or 4) uint8.

        A tile that was never written, and what lies beyond the edge of the level, become white. ``out`` may be
        smaller than the tile by one of :meth:`tile_scales`. Raises :class:`SlideReadError` if the bytes are no
        such tile; ``out`` may then hold anything.
        """
        opened = self._opened()
        tiles = opened.layout.levels[level]
        try:
            parts = _parts(data, tiles, number)
            if parts is None:
                out[:] = WHITE
                return
            opened.decoders[level].decode(parts, out)
        except TileError as error:
            raise self._unreadable(level, number, tiles, error) from error
        except (MemoryError, ImportError) as error:  # a codec that is not in this installation
            raise self._interrupted(error) from error
        _whiten_beyond(out, opened.places[level], number)

    def tile_jpeg(self, level: int, number: int, data: memoryview) -> bytes | None:
        """A fetched tile as one complete JPEG that states its own colour space.

        Returns None if tiles are not stored as JPEGs, or if this one was never written. Raises
        :class:`SlideReadError` if the bytes are no such tile.
        """
        opened = self._opened()
        tiles = opened.layout.levels[level]
        try:
            parts = _parts(data, tiles, number)
            return None if parts is None else opened.decoders[level].jpeg(parts)
        except TileError as error:
            raise self._unreadable(level, number, tiles, error) from error

    def _interrupted(self, error: Exception) -> SlideInterrupted:
        cause = outside_cause(error) or OutsideCause(f"cannot be read: {error}", "try again")
        return SlideInterrupted(self._path, cause.problem, cause.fix)

    def _unreadable(self, level: int, number: int, tiles: TileLayout, error: TileError) -> SlideReadError:
        row, col = divmod(number, tiles.cols)
        count = int(tiles.byte_counts[number].sum())
        # Not through _opened: another thread may have closed the reader meanwhile.
        files = self._state.layout.files if self._state and tiles.files is not None else ()
        cause = outside_cause(error)
        if cause and system_cause(error):
            return SlideInterrupted(self._path, cause.problem, cause.fix)
        of_file = f" of {files[int(tiles.files[number])].name}" if files and tiles.files is not None else ""
        return SlideReadError(
            self._path,
            f"tile ({col}, {row}) of level {level}, {count} bytes at byte "
            f"{tiles.offsets[number].min()}{of_file}, is unreadable: {error}",
            cause.fix if cause else "the file is damaged; copy it again, or leave the slide out",
        )

    def reopen(self) -> None:
        """Read the headers of the container again.

        Raises :class:`SlideReadError` if the levels are not what they were, and :class:`SlideClosed` after
        :meth:`close`.
        """
        with self._lock:
            if self._closed:
                raise SlideClosed(self._path)
            try:
                fresh = self._open()
            except UnsupportedSlide as error:
                raise _no_longer(error) from error
            if fresh.layout.described_levels() != self._info.levels:
                raise SlideReadError(
                    self._path,
                    "is another file now than when it was opened",
                    "do not write to it while it is read",
                )
            if self._disk_cache is not None:
                try:
                    for file in fresh.files:
                        file.read_through(self._disk_cache, anew=True)
                except (OSError, MemoryError) as error:
                    raise self._interrupted(error) from error
            self._state = fresh

    def close(self) -> None:
        """Release the file and the cached tiles. May be called twice."""
        with self._lock:
            self._closed = True
            self._state = None
            self._cache = _cache_of(0)

    def _cached(self, level: int, number: int) -> RgbImage:
        """A whole tile from the cache. The array is shared, and so is not writable."""
        key = (level, number)
        cache = self._cache
        tile = cache.get(key)
        if tile is None:
            tile = self._tile(level, number)
            tile.flags.writeable = False  # everyone gets the same array
            cache.put(key, tile)
        return tile

    def _opened(self) -> "_Opened":
        """What was read from the container. A reader that was unpickled opens the file here."""
        state = self._state
        if state is None:
            with self._lock:
                if self._closed:
                    raise SlideClosed(self._path)
                try:
                    state = self._state = self._state or self._open()
                except UnsupportedSlide as error:  # it was a slide when the reader was pickled
                    raise _no_longer(error) from error
        return state

    def _open(self) -> "_Opened":
        try:
            layout = self.read_layout()
            files = tuple(TileFile(path) for path in layout.files)
            _refuse_odd_tiles(self._path, files, layout)
        except OSError as error:
            cause = system_cause(error) or OutsideCause(f"cannot be read: {error.strerror or error}", "")
            raise UnsupportedSlide(self._path, cause.problem, cause.fix) from error
        return _Opened(
            files,
            layout,
            tuple(tiles.places for tiles in layout.levels),
            tuple(tiles.tile.decoder() for tiles in layout.levels),
        )

    def _unopened(self) -> None:
        self._lock = RLock()
        self._state = None
        self._cache = _cache_of(self._cache_bytes)

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in ("_path", "_cache_bytes", "_closed", "_info")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._disk_cache = None
        self._unopened()  # the first read opens


@dataclass(frozen=True, slots=True)
class _Opened:
    """What a reader holds while the file is open. ``places`` and ``decoders`` have one entry for each level."""

    files: tuple[TileFile, ...]
    layout: SlideLayout
    places: tuple[TilePlaces, ...]
    decoders: tuple[TileDecoder, ...]


def _no_longer(error: UnsupportedSlide) -> SlideReadError:
    """The error for a slide that was opened before and cannot be opened again."""
    kind = SlideInterrupted if system_cause(error) else SlideReadError
    return kind(*error.args)


def _cache_of(limit: int) -> ByteCache[tuple[int, int], RgbImage]:
    """A cache of tiles by level and number.

    Without it, four regions around one tile would decode it four times.
    """
    return ByteCache(limit, size=lambda tile: tile.nbytes)


def _parts(data: memoryview, tiles: TileLayout, number: int) -> Parts | None:
    """The parts of a fetched tile, or None if it was never written.

    Raises :class:`TileError` if bytes are missing.
    """
    counts = tiles.byte_counts[number]
    whole = tiles.byte_counts.ndim == 1
    count = counts if whole else counts.sum()
    if not count:
        return None
    if len(data) < count:
        raise TileError("the file has become shorter")
    if whole:
        return (data,)
    ends = [0, *np.cumsum(counts).tolist()]
    return [data[start:end] for start, end in pairwise(ends)]


def _whiten_beyond(out: RgbImage, places: TilePlaces, number: int) -> None:
    """Make white what lies beyond the level in a tile that was decoded into ``out``, at whatever scale."""
    width, height = places.inside(number)
    scale = places.tile_size[1] // len(out)
    inside_x, inside_y = -(-width // scale), -(-height // scale)
    if inside_y < out.shape[0]:
        out[max(0, inside_y) :] = WHITE
    if inside_x < out.shape[1]:
        out[:, max(0, inside_x) :] = WHITE


def _refuse_odd_tiles(path: Path, files: Sequence[TileFile], layout: SlideLayout) -> None:
    """Look at the header of one tile of each level, and leave unusual kinds of tiles to OpenSlide from the start.

    Raises :class:`UnsupportedSlide`.
    """
    for level, tiles in enumerate(layout.levels):
        written = np.flatnonzero(~tiles.missing)
        if not len(written):
            continue
        number = written[0]
        offset, count = (int(table[number].ravel()[0]) for table in (tiles.offsets, tiles.byte_counts))
        file = files[0 if tiles.files is None else int(tiles.files[number])]
        reason = tiles.tile.refusal(file.read(offset, min(HEADER_BYTES, count)))
        if reason:
            raise UnsupportedSlide(path, f"level {level} has {reason}")
