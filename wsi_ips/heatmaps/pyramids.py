"""Maps of raw values as pyramids of pixels, in place on their slide: OME-TIFF, OME-Zarr and Deep Zoom.

The exports are :class:`OmeTiff`, :class:`OmeZarr` and :class:`DeepZoom`. :class:`HeatPyramid` makes the pixels,
band by band: pixel (i, j) of level k is the level-0 area [i, i + 1) * l0_per_px * 2^k by [j, j + 1) * l0_per_px *
2^k, beginning at the slide's corner. Level 0 has the value of the patches that contain a pixel's centre; each
coarser level has the means of four pixels, without those that are NaN (no patch).

- OME-TIFF 2016-06, which QuPath, OMERO, napari and Fiji open: float32, 256-px tiles, reduced levels as SubIFDs of
  the one plane, NaN where there is no patch. PhysicalSizeX and -Y are µm per pixel. The first pixel begins at the
  slide's corner; a MapAnnotation (namespace ``wsi_ips``) gives that place in level-0 pixels.
- OME-Zarr 0.5 (OME-NGFF, Zarr v3, https://ngff.openmicroscopy.org/0.5/): float32, axes c, y, x, NaN where there is
  no patch. Channel 0 is the map that was asked for, the others are the slide's other maps. ``scale`` is µm per
  pixel; ``translation`` is where the first pixel's centre lies if that of the slide's first level-0 pixel is at 0,
  so that viewers that place pixels by their centres lay it exactly over the slide.
- Deep Zoom (``NAME.dzi`` and ``NAME_files/LEVEL/COLUMN_ROW.jpeg``), as OpenSeadragon reads it: the slide under its
  heat, or the heat alone on transparent tiles; 254-px tiles that share a pixel with each neighbour. Made a few
  tiles at a time, from the slide's own level that fits.

Shape suffixes: N patches; H, W rows and columns, h, w half as many.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from math import gcd
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tifffile import TiffWriter

from wsi_ips.config import LARGEST_OVERLAY_PX, HeatOptions
from wsi_ips.config.heat import DEFAULT_HEAT
from wsi_ips.errors import ConfigError
from wsi_ips.heatmaps.display_scale import colourise, colours_of
from wsi_ips.heatmaps.maps import Heat, check_same_slide
from wsi_ips.heatmaps.overlay import blend
from wsi_ips.heatmaps.raster import PatchRaster, canvas_size
from wsi_ips.slides.base import SlideReader
from wsi_ips.storage.files import whole_file, whole_folder
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.picture import slide_window
from wsi_ips.units import Size

TILE_PX = 256
"""Side of a tile of OME-TIFF and OME-Zarr, and rows of a band."""

MOST_CHOSEN_PX = 8192
"""Longest side of a map if no resolution is asked for: a quarter of a gigabyte of floats."""

STRANGE_PER_PATCH = 8
"""Pixels along the side of a patch that lies on no grid."""

ON_A_LINE = 1e-4
"""How near, in pixels, a patch's edge has to be to a pixel's edge to lie on it."""

CLASSIC_BYTES = 2**31
"""The largest map that is written with 32-bit offsets, which more programs read."""

AXES = [
    {"name": "c", "type": "channel"},
    {"name": "y", "type": "space", "unit": "micrometer"},
    {"name": "x", "type": "space", "unit": "micrometer"},
]
"""Axes of the OME-Zarr arrays."""

CHANNEL_COLOUR = "FFFF00"
"""Colour (RGB, hexadecimal) with which viewers show a channel."""

DEEPZOOM_TILE_PX, OVERLAP_PX = 254, 1
"""Side of a Deep Zoom tile without its overlap, and the overlap."""

TILES_AT_ONCE = 4
"""Tiles along the side of a block that is made at once: 1018 pixels."""

BLOCK_PX = TILES_AT_ONCE * DEEPZOOM_TILE_PX
"""A level that is no larger is made at once, and those below it by halving it."""

JPEG_QUALITY = 90
"""Quality of JPEG tiles."""

DZI = """<?xml version="1.0" encoding="UTF-8"?>
<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="{form}" Overlap="{overlap}" TileSize="{tile}">
  <Size Width="{width}" Height="{height}"/>
</Image>
"""
"""The text of the ``.dzi`` file."""


class HeatPyramid:
    """A map as a pyramid of pixels: read :meth:`bands` to their end, then :meth:`coarser`.

    ``um_per_px`` is µm per pixel of the finest level, chosen by :func:`natural_l0_per_px` if None. ``sizes`` are
    the (width, height) of the levels.

    Raises :class:`ConfigError` for pixels so small that the map would have more than 16,384 along a side, and for
    pixels larger than the slide.
    """

    def __init__(
        self, coords: PatchCoords, values_N: NDArray[np.floating], *, um_per_px: float | None = None
    ) -> None:
        self.l0_per_px = natural_l0_per_px(coords) if um_per_px is None else um_per_px / coords.slide_mpp
        least = max(coords.l0_size) / LARGEST_OVERLAY_PX
        if not self.l0_per_px >= least:
            raise ConfigError(
                f"um_per_px {um_per_px:g} is too fine: {coords.slide_id} would be larger than "
                f"{LARGEST_OVERLAY_PX} pixels; from {least * coords.slide_mpp:.4g} on it fits"
            )
        if um_per_px is not None and self.l0_per_px > max(coords.l0_size):
            raise ConfigError(
                f"um_per_px {um_per_px:g} is coarser than all of {coords.slide_id}, "
                f"{max(coords.l0_size) * coords.slide_mpp:.4g} µm"
            )
        self.um_per_px = self.l0_per_px * coords.slide_mpp
        width, height = canvas_size(coords.l0_size, self.l0_per_px)
        self.sizes: list[Size] = [(width, height)]
        while max(self.sizes[-1]) > TILE_PX:
            self.sizes.append((-(-self.sizes[-1][0] // 2), -(-self.sizes[-1][1] // 2)))
        # The last pixels stick out of the slide: with their centres outside, they are still their patches'.
        l0_ends = (np.array([width, height]) * self.l0_per_px).tolist()
        self._raster = PatchRaster.of(
            coords.l0_exact_corners(),
            coords.l0_patch,
            values_N,
            l0_size=(l0_ends[0], l0_ends[1]),
            l0_per_px=self.l0_per_px,
        )
        self._half = np.empty(self.sizes[1][::-1] if len(self.sizes) > 1 else (0, 0), np.float32)

    def bands(self) -> Iterator[NDArray[np.float32]]:
        """Level 0 from top to bottom, in bands of (256, width) float32; the last one may have fewer rows."""
        width, height = self.sizes[0]
        for top in range(0, height, TILE_PX):
            cells = self._raster.window((0, top), (width, min(TILE_PX, height - top)))
            band = cells.spread(cells.values_RC)
            if len(self.sizes) > 1:
                half = halved(band)
                self._half[top // 2 : top // 2 + len(half)] = half
            yield band

    def coarser(self) -> Iterator[NDArray[np.float32]]:
        """The levels below level 0, each (height, width) float32."""
        level = self._half
        for number in range(1, len(self.sizes)):
            yield level
            level = halved(level) if number + 1 < len(self.sizes) else level


def natural_l0_per_px(coords: PatchCoords) -> float:
    """Side in level-0 pixels of the largest pixel with which all edges of patches are edges of pixels.

    That is a patch if patches do not overlap. Every place of the slide then has exactly its own patches' value.
    Patches that lie on no grid have eight pixels along a side. The map never has more than 8192 pixels along the
    slide.
    """
    common_px = gcd(coords.patch_px, coords.overlap_px)
    l0_per_px = coords.l0_patch * common_px / coords.patch_px
    if not _on_lines(coords, l0_per_px):
        l0_per_px = coords.l0_patch / STRANGE_PER_PATCH
    return max(l0_per_px, max(coords.l0_size) / MOST_CHOSEN_PX)


def _on_lines(coords: PatchCoords, l0_per_px: float) -> bool:
    places_N2 = coords.l0_exact_corners() / l0_per_px
    return bool((np.abs(places_N2 - np.rint(places_N2)) < ON_A_LINE).all())


def halved(values_HW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of two by two pixels without those that are NaN; NaN where all four are. Odd sides are rounded up."""
    height, width = values_HW.shape
    sum_hw = np.zeros((-(-height // 2), -(-width // 2)))
    count_hw = np.zeros(sum_hw.shape, np.int8)
    for row in (0, 1):
        for column in (0, 1):
            quarter = values_HW[row::2, column::2]
            held = np.isfinite(quarter)
            into = np.s_[: quarter.shape[0], : quarter.shape[1]]
            sum_hw[into] += np.where(held, quarter, 0)
            count_hw[into] += held
    sum_hw[count_hw == 0] = np.nan
    return (sum_hw / np.maximum(count_hw, 1)).astype(np.float32)


def registration(coords: PatchCoords, pyramid: HeatPyramid) -> dict[str, str]:
    """Where the map lies on its slide, as texts by name."""
    return {
        "slide_id": coords.slide_id,
        "l0_x": "0",
        "l0_y": "0",
        "l0_width": str(coords.l0_size[0]),
        "l0_height": str(coords.l0_size[1]),
        "l0_per_px": repr(float(pyramid.l0_per_px)),
        "slide_mpp": repr(float(coords.slide_mpp)),
        "l0_patch": repr(float(coords.l0_patch)),
        "n_patches": str(len(coords)),
        "overlaps": "mean",
        "outside": "NaN",
    }


@dataclass(frozen=True, slots=True)
class OmeTiff:
    """A map as a pyramidal OME-TIFF of raw values.

    ``um_per_px`` is µm per pixel of the finest level; None: one pixel a patch, or as fine as overlaps need it.
    """

    um_per_px: float | None = None

    @property
    def suffix(self) -> str:
        """``.ome.tif``"""
        return ".ome.tif"

    @property
    def needs_slide(self) -> bool:
        """False: the file has the map only."""
        return False

    def write(self, path: Path, heat: Heat, slide: SlideReader | None = None) -> None:
        """Write one map, as :class:`wsi_ips.heatmaps.export.Exporter` describes."""
        coords = heat.coords
        if slide is not None:
            check_same_slide(slide, heat.result)
        pyramid = HeatPyramid(coords, heat.values_N, um_per_px=self.um_per_px)
        width, height = pyramid.sizes[0]
        tiled: dict[str, Any] = {
            "dtype": np.float32,
            "tile": (TILE_PX, TILE_PX),
            "photometric": "minisblack",
            "compression": "zlib",
            "resolutionunit": "CENTIMETER",
        }
        facts = {**registration(coords, pyramid), "shown": heat.shown}
        metadata = {
            "axes": "YX",
            # Not a random one: writing again gives the same bytes.
            "UUID": str(uuid5(NAMESPACE_URL, f"wsi_ips/{coords.slide_id}/{heat.shown}")),
            "Name": coords.slide_id,
            "PhysicalSizeX": pyramid.um_per_px,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": pyramid.um_per_px,
            "PhysicalSizeYUnit": "µm",
            "Channel": {"Name": [heat.shown]},
            "MapAnnotation": {"Namespace": "wsi_ips", **facts},
        }
        with (
            whole_file(path) as partial,
            TiffWriter(partial, ome=True, bigtiff=4 * width * height > CLASSIC_BYTES) as tiff,
        ):
            tiff.write(
                (tile for band in pyramid.bands() for tile in _tiles(band)),
                shape=(height, width),
                subifds=len(pyramid.sizes) - 1,
                resolution=(1e4 / pyramid.um_per_px, 1e4 / pyramid.um_per_px),
                metadata=metadata,
                **tiled,
            )
            for number, level in enumerate(pyramid.coarser(), start=1):
                per_cm = 1e4 / (pyramid.um_per_px * 2**number)
                tiff.write(
                    _tiles(level), shape=level.shape, subfiletype=1, resolution=(per_cm, per_cm), **tiled
                )


def _tiles(values_HW: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Tiles along rows, padded with NaN to whole tiles."""
    height, width = values_HW.shape
    for top in range(0, height, TILE_PX):
        for left in range(0, width, TILE_PX):
            tile = np.full((TILE_PX, TILE_PX), np.nan, np.float32)
            part = values_HW[top : top + TILE_PX, left : left + TILE_PX]
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile


@dataclass(frozen=True, slots=True)
class OmeZarr:
    """A slide's maps as an OME-Zarr image of raw values, one channel a map. It needs the package zarr.

    ``um_per_px`` is µm per pixel of the finest level; None: one pixel a patch, or as fine as overlaps need it.
    """

    um_per_px: float | None = None

    @property
    def suffix(self) -> str:
        """``.ome.zarr``"""
        return ".ome.zarr"

    @property
    def needs_slide(self) -> bool:
        """False: the image has the maps only."""
        return False

    def write(self, path: Path, heat: Heat, slide: SlideReader | None = None) -> None:
        """Write the maps, as :class:`wsi_ips.heatmaps.export.Exporter` describes."""
        import zarr  # an optional package: this module's other exports work without it

        coords = heat.coords
        if slide is not None:
            check_same_slide(slide, heat.result)
        maps = {heat.shown: heat.values_N, **heat.others}
        pyramids = [HeatPyramid(coords, values_N, um_per_px=self.um_per_px) for values_N in maps.values()]
        with whole_folder(path) as partial:
            group = zarr.open_group(partial, mode="w", zarr_format=3)
            levels = [_array(group, number, pyramids) for number in range(len(pyramids[0].sizes))]
            for channel, pyramid in enumerate(pyramids):
                for number, band in enumerate(pyramid.bands()):
                    top = number * TILE_PX
                    levels[0][channel, top : top + len(band)] = band
                for level, values_HW in zip(levels[1:], pyramid.coarser(), strict=True):
                    level[channel] = values_HW
            group.attrs["ome"] = {
                "version": "0.5",
                "multiscales": [_multiscale(coords.slide_id, pyramids[0], float(coords.slide_mpp))],
                "omero": {"channels": [_channel(name, values_N) for name, values_N in maps.items()]},
            }
            group.attrs["wsi_ips"] = {**registration(coords, pyramids[0]), "shown": heat.shown}


def _array(group: Any, number: int, pyramids: list[HeatPyramid]) -> Any:
    width, height = pyramids[0].sizes[number]
    return group.create_array(
        str(number),
        shape=(len(pyramids), height, width),
        chunks=(1, TILE_PX, TILE_PX),
        dtype="float32",
        fill_value=float("nan"),
        dimension_names=[axis["name"] for axis in AXES],
    )


def _multiscale(name: str, pyramid: HeatPyramid, slide_mpp: float) -> dict[str, Any]:
    datasets = []
    for number in range(len(pyramid.sizes)):
        um = pyramid.um_per_px * 2**number
        centre = (um - slide_mpp) / 2
        transforms = [
            {"type": "scale", "scale": [1.0, um, um]},
            {"type": "translation", "translation": [0.0, centre, centre]},
        ]
        datasets.append({"path": str(number), "coordinateTransformations": transforms})
    return {"name": name, "axes": AXES, "datasets": datasets, "type": "mean"}


def _channel(name: str, values_N: np.ndarray[Any, np.dtype[np.float32]]) -> dict[str, Any]:
    low, high = (float(values_N.min()), float(values_N.max())) if len(values_N) else (0.0, 1.0)
    window = {"start": low, "end": high, "min": low, "max": high}
    return {"label": name, "color": CHANNEL_COLOUR, "active": True, "window": window}


@dataclass(frozen=True, slots=True)
class DeepZoom:
    """A slide under its heat, or the heat alone, as a Deep Zoom image.

    ``options`` holds the colours, the opacity of the heat and ``side_px``, the longest side of the finest level;
    None, or more than the slide has, means the slide's own. With ``heat_only``, tiles are transparent PNGs without
    the slide, which is then not needed.
    """

    options: HeatOptions = DEFAULT_HEAT
    heat_only: bool = False

    @property
    def suffix(self) -> str:
        """``.dzi``"""
        return ".dzi"

    @property
    def needs_slide(self) -> bool:
        """Whether tiles show the slide."""
        return not self.heat_only

    def write(self, path: Path, heat: Heat, slide: SlideReader | None = None) -> None:
        """Write one map, as :class:`wsi_ips.heatmaps.export.Exporter` describes.

        The tiles are complete before the ``.dzi`` exists.

        Raises :class:`ConfigError` without the slide, unless ``heat_only``.
        """
        if slide is not None:
            check_same_slide(slide, heat.result)
        elif not self.heat_only:
            raise ConfigError("deepzoom needs the slide; give it, or set heat_only")
        l0_size, side_px = heat.coords.l0_size, self.options.side_px or max(heat.coords.l0_size)
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
        text = DZI.format(form=form, overlap=OVERLAP_PX, tile=DEEPZOOM_TILE_PX, width=width, height=height)
        with whole_file(path) as partial:
            partial.write_text(text, encoding="utf-8")


class _Tiles:
    """The tiles of a Deep Zoom image, level by level."""

    def __init__(self, exporter: DeepZoom, heat: Heat, slide: SlideReader | None) -> None:
        self.heat, self.slide, self.alpha = heat, slide, exporter.options.alpha
        self.display = heat.scale(exporter.options)
        self.table = colours_of(exporter.options, heat.kind)
        self._rasters: dict[float, PatchRaster] = {}

    def level(self, size: Size, l0_per_px: float) -> Iterator[tuple[str, Image.Image]]:
        """Every tile of a level with its name, COLUMN_ROW."""
        columns, rows = (-(-length // DEEPZOOM_TILE_PX) for length in size)
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
    """The tiles of a level of ``size`` that lie completely in a block that begins at ``at_px`` (x, y)."""
    x, y = at_px
    for row in _inside(y, y + block.height, size[1]):
        for column in _inside(x, x + block.width, size[0]):
            across, down = _span(column, size[0]), _span(row, size[1])
            yield f"{column}_{row}", block.crop((across[0] - x, down[0] - y, across[1] - x, down[1] - y))


def _inside(start: int, end: int, length: int) -> range:
    """Numbers of the tiles along one side whose pixels all lie in [start, end)."""
    first = 0 if start == 0 else (start + OVERLAP_PX) // DEEPZOOM_TILE_PX
    past = -(-length // DEEPZOOM_TILE_PX) if end == length else (end - OVERLAP_PX) // DEEPZOOM_TILE_PX
    return range(first, past)


def _span(number: int, length: int) -> tuple[int, int]:
    """First pixel of a tile and the one past its last, including the overlap with its neighbours."""
    return max(0, number * DEEPZOOM_TILE_PX - OVERLAP_PX), min(
        (number + 1) * DEEPZOOM_TILE_PX + OVERLAP_PX, length
    )
