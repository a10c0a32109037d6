"""A region of a level to a patch of another resolution."""

import numpy as np
from PIL import Image

from wsi_ips.slides.base import RgbImage
from wsi_ips.streaming.area_means import area_means


def resample(region: RgbImage, patch: RgbImage, *, inset: tuple[float, float], side: float) -> None:
    """Fill ``patch`` with the square of ``side`` pixels at ``inset`` (x, y) inside ``region``.

    region: (height, width, 3) uint8, contiguous and writable. patch: (P, P, 3) uint8, contiguous. Made smaller,
    each pixel is the mean of the area that it covers: within 0.51 grey levels of the float64 mean up to a factor
    of 32. Made larger, it is interpolated (bilinear). Raises ``ValueError`` where the square is not inside the
    region.
    """
    if side >= patch.shape[0]:
        area_means(region, patch, inset=inset, side=side)
        return
    box = (inset[0], inset[1], inset[0] + side, inset[1] + side)
    enlarged = Image.fromarray(region).resize(patch.shape[:2], Image.Resampling.BILINEAR, box=box)
    patch[:] = np.asarray(enlarged)
