"""A slide out of an array: for tests, and for callers who have their pixels already."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from wsi_ips.errors import ConfigError, SlideClosed
from wsi_ips.slides.base import Bounds, Level, RgbImage, SlideInfo
from wsi_ips.slides.region import ClosingReader, check_region, level_pixel, paste, white_region
from wsi_ips.units import L0Point, Mpp, Size


class MemoryReader(ClosingReader):
    """``MemoryReader(image, mpp=Mpp(0.5), levels=(1, 4))``.

    ``image`` is (height, width, 3) uint8 RGB, level 0. ``levels`` are downsample factors from 1 upwards; the
    coarser levels are means of areas (Pillow's BOX), whole pixels at least 1 px wide. ``mpp`` None: unknown.
    Raises :class:`ConfigError` for another kind of array or factors out of order.
    """

    def __init__(
        self,
        image: RgbImage,
        *,
        mpp: Mpp | None = None,
        levels: Sequence[float] = (1,),
        name: str = "memory",
        bounds: Bounds | None = None,
    ) -> None:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise ConfigError(f"{name}: expected (height, width, 3) uint8, got {image.shape} {image.dtype}")
        if not levels or levels[0] != 1 or any(finer >= coarser for finer, coarser in pairwise(levels)):
            raise ConfigError(f"{name}: levels are factors from 1 upwards, got {tuple(levels)}")
        # A copy: the caller's array may change after.
        self._images = [image.copy(), *(_shrink(image, factor) for factor in levels[1:])]
        self._info = SlideInfo(
            path=Path(name),
            reader="memory",
            vendor="memory",
            levels=tuple(_level(shrunk, of=image) for shrunk in self._images),
            mpp_xy=None if mpp is None else (mpp, mpp),
            bounds=bounds,
        )
        self._closed = False

    @property
    def info(self) -> SlideInfo:
        return self._info

    def read(self, l0_xy: L0Point, *, level: int, size_px: Size) -> RgbImage:
        """See :meth:`SlideReader.read`; a position between two pixels of the level goes to the nearest."""
        if self._closed:
            raise SlideClosed(self._info.path)
        check_region(self._info, level=level, size_px=size_px)
        lv_x, lv_y = level_pixel(l0_xy, self._info.levels[level].downsample)
        region = white_region(size_px)
        paste(region, self._images[level], at=(-lv_x, -lv_y))
        return region

    def close(self) -> None:
        self._closed = True


def _shrink(image: RgbImage, factor: float) -> RgbImage:
    height, width = image.shape[:2]
    size = (max(1, round(width / factor)), max(1, round(height / factor)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _level(image: RgbImage, *, of: RgbImage) -> Level:
    height, width = image.shape[:2]
    return Level((width, height), (of.shape[1] / width + of.shape[0] / height) / 2)
