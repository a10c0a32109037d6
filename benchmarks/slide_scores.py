"""How well slides of several classes are told apart, and their lesions found: AUC with its interval, FROC.

Shape suffixes: S slides, C classes, N patches.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from shapely import MultiPolygon
from shapely.affinity import scale

from wsi_ips.datasets.composite_layout import filled
from wsi_ips.evaluation.detections import detections_from_attention
from wsi_ips.evaluation.froc import FrocRules, SlideHits, hit_lesions, lesion_mask
from wsi_ips.evaluation.slide_level import roc_auc
from wsi_ips.tiling.grid import PatchCoords

RESAMPLES = 2000


def macro_auc(probabilities_SC: NDArray[np.floating], target_S: NDArray[np.int64]) -> float:
    """Mean over the classes of the AUC of each class against the others."""
    classes = range(probabilities_SC.shape[1])
    return float(np.mean([roc_auc(probabilities_SC[:, c], target_S == c) for c in classes]))


def resamples(target_S: NDArray[np.int64], *, seed: int = 0) -> list[NDArray[np.int64]]:
    """Slides drawn with replacement, class by class, so that none is ever absent. The same for every method."""
    rng = np.random.default_rng(seed)
    of_class = [np.flatnonzero(target_S == c) for c in np.unique(target_S)]
    return [
        np.concatenate([rng.choice(places, len(places)) for places in of_class]) for _ in range(RESAMPLES)
    ]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The middle 95 %."""
    low, high = np.quantile(np.asarray(values), (0.025, 0.975))
    return float(low), float(high)


def auc_interval(probabilities_SC: NDArray[np.floating], target_S: NDArray[np.int64]) -> tuple[float, float]:
    """Bootstrap interval of :func:`macro_auc` over slides."""
    return interval([macro_auc(probabilities_SC[rows], target_S[rows]) for rows in resamples(target_S)])


def lead_interval(
    ours_SC: NDArray[np.floating], theirs_SC: NDArray[np.floating], target_S: NDArray[np.int64]
) -> tuple[float, float]:
    """Bootstrap interval of the difference of two methods' :func:`macro_auc` on the same slides."""
    differences = [
        macro_auc(ours_SC[rows], target_S[rows]) - macro_auc(theirs_SC[rows], target_S[rows])
        for rows in resamples(target_S)
    ]
    return interval(differences)


def slide_hits(
    coords: PatchCoords, attention_N: NDArray[np.floating], *, p_tumor: float, lesions: MultiPolygon | None
) -> SlideHits:
    """The slide's detections, sorted by the rules of CAMELYON16 at the slide's own resolution."""
    found = detections_from_attention(coords, attention_N, probability=p_tumor)
    rules = FrocRules(l0_mpp=coords.slide_mpp)
    if lesions is None:
        return hit_lesions(found, None, rules)
    size_px, factor = rules.mask_size(coords.l0_size), 1 / rules.l0_per_px
    parts = scale(lesions, factor, factor, origin=(0, 0)).geoms
    tumor_HW = np.logical_or.reduce([filled(size_px, part) for part in parts])
    return hit_lesions(found, lesion_mask(tumor_HW.astype(np.uint8) * 255, rules), rules)
