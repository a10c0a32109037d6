"""How well slides are told apart."""

import numpy as np
from numpy.typing import NDArray


def roc_auc(scores_N: NDArray[np.floating], positive_N: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half.

    Computed from ranks (Mann-Whitney U). Raises ``ValueError`` where one of the classes is absent or a score
    is not finite.
    """
    scores, positive = np.asarray(scores_N, np.float64), np.asarray(positive_N, bool)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative or not np.isfinite(scores).all():
        raise ValueError(f"no ROC curve from {n_positive} positives and {n_negative} negatives")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[place]
    wins = ranks[positive].sum() - n_positive * (n_positive + 1) / 2
    return float(wins / (n_positive * n_negative))
