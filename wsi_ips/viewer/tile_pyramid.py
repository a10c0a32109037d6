"""Which part of a slide a tile's address means: Deep Zoom's levels, each half the one above, tiles without
overlap.

Level numbers are Deep Zoom's: 0 is a single pixel, the last one the slide's own level 0.
"""

from dataclasses import dataclass

from wsi_ips.heatmaps.raster import canvas_size
from wsi_ips.units import Size

TILE_PX = 512
"""Side of a tile: a quarter of the requests that 256 pixels would take."""


class NoSuchTile(LookupError):
    """An address outside the pyramid."""


@dataclass(frozen=True, slots=True)
class Window:
    """The pixels of ``size_px`` (width, height) from ``at_px`` (x, y) on, of the slide at this scale."""

    at_px: tuple[int, int]
    size_px: Size
    l0_per_px: float


@dataclass(frozen=True, slots=True)
class TilePyramid:
    """The pyramid of a slide of ``l0_size`` (width, height)."""

    l0_size: Size
    tile_px: int = TILE_PX

    @property
    def top_level(self) -> int:
        """The number of the finest level."""
        return (max(self.l0_size) - 1).bit_length()

    def window(self, level: int, col: int, row: int) -> Window:
        """What tile (col, row) of a level shows. Raises :class:`NoSuchTile`."""
        if not 0 <= level <= self.top_level:
            raise NoSuchTile(f"level {level}: there are 0 to {self.top_level}")
        l0_per_px = float(2 ** (self.top_level - level))
        width, height = canvas_size(self.l0_size, l0_per_px)
        x, y = col * self.tile_px, row * self.tile_px
        if not (0 <= x < width and 0 <= y < height):
            raise NoSuchTile(f"level {level} has no tile ({col}, {row})")
        size = (min(self.tile_px, width - x), min(self.tile_px, height - y))
        return Window((x, y), size, l0_per_px)
