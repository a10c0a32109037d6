"""Area means compiled with numba: the same integers as :mod:`wsi_ips.streaming.area_means` computes without it.

Both kernels (:func:`near_means`, :func:`far_means`) work row by row, so that everything between the region and the
patch stays in the fastest cache. They neither allocate nor slice inside their loops: numba counts references to
slices, which costs more than the arithmetic. Indices are unsigned, because a signed index may count from the end,
and loops that check for that are not vectorised. Shape suffixes are those of ``area_means.py``; U taps.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, uint8, uint32, uint64
from numpy.typing import NDArray

BLOCK = 48
"""Values (16 pixels of 3 channels) that share one start in :func:`near_means`."""


def _compiled(function: Callable[..., None]) -> Any:
    """Compile without the interpreter's lock; the machine code is cached on disk if there is a place for it."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither beside this file nor in the user's cache folder
        return njit(nogil=True)(function)


def _row_mean(
    region_HL: NDArray[np.uint8],
    j: int,
    first_N: NDArray[np.int64],
    taps_N: NDArray[np.int64],
    weights_NT: NDArray[np.uint32],
    row_L: NDArray[np.uint32],
) -> None:
    """Row j of the patch before it is averaged along x: 256 times the mean, written into ``row_L``, (L,)
    uint32.
    """
    length, taps = region_HL.shape[1], taps_N[j]
    i = first_N[j]
    last = region_HL.shape[0] - 1
    top_L, next_L = region_HL[i], region_HL[min(i + 1, last)]
    a, b = weights_NT[j, 0], weights_NT[j, 1]
    if taps <= 2:
        for e in range(length):
            row_L[e] = (uint32(top_L[e]) * a + uint32(next_L[e]) * b + uint32(128)) >> uint32(8)
    elif taps == 3:
        third_L, c = region_HL[i + 2], weights_NT[j, 2]
        for e in range(length):
            row_L[e] = (
                uint32(top_L[e]) * a + uint32(next_L[e]) * b + uint32(third_L[e]) * c + uint32(128)
            ) >> uint32(8)
    else:
        for e in range(length):
            row_L[e] = uint32(top_L[e]) * a + uint32(next_L[e]) * b + uint32(128)
        for k in range(2, taps - 1):
            more_L, c = region_HL[i + k], weights_NT[j, k]
            for e in range(length):
                row_L[e] += uint32(more_L[e]) * c
        more_L, c = region_HL[i + taps - 1], weights_NT[j, taps - 1]
        for e in range(length):
            row_L[e] = (row_L[e] + uint32(more_L[e]) * c) >> uint32(8)


def _block_sums(
    row_L: NDArray[np.uint32],
    starts_B: NDArray[np.uint64],
    taps_B: NDArray[np.uint64],
    offsets_B: NDArray[np.uint64],
    weights_W: NDArray[np.uint32],
    sums_E: NDArray[np.uint32],
) -> None:
    """Sums of a row of the patch along x, times 2 ** 24, plus a half for rounding."""
    half, three, span = uint32(1 << 23), uint64(3), uint64(BLOCK)
    blocks: Any = uint64(starts_B.shape[0])
    a = uint64(0)
    for q in range(blocks):
        b, w, taps = starts_B[q], offsets_B[q], taps_B[q]
        c, v = b + three, w + span
        if taps == uint64(2):
            for e in range(uint64(BLOCK)):
                sums_E[a + e] = half + row_L[b + e] * weights_W[w + e] + row_L[c + e] * weights_W[v + e]
        else:
            d, u = c + three, v + span
            for e in range(uint64(BLOCK)):
                sums_E[a + e] = (
                    half
                    + row_L[b + e] * weights_W[w + e]
                    + row_L[c + e] * weights_W[v + e]
                    + row_L[d + e] * weights_W[u + e]
                )
            for k in range(three, taps):
                d, u = b + three * k, w + span * k
                for e in range(uint64(BLOCK)):
                    sums_E[a + e] += row_L[d + e] * weights_W[u + e]
        a += span


def _near_means(
    region_HL: NDArray[np.uint8],
    first_N: NDArray[np.int64],
    taps_N: NDArray[np.int64],
    weights_NT: NDArray[np.uint32],
    starts_B: NDArray[np.uint64],
    taps_B: NDArray[np.uint64],
    offsets_B: NDArray[np.uint64],
    weights_W: NDArray[np.uint32],
    patch_NE: NDArray[np.uint8],
) -> None:
    """Means for factors near 1: 16 pixels at a time lie at their places plus a shift that hardly changes."""
    row_L = np.zeros(region_HL.shape[1] + 4 * BLOCK, np.uint32)
    sums_E = np.zeros(starts_B.shape[0] * BLOCK, np.uint32)
    for j in range(patch_NE.shape[0]):
        row_mean(region_HL, j, first_N, taps_N, weights_NT, row_L)
        block_sums(row_L, starts_B, taps_B, offsets_B, weights_W, sums_E)
        for e in range(patch_NE.shape[1]):
            patch_NE[j, e] = uint8(sums_E[e] >> uint32(24))


def _far_means(
    region_HL: NDArray[np.uint8],
    first_N: NDArray[np.int64],
    taps_N: NDArray[np.int64],
    weights_NT: NDArray[np.uint32],
    starts_N: NDArray[np.uint64],
    weights_NU: NDArray[np.uint64],
    patch_NE: NDArray[np.uint8],
) -> None:
    """Means for any factor: pixel by pixel, two rows at once in the halves of 64-bit numbers, which cannot
    overflow.
    """
    side, length = patch_NE.shape[0], region_HL.shape[1]
    taps: Any = uint64(weights_NU.shape[1])
    pixels: Any = uint64(side)
    red: Any
    green: Any
    blue: Any
    upper_L = np.zeros(length, np.uint32)
    lower_L = np.zeros(length, np.uint32)
    pair_L = np.zeros(length + 3 * weights_NU.shape[1], np.uint64)
    half = uint64((1 << 23) + (1 << 55))
    low = uint64(0xFF)
    for j in range(0, side, 2):
        below = min(j + 1, side - 1)
        row_mean(region_HL, j, first_N, taps_N, weights_NT, upper_L)
        row_mean(region_HL, below, first_N, taps_N, weights_NT, lower_L)
        for e in range(length):
            pair_L[e] = uint64(upper_L[e]) | (uint64(lower_L[e]) << uint64(32))
        for x in range(pixels):
            p: Any = starts_N[x]
            red, green, blue = half, half, half
            for k in range(taps):
                w = weights_NU[x, k]
                red += pair_L[p] * w
                green += pair_L[p + uint64(1)] * w
                blue += pair_L[p + uint64(2)] * w
                p += uint64(3)
            at = uint64(3) * x
            patch_NE[below, at] = uint8(red >> uint64(56))
            patch_NE[below, at + uint64(1)] = uint8(green >> uint64(56))
            patch_NE[below, at + uint64(2)] = uint8(blue >> uint64(56))
            patch_NE[j, at] = uint8((red >> uint64(24)) & low)
            patch_NE[j, at + uint64(1)] = uint8((green >> uint64(24)) & low)
            patch_NE[j, at + uint64(2)] = uint8((blue >> uint64(24)) & low)


row_mean = _compiled(_row_mean)
"""Compiled :func:`_row_mean`."""
block_sums = _compiled(_block_sums)
"""Compiled :func:`_block_sums`."""
near_means = _compiled(_near_means)
"""Fill a patch with means, for factors near 1. :func:`wsi_ips.streaming.area_means.area_means` calls it."""
far_means = _compiled(_far_means)
"""Fill a patch with means, for any factor. :func:`wsi_ips.streaming.area_means.area_means` calls it."""
