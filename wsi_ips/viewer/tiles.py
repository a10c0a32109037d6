"""What the viewer shows of a slide, tile by tile: its pixels, and a map over them.

Tiles of a slide: their addresses (:class:`TilePyramid`), and their pixels as JPEG (:func:`slide_tile`).

Addresses are Deep Zoom's without overlap: level 0 is a single pixel, each level has twice the resolution of the
one before, and the last one is the slide's own level 0. Pixels come straight from the reader; colours are the
file's own, and no ICC profile is applied. :class:`LruCache` holds the few large things that are worth keeping:
open slides, attention that was read, maps of it.

A map as the viewer shows it: :class:`MapChoice` says which one, :class:`ShownMap` has its tiles.

Shape suffixes: N patches, R, C rows and columns of cells, H, W rows and columns of a tile.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from math import ceil, floor, log2
from threading import Lock
from typing import Any, Generic, Self, TypeVar, get_args

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from wsi_ips.config import HeatOptions
from wsi_ips.config.heat import Colormap, MapKind
from wsi_ips.errors import ConfigError
from wsi_ips.heatmaps.display_scale import DisplayScale, colourise, colours_of
from wsi_ips.heatmaps.maps import Heat, choose_heat
from wsi_ips.heatmaps.overlay import legend_ticks
from wsi_ips.heatmaps.pyramids import halved
from wsi_ips.heatmaps.raster import PatchRaster, canvas_size
from wsi_ips.inference.results import SlideResult
from wsi_ips.slides.base import RgbImage, SlideReader
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.picture import slide_window
from wsi_ips.units import Size

Kept = TypeVar("Kept")

TILE_PX = 512
"""Side of a tile: a quarter of the requests that 256 pixels would take."""

JPEG_QUALITY = 88
"""Quality of the JPEGs."""

MOST_READ_PX = 16_000_000
"""Pixels that one tile reads at once; if no level is coarse enough, the slide is read block by block."""


class NoSuchTile(LookupError):
    """An address outside the pyramid."""


@dataclass(frozen=True, slots=True)
class Window:
    """A part of the slide at one scale: ``size_px`` (width, height) from ``at_px`` (x, y) on.

    ``l0_per_px`` is the side of a pixel in level-0 pixels.
    """

    at_px: tuple[int, int]
    size_px: Size
    l0_per_px: float


@dataclass(frozen=True, slots=True)
class TilePyramid:
    """Addresses of the tiles of a slide of ``l0_size`` (width, height)."""

    l0_size: Size
    tile_px: int = TILE_PX

    @property
    def top_level(self) -> int:
        """The number of the finest level."""
        return (max(self.l0_size) - 1).bit_length()

    def window(self, level: int, col: int, row: int) -> Window:
        """What tile (col, row) of a level shows. Raises :class:`NoSuchTile` for an address outside the pyramid."""
        if not 0 <= level <= self.top_level:
            raise NoSuchTile(f"level {level}: there are 0 to {self.top_level}")
        l0_per_px = float(2 ** (self.top_level - level))
        width, height = canvas_size(self.l0_size, l0_per_px)
        x, y = col * self.tile_px, row * self.tile_px
        if not (0 <= x < width and 0 <= y < height):
            raise NoSuchTile(f"level {level} has no tile ({col}, {row})")
        size = (min(self.tile_px, width - x), min(self.tile_px, height - y))
        return Window((x, y), size, l0_per_px)


def slide_tile(slide: SlideReader, window: Window) -> bytes:
    """The window as JPEG. Raises the reader's :class:`SlideReadError`."""
    return encode_jpeg(slide_pixels(slide, window))


def encode_jpeg(pixels: RgbImage) -> bytes:
    """Pixels, (height, width, 3) uint8, as JPEG.

    Chroma is not subsampled, which would blur the edges of nuclei.
    """
    return bytes(
        simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), JPEG_QUALITY, "RGB", colorsubsampling="444")
    )


def slide_pixels(slide: SlideReader, window: Window) -> RgbImage:
    """The window's pixels, (height, width, 3) uint8, white beyond the slide.

    Each pixel is the mean of the area that it covers.

    This is several times faster than :func:`slide_window`, because Pillow averages whole pixels; the exact shares
    of pixels do not matter to the eye. Raises the reader's :class:`SlideReadError`.
    """
    l0_per_px = window.l0_per_px
    level = slide.info.level_for(l0_per_px)
    edges = [
        (at * l0_per_px * lv_length / l0_length, (at + pixels) * l0_per_px * lv_length / l0_length)
        for at, pixels, l0_length, lv_length in zip(
            window.at_px, window.size_px, slide.info.l0_size, slide.info.levels[level].size, strict=True
        )
    ]
    starts = [floor(start + 1e-6) for start, _ in edges]
    read_px = (ceil(edges[0][1] - 1e-6) - starts[0], ceil(edges[1][1] - 1e-6) - starts[1])
    if read_px[0] * read_px[1] > MOST_READ_PX:
        return slide_window(slide, window.at_px, window.size_px, l0_per_px=l0_per_px)
    downsample = slide.info.levels[level].downsample
    l0_at = (round(starts[0] * downsample), round(starts[1] * downsample))
    pixels = slide.read(l0_at, level=level, size_px=read_px)
    if read_px == window.size_px and all(abs(edge[0] - at) < 0.01 for edge, at in zip(edges, starts)):
        return pixels
    return _resized(pixels, window.size_px, starts, edges)


def _resized(
    pixels: RgbImage, size_px: Size, starts: list[int], edges: list[tuple[float, float]]
) -> RgbImage:
    height, width = pixels.shape[:2]
    (x0, x1), (y0, y1) = (
        (max(0.0, start - at), end - at) for at, (start, end) in zip(starts, edges, strict=True)
    )
    box = (x0, y0, min(x1, width), min(y1, height))
    smaller = box[2] - box[0] >= size_px[0]
    # For the eye alone, where Pillow's BOX (whole pixels, not their parts) will do.
    rule = Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize(size_px, rule, box=box))


class LruCache(Generic[Kept]):
    """A cache of the ``most`` items that were used last. Safe to use from several threads.

    An item that is dropped is not closed, because another thread may still use it. Two threads that ask for the
    same new item wait for each other, but not for other threads.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: OrderedDict[Hashable, Kept] = OrderedDict()
        self._making: dict[Hashable, Lock] = {}
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """The item under ``key``, which ``make`` makes if it is not cached.

        If ``make`` raises, nothing is cached.
        """
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key]
            making = self._making.setdefault(key, Lock())
        with making:
            with self._lock:
                if key in self._items:
                    return self._items[key]
            try:
                made = make()
                with self._lock:
                    self._items[key] = made
                    while len(self._items) > self._most:
                        self._items.popitem(last=False)
                return made
            finally:
                with self._lock:
                    self._making.pop(key, None)

    def peek(self, key: Hashable) -> Kept | None:
        """The item under ``key``, or None if it is not cached. This does not count as a use."""
        with self._lock:
            return self._items.get(key)


FASTEST = 1
"""Compression level of zlib: a tile of flat squares is small at any level."""

NO_PATCH = -1
"""Number of the colour where there is no patch: transparent."""

LEGEND_COLOURS = 65
"""Colours of the legend: an odd number, so that the colour of a contribution of 0 is one of them."""

OF_ATTENTION = ("even", "rank", "absolute")
"""Scales that maps of attention can have."""


def options_asked_for(asked: Mapping[str, str]) -> HeatOptions:
    """The map that a query string chooses; parameters that are not known are ignored.

    The colours are those of attention, since contributions have their own. Raises :class:`ConfigError` for a value
    that is not possible.
    """
    choices = {
        "map": (asked.get("map"), get_args(MapKind)),
        "colormap": (asked.get("colormap", "blue_yellow"), get_args(Colormap)),
        "scale": (asked.get("scale", "even"), OF_ATTENTION),
    }
    for name, (value, known) in choices.items():
        if value is not None and value not in known:
            raise ConfigError(f"{name} {value!r} is not known: {', '.join(known)}")
    if "task" in asked and "query" in asked:
        raise ConfigError("task and query name the same thing: give one of them")
    options: dict[str, Any] = {name: value for name, (value, _) in choices.items()}
    options |= {end: _number(asked, end) for end in ("low", "high")}
    options |= {name: _index(asked, name) for name in ("query", "head")}
    return HeatOptions(task=asked.get("task"), class_name=asked.get("class"), **options)


@dataclass(frozen=True, slots=True, eq=False)
class ShownMap:
    """One map of one slide with its colour scale."""

    heat: Heat
    values_N: NDArray[np.float32]
    kept_ids: frozenset[int]
    display: DisplayScale
    table: NDArray[np.uint8]

    @classmethod
    def of(cls, result: SlideResult, choice: HeatOptions) -> Self:
        """The map of this choice.

        Raises :class:`ConfigError` for a map that the slide does not have, and :class:`ResultsError` for values
        that are not finite.
        """
        heat = choose_heat(result, choice, alone=True)
        colours = choice if heat.kind == "attention" else choice.in_default_colours()
        return cls(
            heat=heat,
            values_N=heat.values_N,
            kept_ids=frozenset(result.kept_ids_M.tolist()),
            display=heat.scale(colours),
            table=colours_of(colours, heat.kind),
        )

    @property
    def coords(self) -> PatchCoords:
        """The slide's patches."""
        return self.heat.coords

    def raster(self, l0_per_px: float) -> PatchRaster:
        """Where the patches lie at this scale. All maps of the slide share it, see :meth:`tile`."""
        return PatchRaster.of(
            self.coords.l0_exact_corners(),
            self.coords.l0_patch,
            self.values_N,
            l0_size=self.coords.l0_size,
            l0_per_px=l0_per_px,
        )

    def halvings(self, l0_per_px: float) -> int:
        """How often a tile is made twice as fine and then halved, so that no patch falls between two pixels."""
        coords = self.coords
        l0_step = coords.l0_patch * (coords.patch_px - coords.overlap_px) / coords.patch_px
        return max(0, ceil(log2(l0_per_px / l0_step) - 1e-9)) if l0_step > 0 else 0

    def tile(self, window: Window, raster: PatchRaster, halvings: int) -> bytes:
        """The window as PNG.

        A patch's pixels are opaque; those without a patch, or of a patch that contributes exactly nothing, are
        transparent. ``raster`` has to be of this scale, twice as fine for each of ``halvings``. A pixel larger
        than a patch has the mean of its patches' raw values.
        """
        factor = 2**halvings
        x, y = window.at_px
        width, height = window.size_px
        cells = replace(raster, values_N=self.values_N).window(
            (x * factor, y * factor), (width * factor, height * factor)
        )
        if not halvings:
            places, colours = _palette(self._numbers(cells.values_RC), self.table)
            return _png(cells.spread(places), colours)
        values_HW = cells.spread(cells.values_RC)
        for _ in range(halvings):
            values_HW = halved(values_HW)
        return _png(*_palette(self._numbers(values_HW), self.table))

    def _numbers(self, values: NDArray[np.float32]) -> NDArray[np.int16]:
        """Number of each value's colour in the table, or ``NO_PATCH``."""
        shares = self.display(values)
        numbers = np.rint(np.nan_to_num(shares) * (len(self.table) - 1)).astype(np.int16)
        numbers[~self.display.coloured(values)] = NO_PATCH
        return numbers

    def colour(self, values: NDArray[np.float32]) -> list[str]:
        """Colours of values as ``#rrggbb``. A contribution of 0 has the colour of the scale's middle."""
        return [
            "#{:02x}{:02x}{:02x}".format(*each)
            for each in colourise(self.display(values), self.table).tolist()
        ]

    def legend(self) -> dict[str, Any]:
        """The legend as JSON: ticks with values and percentiles, and the colours from low to high."""
        steps = np.linspace(0, len(self.table) - 1, LEGEND_COLOURS).round().astype(int)
        return {
            "map": self.heat.kind,
            "shown": self.heat.shown,
            "spread": self.heat.spread,
            "class": self.heat.output[1] if self.heat.output else None,
            "scale": self.display.scale,
            "low": self.display.low,
            "high": self.display.high,
            "min": float(self.values_N.min()) if len(self.values_N) else None,
            "max": float(self.values_N.max()) if len(self.values_N) else None,
            "n_patches": len(self.values_N),
            "even_share": self.heat.even_share,
            "flat": self.heat.flat,
            "colours": ["#{:02x}{:02x}{:02x}".format(*self.table[step]) for step in steps],
            "ticks": [
                {
                    "at": tick.at,
                    "value": tick.value,
                    "percentile": tick.percentile,
                    "times_even": tick.times_even,
                    "beyond": tick.beyond,
                }
                for tick in legend_ticks(self.values_N, self.display)
            ],
        }

    def value_at(self, l0_x: float, l0_y: float) -> dict[str, Any] | None:
        """The map's raw value at a level-0 point as JSON.

        It is the mean where patches overlap, and None outside all patches.
        """
        from_corner_N2 = np.array([l0_x, l0_y]) - self.coords.l0_exact_corners()
        held = np.flatnonzero(((from_corner_N2 >= 0) & (from_corner_N2 < self.coords.l0_patch)).all(axis=1))
        if not len(held) or not (0 <= l0_x < self.coords.l0_size[0] and 0 <= l0_y < self.coords.l0_size[1]):
            return None
        value = np.float32(self.values_N[held].mean(dtype=np.float64))
        return {
            "map": self.heat.kind,
            "value": float(value),
            "times_even": float(value) / self.heat.even_share,
            "percentile": float(np.mean(self.values_N <= value) * 100),
            "at": float(self.display(np.array([value]))[0]),
            "patches": [self._patch(row) for row in held.tolist()],
        }

    def top_patches(self, count: int) -> list[dict[str, Any]]:
        """The ``count`` patches with the largest values as JSON.

        For contributions and gradients, only patches that add to the class are listed. Of equal values, the
        first in the grid comes first.
        """
        order = np.argsort(-self.values_N, kind="stable")[:count].tolist()
        if self.heat.output is not None:
            order = [row for row in order if self.values_N[row] > 0]
        return [{"rank": rank, **self._patch(row)} for rank, row in enumerate(order, start=1)]

    def _patch(self, row: int) -> dict[str, Any]:
        l0_x, l0_y = self.coords.l0_xy_N2[row].tolist()
        patch_id = int(self.coords.ids_N[row])
        return {
            "id": patch_id,
            "l0_x": l0_x,
            "l0_y": l0_y,
            "value": float(self.values_N[row]),
            "colour": self.colour(self.values_N[row : row + 1])[0],
            "kept": patch_id in self.kept_ids,
        }


def _palette(
    numbers: NDArray[np.int16], table: NDArray[np.uint8]
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Turn numbers of the table's colours into indices of the colours that occur, and those colours as RGBA."""
    held = np.bincount(numbers.ravel() - NO_PATCH, minlength=len(table) + 1) > 0
    distinct = np.flatnonzero(held) + NO_PATCH
    places = np.cumsum(held, dtype=np.int16)[numbers - NO_PATCH] - np.int16(1)
    colours = np.zeros((len(distinct), 4), np.uint8)
    colours[:, :3] = table[distinct.clip(0)]
    colours[:, 3] = 255
    colours[distinct == NO_PATCH] = 0
    return places, colours


def _png(places_HW: NDArray[np.int16], colours: NDArray[np.uint8]) -> bytes:
    """A PNG with a palette, or RGBA if there are more colours than a palette holds."""
    file = BytesIO()
    if len(colours) <= 256:
        image = Image.fromarray(places_HW.astype(np.uint8), "P")
        image.putpalette(colours[:, :3].tobytes())
        image.save(file, "PNG", compress_level=FASTEST, transparency=colours[:, 3].tobytes())
    else:
        Image.fromarray(colours[places_HW]).save(file, "PNG", compress_level=FASTEST)
    return file.getvalue()


def _index(asked: Mapping[str, str], name: str) -> int | None:
    text = asked.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 7):
        raise ConfigError(f"{name} {text!r} is no index, counted from 0")
    return int(text)


def _number(asked: Mapping[str, str], name: str) -> float | None:
    text = asked.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ConfigError(f"{name} {text!r} is no number")
    return value
