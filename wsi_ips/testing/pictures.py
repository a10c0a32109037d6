"""Pictures that are drawn for contracts."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Rgb = NDArray[np.uint8]


def tissue_like(width: int, height: int, *, seed: int = 0) -> Rgb:
    """(height, width, 3) uint8: structure on several scales, so that a shifted, swapped or blurred pixel shows.

    The array is the caller's own, and may be written to.
    """
    return _drawn(width, height, seed).copy()


@lru_cache(maxsize=16)
def _drawn(width: int, height: int, seed: int) -> Rgb:
    """Many tests ask for one picture, which takes far longer to draw than to copy."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for scale, weight in ((64, 0.5), (9, 0.35), (1, 0.15)):
        coarse = weight * rng.integers(0, 256, (-(-height // scale), -(-width // scale), 3))
        image += coarse.repeat(scale, axis=0)[:height].repeat(scale, axis=1)[:, :width]
    return image.astype(np.uint8)


def halved(image: Rgb) -> Rgb:
    """The means of two by two pixels, (height // 2, width // 2, 3) uint8, at least one pixel a side."""
    height, width = image.shape[:2]
    size = (max(1, width // 2), max(1, height // 2))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
