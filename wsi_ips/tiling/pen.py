"""Felt pen on the glass: pathologists mark slides in blue, green, black and red."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_ips.slides.base import RgbImage


def pen_marks(rgb_HWC: RgbImage) -> NDArray[np.bool_]:
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


def _hue_between(hue: NDArray[np.uint8], low_degrees: float, high_degrees: float) -> NDArray[np.bool_]:
    return (hue >= low_degrees / 360 * 255) & (hue <= high_degrees / 360 * 255)
