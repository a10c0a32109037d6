"""The slide under its heat as a Deep Zoom image, or the heat alone on transparent tiles, for web viewers.

Format: Deep Zoom (``NAME.dzi`` and ``NAME_files/LEVEL/COLUMN_ROW.jpeg``), as OpenSeadragon reads it; 254-px tiles
that share a pixel with each neighbour. Made a few tiles at a time, from the slide's own level that fits.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from wsi_ips.errors import ConfigError
from wsi_ips.files import whole_file, whole_folder
from wsi_ips.heatmaps.colours import HeatColours, colourise
from wsi_ips.heatmaps.maps import Heat, check_same_slide
from wsi_ips.heatmaps.overlay import blend
from wsi_ips.heatmaps.raster import PatchRaster, canvas_size
from wsi_ips.slides.base import SlideReader
from wsi_ips.tiling.picture import slide_window
from wsi_ips.units import Size

TILE_PX, OVERLAP_PX = 254, 1
TILES_AT_ONCE = 4
"""Along a side: a block of 1018 pixels is made at once."""
BLOCK_PX = TILES_AT_ONCE * TILE_PX
"""A level that is no larger is made at once, and those below it by halving it."""
JPEG_QUALITY = 90
DZI = """<?xml version="1.0" encoding="UTF-8"?>
<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="{form}" Overlap="{overlap}" TileSize="{tile}">
  <Size Width="{width}" Height="{height}"/>
</Image>
"""


@dataclass(frozen=True, slots=True)
class DeepZoom:
    """side_px: longest side of the finest level; None, or more than the slide has: the slide's own. heat_only:
    transparent PNG tiles without the slide, which then is not needed. alpha: opacity of the heat.
    """

    colours: HeatColours = field(default_factory=HeatColours)
    alpha: float = 0.5
    side_px: int | None = None
    heat_only: bool = False

    @property
    def suffix(self) -> str:
        return ".dzi"

    @property
    def needs_slide(self) -> bool:
        return not self.heat_only

    def write(self, path: Path, heat: Heat, slide: SlideReader | None = None) -> None:
        """See :meth:`wsi_ips.heatmaps.export.Exporter.write`. The tiles are whole before the ``.dzi`` is there."""
        if slide is not None:
            check_same_slide(slide, heat.coords)
        elif not self.heat_only:
            raise ConfigError("deepzoom needs the slide, or heat_only")
        l0_size, side_px = heat.coords.l0_size, self.side_px or max(heat.coords.l0_size)
        l0_per_px = max(1.0, max(l0_size) / side_px)
        tiles = _Tiles(self, heat, None if self.heat_only else slide)
        width, height = canvas_size(l0_size, l0_per_px)
        form = "png" if self.heat_only else "jpeg"
        path.unlink(missing_ok=True)
        with whole_folder(path.with_name(f"{path.stem}_files")) as folder:
            count = (max(width, height) - 1).bit_length() + 1
            small: Image.Image | None = None
            for below in range(count):
                size = (-(-width // 2**below), -(-height // 2**below))
                if small is not None:
                    small = small.reduce(2)
                elif max(size) <= BLOCK_PX:
                    small = tiles.block((0, 0), size, l0_per_px * 2**below)
                level = folder / str(count - 1 - below)
                level.mkdir()
                named = (
                    tiles.level(size, l0_per_px * 2**below) if small is None else _cut(small, (0, 0), size)
                )
                for name, image in named:
                    # Through memory: Pillow does not notice a disk on which a JPEG has no room.
                    encoded = BytesIO()
                    image.save(encoded, format=form, quality=JPEG_QUALITY, subsampling=0)
                    (level / f"{name}.{form}").write_bytes(encoded.getvalue())
        text = DZI.format(form=form, overlap=OVERLAP_PX, tile=TILE_PX, width=width, height=height)
        with whole_file(path) as partial:
            partial.write_text(text, encoding="utf-8")


class _Tiles:
    def __init__(self, options: DeepZoom, heat: Heat, slide: SlideReader | None) -> None:
        self.heat, self.slide, self.alpha = heat, slide, options.alpha
        self.display = options.colours.display(heat.values_N, heat.kind)
        self.table = options.colours.table(heat.kind)
        self._rasters: dict[float, PatchRaster] = {}

    def level(self, size: Size, l0_per_px: float) -> Iterator[tuple[str, Image.Image]]:
        """Every tile of a level with its name, COLUMN_ROW."""
        columns, rows = (-(-length // TILE_PX) for length in size)
        for top in range(0, rows, TILES_AT_ONCE):
            for left in range(0, columns, TILES_AT_ONCE):
                x0, y0 = _span(left, size[0])[0], _span(top, size[1])[0]
                x1 = _span(min(left + TILES_AT_ONCE, columns) - 1, size[0])[1]
                y1 = _span(min(top + TILES_AT_ONCE, rows) - 1, size[1])[1]
                yield from _cut(self.block((x0, y0), (x1 - x0, y1 - y0), l0_per_px), (x0, y0), size)

    def block(self, at_px: tuple[int, int], size_px: Size, l0_per_px: float) -> Image.Image:
        """A part of the picture at this scale: RGB, or RGBA of the heat alone."""
        cells = self._raster(l0_per_px).window(at_px, size_px)
        if self.slide is not None:
            picture = slide_window(self.slide, at_px, size_px, l0_per_px=l0_per_px)
            blend(picture, cells, self.display, self.table, self.alpha)
            return Image.fromarray(picture)
        held = self.display.coloured(cells.values_RC)
        rgb = colourise(np.nan_to_num(self.display(cells.values_RC)), self.table)
        opacity = (held * round(self.alpha * 255)).astype(np.uint8)
        return Image.fromarray(cells.spread(np.dstack([rgb * held[..., None], opacity])))

    def _raster(self, l0_per_px: float) -> PatchRaster:
        if l0_per_px not in self._rasters:
            coords = self.heat.coords
            self._rasters = {
                l0_per_px: PatchRaster.of(
                    coords.l0_exact_corners(),
                    coords.l0_patch,
                    self.heat.values_N,
                    l0_size=coords.l0_size,
                    l0_per_px=l0_per_px,
                )
            }
        return self._rasters[l0_per_px]


def _cut(block: Image.Image, at_px: tuple[int, int], size: Size) -> Iterator[tuple[str, Image.Image]]:
    """The tiles of a level of ``size`` that lie whole in a block of it that begins at ``at_px``, (x, y)."""
    x, y = at_px
    for row in _inside(y, y + block.height, size[1]):
        for column in _inside(x, x + block.width, size[0]):
            across, down = _span(column, size[0]), _span(row, size[1])
            yield f"{column}_{row}", block.crop((across[0] - x, down[0] - y, across[1] - x, down[1] - y))


def _inside(start: int, end: int, length: int) -> range:
    """Numbers of the tiles along one side whose pixels are all in [start, end)."""
    first = 0 if start == 0 else (start + OVERLAP_PX) // TILE_PX
    past = -(-length // TILE_PX) if end == length else (end - OVERLAP_PX) // TILE_PX
    return range(first, past)


def _span(number: int, length: int) -> tuple[int, int]:
    """First pixel of a tile and the one past its last, the overlap with its neighbours included."""
    return max(0, number * TILE_PX - OVERLAP_PX), min((number + 1) * TILE_PX + OVERLAP_PX, length)
