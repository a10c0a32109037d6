"""Tiles of a slide: their addresses (:class:`TilePyramid`), and their pixels as JPEG (:func:`slide_tile`).

Addresses are Deep Zoom's without overlap: level 0 is a single pixel, each level has twice the resolution of the
one before, and the last one is the slide's own level 0. Pixels come straight from the reader; colours are the
file's own, and no ICC profile is applied. :class:`LruCache` holds the few large things that are worth keeping:
open slides, attention that was read, maps of it.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from math import ceil, floor
from threading import Lock
from typing import Generic, TypeVar

import numpy as np
import simplejpeg
from PIL import Image

from wsi_ips.heatmaps.raster import canvas_size
from wsi_ips.slides.base import RgbImage, SlideReader
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
