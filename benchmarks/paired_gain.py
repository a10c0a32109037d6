"""How far one method is ahead of another on the same slides, with an interval over slides and seeds.

Shape suffixes: S slides, C classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.slide_scores import macro_auc

RESAMPLES = 2000


def gain_interval(
    runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], *, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over seeds of the first method's AUC minus the second's.

    runs: both methods' results of each seed, with ``probabilities`` (S, C) and ``target`` (S,) of the same slides.
    Seeds are drawn with replacement, and in each of them slides, class by class and alike for both methods.
    """
    rng = np.random.default_rng(seed)
    held = [
        (np.array(one["probabilities"]), np.array(other["probabilities"]), np.array(one["target"]))
        for one, other in runs
    ]
    gains = []
    for _ in range(RESAMPLES):
        drawn = []
        for place in rng.integers(len(held), size=len(held)).tolist():
            ours_SC, theirs_SC, target_S = held[place]
            classes = [np.flatnonzero(target_S == c) for c in np.unique(target_S)]
            rows = np.concatenate([rng.choice(rows_c, len(rows_c)) for rows_c in classes])
            drawn.append(
                macro_auc(ours_SC[rows], target_S[rows]) - macro_auc(theirs_SC[rows], target_S[rows])
            )
        gains.append(np.mean(drawn))
    low, high = np.quantile(gains, [0.025, 0.975])
    return float(low), float(high)
