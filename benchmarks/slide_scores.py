"""How well slides of several classes are told apart, and their lesions found: AUC with its interval, FROC.

Shape suffixes: S slides, C classes, N patches.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from shapely import MultiPolygon
from shapely.affinity import scale

from wsi_ips.drawn.composite import filled
from wsi_ips.evaluation.froc import FrocRules, SlideHits, detections_from_attention, hit_lesions, lesion_mask
from wsi_ips.evaluation.intervals import Pair, Picked, bootstrap, paired_bootstrap
from wsi_ips.evaluation.slide_level import roc_auc
from wsi_ips.tiling.grid import PatchCoords

RESAMPLES = 2000


def macro_auc(probabilities_SC: NDArray[np.floating], target_S: NDArray[np.int64]) -> float:
    """Mean over the classes of the AUC of each class against the others."""
    classes = range(probabilities_SC.shape[1])
    return float(np.mean([roc_auc(probabilities_SC[:, c], target_S == c) for c in classes]))


def auc_interval(probabilities_SC: NDArray[np.floating], target_S: NDArray[np.int64]) -> tuple[float, float]:
    """Bootstrap interval of :func:`macro_auc` over slides."""
    return _interval(lambda rows: macro_auc(probabilities_SC[rows], target_S[rows]), target_S)


def lead_interval(
    ours_SC: NDArray[np.floating], theirs_SC: NDArray[np.floating], target_S: NDArray[np.int64]
) -> tuple[float, float]:
    """Bootstrap interval of the difference of two methods' :func:`macro_auc` on the same slides."""
    pair = Pair(
        lambda rows: {"auc": macro_auc(ours_SC[rows], target_S[rows])},
        lambda rows: {"auc": macro_auc(theirs_SC[rows], target_S[rows])},
        range(len(target_S)),
        target_S.tolist(),
    )
    found = paired_bootstrap([pair], resamples=RESAMPLES)["auc"]
    return found.low, found.high


def _interval(measure: Callable[[Picked], float], target_S: NDArray[np.int64]) -> tuple[float, float]:
    """Slides are drawn class by class, so that none is ever absent, and alike for every method."""
    classes = target_S.tolist()
    found = bootstrap(
        lambda rows: {"measure": measure(rows)}, range(len(classes)), strata=classes, resamples=RESAMPLES
    )
    return found["measure"].low, found["measure"].high


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
