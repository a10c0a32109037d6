"""From patches to pixels: each pixel of a canvas takes the value of the patch that holds its centre.

Shape suffixes: N patches, H and W canvas rows and columns.
"""

from math import ceil

import numpy as np
from numpy.typing import NDArray

from wsi_ips.units import Size


def canvas_size(l0_size: Size, l0_per_px: float) -> Size:
    """(width, height) of a canvas that covers the slide."""
    return ceil(l0_size[0] / l0_per_px), ceil(l0_size[1] / l0_per_px)


def rasterise(
    values_N: NDArray[np.floating],
    l0_xy_N2: NDArray[np.floating],
    *,
    l0_patch: float,
    l0_size: Size,
    l0_per_px: float,
) -> NDArray[np.float32]:
    """values_HW float32, NaN where there is no patch; the mean where patches overlap.

    Pixel (column i, row j) has its centre at ((i + 0.5) * l0_per_px, (j + 0.5) * l0_per_px) and belongs to a
    patch whose float footprint [x, x + l0_patch) holds it: no stride is ever rounded, so nothing drifts towards
    the bottom right. Memory: the canvas.
    """
    width, height = canvas_size(l0_size, l0_per_px)
    sums = np.zeros((height, width), np.float64)
    counts = np.zeros((height, width), np.uint16)
    # The slide's own edge cuts the last patches: pixels whose centre lies beyond it stay empty.
    columns = _pixels(l0_xy_N2[:, 0], l0_patch, l0_per_px, l0_size[0])
    rows = _pixels(l0_xy_N2[:, 1], l0_patch, l0_per_px, l0_size[1])
    for value, left, right, top, bottom in zip(values_N.tolist(), *columns, *rows, strict=True):
        sums[top:bottom, left:right] += value
        counts[top:bottom, left:right] += 1
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(counts > 0, sums / np.maximum(counts, 1), np.nan), np.float32)


def _pixels(
    l0_start_N: NDArray[np.floating], l0_patch: float, l0_per_px: float, l0_length: int
) -> tuple[list[int], list[int]]:
    """First pixel, and the one past the last, whose centre lies in [start, start + patch) and in the slide."""
    l0_end_N = np.minimum(l0_start_N + l0_patch, l0_length)
    first = np.ceil(l0_start_N / l0_per_px - 0.5).clip(0)
    past = np.ceil(l0_end_N / l0_per_px - 0.5).clip(0)
    return first.astype(int).tolist(), past.astype(int).tolist()


def percentile_ranks(values_N: NDArray[np.floating]) -> NDArray[np.float64]:
    """Share of values that are smaller, ties counting half: 0..1, (N,). For display only."""
    _, place, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    below = counts.cumsum() - counts
    return np.asarray((below + counts / 2)[place] / len(values_N))
