"""A slide as a picture for the eye, made several times as fast as :mod:`wsi_ips.tiling.picture` makes it.

Start with :func:`quick_picture`. It shows what :func:`wsi_ips.tiling.picture.slide_picture` shows, at the same
scale to the far corner, and its values are close to that one's instead of exact:

- Means are computed in 16-bit integers with weights in steps of 1/256, first along y and then along x. Each step
  errs by at most a grey level, mostly by less than a half.
- Where a pixel of the picture covers many pixels of the level, the decoder makes tiles smaller before they are
  averaged (:meth:`wsi_ips.slides.base.TiledReader.tile_scales`). At least ``LEAST_PX`` decoded pixels a side
  remain for each pixel of the picture. The last row and column, which end where the slide does, are never made so.

Nothing is decided by these pixels: tissue is found on exact ones. A pixel has four bytes here, red, green, blue
and one without meaning, because four bytes are moved at once where three are moved one by one.

Shape suffixes: H rows and W columns of the picture or of a region, N pixels of the picture along an axis, T taps
(pixels of the region that a pixel of the picture covers, whole or in part).
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import SlideInterrupted, SlideReadError
from wsi_ips.slides.base import WHITE, SlideReader, TiledReader
from wsi_ips.slides.tile_places import Box
from wsi_ips.tiling.picture import Canvas, Painter

RgbxImage = NDArray[np.uint8]
"""(height, width, 4): red, green, blue, and a byte without meaning."""

BLOCK_PX = 2304
"""Approximate side of the region that is decoded at once; it takes 21 MB."""

TILES_AT_ONCE = 64
"""Stored tiles that are fetched at once."""

STRIP_ROWS = 32
"""Rows of the picture that are averaged at once; a processor's cache holds them."""

LEAST_PX = 8
"""Decoded pixels a side for each pixel of the picture, at least, where the decoder makes tiles smaller.

With 8, values on tissue are off by 0.3 on average, and 98 in 100 by two grey levels at most; with 2 by 1.3 and 10.
"""

FEW = 0.25
"""Share of the picture's pixels below which a tap is counted in those alone that it belongs to."""

ONE = 256
"""Sum of the weights of a pixel of the picture along one axis. Times 255, plus a half, it fits in 16 bits."""


def quick_picture(
    slide: SlideReader, picture_HW4: RgbxImage, *, l0_per_px: float, unread_HW: NDArray[np.bool_]
) -> None:
    """Fill ``picture_HW4``, (height, width, 4) uint8, with the slide; a pixel covers ``l0_per_px`` level-0 pixels.

    ``unread_HW``, (height, width) bool, is set to True at the pixels that cannot be read, which are white. A block
    with a tile that cannot be read is made as :func:`wsi_ips.tiling.picture.slide_picture` makes it.

    Raises the reader's :class:`SlideReadError` where nothing at all can be read, and for a file that is damaged
    all over.
    """
    height, width = unread_HW.shape
    canvas = Canvas.of_slide(slide, picture_HW4, unread_HW, l0_per_px=l0_per_px)
    painter = Painter(slide, l0_per_px, white_where_unread=True)
    level = slide.info.level_for(l0_per_px)
    scale = _scale(slide, level, l0_per_px / slide.info.levels[level].downsample)
    if scale == 1:
        _paint(painter, canvas, level, scale=1)
    else:
        _paint(painter, canvas.part(0, 0, height - 1, width - 1), level, scale=scale)
        _paint(painter, canvas.part(0, width - 1, height - 1, 1), level, scale=1)
        _paint(painter, canvas.part(height - 1, 0, 1, width), level, scale=1)
    painter.tell()
    if painter.last is not None and unread_HW.all():
        raise painter.last


def _paint(painter: Painter, canvas: Canvas, level: int, *, scale: int) -> None:
    """Fill the canvas block by block from tiles that are decoded smaller by ``scale``."""
    slide, (height, width) = painter.slide, canvas.unread_HW.shape
    step = max(1, int(BLOCK_PX * slide.info.levels[level].downsample * scale / painter.l0_per_px))
    for top in range(0, height, step):
        for left in range(0, width, step):
            block = canvas.part(top, left, step, step)
            try:
                _fill(slide, block, level, scale)
            except SlideInterrupted:
                raise
            except SlideReadError:
                painter.paint(block.rgb(), level)


def _scale(slide: SlideReader, level: int, lv_per_px: float) -> int:
    """The largest factor by which tiles are decoded smaller for a picture of ``lv_per_px`` pixels of the level."""
    if not isinstance(slide, TiledReader):
        return 1
    return max(scale for scale in slide.tile_scales(level) if scale == 1 or scale * LEAST_PX <= lv_per_px)


def _fill(slide: SlideReader, canvas: Canvas, level: int, scale: int) -> None:
    """Fill the canvas with means over one region of a level. Raises :class:`SlideReadError`."""
    lv_size, l0_size = slide.info.levels[level].size, slide.info.l0_size
    edges, starts, ends = [], [], []
    for l0_edges, lv_length, l0_length in zip(
        (canvas.l0_columns, canvas.l0_rows), lv_size, l0_size, strict=True
    ):
        # A last pixel that lies beyond the level in part is mixed with padding, and left out.
        length = max(1, lv_length // scale)
        along = np.minimum(l0_edges * (lv_length / l0_length / scale), length)
        starts.append(min(int(along[0]), length - 1))
        ends.append(min(int(np.ceil(along[-1])), length))
        edges.append(along - starts[-1])
    box = (starts[0], starts[1], max(1, ends[0] - starts[0]), max(1, ends[1] - starts[1]))
    region_HW4 = read_rgbx(slide, level, box, scale=scale)
    quick_means(region_HW4, canvas.picture_HWC, columns=edges[0], rows=edges[1])


def read_rgbx(slide: SlideReader, level: int, box: Box, *, scale: int) -> RgbxImage:
    """A region of a level that is made smaller by ``scale``, (height, width, 4) uint8, white beyond the level.

    ``box`` is left, top, width and height in pixels of the smaller level. ``scale`` is one of the reader's
    :meth:`~TiledReader.tile_scales`, or 1. Tiles are decoded past the reader's cache, since a whole picture needs
    each about once. Raises :class:`SlideReadError`.
    """
    left, top, width, height = box
    region_HW4 = np.empty((height, width, 4), np.uint8)
    if not isinstance(slide, TiledReader):
        downsample = slide.info.levels[level].downsample
        at = (round(left * downsample), round(top * downsample))
        region_HW4[..., :3] = slide.read(at, level=level, size_px=(width, height))
        return region_HW4
    places = slide.tile_layout(level).places.smaller(scale)
    painting = places.painting(box)
    if not painting.filled:
        region_HW4[:] = WHITE
    stored: dict[int, memoryview] = {}
    uses = Counter(place for place, _, _ in painting.moves)
    held: dict[int, RgbxImage] = {}
    spare = np.empty((places.tile_size[1], places.tile_size[0], 4), np.uint8)
    for place, into, window in painting.moves:
        tile = held.get(place)
        if tile is None:
            number = painting.numbers[place]
            if number not in stored:
                first = place - place % TILES_AT_ONCE
                some = sorted(painting.numbers[first : first + TILES_AT_ONCE])
                stored |= zip(some, slide.fetch_tiles(level, some), strict=True)
            tile = spare if uses[place] == 1 else np.empty_like(spare)
            slide.decode_tile(level, number, stored.pop(number), tile)
        uses[place] -= 1
        if uses[place]:  # it shows in several pieces, so that it is kept
            held[place] = tile
        else:
            held.pop(place, None)
        region_HW4[into] = tile[window]
    return region_HW4


@dataclass(frozen=True, slots=True)
class _Tap:
    """The t-th pixel of a region that counts in each pixel of a picture, along one axis.

    ``of_N`` are the pixels of the picture that it counts in, as indices or all of them; ``at_N`` where it lies in
    the region; ``weights_N``, uint16, how much it counts.
    """

    of_N: NDArray[np.intp] | slice
    at_N: NDArray[np.intp]
    weights_N: NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class _Weights:
    """Which pixels of a region make each pixel of a picture along one axis, and how much each counts.

    ``at_TN``, (T, N) int, are places in the region, ``weights_TN``, (T, N) uint16, add up to ``ONE`` along T.
    """

    at_TN: NDArray[np.intp]
    weights_TN: NDArray[np.uint16]

    @classmethod
    def between(cls, edges: NDArray[np.float64], length: int) -> "_Weights":
        """Weights of the means over [edges[i], edges[i + 1]) of ``length`` pixels.

        Each is a difference of rounded cumulative shares, so that they add up exactly. Where both edges are the
        same, the pixel there counts as a whole.
        """
        first_N = np.minimum(edges[:-1].astype(np.intp), length - 1)
        taps = max(1, int((np.ceil(edges[1:]).astype(np.intp) - first_N).max()))
        at_TN = first_N + np.arange(taps + 1)[:, None]
        widths_N = np.diff(edges)
        shares_TN = ((at_TN - edges[:-1]) / np.where(widths_N > 0, widths_N, 1e-9)).clip(0, 1)
        shares_TN[0], shares_TN[-1] = 0, 1
        weights_TN = np.diff(np.rint(shares_TN * ONE).astype(np.int64), axis=0).astype(np.uint16)
        return cls(np.minimum(at_TN[:-1], length - 1), weights_TN)

    def taps(self, part: slice) -> list[_Tap]:
        """The taps of a part of the picture. The first is one of all its pixels, others may be of few."""
        first_N, *more_TN = self.weights_TN[:, part]
        places_TN = self.at_TN[:, part]
        taps = [_Tap(slice(None), places_TN[0], first_N)]
        for at_N, weights_N in zip(places_TN[1:], more_TN, strict=True):
            of_N = np.flatnonzero(weights_N)
            few = len(of_N) < FEW * len(weights_N)
            taps.append(
                _Tap(of_N, at_N[of_N], weights_N[of_N]) if few else _Tap(slice(None), at_N, weights_N)
            )
        return taps


def quick_means(
    region_HW4: RgbxImage, picture_HW4: RgbxImage, *, columns: NDArray[np.float64], rows: NDArray[np.float64]
) -> None:
    """Fill the picture with means over [rows[i], rows[i + 1]) by [columns[j], columns[j + 1]) of the region.

    Both are (height, width, 4) uint8; the region is contiguous. Values are within two grey levels of the mean.
    """
    length, width = region_HW4.shape[:2]
    lines_HL = region_HW4.reshape(length, width * 4)
    down, across = _Weights.between(rows, length), _Weights.between(columns, width).taps(slice(None))
    four_each = [np.repeat(tap.weights_N, 4) for tap in across]
    for top in range(0, len(picture_HW4), STRIP_ROWS):
        strip = picture_HW4[top : top + STRIP_ROWS]
        first, *others = down.taps(slice(top, top + STRIP_ROWS))
        sums_NL = np.multiply(lines_HL[first.at_N], first.weights_N[:, None], dtype=np.uint16)
        for tap in others:
            terms_NL = np.multiply(lines_HL[tap.at_N], tap.weights_N[:, None], dtype=np.uint16)
            sums_NL[tap.of_N] += terms_NL
        pixels_NW = _over_one(sums_NL).view(np.uint32)
        sums: Any = None  # (rows, pixels) uint64: the four sums of a pixel, 16 bits each
        for tap, weights_L in zip(across, four_each, strict=True):
            values_NL = pixels_NW.take(tap.at_N, axis=1).view(np.uint8)
            terms = np.multiply(values_NL, weights_L, dtype=np.uint16).view(np.uint64)
            if sums is None:
                sums = terms
            else:
                sums[:, tap.of_N] += terms
        strip[:] = _over_one(sums.view(np.uint16)).reshape(strip.shape)


def _over_one(sums: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Sums of weighted values over the sum of their weights, rounded; the sums are changed."""
    sums += np.uint16(ONE // 2)
    sums >>= np.uint16(8)
    return sums.astype(np.uint8)
