"""The slide at one exact scale, in memory that grows with the picture and not with the slide."""

import numpy as np
from numpy.typing import NDArray

from wsi_ips.slides.base import RgbImage, SlideReader
from wsi_ips.units import Size

BLOCK_PX = 1024
"""Side of the region of a level that is read at once, about: 25 MB while it is averaged."""


def slide_picture(slide: SlideReader, size_px: Size, *, l0_per_px: float) -> RgbImage:
    """(height, width, 3) uint8: the window of :func:`slide_window` that is the whole picture."""
    return slide_window(slide, (0, 0), size_px, l0_per_px=l0_per_px)


def band_height(slide: SlideReader, *, l0_per_px: float) -> int:
    """Rows of a picture that are best made at once: those of one block."""
    level = slide.info.level_for(l0_per_px)
    return max(1, int(BLOCK_PX * slide.info.levels[level].downsample / l0_per_px))


def slide_window(
    slide: SlideReader, at_px: tuple[float, float], size_px: Size, *, l0_per_px: float
) -> RgbImage:
    """(height, width, 3) uint8, the slide's pixels from ``at_px`` (x, y) on: each the mean of the area it covers.

    ``at_px`` may lie between pixels, but in the slide.

    Pixel (i, j) covers the level-0 area [i, i + 1) * l0_per_px by [j, j + 1) * l0_per_px, as far as it lies in
    the slide: the scale is never stretched to whole pixels, which would move the far corner. Read block by
    block from the coarsest level that is fine enough, so that a large slide of one level fits too.

    Raises the reader's :class:`SlideReadError`.
    """
    level = slide.info.level_for(l0_per_px)
    lv_edges = [
        np.minimum((first + np.arange(pixels + 1)) * l0_per_px, l0_length) * (lv_length / l0_length)
        for first, pixels, l0_length, lv_length in zip(
            at_px, size_px, slide.info.l0_size, slide.info.levels[level].size, strict=True
        )
    ]
    step = band_height(slide, l0_per_px=l0_per_px)
    width, height = size_px
    picture = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, step):
        rows = lv_edges[1][top : top + step + 1]
        for left in range(0, width, step):
            columns = lv_edges[0][left : left + step + 1]
            picture[top : top + step, left : left + step] = _block(slide, level, columns, rows)
    return picture


def _block(
    slide: SlideReader, level: int, lv_columns: NDArray[np.float64], lv_rows: NDArray[np.float64]
) -> RgbImage:
    lv_size, downsample = slide.info.levels[level].size, slide.info.levels[level].downsample
    starts = [int(edges[0]) for edges in (lv_columns, lv_rows)]
    # The level's own end, and not the white beyond it, ends the last pixel.
    ends = [
        min(int(np.ceil(edges[-1])), length)
        for edges, length in zip((lv_columns, lv_rows), lv_size, strict=True)
    ]
    l0_at = (round(starts[0] * downsample), round(starts[1] * downsample))
    pixels = slide.read(l0_at, level=level, size_px=(ends[0] - starts[0], ends[1] - starts[1]))
    if _whole_pixels(lv_columns) and _whole_pixels(lv_rows):
        return pixels
    by_row = _means_between(pixels, lv_rows - starts[1])
    by_column = _means_between(np.ascontiguousarray(by_row.swapaxes(0, 1)), lv_columns - starts[0])
    return np.rint(by_column.swapaxes(0, 1)).clip(0, 255).astype(np.uint8)


def _whole_pixels(edges: NDArray[np.float64]) -> bool:
    """Each pixel of the picture is one of the level: nothing to average."""
    return bool((edges == edges[0] + np.arange(len(edges))).all() and edges[0] == int(edges[0]))


def _means_between(
    pixels: NDArray[np.uint8] | NDArray[np.float64], edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Means over [edges[i], edges[i + 1]) along the first axis, fractions of pixels counted as such."""
    sums = np.zeros((len(pixels) + 1, *pixels.shape[1:]))
    for index, line in enumerate(pixels):  # ten times as fast as np.cumsum along this axis
        np.add(sums[index], line, out=sums[index + 1])
    whole = np.minimum(edges.astype(np.intp), len(pixels) - 1)
    part = (edges - whole)[:, None, None]
    return np.asarray(np.diff(sums[whole] + part * pixels[whole], axis=0) / np.diff(edges)[:, None, None])
