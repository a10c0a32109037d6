"""The colour of the bare glass: slides and lamps are tinted, and a tint has saturation as tissue has."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from wsi_ips.slides.base import RgbImage

WINDOW_PX = 5
"""Side of the neighbourhood that is asked whether it is even: 40 µm at 8 µm per pixel, a few nuclei of tissue."""

EVEN = 16
"""Grey levels that even noisy glass varies within the window, at most. 99 % of H&E tissue varies by 35 or more."""

DARKEST = 140
"""Grey level that bare glass has at least."""

STRONGEST_TINT = 0.25
"""Saturation of the strongest tint that is still taken for glass."""

LEAST_STAIN = 0.04
"""Haematoxylin and eosin take more green than red or blue, by this share of the brightest channel or more."""

WHITE = 254
"""Where every channel has this level there is nothing to learn: padding, or an overexposed picture."""

LEAST_SHARE = 0.01
"""Of the picture; less even ground than this may be a vessel or a drop of mucin in the tissue."""

BRIGHTEST = 0.9
"""Quantile of the even ground's grey levels at which its brightest part, the glass, is looked for."""

SAME_GLASS = 12
"""Grey levels around that quantile that are the same glass."""

SIDE_PX = 2048
"""Of the picture, about, that colours are looked at in."""

UNTINTED = np.full(3, 255.0, np.float32)


def glass_colour(rgb_HWC: RgbImage, allowed: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The glass's R, G and B, (3,) float32 in 0..255; ``UNTINTED`` where no glass is to be seen.

    Glass is what is even (tissue has nuclei and fibres), bright, at most slightly tinted, not in the stains'
    colours, and of all that the brightest: whatever lies on glass takes light away. ``allowed`` (H, W) leaves
    out pens and padding.
    """
    grey = Image.fromarray(rgb_HWC).convert("L")
    lightest, darkest = (
        np.asarray(grey.filter(kind(WINDOW_PX))) for kind in (ImageFilter.MaxFilter, ImageFilter.MinFilter)
    )
    # A median needs no more, and the largest thumbnails would take a gigabyte.
    step = max(1, max(grey.size) // SIDE_PX)
    part = (slice(None, None, step), slice(None, None, step))
    levels = np.asarray(grey)[part]
    even = lightest[part] - darkest[part] <= EVEN
    red, green, blue = (rgb_HWC[..., channel][part].astype(np.int16) for channel in range(3))
    top, bottom = rgb_HWC[part].max(axis=2).astype(np.int16), rgb_HWC[part].min(axis=2)
    coloured = (top - bottom > STRONGEST_TINT * top) | (np.minimum(red, blue) - green > LEAST_STAIN * top)
    ground = allowed[part] & even & (levels >= DARKEST) & ~coloured & (bottom < WHITE)
    if ground.mean() < LEAST_SHARE:
        return UNTINTED
    brightest = np.quantile(levels[ground], BRIGHTEST)
    glass = ground & (np.abs(levels - brightest) <= SAME_GLASS)
    return np.asarray(np.median(rgb_HWC[part][glass], axis=0), np.float32)
