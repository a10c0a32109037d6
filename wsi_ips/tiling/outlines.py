"""Masks as regions: their outlines, and which regions are too small.

scikit-image's ``find_contours``, ``remove_small_objects`` and ``remove_small_holes`` give the same, and are for
more than masks. These take less than half of the time, and a process that tiles a slide starts sooner without
scikit-image.

Shape suffixes: H rows, W columns, S segments.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
"""(H, W) bool array."""

_TOP, _BOTTOM, _LEFT, _RIGHT = range(4)
"""Sides of the square between the centres of four pixels. An outline crosses it from one side to another."""

_CROSSINGS = (
    (), ((_TOP, _LEFT),), ((_RIGHT, _TOP),), ((_RIGHT, _LEFT),), ((_LEFT, _BOTTOM),), ((_TOP, _BOTTOM),),
    ((_RIGHT, _TOP), (_LEFT, _BOTTOM)), ((_RIGHT, _BOTTOM),), ((_BOTTOM, _RIGHT),),
    ((_TOP, _LEFT), (_BOTTOM, _RIGHT)), ((_BOTTOM, _TOP),), ((_BOTTOM, _LEFT),), ((_LEFT, _RIGHT),),
    ((_TOP, _RIGHT),), ((_LEFT, _TOP),), (),
)  # fmt: skip
"""From which side to which an outline crosses a square, by its tissue: 1 upper left, 2 upper right, 4 lower left,
8 lower right. Pixels that touch at a corner alone are not connected."""


def outlines(mask_HW: Mask) -> list[NDArray[np.float64]]:
    """The outlines of a mask's regions and of their holes, each (points, 2) float64 of rows and columns.

    The last point of each is its first one. They run half-way between the centres of pixels inside and outside.
    Pixel (0, 0)'s centre lies at (0, 0). The mask's outermost pixels have to be False, so that every outline is
    closed. The order of outlines and points is that of scikit-image's ``find_contours(mask, 0.5)``.
    """
    width, froms_S, tos_S = _segments(mask_HW)
    if not len(froms_S):
        return []
    # Each point lies between two pixels, and one segment ends there where the next one begins.
    order_S = np.argsort(froms_S)
    next_S = order_S[np.searchsorted(froms_S, tos_S, sorter=order_S)].tolist()
    seen = bytearray(len(next_S))
    found = []
    for first in range(len(next_S)):
        if seen[first]:
            continue
        ring, at = [], first
        while not seen[at]:
            seen[at] = 1
            ring.append(at)
            at = next_S[at]
        ring_R = np.array(ring)
        # An outline begins where the last of its segments, row by row, ends.
        ring_R = np.roll(ring_R, -1 - int(ring_R.argmax()))
        points = froms_S[ring_R]
        found.append(_places(np.append(points, points[0]), width))
    return found


def _segments(mask_HW: Mask) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """The width of the mask, and the point where each segment begins and ends, row by row.

    A point is twice the number of the pixel above it or left of it, plus 1 if it lies below that pixel instead of
    right of it.
    """
    width = mask_HW.shape[1]
    bits = mask_HW.astype(np.uint8)
    cases_HW = bits[:-1, :-1] + 2 * bits[:-1, 1:] + 4 * bits[1:, :-1] + 8 * bits[1:, 1:]
    rows_K, columns_K = np.nonzero((cases_HW != 0) & (cases_HW != 15))
    cases_K = cases_HW[rows_K, columns_K]
    pixel_K = rows_K.astype(np.int64) * width + columns_K
    sides_K4 = np.stack([2 * pixel_K, 2 * (pixel_K + width), 2 * pixel_K + 1, 2 * (pixel_K + 1) + 1], axis=1)
    table = np.full((16, 2, 2), -1)
    for case, crossings in enumerate(_CROSSINGS):
        for number, crossing in enumerate(crossings):
            table[case, number] = crossing
    crossed_K22 = table[cases_K]
    points_K22 = np.take_along_axis(sides_K4[:, None, :], crossed_K22.clip(0), axis=2)
    points_S2 = points_K22[crossed_K22[..., 0] >= 0]
    return width, points_S2[:, 0], points_S2[:, 1]


def _places(points: NDArray[np.int64], width: int) -> NDArray[np.float64]:
    """Rows and columns of points as :func:`_segments` numbers them."""
    rows, columns = np.divmod(points // 2, width)
    below = points % 2 == 1
    return np.stack([rows + 0.5 * below, columns + 0.5 * ~below], axis=1)


def without_small(mask_HW: Mask, *, object_px: int, hole_px: int) -> Mask:
    """The mask without regions of up to ``object_px`` pixels, then with holes of up to ``hole_px`` filled.

    Pixels that touch at a corner alone are not connected. Returns a new array.
    """
    mask_HW = mask_HW & ~_small(mask_HW, object_px)
    return mask_HW | _small(~mask_HW, hole_px)


def _small(mask_HW: Mask, most_px: int) -> Mask:
    """Where regions of up to ``most_px`` pixels are."""
    if most_px <= 0:
        return np.zeros_like(mask_HW)
    labels_HW, count = ndimage.label(mask_HW)
    small_K = np.bincount(labels_HW.ravel(), minlength=count + 1) <= most_px
    small_K[0] = False
    return np.asarray(small_K[labels_HW])
