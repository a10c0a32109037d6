"""A region of a level to a patch of another resolution."""

import numpy as np
from PIL import Image

from wsi_ips.slides.base import RgbImage


def resampled(region: RgbImage, *, inset: tuple[float, float], side: float, patch_px: int) -> RgbImage:
    """The square of ``side`` pixels at ``inset`` (x, y) inside ``region``, as (patch_px, patch_px, 3) uint8.

    region: (height, width, 4) uint8, contiguous, the fourth channel without meaning: four are what Pillow
    works on without a copy. Larger than the patch: each pixel is the mean of the area that it covers (box
    filter with sub-pixel edges; whole factors take Pillow's faster way to the same means). Smaller:
    interpolated (bilinear).
    """
    height, width = region.shape[:2]
    image = Image.frombuffer("RGBX", (width, height), region, "raw", "RGBX", 0, 1)
    box = (inset[0], inset[1], inset[0] + side, inset[1] + side)
    factor = side / patch_px
    if factor > 1 and factor.is_integer() and inset == (0.0, 0.0):
        patch = image.reduce(int(factor), box=(0, 0, int(side), int(side)))
    else:
        rule = Image.Resampling.BOX if factor > 1 else Image.Resampling.BILINEAR
        patch = image.resize((patch_px, patch_px), rule, box=box)
    return np.frombuffer(patch.tobytes("raw", "RGB"), np.uint8).reshape(patch_px, patch_px, 3)
