"""Where the stored tiles of a slide lie: what a container's parser hands to the reader."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_ips.slides.base import Bounds, LeftOut, Level, RgbImage
from wsi_ips.slides.codecs.base import TileFormat
from wsi_ips.slides.placed_tiles import PlacedTiles
from wsi_ips.slides.tile_places import RegularTiles, TilePlaces
from wsi_ips.units import Mpp, Size

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
