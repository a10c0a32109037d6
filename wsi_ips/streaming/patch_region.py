"""One patch's pixels at the wanted resolution, from the level of the pyramid that serves it best."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from PIL import Image

from wsi_ips.errors import ConfigError
from wsi_ips.slides.base import RgbImage, SlideInfo, SlideReader
from wsi_ips.units import Mpp

FITS = 0.01
"""A level whose resolution is this close to the wanted one is read as it is."""

LARGEST_REGION_PX = 16_384
"""Side of the largest region that is read for one patch (0.8 GB)."""


@dataclass(frozen=True, slots=True)
class PatchRegion:
    """How patches of one slide are read: the level, and how many of its pixels make one of the patch's.

    Example: patches at 1.0 µm of a slide with levels at 0.25 and 0.5 µm come from level 1, two pixels to one.
    """

    patch_px: int
    level: int
    lv_downsample: float  # level-0 pixels per pixel of the level
    lv_per_px: float  # pixels of the level per pixel of the patch

    @classmethod
    def of(cls, info: SlideInfo, *, patch_px: int, patch_mpp: Mpp, slide_mpp: Mpp) -> Self:
        """Choose the coarsest level that is at least as fine as ``patch_mpp``.

        Raises :class:`ConfigError` where one patch would take a region too large to hold.
        """
        downsample = patch_mpp / slide_mpp
        level = info.level_for(downsample)
        lv_downsample = info.levels[level].downsample
        lv_per_px = downsample / lv_downsample
        if patch_px * lv_per_px > LARGEST_REGION_PX:
            raise ConfigError(
                f"{info.path}: a patch of {patch_px} px at {patch_mpp} µm covers {patch_px * lv_per_px:.0f} px "
                f"of level {level}, more than {LARGEST_REGION_PX}; check the slide's µm per pixel ({slide_mpp})"
            )
        return cls(patch_px, level, lv_downsample, 1.0 if abs(lv_per_px - 1) <= FITS else lv_per_px)

    def read(self, slide: SlideReader, l0_xy: tuple[int, int]) -> RgbImage:
        """The patch whose top left is at ``l0_xy``: (patch_px, patch_px, 3) uint8, white beyond the slide.

        Where no level fits, each pixel is the mean of the area that it covers (Pillow's BOX with sub-pixel
        edges); a slide coarser than wanted is interpolated (bilinear).
        """
        if self.lv_per_px == 1.0:
            return slide.read(l0_xy, level=self.level, size_px=(self.patch_px, self.patch_px))
        lv_left, lv_top = l0_xy[0] / self.lv_downsample, l0_xy[1] / self.lv_downsample
        # Reading starts at a whole pixel of the level; what is left of the position goes into the box.
        lv_x, lv_y = int(np.floor(lv_left)), int(np.floor(lv_top))
        lv_side = self.patch_px * self.lv_per_px
        inset_x, inset_y = lv_left - lv_x, lv_top - lv_y
        size = (int(np.ceil(inset_x + lv_side)), int(np.ceil(inset_y + lv_side)))
        l0_start = (round(lv_x * self.lv_downsample), round(lv_y * self.lv_downsample))
        region = slide.read(l0_start, level=self.level, size_px=size)
        resampling = Image.Resampling.BOX if self.lv_per_px > 1 else Image.Resampling.BILINEAR
        patch = Image.fromarray(region).resize(
            (self.patch_px, self.patch_px),
            resampling,
            box=(inset_x, inset_y, inset_x + lv_side, inset_y + lv_side),
        )
        return np.asarray(patch)
