"""Tissue of fluorescence: bright things on black.

Nuclei on black are dots, and what lies between them is tissue too. So is what is dimly lit beside bright things:
the threshold is what the black background's own noise reaches, not a level between dim and bright.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsi_ips.slides.base import RgbImage
from wsi_ips.tiling.neighbourhood import brightest_channel, grown, shrunk

Mask = NDArray[np.bool_]

NEAR_SIGMA_PX = 3.0
"""How far, in thumbnail pixels, the light around a pixel is looked at: one lit pixel alone is noise."""

LEAST_LIGHT = 2.0
"""Grey levels above the background, on average around a pixel, that are no more the camera's noise."""

LEAST_DOT = 4.0
"""The same of the pixel itself."""

ABOVE_NOISE = 5.0
"""How many times the background's spread."""

GAP_PX = 11
"""Dots that are no further apart than this belong together: 88 µm at 8 µm per pixel."""

EDGE = 0.4
"""Share of the light around it, within the tissue, that a pixel at the edge has at least."""


def dark_field_tissue(rgb_HWC: RgbImage) -> Mask:
    """Tissue of a picture (H, W, 3) uint8 that is bright on black; nothing where all is background."""
    light_HW = brightest_channel(rgb_HWC)
    near_HW = ndimage.gaussian_filter(light_HW, NEAR_SIGMA_PX, output=np.float32)
    level, spread = _background(light_HW, least=0.5)
    near_level, near_spread = _background(near_HW, least=0.1)
    near_HW -= near_level
    bright_HW = near_HW > max(LEAST_LIGHT, ABOVE_NOISE * near_spread)
    dots_HW = (light_HW > level + max(LEAST_DOT, ABOVE_NOISE * spread)) & bright_HW
    # A mixed pixel at the edge is dimmer than what lies around it within the tissue.
    edge_HW = dots_HW & ~shrunk(dots_HW, 3)
    dots_HW &= ~(edge_HW & (light_HW - level < EDGE * near_HW))
    return np.asarray(shrunk(grown(dots_HW, GAP_PX), GAP_PX) & bright_HW)


def _background(light_HW: NDArray[np.float32] | NDArray[np.uint8], *, least: float) -> tuple[float, float]:
    """The most common of the darker levels, and how far the levels below it spread, or ``least``."""
    counts, edges = np.histogram(light_HW, bins=256, range=(0, 256))
    level = float(edges[counts[:64].argmax()])
    below = level - light_HW[light_HW < level].astype(np.float32)
    return level, max(least, float(np.quantile(below, 0.68))) if below.size else least
