"""A small picture of a large slide, in bounded memory."""

from math import ceil

import numpy as np
from PIL import Image

from wsi_ips.slides.base import RgbImage, SlideReader
from wsi_ips.units import Mpp, Size

BLOCK_PX = 2048
"""Side of the largest region that is read at once."""

LARGEST_SIDE_PX = 8192
"""However large the slide, or wrong its resolution."""


def read_thumbnail(slide: SlideReader, *, slide_mpp: Mpp, thumbnail_mpp: float) -> RgbImage:
    """The whole slide at about ``thumbnail_mpp``, (H, W, 3) uint8; never larger than level 0."""
    factor = max(1.0, thumbnail_mpp / slide_mpp, max(slide.info.l0_size) / LARGEST_SIDE_PX)
    l0_width, l0_height = slide.info.l0_size
    return scale_down(slide, (max(1, round(l0_width / factor)), max(1, round(l0_height / factor))))


def scale_down(slide: SlideReader, size_px: Size) -> RgbImage:
    """The whole slide as ``size_px`` (width, height) pixels, each the mean of the area that it covers.

    Read block by block from the coarsest level that is fine enough, so that a slide of a single level does
    not have to fit into memory. Pixel (i, j) covers level-0 pixels [i, i + 1) * l0_width / width, and so on.
    """
    width, height = size_px
    l0_per_px = (slide.info.l0_size[0] / width, slide.info.l0_size[1] / height)
    level = slide.info.level_for(min(l0_per_px))
    downsample = slide.info.levels[level].downsample
    side = max(1, int(BLOCK_PX * downsample / max(l0_per_px)))  # of a block, in thumbnail pixels
    picture = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, side):
        for left in range(0, width, side):
            block = (min(side, width - left), min(side, height - top))
            picture[top : top + block[1], left : left + block[0]] = _block(
                slide, level, downsample, (left, top), block, l0_per_px
            )
    return picture


def _block(
    slide: SlideReader,
    level: int,
    downsample: float,
    at: tuple[int, int],
    size_px: Size,
    l0_per_px: tuple[float, float],
) -> RgbImage:
    starts = [at[axis] * l0_per_px[axis] / downsample for axis in (0, 1)]
    sides = [size_px[axis] * l0_per_px[axis] / downsample for axis in (0, 1)]
    firsts = [int(start) for start in starts]
    insets = [start - first for start, first in zip(starts, firsts, strict=True)]
    lv_size = (ceil(insets[0] + sides[0]), ceil(insets[1] + sides[1]))
    # A level's last pixel may be cut short by rounding: it must not average with the white beyond it.
    lv_size = (
        min(lv_size[0], slide.info.levels[level].size[0] - firsts[0]),
        min(lv_size[1], slide.info.levels[level].size[1] - firsts[1]),
    )
    l0_at = (round(firsts[0] * downsample), round(firsts[1] * downsample))
    region = slide.read(l0_at, level=level, size_px=lv_size)
    box = (
        insets[0],
        insets[1],
        min(insets[0] + sides[0], lv_size[0]),
        min(insets[1] + sides[1], lv_size[1]),
    )
    resampling = (
        Image.Resampling.BOX
        if min(sides[0] / size_px[0], sides[1] / size_px[1]) >= 1
        else Image.Resampling.BILINEAR
    )
    return np.asarray(Image.fromarray(region).resize(size_px, resampling, box=box))
