"""What of a slide is tissue: a mask on a thumbnail of some µm per pixel."""

from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import morphology

from wsi_ips.config import TissueConfig
from wsi_ips.slides.base import RgbImage, SlideReader
from wsi_ips.tiling.bright_field import Found, bright_field_tissue
from wsi_ips.tiling.dark_field import dark_field_tissue
from wsi_ips.tiling.neighbourhood import brightest_channel
from wsi_ips.tiling.picture import slide_picture
from wsi_ips.units import Mpp, Size

Mask = NDArray[np.bool_]

LEAST_SATURATION = 0.04
"""Below this, colour is the scanner's noise or the glass: H&E tissue lies well above (0 grey, 1 pure colour)."""

LEAST_CONTRAST = 0.05
"""Two classes whose means differ by less are one: the thumbnail is all background or all tissue."""

DARK = 64
"""A thumbnail whose median grey level is darker is fluorescence: bright things on black."""

LEAST_BRIGHTNESS = 0.02
"""Of fluorescence; below this is the camera's noise."""

DOTS_SIGMA_PX = 3.0
"""How far, in thumbnail pixels, a lit dot speaks for its surroundings."""

LARGEST_SIDE_PX = 8192
"""Of the thumbnail, however large the slide or wrong its resolution."""

BLACK = 8
"""Grey level up to which a pixel of a bright slide is padding that a scanner left black."""


@dataclass(frozen=True, slots=True)
class TissueMask:
    """mask_HW: True where tissue. l0_per_px: level-0 pixels per mask pixel, along x and y."""

    mask_HW: Mask
    l0_per_px: tuple[float, float]


def find_tissue(slide: SlideReader, config: TissueConfig, *, mpp: Mpp | None = None) -> TissueMask:
    """Segment the slide. ``mpp`` is used instead of the file's own resolution.

    Bright-field: saturation, seen against the colour of the glass, above Otsu's threshold; pens and black
    padding left out. Dark background
    (fluorescence): intensity above Otsu's threshold. Then small objects go and small holes are filled, both
    in µm². An empty slide gives an empty mask. Very pale tissue (fat) may be lost. Where no level can be read
    counts as tissue: whoever reads those patches finds the damage, counts it and names it.

    Raises :class:`MissingResolution` where neither ``mpp`` nor the file says the resolution.
    """
    slide_mpp = mpp or slide.info.known_mpp()
    l0_size = slide.info.l0_size
    l0_per_px = thumbnail_scale(l0_size, slide_mpp=slide_mpp, thumbnail_mpp=config.thumbnail_mpp)
    size_px = (ceil(l0_size[0] / l0_per_px), ceil(l0_size[1] / l0_per_px))
    unread_HW = np.zeros((size_px[1], size_px[0]), bool)
    rgb_HWC = slide_picture(slide, size_px, l0_per_px=l0_per_px, unread_HW=unread_HW)
    um2_per_px = (l0_per_px * slide_mpp) ** 2
    found = _segment(rgb_HWC, drop_pen=config.drop_pen)
    mask = found.mask_HW
    mask = morphology.remove_small_objects(mask, max_size=_pixels(config.min_object_um2, um2_per_px))
    mask = morphology.remove_small_holes(mask, max_size=_pixels(config.min_hole_um2, um2_per_px))
    return TissueMask(mask | unread_HW, (l0_per_px, l0_per_px))


def thumbnail_scale(l0_size: Size, *, slide_mpp: Mpp, thumbnail_mpp: float) -> float:
    """Level-0 pixels per pixel of a mask of ``thumbnail_mpp``, or of the finest that is held in memory."""
    return max(1.0, thumbnail_mpp / slide_mpp, max(l0_size) / LARGEST_SIDE_PX)


def _pixels(um2: float, um2_per_px: float) -> int:
    """The largest number of pixels that is still smaller than ``um2``."""
    return max(0, int(np.ceil(um2 / um2_per_px)) - 1)


def _segment(rgb_HWC: RgbImage, *, drop_pen: bool) -> Found:
    padding_HW = brightest_channel(rgb_HWC) <= BLACK
    if padding_HW.all():
        return Found(np.zeros_like(padding_HW), np.zeros_like(padding_HW))
    grey = np.asarray(Image.fromarray(rgb_HWC).convert("L"))
    if np.median(grey) < DARK and np.median(grey[~padding_HW]) < 2 * DARK:
        return Found(dark_field_tissue(rgb_HWC), np.zeros_like(padding_HW))
    return bright_field_tissue(rgb_HWC, padding_HW, drop_pen=drop_pen)
