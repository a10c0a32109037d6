"""How sure an AUC is without resampling: DeLong's interval, and his test of two AUCs on the same slides.

DeLong, DeLong and Clarke-Pearson 1988, computed from mid-ranks in O(N log N) as Sun and Xu 2014 do ("Fast
implementation of DeLong's algorithm for comparing the areas under correlated receiver operating characteristic
curves"). Slides count as independent: several slides of one patient are not.

Shape suffixes: N slides, P positives, Q negatives.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from wsi_ips.evaluation.bootstrap import LEVEL, Interval


@dataclass(frozen=True, slots=True)
class DelongTest:
    """Two AUCs on the same slides, and whether they differ.

    Attributes:
        auc, other: The two AUCs.
        difference: ``auc - other``.
        standard_error: That of the difference; 0 if it does not vary.
        p: The two-sided p value. 1 if both rank every positive among the negatives alike. NaN if the difference
            is not 0 and does not vary, as between an AUC of 1 and one of 0, because the normal distribution says
            nothing then.
    """

    auc: float
    other: float
    difference: float
    standard_error: float
    p: float


def delong_test(
    scores_N: NDArray[np.floating], other_N: NDArray[np.floating], positive_N: NDArray[np.bool_]
) -> DelongTest:
    """Test whether two AUCs on the same slides are equal.

    Args:
        scores_N: What one model says of each slide; more means positive.
        other_N: What the other model says.
        positive_N: Which slides are positive.

    Raises:
        ValueError: There are fewer than two positives or negatives, or a score is NaN.
    """
    one, other = placements(scores_N, positive_N), placements(other_N, positive_N)
    lead_P, lead_Q = one.of_positives_P - other.of_positives_P, one.of_negatives_Q - other.of_negatives_Q
    # Placements are whole numbers of half slides, so whether they vary can be told exactly.
    halves_P, halves_Q = np.rint(lead_P * 2 * len(lead_Q)), np.rint(lead_Q * 2 * len(lead_P))
    if np.ptp(halves_P) == 0 and np.ptp(halves_Q) == 0:
        same = not halves_P[0] and not halves_Q[0]
        return DelongTest(
            one.auc, other.auc, 0.0 if same else one.auc - other.auc, 0.0, 1.0 if same else math.nan
        )
    error = math.sqrt(lead_P.var(ddof=1) / len(lead_P) + lead_Q.var(ddof=1) / len(lead_Q))
    difference = float(lead_P.mean())
    p = math.erfc(abs(difference) / error / math.sqrt(2))
    return DelongTest(one.auc, other.auc, difference, error, p)


def delong_interval(
    scores_N: NDArray[np.floating], positive_N: NDArray[np.bool_], *, level: float = LEVEL
) -> Interval:
    """The AUC with DeLong's interval, cut off at 0 and 1.

    Raises:
        ValueError: There are fewer than two positives or negatives, or a score is NaN.
    """
    placed = placements(scores_N, positive_N)
    above_P, below_Q = placed.of_positives_P, placed.of_negatives_Q
    variance = above_P.var(ddof=1) / len(above_P) + below_Q.var(ddof=1) / len(below_Q)
    reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(variance)
    return Interval(placed.auc, max(0.0, placed.auc - reach), min(1.0, placed.auc + reach))


@dataclass(frozen=True, slots=True, eq=False)
class Placements:
    """Where each slide stands among those of the other class. The mean of either is the AUC.

    Attributes:
        of_positives_P: float64, the share of negatives below each positive. Equal scores count half.
        of_negatives_Q: float64, the share of positives above each negative, likewise.
    """

    of_positives_P: NDArray[np.float64]
    of_negatives_Q: NDArray[np.float64]

    @property
    def auc(self) -> float:
        return float(self.of_positives_P.mean())


def placements(scores_N: NDArray[np.floating], positive_N: NDArray[np.bool_]) -> Placements:
    """The placements of all slides, in the order of the slides of each class.

    Raises:
        ValueError: There are fewer than two positives or negatives, or a score is NaN.
    """
    scores, positive = np.asarray(scores_N, np.float64), np.asarray(positive_N, bool)
    above_P, below_Q = scores[positive], scores[~positive]
    if len(above_P) < 2 or len(below_Q) < 2:
        raise ValueError(
            f"{len(above_P)} positives and {len(below_Q)} negatives are too few for an interval of the AUC"
        )
    if np.isnan(scores).any():
        raise ValueError("a score is not a number")
    rank_N = midranks(np.concatenate([above_P, below_Q]))
    below_P = rank_N[: len(above_P)] - midranks(above_P)
    above_Q = len(above_P) - (rank_N[len(above_P) :] - midranks(below_Q))
    return Placements(below_P / len(below_Q), above_Q / len(above_P))


def midranks(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rank of each value from 1 on, (N,) float64. Equal values share the mean of their ranks."""
    ordered = np.sort(values_N)
    first, last = (np.searchsorted(ordered, values_N, side=side) for side in ("left", "right"))
    return np.asarray((first + 1 + last) / 2, np.float64)
