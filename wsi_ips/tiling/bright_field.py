"""Tissue on bright glass: whatever takes light away, is no pen, and is not a mark that the glass itself has.

Tissue is measured against the glass of the same slide, not against other tissue: one threshold between "much
stain" and "little stain" loses pale tissue that lies beside strong tissue. The threshold is what the glass's own
noise and unevenness reach, with a floor.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

from wsi_ips.slides.base import RgbImage
from wsi_ips.tiling.glass import Glass, find_glass, log_of_levels
from wsi_ips.tiling.neighbourhood import box_sum, shrunk
from wsi_ips.tiling.pen import find_pen

Mask = NDArray[np.bool_]
Bytes = NDArray[np.uint8]

LEAST_GREY = 0.012
"""Mean optical density of the three channels that is no more glass: 3 % of the light. H&E tissue has 0.1 to 1."""

LEAST_COLOUR = 0.010
"""Difference of optical density between channels that is no more glass."""

ABOVE_NOISE = 2.0
"""How many times the densities that the glass itself reaches."""

PER_OD = 500
"""Optical densities are kept as bytes in steps of 0.002, up to 0.51."""

EDGE = (2, 5)
"""Share, as a fraction, of its tissue's density that a pixel at the edge has, at least: less is mostly glass."""

EDGE_PX = 2
"""Pixels at the edge of tissue that are asked for it: a mixed one, and one that the scanner's optics or JPEG
spoil."""

BAND_ROWS = 256

SMOOTH = 2.0
"""Mean difference, in grey levels, between neighbouring pixels; tissue has 6 to 40, glass 0.2 to 1.5."""

LINE_PX = 9
"""Width of a line, at most, for a coverslip's edge or a scratch: 72 µm at 8 µm per pixel."""

LINE_LENGTH = 12
"""How many times longer than wide a line is."""


@dataclass(frozen=True, slots=True)
class Found:
    """mask_HW: True where tissue. pen_HW: what would be tissue and was left out as felt pen."""

    mask_HW: Mask
    pen_HW: Mask


def bright_field_tissue(rgb_HWC: RgbImage, padding_HW: Mask, *, drop_pen: bool) -> Found:
    """Tissue of a picture (H, W, 3) uint8 of a bright-field slide; ``padding_HW`` is what was not scanned."""
    # A 3x3 median: single noisy pixels would raise the density of glass. It keeps edges where they are.
    smooth_HWC = np.asarray(Image.fromarray(rgb_HWC).filter(ImageFilter.MedianFilter(3)))
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
    """Optical density against the glass, mean over the channels and the channels' range, in ``1 / PER_OD``."""
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
    """How much a pixel differs from the next one and from the one below, mean of both and of the channels.

    In eighths of a grey level. Channel by channel: red grains on blue may be as bright as the blue.
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
    """Without the pixels at the outer edge that are mostly glass, judged by the tissue beside them.

    The threshold lies far below the density of most tissue: a pixel that holds 5 % of it, or the halo that a lens
    or JPEG's blocks leave around it, would count as tissue.
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
    """Regions without colour that are even, or a line: bubbles, shadows, coverslip edges, dirt out of focus."""
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
