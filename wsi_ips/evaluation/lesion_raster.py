"""From lesion outlines to the mask that FROC reads.

Shape suffixes: H, W rows and columns of the mask; E edges; X crossings of an edge with a row.
"""

from collections.abc import Iterator

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import MultiPolygon

from wsi_ips.evaluation.froc import TUMOR
from wsi_ips.units import Size

CROSSINGS_AT_ONCE = 2**20


def lesion_raster(lesions: MultiPolygon, *, l0_per_px: float, size: Size) -> NDArray[np.uint8]:
    """(H, W) uint8, 255 where a pixel's centre lies in a lesion; ``size`` is (width, height).

    The centre of column i, row j is the level-0 point ((i + 0.5) * l0_per_px, (j + 0.5) * l0_per_px). Lesions
    beyond the mask are cut off. Walking along a row, each crossing of an outline turns lesion into none and
    back, which needs valid polygons (no part in two of them) and takes memory for the mask only.
    """
    width, height = size
    turns_HW = np.zeros((height, width + 1), np.uint8)
    for rows_X, columns_X in _crossings(lesions, l0_per_px, width=width, height=height):
        np.add.at(turns_HW, (rows_X, columns_X), 1)
    np.bitwise_xor.accumulate(turns_HW & 1, axis=1, out=turns_HW)
    return turns_HW[:, :width] * np.uint8(TUMOR)


def _crossings(
    lesions: MultiPolygon, l0_per_px: float, *, width: int, height: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(row, first column to the right) of every crossing of an edge with a row of centres, some at a time."""
    for ring in shapely.get_rings(shapely.get_parts(lesions)):
        # With centres at whole numbers, an edge crosses the rows from its upper end on, without the lower one.
        points = shapely.get_coordinates(ring) / l0_per_px - 0.5
        start_E2, end_E2 = points[:-1], points[1:]
        top_E = np.minimum(start_E2[:, 1], end_E2[:, 1])
        bottom_E = np.maximum(start_E2[:, 1], end_E2[:, 1])
        first_E, past_E = (np.ceil(edge).clip(0, height).astype(np.int64) for edge in (top_E, bottom_E))
        count_E = past_E - first_E
        batch_E = count_E.cumsum() // CROSSINGS_AT_ONCE
        for batch in np.unique(batch_E[count_E > 0]).tolist():
            chosen = np.flatnonzero((batch_E == batch) & (count_E > 0))
            edge_X = np.repeat(chosen, count_E[chosen])
            starts = np.repeat(count_E[chosen].cumsum() - count_E[chosen], count_E[chosen])
            rows_X = first_E[edge_X] + np.arange(len(edge_X)) - starts
            start, end = start_E2[edge_X], end_E2[edge_X]
            along_X = (rows_X - start[:, 1]) / (end[:, 1] - start[:, 1])
            columns_X = np.ceil(start[:, 0] + along_X * (end[:, 0] - start[:, 0]))
            yield rows_X, columns_X.clip(0, width).astype(np.int64)
