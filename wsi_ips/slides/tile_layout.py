"""Where the stored tiles of a slide lie, and how their bytes are read.

The parser of a container returns a :class:`SlideLayout` with one :class:`TileLayout` for each level.
:func:`read_tiles` reads the stored bytes of tiles from open :class:`TileFile` objects, from any thread.

:func:`shows_same_field` tells by the shape of an image whether it is a level of the slide. Files mark a tiled
macro or label in the same way as a level, and OpenSlide takes it for one; patches would then be read from it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_ips.slides.base import Bounds, LeftOut, Level, RgbImage
from wsi_ips.slides.codecs.base import TileFormat
from wsi_ips.slides.tile_places import PlacedTiles, RegularTiles, TilePlaces
from wsi_ips.storage.disk_cache import CachedFile, DiskCache
from wsi_ips.storage.system import open_flags, reader_by_position
from wsi_ips.units import Mpp, Size

ROUNDING = 0.01
"""By how much, as a share, the side of a level may differ from that of the slide divided by the downsample.

Some writers make sides even, or multiples of 16.
"""

ANOTHER_SHAPE = "its shape is not that of the slide, {0}x{1} px, so it is no level of it"
"""Why an image is no level of the slide; a format string for the slide's width and height."""

TRUNCATED = "copy it again: the copy or download was cut short"
"""The fix for a file that is cut short."""

LARGEST_GAP = 16 << 10
"""If no more bytes than this lie between two tiles, they are read along rather than skipped."""

LARGEST_READ = 4 << 20
"""The most bytes that are read at once for several tiles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileLayout:
    """The tiles of one level, and where their bytes lie.

    In a regular grid, tile (col, row) covers the pixels of the level from (col, row) * tile_size on. If
    :attr:`placed` is given, tiles lie elsewhere. Tiles may reach beyond ``level_size``, by more than a tile if a
    container pads its levels. What lies beyond is white.
    """

    level_size: Size
    """Width and height of the level in pixels."""
    tile: TileFormat
    """How the tiles are stored."""
    cols: int
    rows: int
    offsets: NDArray[np.int64]
    """(rows * cols,) row by row, or (rows * cols, parts): where the bytes of each tile start in their file."""
    byte_counts: NDArray[np.int64]
    """How many bytes there are, of the same shape as ``offsets``.

    A tile of which all parts have 0 bytes was never written. It is white.
    """
    files: NDArray[np.int32] | None = None
    """(rows * cols,) index into :attr:`SlideLayout.files` of the file that holds each tile.

    None if all lie in the first.
    """
    placed: PlacedTiles | None = None
    """Where the tiles lie if not in a grid. ``cols`` and ``rows`` then only number them."""

    @property
    def tile_size(self) -> Size:
        """Width and height of a tile in pixels."""
        return self.tile.size

    @property
    def places(self) -> TilePlaces:
        """Where on the level the tiles lie."""
        return self.placed or RegularTiles(self.level_size, self.tile_size, self.cols, self.rows)

    @property
    def missing(self) -> NDArray[np.bool_]:
        """(rows * cols,) which tiles were never written."""
        return np.asarray((self.byte_counts.reshape(len(self.byte_counts), -1) == 0).all(axis=1))


class AssociatedImage(Protocol):
    """An image that comes with a slide and is not a level of it: label, macro, thumbnail."""

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        ...

    def read(self, path: Path) -> RgbImage:
        """Read the image from the slide at ``path`` as (height, width, 3) uint8.

        Raises :class:`SlideReadError` if it cannot be decoded.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideLayout:
    """Everything that the headers of a container say of a slide.

    Levels run from the finest, 0, to the coarsest.
    """

    vendor: str
    """The scanner's vendor or the container's kind, for example ``"aperio"``."""
    files: tuple[Path, ...]
    """The files that hold the tiles."""
    levels: tuple[TileLayout, ...]
    downsamples: tuple[float, ...] | None = None
    """Level-0 pixels per pixel of each level.

    None for containers that do not state them: the mean of the ratios of widths and of heights is used, as in
    OpenSlide.
    """
    mpp_xy: tuple[Mpp, Mpp] | None = None
    """µm per pixel of level 0 along x and y, if the container states it."""
    bounds: Bounds | None = None
    """The scanned area in level-0 pixels, if the container states it."""
    associated: Mapping[str, AssociatedImage] = field(default_factory=dict)
    """The images that come with the slide, by name: ``label``, ``macro``, ``thumbnail``."""
    left_out: tuple[LeftOut, ...] = ()
    """What in the file is not used, and why."""
    icc_profile: bool = False
    """Whether the file holds a colour profile."""

    def described_levels(self) -> tuple[Level, ...]:
        """The levels with their sizes and downsamples."""
        factors = self.downsamples or tuple(size_downsample(level, self.levels[0]) for level in self.levels)
        return tuple(Level(level.level_size, d) for level, d in zip(self.levels, factors, strict=True))


def size_downsample(level: TileLayout, finest: TileLayout) -> float:
    """Level-0 pixels per pixel of a level: the mean of the ratios of widths and of heights, as in OpenSlide."""
    (width, height), (l0_width, l0_height) = level.level_size, finest.level_size
    return (l0_height / height + l0_width / width) / 2


def hull_of_written_tiles(level: TileLayout) -> Bounds | None:
    """The rectangle around all tiles of level 0 that hold data, cut to the level, as OpenSlide states it.

    None if it is the whole level, or if no tile holds data.
    """
    written_RC = ~level.missing.reshape(level.rows, level.cols)
    rows, cols = (np.flatnonzero(written_RC.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    (tile_width, tile_height), (width, height) = level.tile_size, level.level_size
    x, y = int(cols[0]) * tile_width, int(rows[0]) * tile_height
    right, bottom = min(width, int(cols[-1] + 1) * tile_width), min(height, int(rows[-1] + 1) * tile_height)
    if (x, y, right, bottom) == (0, 0, width, height):
        return None
    return Bounds(x, y, right - x, bottom - y)


def tiles_without_data(levels: Sequence[TileLayout]) -> tuple[LeftOut, ...]:
    """What to report of tiles that were never written, for containers in which every tile should be."""
    counts = [(level, int(tiles.missing.sum())) for level, tiles in enumerate(levels)]
    return tuple(
        LeftOut(f"{count} {'tile' if count == 1 else 'tiles'} of level {level}", "without data, and so white")
        for level, count in counts
        if count
    )


def shows_same_field(slide: Size, image: Size, tile: Size) -> bool:
    """Whether an image shows the same field as the slide at another scale, which one downsample then explains.

    Args:
        slide: Width and height of the slide, at least 1.
        image: Width and height of the image, at least 1.
        tile: Width and height of the image's tiles, 0 if it has none.

    Either both sides of the image were rounded, or both were padded to whole tiles. A padded side is less than a
    tile longer than what it shows.
    """
    rounded: list[tuple[float, float]] = []
    padded: list[tuple[float, float]] = []
    for full, side, block in zip(slide, image, tile, strict=True):
        rounded.append((full / (side * (1 + ROUNDING) + 1), _over(full, side * (1 - ROUNDING) - 1)))
        padded.append((full / side, _over(full, side - block)))
    (from_x, to_x), (from_y, to_y) = rounded
    if max(from_x, from_y) <= min(to_x, to_y):
        return True
    (from_x, to_x), (from_y, to_y) = padded
    in_whole_tiles = not any(block and side % block for side, block in zip(image, tile, strict=True))
    return in_whole_tiles and max(from_x, from_y) < min(to_x, to_y)


def _over(full: float, side: float) -> float:
    return full / side if side > 0 else float("inf")


class TileFile:
    """An open file that is read by position, from any thread. It closes when nobody holds it any more.

    It is not a context manager: a thread may still read while another one closes the reader, and a file descriptor
    that was closed meanwhile could by then belong to another file.
    """

    def __init__(self, path: Path) -> None:
        self._close = os.close  # kept: at the interpreter's end the module may be gone first
        self._fd = os.open(path, open_flags(os.O_RDONLY))
        self._read = reader_by_position(self._fd)
        self._path = path
        self._cached: CachedFile | None = None
        self._anew = False

    @property
    def size(self) -> int:
        """Length of the file in bytes."""
        return os.fstat(self._fd).st_size

    def read_through(self, cache: DiskCache, *, anew: bool = False) -> None:
        """From now on, read what a cache on a local disk holds from there, and store there what it lacks.

        ``anew`` reads everything from the file itself, and replaces what the cache holds.
        """
        self._anew = anew
        self._cached = cache.file(self._path, os.fstat(self._fd), self._read_itself)

    def read(self, offset: int, count: int) -> bytes:
        """Read ``count`` bytes from ``offset`` on, or fewer if the file ends."""
        if self._cached is not None:
            return self._cached.read(offset, count, self._read_itself, anew=self._anew)
        return self._read_itself(offset, count)

    def _read_itself(self, offset: int, count: int) -> bytes:
        data = self._read(count, offset)
        while len(data) < count:  # a single read stops at 2 GiB, and may be interrupted
            more = self._read(count - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def read_parts(self, parts: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Read the bytes of each (offset, count), in the given order. Neighbours in the file are read at once.

        An entry is shorter than asked for if the file ends.
        """
        data: list[memoryview] = []
        for run in _runs(parts):
            start = run[0][0]
            span = memoryview(self.read(start, sum(run[-1]) - start))
            data += [span[offset - start : offset - start + count] for offset, count in run]
        return data

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self._close(self._fd)


def read_tiles(files: Sequence[TileFile], layout: TileLayout, numbers: NDArray[np.int64]) -> list[memoryview]:
    """Read the stored bytes of the tiles ``numbers`` of a level. The parts of a tile are joined.

    An entry is shorter than stated if its file ends.
    """
    offsets, counts = layout.offsets[numbers], layout.byte_counts[numbers]
    in_files = [0] if layout.files is None else np.unique(layout.files[numbers]).tolist()
    if len(in_files) == 1 and offsets.ndim == 1:
        return files[in_files[0]].read_parts(list(zip(offsets.tolist(), counts.tolist(), strict=True)))
    if layout.files is None and (offsets[:, :-1] + counts[:, :-1] == offsets[:, 1:]).all():
        # Each tile's parts lie one after the other.
        return files[0].read_parts(
            list(zip(offsets[:, 0].tolist(), counts.sum(axis=1).tolist(), strict=True))
        )
    n_parts = 1 if offsets.ndim == 1 else offsets.shape[1]
    places = np.zeros(len(numbers), np.int32) if layout.files is None else layout.files[numbers]
    of_parts, offsets, counts = np.repeat(places, n_parts), offsets.ravel(), counts.ravel()
    data: list[memoryview] = [memoryview(b"")] * len(offsets)
    for place in np.unique(of_parts).tolist():
        here = np.flatnonzero((of_parts == place) & (counts > 0))
        here = here[np.argsort(offsets[here], kind="stable")]  # what lies together is read at once
        parts = list(zip(offsets[here].tolist(), counts[here].tolist(), strict=True))
        for index, part in zip(here.tolist(), files[place].read_parts(parts), strict=True):
            data[index] = part
    if n_parts == 1:
        return data
    return [memoryview(b"".join(data[at : at + n_parts])) for at in range(0, len(data), n_parts)]


def _runs(parts: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Cut ``parts`` into runs that are read at once.

    A run ends if the next part lies before its end or far behind it, or would make it too long.
    """
    run: list[tuple[int, int]] = []
    for offset, count in parts:
        if run and (
            not 0 <= offset - sum(run[-1]) <= LARGEST_GAP or offset + count - run[0][0] > LARGEST_READ
        ):
            yield run
            run = []
        run.append((offset, count))
    if run:
        yield run
