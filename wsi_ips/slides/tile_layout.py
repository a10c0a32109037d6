"""Whether an image shows the same field as the slide, at another scale, by its shape.

Files mark a tiled macro or label in the same way as a level, and OpenSlide takes it for one: patches would then be
read from it.

Where the stored tiles of a slide lie: what a container's parser hands to the reader.

Bytes of a slide's open files, from any thread.
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
from wsi_ips.units import Mpp, Size

ROUNDING = 0.01
"""By which share a level's side may differ from the slide's divided by the downsample: some writers make sides
even, or multiples of 16."""

ANOTHER_SHAPE = "its shape is not that of the slide, {0}x{1} px, so it is no level of it"


def shows_same_field(slide: Size, image: Size, tile: Size) -> bool:
    """Whether one downsample explains both sides of the image; all sizes are (width, height), 1 or more.

    Either both sides were rounded, or both were padded to whole tiles. A padded side is less than a tile longer
    than what it shows.
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


TRUNCATED = "copy it again: the copy or download was cut short"


@dataclass(frozen=True, slots=True, kw_only=True)
class TileLayout:
    """The tiles of one level, in a regular grid: tile (col, row) covers the level's pixels from
    (col, row) * tile_size on. With :attr:`placed` they lie elsewhere.

    The tiles may reach beyond ``level_size``, by more than a tile where a container pads its levels; what
    lies beyond is white.
    """

    level_size: Size
    tile: TileFormat
    cols: int
    rows: int
    offsets: NDArray[np.int64]
    """(rows * cols,) row by row, or (rows * cols, parts): where each tile's bytes start in its file."""
    byte_counts: NDArray[np.int64]
    """Of the same shape. A tile whose parts all have 0 bytes was never written: it is white."""
    files: NDArray[np.int32] | None = None
    """(rows * cols,) place in :attr:`SlideLayout.files` of the file that holds the tile; None: the first."""
    placed: PlacedTiles | None = None
    """Where the tiles lie if not in a grid. ``cols`` and ``rows`` then only number them."""

    @property
    def tile_size(self) -> Size:
        return self.tile.size

    @property
    def places(self) -> TilePlaces:
        """Where on the level the tiles lie."""
        return self.placed or RegularTiles(self.level_size, self.tile_size, self.cols, self.rows)

    @property
    def missing(self) -> NDArray[np.bool_]:
        """(rows * cols,) which tiles were never written."""
        return np.asarray((self.byte_counts.reshape(len(self.byte_counts), -1) == 0).all(axis=1))


def tiles_without_data(levels: Sequence[TileLayout]) -> tuple[LeftOut, ...]:
    """What to say of tiles that were never written, of containers whose every tile should be."""
    counts = [(level, int(tiles.missing.sum())) for level, tiles in enumerate(levels)]
    return tuple(
        LeftOut(f"{count} {'tile' if count == 1 else 'tiles'} of level {level}", "without data, and so white")
        for level, count in counts
        if count
    )


class AssociatedImage(Protocol):
    """A picture that comes with a slide and is no level of it: label, macro, thumbnail."""

    @property
    def size(self) -> Size: ...

    def read(self, path: Path) -> RgbImage:
        """(height, width, 3) uint8. Raises :class:`SlideReadError`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideLayout:
    """Everything that a container's headers say of a slide. Levels run from the finest (0) to the coarsest."""

    vendor: str
    files: tuple[Path, ...]
    levels: tuple[TileLayout, ...]
    downsamples: tuple[float, ...] | None = None
    """Level-0 pixels per pixel of each level; None: the mean of the ratios of widths and heights, as OpenSlide
    has it where a container says nothing else."""
    mpp_xy: tuple[Mpp, Mpp] | None = None
    bounds: Bounds | None = None
    associated: Mapping[str, AssociatedImage] = field(default_factory=dict)
    """By name: ``label``, ``macro``, ``thumbnail``."""
    left_out: tuple[LeftOut, ...] = ()
    icc_profile: bool = False

    def described_levels(self) -> tuple[Level, ...]:
        """Sizes and downsamples."""
        factors = self.downsamples or tuple(size_downsample(level, self.levels[0]) for level in self.levels)
        return tuple(Level(level.level_size, d) for level, d in zip(self.levels, factors, strict=True))


def size_downsample(level: TileLayout, finest: TileLayout) -> float:
    """The mean of the ratios of widths and heights, as OpenSlide computes it."""
    (width, height), (l0_width, l0_height) = level.level_size, finest.level_size
    return (l0_height / height + l0_width / width) / 2


def hull_of_written_tiles(level: TileLayout) -> Bounds | None:
    """The rectangle around all tiles of level 0 that hold data, cut to the level, as OpenSlide states it.

    None where it is the whole level, or where no tile holds data.
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


LARGEST_GAP = 16 << 10
"""Bytes between two tiles that are read along rather than skipped."""

LARGEST_READ = 4 << 20


class TileFile:
    """An open file that is read by position. It closes when nobody holds it any more.

    Not ``with``: a thread may still read while another closes the reader, and a file descriptor that was
    closed under it could by then be another file's.
    """

    def __init__(self, path: Path) -> None:
        self._close = os.close  # kept: at the interpreter's end the module may be gone first
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes from ``offset``, or fewer where the file ends."""
        data = os.pread(self._fd, count, offset)
        while len(data) < count:  # a single read stops at 2 GiB, and may be interrupted
            more = os.pread(self._fd, count - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def read_parts(self, parts: Sequence[tuple[int, int]]) -> list[memoryview]:
        """The bytes of each (offset, count), in the order given; neighbours in the file are read at once.

        Shorter than asked where the file ends.
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
    """The stored bytes of these tiles of a level; those of a tile with several parts one after the other.

    Shorter than stated where a file ends.
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
    """Cut ``parts`` where the next one lies before the last one's end, or far behind it."""
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
