"""Felt pen on the glass: pathologists mark slides in blue, green, black and red.

A colour alone is no pen: Alcian blue, trichrome, methenamine silver and melanin have the same hues. Ink is smooth,
tissue has nuclei and fibres, and ink lies on glass or crosses tissue in strokes.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

from wsi_ips.slides.base import RgbImage

Mask = NDArray[np.bool_]

SMOOTH = 2.0
"""Mean difference between a pixel of ink and its neighbours, in grey levels, at most; tissue has 4 to 30."""

SMOOTH_SHARE = 0.4
"""The same as a share of what the slide's other tissue has: coarse tissue shows that the picture is sharp."""

AROUND_PX = 9
"""Side of the neighbourhood over which the difference is averaged."""

SMALLEST_PX = 24
"""Pixels of an ink mark, at least; less is a fleck of the stain."""

ON_GLASS = 0.3
"""Share of a mark's rim that is glass, at least, unless the mark is a stroke."""

STROKE = 5.0
"""How many times longer than wide a stroke is."""

RIM_PX = 5
"""Width of the rim around a mark that is asked for glass, as the side of a square filter's half."""

BLEED_PX = 3
"""How far ink spreads beyond the pixels that have its full colour: its thin edge, and JPEG's coarse colours."""


def ink_coloured(rgb_HWC: RgbImage) -> Mask:
    """True where a pixel has an ink's colour rather than H&E's, (H, W).

    In degrees of hue, eosin lies at 300-350 and haematoxylin at 240-300, more red than green. Ink is told
    from them by hue (green, cyan, pure blue), by strong saturation, or (black) by darkness without colour.
    Blood and eosin keep more blue than green beside their red; bright red ink has as little of both.
    """
    hsv = np.asarray(Image.fromarray(rgb_HWC).convert("HSV"))
    # Pillow stores a full turn, and full saturation, as 255.
    hue, saturation, value = (hsv[..., channel] for channel in range(3))
    red, green, blue = (rgb_HWC[..., channel].astype(np.int16) for channel in range(3))
    green_ink = _hue_between(hue, 70, 190) & (saturation > 0.15 * 255)
    blue_ink = _hue_between(hue, 190, 250) & (saturation > 0.35 * 255) & (red - green < 10)
    scarlet = _hue_between(hue, 0, 12) | _hue_between(hue, 348, 360)
    red_ink = scarlet & (saturation > 0.7 * 255) & (value > 0.6 * 255) & (np.abs(blue - green) < 40)
    black_ink = (value < 0.25 * 255) & (saturation < 0.3 * 255)
    return np.asarray(green_ink | blue_ink | red_ink | black_ink)


def find_pen(
    rgb_HWC: RgbImage,
    stained_HW: Mask,
    texture_HW: NDArray[np.uint8],
    glass_3: NDArray[np.float32],
) -> Mask:
    """Which of the stained pixels are felt pen, with its bleeding edges, (H, W).

    ``texture_HW``: a pixel's difference from its neighbours in eighths of a grey level.
    """
    ink_HW = stained_HW & ink_coloured(_against_white(rgb_HWC, glass_3))
    if not ink_HW.any():
        return ink_HW
    inside_HW = _inside(ink_HW)
    rough_HW = _roughness(inside_HW, texture_HW)
    smooth_HW = ink_HW & (rough_HW < _smoothest(stained_HW & ~ink_HW, texture_HW))
    marks_HW = _marks(smooth_HW, inside_HW, stained_HW & ~smooth_HW)
    if not marks_HW.any():
        return marks_HW
    return _with_edges(marks_HW, ink_HW, stained_HW)


def _against_white(rgb_HWC: RgbImage, glass_3: NDArray[np.float32]) -> RgbImage:
    """As it would look on white glass: the tint of a lamp is no ink."""
    levels = np.arange(256, dtype=np.float32)
    tables = [(levels * (255 / light)).clip(0, 255).astype(np.uint8) for light in glass_3]
    return np.stack([tables[channel][rgb_HWC[..., channel]] for channel in range(3)], axis=2)


def _inside(mask_HW: Mask) -> Mask:
    """Without the edge: a mixed pixel, and one whose texture sees the mixed one."""
    return _filtered(mask_HW, ImageFilter.MinFilter(5))


def _roughness(inside_HW: Mask, texture_HW: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean texture of the inside of ink around a pixel; 0 where ink is too thin to have an inside."""
    weight = ndimage.uniform_filter(inside_HW.astype(np.float32), AROUND_PX)
    total = ndimage.uniform_filter(np.where(inside_HW, texture_HW, 0).astype(np.float32), AROUND_PX)
    return np.asarray(np.where(weight > 1e-3, total / np.maximum(weight, 1e-3), 0))


def _smoothest(tissue_HW: Mask, texture_HW: NDArray[np.uint8]) -> float:
    """Below this texture, in eighths of a grey level, ink is smooth."""
    inside_HW = _inside(tissue_HW)
    if inside_HW.mean() < 0.001:
        return 8 * SMOOTH
    return max(8 * SMOOTH, SMOOTH_SHARE * float(np.median(texture_HW[inside_HW])))


def _marks(smooth_HW: Mask, inside_HW: Mask, tissue_HW: Mask) -> Mask:
    """The smooth regions that lie on glass or run in strokes."""
    labels_HW, _ = ndimage.label(smooth_HW, np.ones((3, 3)))
    marks_HW = np.zeros_like(smooth_HW)
    for number, box in enumerate(ndimage.find_objects(labels_HW), start=1):
        around = tuple(slice(max(0, side.start - RIM_PX), side.stop + RIM_PX) for side in box)
        mark = labels_HW[around] == number
        if mark.sum() < SMALLEST_PX:
            continue
        rim = _filtered(mark, ImageFilter.MaxFilter(2 * RIM_PX + 1)) & ~smooth_HW[around]
        on_glass = 1 - tissue_HW[around][rim].mean() if rim.any() else 1.0
        is_stroke = _elongation(mark) >= STROKE
        # What is too thin to show whether it is smooth may be a fibre.
        if (
            (on_glass >= ON_GLASS or is_stroke)
            if inside_HW[around][mark].any()
            else (on_glass >= 0.7 and is_stroke)
        ):
            marks_HW[around] |= mark
    return marks_HW


def _elongation(mark_HW: Mask) -> float:
    """Length over width of a region that may be bent: its area over the square of its greatest width."""
    return float(mark_HW.sum() / (2 * _half_width(mark_HW)) ** 2)


def _half_width(mark_HW: Mask) -> float:
    step = max(1, max(mark_HW.shape) // 1024)
    framed = np.pad(mark_HW[::step, ::step], 1)
    return max(0.5, float(ndimage.distance_transform_edt(framed).max()) * step)


def _with_edges(marks_HW: Mask, ink_HW: Mask, stained_HW: Mask) -> Mask:
    """The marks, where they go on over tissue that shows through, and what bleeds from them."""
    bleeding = _filtered(marks_HW, ImageFilter.MaxFilter(2 * BLEED_PX + 1))
    labels_HW, count = ndimage.label(ink_HW & ~bleeding, np.ones((3, 3)))
    touching = np.unique(labels_HW[_filtered(bleeding, ImageFilter.MaxFilter(3))])
    boxes = ndimage.find_objects(labels_HW, max_label=count)
    widest = 1.25 * _half_width(marks_HW) + BLEED_PX
    for number in touching[touching > 0]:
        box = boxes[number - 1]
        part = labels_HW[box] == number
        if _half_width(part) <= widest:
            bleeding[box] |= part
    return np.asarray(bleeding & stained_HW)


def _filtered(mask_HW: Mask, rank: ImageFilter.Filter) -> Mask:
    return np.asarray(Image.fromarray(mask_HW.view(np.uint8)).filter(rank)).view(bool)


def _hue_between(hue: NDArray[np.uint8], low_degrees: float, high_degrees: float) -> Mask:
    return (hue >= low_degrees / 360 * 255) & (hue <= high_degrees / 360 * 255)
