"""Filters over square neighbourhoods of pictures (bytes or booleans), as a few passes over whole rows and columns.

At the picture's edge only the pixels that exist count. This is many times as fast as general filters in floating
point. Shape suffixes: H rows, W columns, C channels.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
"""(H, W) bool array."""
Bytes = NDArray[np.uint8]
"""(H, W) uint8 array."""


def highest(values_HW: Bytes, side: int) -> Bytes:
    """The highest value of the ``side`` by ``side`` pixels around each pixel, (H, W) uint8; ``side`` is odd."""
    return _filtered(values_HW, side, np.maximum)


def lowest(values_HW: Bytes, side: int) -> Bytes:
    """The lowest value of the ``side`` by ``side`` pixels around each pixel, (H, W) uint8; ``side`` is odd."""
    return _filtered(values_HW, side, np.minimum)


def grown(mask_HW: Mask, side: int) -> Mask:
    """Dilate a mask: True where any of the ``side`` by ``side`` pixels around a pixel is True; ``side`` is odd."""
    return _filtered(mask_HW, side, np.logical_or)


def shrunk(mask_HW: Mask, side: int) -> Mask:
    """Erode a mask: True where all of the ``side`` by ``side`` pixels around a pixel are True; ``side`` is odd."""
    return _filtered(mask_HW, side, np.logical_and)


def box_sum(values_HW: Bytes | Mask, side: int) -> NDArray[np.uint16]:
    """The sum over the ``side`` by ``side`` pixels around each pixel, (H, W) uint16; ``side`` is odd.

    For bytes, ``side`` is at most 15, so that 16 bits hold the sum.
    """
    return _filtered(values_HW.astype(np.uint16), side, np.add)


def brightest_channel(rgb_HWC: Bytes) -> Bytes:
    """The highest of R, G and B at each pixel, (H, W) uint8."""
    return np.maximum(np.maximum(rgb_HWC[..., 0], rgb_HWC[..., 1]), rgb_HWC[..., 2])


def darkest_channel(rgb_HWC: Bytes) -> Bytes:
    """The lowest of R, G and B at each pixel, (H, W) uint8."""
    return np.minimum(np.minimum(rgb_HWC[..., 0], rgb_HWC[..., 1]), rgb_HWC[..., 2])


def _filtered(values_HW: NDArray[Any], side: int, combine: Callable[..., Any]) -> NDArray[Any]:
    """Combine each pixel with its neighbours, first along columns and then along rows."""
    out_HW = values_HW.copy()
    for apart in range(1, side // 2 + 1):
        combine(out_HW[apart:], values_HW[:-apart], out=out_HW[apart:])
        combine(out_HW[:-apart], values_HW[apart:], out=out_HW[:-apart])
    values_HW, out_HW = out_HW, out_HW.copy()
    for apart in range(1, side // 2 + 1):
        combine(out_HW[:, apart:], values_HW[:, :-apart], out=out_HW[:, apart:])
        combine(out_HW[:, :-apart], values_HW[:, apart:], out=out_HW[:, :-apart])
    return out_HW
