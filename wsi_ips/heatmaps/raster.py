"""From the values of patches to pixels, and from raw values to what a colour scale can show.

Shape suffixes: N patches; H, W rows and columns of the canvas.
"""

from math import ceil
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import ConfigError
from wsi_ips.units import Size

Scale = Literal["percentile", "absolute"]

PIXEL_DECIMALS = 6
"""Canvas positions are rounded here, so that two ways to compute one edge give one pixel."""


def canvas_size(l0_size: Size, l0_per_px: float) -> Size:
    """(width, height) in pixels of the canvas that covers the slide; its last column and row may stick out."""
    width, height = (max(1, ceil(round(length / l0_per_px, PIXEL_DECIMALS))) for length in l0_size)
    return width, height


def patch_values_to_canvas(
    l0_xy_N2: NDArray[np.integer | np.floating],
    l0_patch: float,
    values_N: NDArray[np.floating],
    *,
    l0_size: Size,
    l0_per_px: float,
) -> NDArray[np.float32]:
    """values_HW float32: every pixel has the value of the patch that holds its centre, NaN where none does.

    The centre of column i, row j is the level-0 point ((i + 0.5) * l0_per_px, (j + 0.5) * l0_per_px). A patch
    holds what is in [x, x + l0_patch) and in the slide; neither corners nor sides are rounded to canvas
    pixels, so nothing drifts towards the bottom right. Where patches overlap: the mean. A patch smaller than
    a pixel may hold no centre. Memory: about 16 bytes a pixel.
    """
    width, height = canvas_size(l0_size, l0_per_px)
    sum_HW = np.zeros((height, width))
    count_HW = np.zeros((height, width), np.int32)
    columns = _pixels_held(l0_xy_N2[:, 0], l0_patch, l0_per_px, l0_size[0])
    rows = _pixels_held(l0_xy_N2[:, 1], l0_patch, l0_per_px, l0_size[1])
    for value, left, right, top, bottom in zip(values_N.tolist(), *columns, *rows, strict=True):
        sum_HW[top:bottom, left:right] += value
        count_HW[top:bottom, left:right] += 1
    sum_HW[count_HW == 0] = np.nan
    return (sum_HW / np.maximum(count_HW, 1)).astype(np.float32)


def _pixels_held(
    l0_start_N: NDArray[np.integer | np.floating], l0_patch: float, l0_per_px: float, l0_length: int
) -> tuple[list[int], list[int]]:
    """Per patch, the first pixel whose centre it holds, and the one past the last."""
    l0_end_N = np.minimum(l0_start_N + l0_patch, l0_length)
    # (i + 0.5) * l0_per_px >= edge, solved for the smallest whole i.
    firsts, pasts = (
        np.ceil(np.round(edge_N / l0_per_px - 0.5, PIXEL_DECIMALS)).clip(0).astype(np.int64)
        for edge_N in (l0_start_N, l0_end_N)
    )
    return firsts.tolist(), pasts.tolist()


def display_values(
    values_N: NDArray[np.floating], *, scale: Scale, low: float | None = None, high: float | None = None
) -> NDArray[np.float32]:
    """Where each value lies on the colour scale, (N,) in 0..1. For display only: ``values_N`` stays as it is.

    ``percentile``: by rank (0 the smallest, 1 the largest, ties share their mean rank); ``low`` and ``high``
    are the percentiles, 0 to 100, at the scale's ends. ``absolute``: linear; ``low`` and ``high`` are raw
    values, by default the smallest and the largest. Equal values all lie at 0.5.
    """
    low, high = scale_ends(values_N, scale=scale, low=low, high=high)
    shown_N = _percentiles(values_N) if scale == "percentile" else values_N.astype(np.float64)
    if high == low:
        return np.full(len(values_N), 0.5, np.float32)
    return ((shown_N - low) / (high - low)).clip(0, 1).astype(np.float32)


def scale_ends(
    values_N: NDArray[np.floating], *, scale: Scale, low: float | None, high: float | None
) -> tuple[float, float]:
    """What the two ends of the colour scale stand for: percentiles or raw values. See :func:`display_values`.

    Raises :class:`ConfigError` where the low end is above the high one, or a percentile is none.
    """
    if scale == "percentile":
        ends = 0.0 if low is None else float(low), 100.0 if high is None else float(high)
        valid = 0 <= ends[0] < ends[1] <= 100
    else:
        smallest, largest = (float(values_N.min()), float(values_N.max())) if len(values_N) else (0.0, 0.0)
        ends = smallest if low is None else float(low), largest if high is None else float(high)
        valid = ends[0] <= ends[1]
    if not valid:
        raise ConfigError(f"the {scale} colour scale cannot go from {ends[0]:g} to {ends[1]:g}")
    return ends


def _percentiles(values_N: NDArray[np.floating]) -> NDArray[np.float64]:
    """0 to 100, the inverse of ``np.percentile``; a single value is its own median."""
    if len(values_N) < 2:
        return np.full(len(values_N), 50.0)
    _, place_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    mean_ranks = counts.cumsum() - (counts + 1) / 2
    return np.asarray(mean_ranks[place_N] / (len(values_N) - 1) * 100)
