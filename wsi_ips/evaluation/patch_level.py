"""Whether attention lies where the lesions are.

Shape suffixes: N patches.
"""

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import MultiPolygon

from wsi_ips.evaluation.slide_level import roc_auc


def lesion_share_of_patches(
    l0_xy_N2: NDArray[np.int64], l0_patch: float, lesions: MultiPolygon
) -> NDArray[np.float64]:
    """Share of each patch's footprint that lies in a lesion, exact, (N,) in 0..1."""
    left, top = l0_xy_N2[:, 0].astype(float), l0_xy_N2[:, 1].astype(float)
    footprints = shapely.box(left, top, left + l0_patch, top + l0_patch)
    shapely.prepare(lesions)
    share_N = np.zeros(len(footprints))
    touched = shapely.intersects(lesions, footprints)
    share_N[touched] = shapely.area(shapely.intersection(lesions, footprints[touched])) / l0_patch**2
    return share_N


def attention_auc(
    attention_N: NDArray[np.floating],
    share_N: NDArray[np.floating],
    *,
    positive_share: float = 0.5,
    negative_share: float = 0.0,
) -> float:
    """ROC AUC of attention for telling lesion patches from normal ones within one slide.

    A patch is a lesion from ``positive_share`` of its area on, and normal up to ``negative_share``; those in
    between are left out. Raises ``ValueError`` where one of the two is absent.
    """
    positive, negative = share_N >= positive_share, share_N <= negative_share
    counted = positive | negative
    return roc_auc(np.asarray(attention_N)[counted], positive[counted])
