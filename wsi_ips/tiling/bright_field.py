"""Tissue, glass and felt pen on slides in bright field.

:func:`bright_field_tissue` finds tissue, :func:`find_glass` the look of the glass itself, :func:`find_pen` felt
pen.

Whatever lies on glass takes light away. Tissue is therefore measured as optical density against the glass of
the same slide, not against other tissue: one threshold between "much stain" and "little stain" loses pale
tissue that lies beside strong tissue. Lamps are tinted and light is uneven, so the glass's colour is a surface
over the slide; the threshold is what the glass's own noise and unevenness reach, with a floor. Felt pen and
marks of the glass (bubbles, coverslip edges, dirt) are left out.

Pathologists mark slides with pen in blue, green, black and red. Colour alone does not tell pen: Alcian blue,
trichrome, methenamine silver and melanin have the same hues. But ink is smooth, where tissue has nuclei and
fibres, and ink lies on glass or crosses tissue in strokes.

Filters over square neighbourhoods are a few passes over whole rows and columns of bytes or booleans, many times
as fast as general filters in floating point. At the picture's edge only the pixels that exist count.

Shape suffixes: H rows, W columns, C or 3 channels, N pixels, K regions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from wsi_ips.slides.base import RgbImage

Mask = NDArray[np.bool_]
"""(H, W) bool array."""
Bytes = NDArray[np.uint8]
"""(H, W) uint8 array."""


def highest(values_HW: Bytes, side: int) -> Bytes:
    """The highest value of the ``side`` by ``side`` pixels around each pixel, (H, W) uint8; ``side`` is odd."""
    return _filtered(values_HW, side, np.maximum)


def lowest(values_HW: Bytes, side: int) -> Bytes:
    """The lowest value of the ``side`` by ``side`` pixels around each pixel, (H, W) uint8; ``side`` is odd."""
    return _filtered(values_HW, side, np.minimum)


def grown(mask_HW: Mask, side: int) -> Mask:
    """Dilate a mask: True where any of the ``side`` by ``side`` pixels around a pixel is True; ``side`` is odd."""
    return _filtered(mask_HW, side, np.logical_or)


def shrunk(mask_HW: Mask, side: int) -> Mask:
    """Erode a mask: True where all of the ``side`` by ``side`` pixels around a pixel are True; ``side`` is odd."""
    return _filtered(mask_HW, side, np.logical_and)


def box_sum(values_HW: Bytes | Mask, side: int) -> NDArray[np.uint16]:
    """The sum over the ``side`` by ``side`` pixels around each pixel, (H, W) uint16; ``side`` is odd.

    For bytes, ``side`` is at most 15, so that 16 bits hold the sum.
    """
    return _filtered(values_HW.astype(np.uint16), side, np.add)


def median_3x3(rgb_HWC: RgbImage) -> RgbImage:
    """The median of the 3 by 3 pixels around each pixel, channel by channel, (H, W, C) uint8.

    At the picture's edge its last pixels are repeated. The median of nine values is the median of three: of the
    highest of the columns' lowest values, the median of their middle ones, and the lowest of their highest ones.
    """
    height = len(rgb_HWC)
    out_HWC = np.empty_like(rgb_HWC)
    for top in range(0, height, BAND_ROWS):
        bottom = min(height, top + BAND_ROWS)
        rows = np.arange(top - 1, bottom + 1).clip(0, height - 1)
        band = np.pad(rgb_HWC[rows], ((0, 0), (1, 1), (0, 0)), mode="edge")
        low, middle = np.minimum(band[:-2], band[1:-1]), np.maximum(band[:-2], band[1:-1])
        high = np.maximum(middle, band[2:])
        np.minimum(middle, band[2:], out=middle)
        middle, low = np.maximum(low, middle), np.minimum(low, middle)
        lowest_3, middle_3, highest_3 = (
            (each[:, :-2], each[:, 1:-1], each[:, 2:]) for each in (low, middle, high)
        )
        out_HWC[top:bottom] = _median(
            np.maximum(np.maximum(*lowest_3[:2]), lowest_3[2]),
            _median(*middle_3),
            np.minimum(np.minimum(*highest_3[:2]), highest_3[2]),
        )
    return out_HWC


def _median(a: Bytes, b: Bytes, c: Bytes) -> Bytes:
    """The median of three values, element by element."""
    return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))


def brightest_channel(rgb_HWC: Bytes) -> Bytes:
    """The highest of R, G and B at each pixel, (H, W) uint8."""
    return np.maximum(np.maximum(rgb_HWC[..., 0], rgb_HWC[..., 1]), rgb_HWC[..., 2])


def darkest_channel(rgb_HWC: Bytes) -> Bytes:
    """The lowest of R, G and B at each pixel, (H, W) uint8."""
    return np.minimum(np.minimum(rgb_HWC[..., 0], rgb_HWC[..., 1]), rgb_HWC[..., 2])


def _filtered(values_HW: NDArray[Any], side: int, combine: Callable[..., Any]) -> NDArray[Any]:
    """Combine each pixel with its neighbours, first along columns and then along rows."""
    out_HW = values_HW.copy()
    for apart in range(1, side // 2 + 1):
        combine(out_HW[apart:], values_HW[:-apart], out=out_HW[apart:])
        combine(out_HW[:-apart], values_HW[apart:], out=out_HW[:-apart])
    values_HW, out_HW = out_HW, out_HW.copy()
    for apart in range(1, side // 2 + 1):
        combine(out_HW[:, apart:], values_HW[:, :-apart], out=out_HW[:, apart:])
        combine(out_HW[:, :-apart], values_HW[:, apart:], out=out_HW[:, :-apart])
    return out_HW


PEN_SMOOTH = 4.0
"""Mean difference between neighbouring pixels of ink, in grey levels, at most; tissue has 6 to 40."""

SMOOTH_SHARE = 0.4
"""That difference as a share of what the slide's other tissue has: coarse tissue shows that the picture is
sharp.
"""

AROUND_PX = 9
"""Side of the neighbourhood over which the difference is averaged."""

GAP_PX = 7
"""Ink-coloured pixels that are no further apart than this are treated as one region."""

SMALLEST_PX = 24
"""Pixels of an ink mark, at least; less is a fleck of the stain."""

ON_GLASS = 0.3
"""Share of a mark's rim that is glass, at least, unless the mark is a stroke."""

THIN_ON_GLASS = 0.7
"""Share of the rim that is glass for a mark that is thinner than five pixels, which has to be a stroke as well."""

SOLID = 0.7
"""Share of a stroke over tissue that is at least five pixels wide; smooth spots of a stain are ragged."""

STROKE = 5.0
"""How many times longer than wide a stroke is."""

RIM_PX = 5
"""Width of the rim around a mark that is tested for glass."""

BLEED_PX = 3
"""How far ink spreads beyond the pixels of its full colour: its thin edge, and JPEG's coarse colours."""


def find_pen(
    rgb_HWC: RgbImage, stained_HW: Mask, texture_HW: NDArray[np.uint8], glass_3: NDArray[np.float32]
) -> Mask:
    """Which of the stained pixels are felt pen, including its bleeding edges, (H, W) bool.

    ``rgb_HWC`` is the picture, (H, W, 3) uint8, and ``stained_HW`` where it is not glass. ``texture_HW``, (H, W)
    uint8, is each pixel's difference from its neighbours in eighths of a grey level. ``glass_3`` is the glass's R,
    G and B in 0..255.
    """
    inks = ink_colours(_against_white(rgb_HWC[stained_HW][None], glass_3))  # the stained pixels in one row
    if not any(ink.any() for ink in inks):
        return np.zeros_like(stained_HW)
    colours = [_at(stained_HW, ink[0]) for ink in inks]
    ink_HW = np.logical_or.reduce(colours)
    level_HW = np.asarray(Image.fromarray(rgb_HWC).convert("L"))
    smoothest_HW = _smoothest(stained_HW & ~ink_HW, texture_HW, level_HW)
    pen_HW = np.zeros_like(stained_HW)
    for colour_HW in colours:
        if not colour_HW.any():
            continue
        # Grains of another colour in between belong to it: a stain that is partly ink-coloured is not strokes.
        inside_HW = _inside(_closed(colour_HW) & stained_HW)
        smooth_HW = colour_HW & (_roughness(inside_HW, texture_HW) < smoothest_HW)
        marks_HW = _marks(smooth_HW, inside_HW, stained_HW & ~smooth_HW)
        if marks_HW.any():
            pen_HW |= _with_edges(marks_HW, colour_HW, stained_HW)
    return pen_HW


def _at(mask_HW: Mask, values_N: NDArray[np.bool_]) -> Mask:
    """The values at the pixels of a mask, False elsewhere."""
    np.place(there_HW := np.zeros_like(mask_HW), mask_HW, values_N)
    return there_HW


def _against_white(rgb_HWC: RgbImage, glass_3: NDArray[np.float32]) -> RgbImage:
    """The picture as it would look on white glass, so that the tint of a lamp is not taken for ink."""
    levels = np.arange(256, dtype=np.float32)
    tables = [(levels * (255 / light)).clip(0, 255).astype(np.uint8) for light in glass_3]
    return np.stack([tables[channel][rgb_HWC[..., channel]] for channel in range(3)], axis=2)


def ink_colours(rgb_HWC: RgbImage) -> tuple[Mask, Mask, Mask, Mask]:
    """Where pixels have an ink's colour rather than H&E's: four (H, W) masks for green, blue, red and black.

    In degrees of hue, eosin lies at 300-350 and haematoxylin at 240-300 with more red than green. Ink differs from
    them by hue (green, cyan, pure blue), by strong saturation, or (black) by darkness without colour. Blood and
    eosin have more blue than green beside their red; bright red ink has little of both.
    """
    hsv = np.asarray(Image.fromarray(rgb_HWC).convert("HSV"))
    # Pillow stores a full turn, and full saturation, as 255.
    hue, saturation, value = (hsv[..., channel] for channel in range(3))
    red, green, blue = (rgb_HWC[..., channel].astype(np.int16) for channel in range(3))
    green_ink = _hue_between(hue, 70, 190) & (saturation > 0.2 * 255)
    blue_ink = _hue_between(hue, 190, 250) & (saturation > 0.35 * 255) & (red - green < 10)
    scarlet = _hue_between(hue, 0, 12) | _hue_between(hue, 348, 360)
    red_ink = scarlet & (saturation > 0.7 * 255) & (value > 0.6 * 255) & (np.abs(blue - green) < 40)
    red_ink |= scarlet & (saturation > 0.5 * 255) & (value > 0.8 * 255) & (np.abs(blue - green) < 20)
    black_ink = (value < 0.4 * 255) & (saturation < 0.3 * 255)
    return green_ink, blue_ink, red_ink, black_ink


def _hue_between(hue: NDArray[np.uint8], low_degrees: float, high_degrees: float) -> Mask:
    # Whole numbers, so that bytes are compared with bytes.
    return (hue >= ceil(low_degrees / 360 * 255)) & (hue <= floor(high_degrees / 360 * 255))


def _closed(mask_HW: Mask) -> Mask:
    """The mask with gaps of up to ``GAP_PX`` filled."""
    return shrunk(grown(mask_HW, GAP_PX), GAP_PX)


def _inside(mask_HW: Mask) -> Mask:
    """The mask without its edge: a mixed pixel, and one whose texture is influenced by the mixed one."""
    return shrunk(mask_HW, 5)


def _roughness(inside_HW: Mask, texture_HW: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean texture of the inside of ink around a pixel; 0 where ink is too thin to have an inside."""
    count_HW = np.maximum(box_sum(inside_HW, AROUND_PX), 1)
    return np.asarray(box_sum(np.where(inside_HW, texture_HW, 0), AROUND_PX) / count_HW, np.float32)


def _smoothest(
    tissue_HW: Mask, texture_HW: NDArray[np.uint8], level_HW: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """The texture, in eighths of a grey level, below which ink is smooth. Dark things have less contrast."""
    inside_HW = _inside(tissue_HW)
    least = np.float32(8 * PEN_SMOOTH)
    if inside_HW.mean() < 0.001:
        return np.full(tissue_HW.shape, least)
    texture, level = (float(np.median(values[inside_HW])) for values in (texture_HW, level_HW))
    # A coarse thumbnail averages grains away, in the tissue that is no ink as in the one that may be.
    least = min(least, np.float32(texture / 2))
    relative = np.float32(SMOOTH_SHARE * texture / max(1.0, level))
    return np.asarray(np.maximum(least, relative * level_HW), np.float32)


def _marks(smooth_HW: Mask, inside_HW: Mask, tissue_HW: Mask) -> Mask:
    """The smooth regions that lie on glass or run in strokes."""
    labels_HW, _ = ndimage.label(smooth_HW, np.ones((3, 3)))
    marks_HW = np.zeros_like(smooth_HW)
    for number, box in enumerate(ndimage.find_objects(labels_HW), start=1):
        around = tuple(slice(max(0, side.start - RIM_PX), side.stop + RIM_PX) for side in box)
        mark = labels_HW[around] == number
        if mark.sum() < SMALLEST_PX:
            continue
        rim = grown(mark, 2 * RIM_PX + 1) & ~smooth_HW[around]
        on_glass = 1 - float(tissue_HW[around][rim].mean()) if rim.any() else 1.0
        if _is_mark(mark, on_glass, wide=bool(inside_HW[around][mark].any())):
            marks_HW[around] |= mark
    return marks_HW


def _is_mark(mark_HW: Mask, on_glass: float, *, wide: bool) -> bool:
    """Whether a smooth region of an ink's colour is ink. ``on_glass`` is the share of its rim that is glass."""
    if not wide:
        # Too thin to show whether it is smooth: it may be a fibre.
        return on_glass >= THIN_ON_GLASS and _elongation(mark_HW) >= STROKE
    if on_glass >= ON_GLASS:
        return True
    solid_HW = grown(_inside(mark_HW), 5)
    return bool(solid_HW.sum() >= SOLID * mark_HW.sum()) and _elongation(mark_HW) >= STROKE


def _elongation(mark_HW: Mask) -> float:
    """Length over width of a region that may be bent: its area over the square of its greatest width."""
    return float(mark_HW.sum() / (2 * _half_width(mark_HW)) ** 2)


def _half_width(mark_HW: Mask) -> float:
    """Half the greatest width of a region, in pixels."""
    step = max(1, max(mark_HW.shape) // 1024)
    framed = np.pad(mark_HW[::step, ::step], 1)
    widest = np.max(ndimage.distance_transform_edt(framed))
    return float(max(0.5, widest * step))


def _with_edges(marks_HW: Mask, ink_HW: Mask, stained_HW: Mask) -> Mask:
    """The marks with what bleeds from them and with where they go on over tissue that shows through."""
    bleeding = grown(marks_HW, 2 * BLEED_PX + 1)
    labels_HW, count = ndimage.label(ink_HW & ~bleeding, np.ones((3, 3)))
    touching = np.unique(labels_HW[grown(bleeding, 3)])
    boxes = ndimage.find_objects(labels_HW, max_label=count)
    widest = 1.25 * _half_width(marks_HW) + BLEED_PX
    for number in touching[touching > 0]:
        box = boxes[number - 1]
        part = labels_HW[box] == number
        if _half_width(part) <= widest:
            bleeding[box] |= part
    return np.asarray(bleeding & stained_HW)


Floats = NDArray[np.float32]
"""Array of float32."""

WINDOW_PX = 5
"""Side of the window that is tested for evenness: 40 µm at 8 µm per pixel, a few nuclei of tissue."""

EVEN = 16
"""Grey levels by which even noisy glass varies within the window, at most.

99 % of H&E tissue varies by 35 or more.
"""

LEAST_EVEN = 0.25
"""Share of the pixels of the glass's colour that are even, at least.

Tissue of that colour is even in few places only.
"""

DARKEST = 140
"""Grey level that bare glass has at least."""

STRONGEST_TINT = 0.16
"""Saturation of the strongest tint that is still taken for glass."""

LEAST_STAIN = 0.04
"""Haematoxylin and eosin take more green than red or blue, by this share of the brightest channel or more."""

WHITE = 250
"""Level from which on a pixel, in every channel, says little about the glass: padding, or an overexposed
picture.
"""

LEAST_SHARE = 0.01
"""Share of the picture that is even ground, at least; less may be a vessel or a drop of mucin in the tissue."""

BRIGHTEST = 0.9
"""Quantile of the even ground's grey levels at which its brightest part, the glass, is looked for."""

SAME_GLASS = 12
"""Grey levels around that quantile that belong to the same glass."""

SIDE_PX = 1024
"""Approximate side of the picture in which the glass is looked for; larger pictures are thinned out to it."""

MOST_POINTS = 20_000
"""Approximate number of pixels of the ground to which the surface is fitted."""

STRONGEST_SLOPE = 0.12
"""Optical density, at most, by which uneven light makes the glass darker or brighter than its typical colour."""

LARGEST_CONDITION = 1e6
"""Condition of the normal equations up to which they are as good as a decomposition."""

LEAST_SPREAD = 0.002
"""The smallest spread that is assumed, in optical density: half a grey level at 243, the precision of whole
levels.
"""

UNTINTED = np.full(3, 255.0, np.float32)
"""The colour of white glass."""

LEAST_GREY = 0.012
"""Mean optical density of the channels from which on a pixel is not glass: 3 % of the light.

H&E tissue has 0.1 to 1.
"""

LEAST_COLOUR = 0.010
"""Difference of optical density between the channels from which on a pixel is not glass."""

ABOVE_NOISE = 2.0
"""How many times the densities that the glass itself reaches the threshold is, at least."""

PER_OD = 500
"""Steps per unit of optical density: densities are kept as bytes in steps of 0.002, up to 0.51."""

EDGE = (2, 5)
"""Share, as a fraction (2/5), of its tissue's density that a pixel at the edge has, at least; less is mostly
glass.
"""

EDGE_PX = 2
"""Width of the edge that is tested for being mostly glass: one mixed pixel, and one blurred by the optics or
JPEG.
"""

BAND_ROWS = 256
"""Rows of the picture that are worked on at once, to bound memory."""

SMOOTH = 2.0
"""Mean difference between neighbouring pixels, in grey levels, below which a region is even.

Tissue has 6 to 40, glass 0.2 to 1.5.
"""

LINE_PX = 9
"""Width of a line, at most, such as a coverslip's edge or a scratch: 72 µm at 8 µm per pixel."""

LINE_LENGTH = 12
"""How many times longer than wide a line is."""


@dataclass(frozen=True, slots=True)
class Glass:
    """How bright the bare glass is at each place of the picture.

    ``colour_3`` is its typical R, G and B, (3,) float32 in 0..255. It is white, and ``seen`` is False, where the
    picture shows no glass. ``terms_63``, (6, 3) float32, gives log10 of the glass's levels as a polynomial of
    second degree in x and y, which run from -1 to 1 over the picture, with one column per channel. ``range_23``,
    (2, 3) float32, holds the lowest and highest log10 per channel that were seen. ``grey_noise`` and
    ``colour_noise`` are the optical densities that the bare glass itself reaches, as mean over the channels and as
    difference between them. They are 0 where no glass is seen.
    """

    colour_3: Floats
    seen: bool
    terms_63: Floats
    range_23: Floats
    grey_noise: float
    colour_noise: float

    def log_levels(self, channel: int, rows: slice, size_px: tuple[int, int]) -> Floats:
        """log10 of the glass's levels in one channel for some rows of a picture of ``size_px`` (width, height).

        Returns (rows, width) float32.
        """
        y = _places(size_px[1])[rows, None]
        x = _places(size_px[0])
        c = self.terms_63[:, channel]
        surface = (c[0] + c[1] * x + c[3] * x * x) + (c[2] * y + c[5] * y * y)
        if c[4]:
            surface += (c[4] * y) * x
        return np.asarray(surface.clip(*self.range_23[:, channel]), np.float32)


@dataclass(frozen=True, slots=True)
class Found:
    """What a segmentation found, two (H, W) bool arrays in the pixels of the picture that it was given.

    ``mask_HW`` is True at tissue, ``pen_HW`` at tissue left out as felt pen; None if there is no such thing.
    ``note`` is what a user has to know of it, in words; it is written beside the slide's results.
    """

    mask_HW: Mask
    pen_HW: Mask | None = None
    note: str = ""


def bright_field_tissue(rgb_HWC: RgbImage, padding_HW: Mask, *, drop_pen: bool) -> Found:
    """Tissue in a picture (H, W, 3) uint8 of a bright-field slide.

    ``padding_HW``, (H, W) bool, marks what was not scanned. With ``drop_pen``, felt pen is left out.
    """
    # A 3x3 median: single noisy pixels would raise the density of glass. It keeps edges where they are.
    smooth_HWC = median_3x3(rgb_HWC)
    glass = find_glass(rgb_HWC, ~padding_HW)
    texture_HW = _texture(rgb_HWC)
    grey_HW, colour_HW = _densities(smooth_HWC, glass)
    least_grey = max(LEAST_GREY, ABOVE_NOISE * glass.grey_noise) * PER_OD
    least_colour = max(LEAST_COLOUR, ABOVE_NOISE * glass.colour_noise) * PER_OD
    stained_HW = (grey_HW >= least_grey) | ((colour_HW >= least_colour) & (grey_HW > 0))
    stained_HW &= ~padding_HW
    pen_HW = np.zeros_like(stained_HW)
    if drop_pen:
        pen_HW = find_pen(smooth_HWC, stained_HW, texture_HW, glass.colour_3)
        stained_HW &= ~pen_HW
    if not glass.seen:
        return Found(stained_HW, pen_HW)
    mask_HW = _without_edges(stained_HW, grey_HW)
    mask_HW &= ~_marks_on_glass(mask_HW, grey_HW, colour_HW, texture_HW, least_colour)
    return Found(mask_HW, pen_HW)


def _densities(rgb_HWC: RgbImage, glass: Glass) -> tuple[Bytes, Bytes]:
    """Optical density against the glass, as (H, W) bytes in steps of ``1 / PER_OD``.

    Returns the mean over the channels, and the difference between the channels.
    """
    height, width = rgb_HWC.shape[:2]
    logs = log_of_levels()
    grey_HW, colour_HW = np.empty((height, width), np.uint8), np.empty((height, width), np.uint8)
    for top in range(0, height, BAND_ROWS):
        rows = slice(top, min(height, top + BAND_ROWS))
        red, green, blue = (
            glass.log_levels(channel, rows, (width, height)) - logs[rgb_HWC[rows, :, channel]]
            for channel in range(3)
        )
        grey_HW[rows] = ((red + green + blue) * (PER_OD / 3)).clip(0, 255)
        most, least = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
        colour_HW[rows] = ((most - least) * PER_OD).clip(0, 255)
    return grey_HW, colour_HW


def _texture(rgb_HWC: RgbImage) -> Bytes:
    """Mean difference of each pixel from the next one and the one below, (H, W) uint8 in eighths of a grey level.

    It is computed channel by channel, for red grains on blue may be as bright as the blue.
    """
    height, width = rgb_HWC.shape[:2]
    texture_HW = np.zeros((height, width), np.uint8)
    for top in range(0, height - 1, BAND_ROWS):
        bottom = min(height - 1, top + BAND_ROWS)
        total = np.zeros((bottom - top, width - 1), np.uint16)
        for channel in range(3):
            here = rgb_HWC[top:bottom, :-1, channel]
            for other in (rgb_HWC[top:bottom, 1:, channel], rgb_HWC[top + 1 : bottom + 1, :-1, channel]):
                total += np.maximum(here, other) - np.minimum(here, other)
        texture_HW[top:bottom, :-1] = np.minimum(total * 8 // 6, 255)
    return texture_HW


def _without_edges(mask_HW: Mask, grey_HW: Bytes) -> Mask:
    """Remove pixels at the outer edge that are mostly glass, judged by the tissue beside them.

    The threshold for tissue lies far below the density of most tissue, so that a pixel with 5 % of it, or the halo
    that a lens or JPEG's blocks leave around it, would count as tissue.
    """
    left = mask_HW
    for _ in range(EDGE_PX):
        inner = shrunk(left, 3)
        # The tissue's own level, from what is not edge within two pixels; whole numbers below 2**16.
        count = box_sum(inner, 5)
        level = box_sum(np.where(inner, grey_HW, 0), 5)
        mostly_glass = (grey_HW * count) * EDGE[1] < level * EDGE[0]
        left = left & (inner | (count == 0) | ~mostly_glass)
    return left


def _marks_on_glass(
    mask_HW: Mask, grey_HW: Bytes, colour_HW: Bytes, texture_HW: Bytes, least_colour: float
) -> Mask:
    """Regions without colour that are even or a line: bubbles, shadows, coverslip edges, dirt out of focus."""
    labels_HW, count = ndimage.label(mask_HW, np.ones((3, 3)))
    if not count:
        return np.zeros_like(mask_HW)
    labels_N = labels_HW[mask_HW]
    area_K = np.bincount(labels_N, minlength=count + 1)
    grey_K, colour_K, texture_K = (
        np.bincount(labels_N, weights=values[mask_HW], minlength=count + 1) / np.maximum(1, area_K)
        for values in (grey_HW, colour_HW, texture_HW)
    )
    neutral_K = colour_K < np.maximum(least_colour, 0.2 * grey_K)
    even_K = neutral_K & (texture_K < 8 * SMOOTH)
    wide_K = np.zeros(count + 1, bool)
    wide_K[labels_HW[shrunk(mask_HW, LINE_PX)]] = True
    lines_K = neutral_K & ~wide_K & (area_K > LINE_LENGTH * LINE_PX)
    drop_K = even_K | lines_K
    drop_K[0] = False
    return np.asarray(drop_K[labels_HW])


def find_glass(rgb_HWC: RgbImage, allowed_HW: NDArray[np.bool_]) -> Glass:
    """Find the slide's bare glass in a picture (H, W, 3) uint8. ``allowed_HW`` is False at padding.

    Glass is what is even (tissue has nuclei and fibres), bright, at most slightly tinted and not in the colours of
    stains, and of all that the brightest. A surface is then fitted to it several times, each time without what is
    darker than the last surface. Pale even tissue does not pull the surface down, for nothing makes glass
    brighter.
    """
    step = max(1, max(rgb_HWC.shape[:2]) // SIDE_PX)
    part = (slice(None, None, step), slice(None, None, step))
    thin_HWC = rgb_HWC[part]
    levels, even = _even(rgb_HWC, part)
    plain = allowed_HW[part] & ~_coloured(thin_HWC)
    ground = even & plain & (levels >= DARKEST)
    darker = ground & (darkest_channel(thin_HWC) < WHITE)
    if darker.mean() < LEAST_SHARE and not (allowed_HW[part] & even & ~ground).any():
        # An overexposed slide: its glass is white everywhere.
        darker = ground
    if darker.mean() < LEAST_SHARE:
        return _white_glass()
    brightest = np.quantile(levels[darker], BRIGHTEST)
    same = plain & (np.abs(levels - brightest) <= SAME_GLASS)
    glass = darker & same
    if glass.sum() < LEAST_EVEN * same.sum():
        return _white_glass()
    colour_3 = _median_colour(thin_HWC[glass])
    return _fitted(thin_HWC, darker, colour_3)


def glass_colour(rgb_HWC: RgbImage, allowed: NDArray[np.bool_]) -> Floats:
    """R, G and B of the slide's glass, (3,) float32 in 0..255; ``UNTINTED`` where no glass is seen."""
    return find_glass(rgb_HWC, allowed).colour_3


def _white_glass() -> Glass:
    """The glass that is assumed where none is seen."""
    terms_63 = np.zeros((6, 3), np.float32)
    terms_63[0] = np.log10(UNTINTED)
    return Glass(UNTINTED, False, terms_63, np.stack([terms_63[0]] * 2), 0.0, 0.0)


def _even(rgb_HWC: RgbImage, part: tuple[slice, slice]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Grey levels of the thinned-out picture, and where they hardly differ from their neighbours'."""
    grey_HW = np.asarray(Image.fromarray(rgb_HWC).convert("L"))
    varies_HW = highest(grey_HW, WINDOW_PX) - lowest(grey_HW, WINDOW_PX)
    return grey_HW[part], varies_HW[part] <= EVEN


def _coloured(rgb_HWC: RgbImage) -> NDArray[np.bool_]:
    """Where a pixel has a stain's colour."""
    red, green, blue = (rgb_HWC[..., channel].astype(np.int16) for channel in range(3))
    top, bottom = brightest_channel(rgb_HWC).astype(np.int16), darkest_channel(rgb_HWC)
    return np.asarray(
        (top - bottom > STRONGEST_TINT * top) | (np.minimum(red, blue) - green > LEAST_STAIN * top)
    )


def _median_colour(rgb_N3: NDArray[np.uint8]) -> Floats:
    """The median of R, G and B, (3,) float32, by counting levels."""
    middle = [(len(rgb_N3) - 1) // 2 + 1, len(rgb_N3) // 2 + 1]
    counts = (np.bincount(rgb_N3[:, channel], minlength=256).cumsum() for channel in range(3))
    return np.array([np.searchsorted(count, middle).mean() for count in counts], np.float32)


def _fitted(rgb_HWC: RgbImage, ground: NDArray[np.bool_], colour_3: Floats) -> Glass:
    """Fit the surface of the glass's levels to the pixels of the ground."""
    rows_N, columns_N = np.nonzero(ground)
    every = max(1, len(rows_N) // MOST_POINTS)
    rows_N, columns_N = rows_N[::every], columns_N[::every]
    log_N3 = log_of_levels()[rgb_HWC[rows_N, columns_N]]
    y_N, x_N = _places(ground.shape[0])[rows_N], _places(ground.shape[1])[columns_N]
    design_N6 = np.stack([np.ones_like(x_N), x_N, y_N, x_N * x_N, x_N * y_N, y_N * y_N], axis=1)
    centre_3 = np.log10(colour_3)
    density_N3 = centre_3 - log_N3
    kept = np.logical_and.reduce(np.abs(density_N3.T) < STRONGEST_SLOPE / 5)
    terms_63 = np.zeros((6, 3), np.float32)
    terms_63[0] = centre_3
    # A plane first: it reaches from the brighter half of a slide to the darker one without bending away.
    for terms in (3, 3, 6, 6):
        if kept.sum() < 100:
            break
        terms_63 = np.zeros((6, 3), np.float32)
        terms_63[:terms] = _least_squares(design_N6[kept, :terms], log_N3[kept])
        density_N3 = design_N6 @ terms_63 - log_N3
        kept = _inliers(density_N3)
    seen_N3 = design_N6[kept] @ terms_63 if kept.any() else centre_3[None]
    range_23 = np.stack([seen_N3.min(axis=0), seen_N3.max(axis=0)])
    range_23 = range_23.clip(centre_3 - STRONGEST_SLOPE, centre_3 + STRONGEST_SLOPE).astype(np.float32)
    grey_noise, colour_noise = _noise(density_N3, kept)
    return Glass(colour_3, True, terms_63.astype(np.float32), range_23, grey_noise, colour_noise)


def _least_squares(design_NT: Floats, values_N3: Floats) -> NDArray[np.floating]:
    """The (T, 3) terms of the surface that lies nearest to the values.

    Normal equations in float64 take a tenth of the time of a decomposition, which pixels in one line need.
    """
    design = design_NT.astype(np.float64)
    products_TT = design.T @ design
    if np.linalg.cond(products_TT) > LARGEST_CONDITION:
        return np.asarray(np.linalg.lstsq(design_NT, values_N3, rcond=None)[0])
    return np.asarray(np.linalg.solve(products_TT, design.T @ values_N3.astype(np.float64)))


def _grey(values_N3: Floats) -> Floats:
    """The mean over the channels, (N,) float32, added in NumPy's order."""
    return np.asarray((values_N3[:, 0] + values_N3[:, 1] + values_N3[:, 2]) / np.float32(3))


def _inliers(density_N3: Floats) -> NDArray[np.bool_]:
    """Pixels that are not much darker than the surface, judged by how far the brighter ones lie above it."""
    grey_N = _grey(density_N3)
    brighter = grey_N[grey_N < 0]
    spread = max(LEAST_SPREAD, float(np.quantile(-brighter, 0.68))) if brighter.size else LEAST_SPREAD
    return np.asarray(np.abs(grey_N) < 3 * spread)


def _noise(density_N3: Floats, kept: NDArray[np.bool_]) -> tuple[float, float]:
    """Optical densities that bare glass reaches: the grey one from its brighter side, where there is no tissue."""
    grey_N = _grey(density_N3)
    brighter = -grey_N[grey_N < 0]
    grey = float(np.quantile(brighter, 0.99)) if brighter.size else 0.0
    red, green, blue = density_N3[kept].T
    colour_N = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    return grey, float(np.quantile(colour_N, 0.9)) if colour_N.size else 0.0


def _places(length: int) -> Floats:
    """Coordinates from -1 to 1 of a row of pixels."""
    return np.linspace(-1, 1, length, dtype=np.float32)


def log_of_levels() -> Floats:
    """Table of log10 of each grey level, (256,) float32; level 0 has the value of level 1."""
    return np.log10(np.maximum(np.arange(256), 1)).astype(np.float32)
