"""Whether probabilities mean what they say.

Shape suffixes: N slides, C classes, B bins.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Slides by their probability, in bins of equal width: [0, 0.1), …, [0.9, 1].

    count_B: int64. predicted_B: mean probability, observed_B: share of outcomes; NaN in empty bins.
    """

    count_B: NDArray[np.int64]
    predicted_B: NDArray[np.float64]
    observed_B: NDArray[np.float64]

    @property
    def ece(self) -> float:
        """Expected calibration error: the bins' distance from the diagonal, weighted by their slides."""
        filled = self.count_B > 0
        gaps = np.abs(self.predicted_B - self.observed_B)[filled]
        return float((gaps * self.count_B[filled]).sum() / self.count_B.sum())


def reliability(
    probability_N: NDArray[np.floating], outcome_N: NDArray[np.bool_], *, bins: int = BINS
) -> Reliability:
    """The reliability curve of probabilities against what came true.

    Of two classes: the positive's probability. Of several, :func:`top_label` first. Raises ``ValueError`` for
    no slides or a probability outside 0..1.
    """
    probability = np.asarray(probability_N, np.float64)
    if not len(probability) or not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError(f"{len(probability)} probabilities, not all in 0..1")
    bin_N = np.minimum((probability * bins).astype(np.int64), bins - 1)
    count_B = np.bincount(bin_N, minlength=bins).astype(np.int64)
    sums = (np.bincount(bin_N, weights, minlength=bins) for weights in (probability, outcome_N))
    predicted_B, observed_B = (np.where(count_B > 0, s / np.maximum(count_B, 1), np.nan) for s in sums)
    return Reliability(count_B, predicted_B, observed_B)


def top_label(
    probability_NC: NDArray[np.floating], label_N: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(probability of the likeliest class, whether it is the label), each (N,)."""
    predicted_N = probability_NC.argmax(axis=1)
    return np.asarray(probability_NC.max(axis=1), np.float64), predicted_N == label_N


def brier(probability_N: NDArray[np.floating], outcome_N: NDArray[np.bool_]) -> float:
    """Mean squared distance of a probability from 0 or 1, whichever came true; 0 is best, 0.25 a coin."""
    return float(((np.asarray(probability_N, np.float64) - outcome_N) ** 2).mean())


def brier_of_classes(probability_NC: NDArray[np.floating], label_N: NDArray[np.integer]) -> float:
    """Brier's own score of several classes: squared distances summed over classes; 0 is best, 2 worst."""
    truth_NC = np.eye(probability_NC.shape[1])[label_N]
    return float(((np.asarray(probability_NC, np.float64) - truth_NC) ** 2).sum(axis=1).mean())
