"""Felt pen on the glass (:func:`find_pen`): pathologists mark slides in blue, green, black and red.

Colour alone does not tell pen: Alcian blue, trichrome, methenamine silver and melanin have the same hues. But ink
is smooth, where tissue has nuclei and fibres, and ink lies on glass or crosses tissue in strokes.

Shape suffixes: H rows, W columns, C channels.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from wsi_ips.slides.base import RgbImage
from wsi_ips.tiling.neighbourhood import box_sum, grown, shrunk

Mask = NDArray[np.bool_]
"""(H, W) bool array."""

SMOOTH = 4.0
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
    rgb_HWC: RgbImage,
    stained_HW: Mask,
    texture_HW: NDArray[np.uint8],
    glass_3: NDArray[np.float32],
) -> Mask:
    """Which of the stained pixels are felt pen, including its bleeding edges, (H, W) bool.

    ``rgb_HWC`` is the picture, (H, W, 3) uint8, and ``stained_HW`` where it is not glass. ``texture_HW``, (H, W)
    uint8, is each pixel's difference from its neighbours in eighths of a grey level. ``glass_3`` is the glass's R,
    G and B in 0..255.
    """
    colours = [stained_HW & ink for ink in ink_colours(_against_white(rgb_HWC, glass_3))]
    ink_HW = np.logical_or.reduce(colours)
    if not ink_HW.any():
        return np.asarray(ink_HW)
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
    return (hue >= low_degrees / 360 * 255) & (hue <= high_degrees / 360 * 255)


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
    least = np.float32(8 * SMOOTH)
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
