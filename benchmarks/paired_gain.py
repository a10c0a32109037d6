"""How far one method is ahead of another on the same slides, with an interval over slides and seeds.

Shape suffixes: S slides, C classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.slide_scores import macro_auc
from wsi_ips.evaluation.intervals import Measure, Pair, paired_bootstrap

RESAMPLES = 2000


def gain_interval(
    runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], *, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over seeds of the first method's AUC minus the second's.

    runs: both methods' results of each seed, with ``probabilities`` (S, C) and ``target`` (S,) of the same slides.
    Seeds are drawn with replacement, and in each of them slides of its own, class by class and alike for both
    methods.
    """
    pairs = [
        Pair(_auc(one), _auc(other), range(len(one["target"])), list(one["target"])) for one, other in runs
    ]
    found = paired_bootstrap(pairs, same_slides=False, resamples=RESAMPLES, seed=seed)["auc"]
    return found.low, found.high


def _auc(run: Mapping[str, Any]) -> Measure:
    p_SC, target_S = np.array(run["probabilities"]), np.array(run["target"])
    return lambda picked: {"auc": macro_auc(p_SC[picked], target_S[picked])}
