"""How well slides are told apart, and how far off their numbers are.

A figure that these slides cannot give (an AUC with one class only) is an error where it is asked for by
itself, and NaN where it is one of several.

Shape suffixes: N slides, C classes, T thresholds; a confusion matrix CC has a row per label, a column per
prediction.

Whether probabilities mean what they say.

Shape suffixes: N slides, C classes, B bins.

Whether attention lies where the lesions are.

Shape suffixes: N patches.
"""

import math
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import stats
from shapely import MultiPolygon


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


def auc_or_nan(scores_N: NDArray[np.floating], positive_N: NDArray[np.bool_]) -> float:
    """:func:`roc_auc`, NaN where one of the classes is absent."""
    return roc_auc(scores_N, positive_N) if 0 < positive_N.sum() < len(positive_N) else math.nan


@dataclass(frozen=True, slots=True, eq=False)
class RocCurve:
    """From (0, 0), where nothing is called positive, to (1, 1). Each (T,) float64; thresholds descend from inf.

    A slide is called positive from the threshold on.
    """

    thresholds_T: NDArray[np.float64]
    false_positive_rate_T: NDArray[np.float64]
    sensitivity_T: NDArray[np.float64]

    def sensitivity_at(self, false_positive_rates: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sensitivity at these rates, interpolated; at a step, its upper end."""
        rates, last = np.unique(self.false_positive_rate_T[::-1], return_index=True)
        return np.interp(false_positive_rates, rates, self.sensitivity_T[::-1][last])


def roc_curve(scores_N: NDArray[np.floating], positive_N: NDArray[np.bool_]) -> RocCurve:
    """Every operating point. Raises ``ValueError`` as :func:`roc_auc`."""
    roc_auc(scores_N, positive_N)
    scores, positive = np.asarray(scores_N, np.float64), np.asarray(positive_N, bool)
    thresholds = np.unique(scores)[::-1]
    rates = []
    for members in (scores[~positive], scores[positive]):
        reached = len(members) - np.searchsorted(np.sort(members), thresholds, side="left")
        rates.append(np.append(0.0, reached / len(members)))
    return RocCurve(np.append(np.inf, thresholds), rates[0], rates[1])


def youden_threshold(scores_N: NDArray[np.floating], positive_N: NDArray[np.bool_]) -> float:
    """The threshold with the largest sensitivity + specificity; of equals, the highest.

    To be chosen on other slides than those it is used on. Raises ``ValueError`` as :func:`roc_auc`.
    """
    curve = roc_curve(scores_N, positive_N)
    best = np.argmax(np.round(curve.sensitivity_T - curve.false_positive_rate_T, 12)[1:])
    return float(curve.thresholds_T[1:][best])


def average_precision(scores_N: NDArray[np.floating], positive_N: NDArray[np.bool_]) -> float:
    """Area under the precision-recall curve by its steps (no interpolation). Raises as :func:`roc_auc`."""
    curve = roc_curve(scores_N, positive_N)
    positives = int(positive_N.sum())
    true = curve.sensitivity_T[1:] * positives
    called = true + curve.false_positive_rate_T[1:] * (len(positive_N) - positives)
    return float((np.diff(curve.sensitivity_T) * true / called).sum())


def one_vs_rest_aucs(
    probability_NC: NDArray[np.floating], present_NC: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(C,): the AUC of each class against all others, NaN where no slide, or every slide, is of it."""
    columns = zip(np.asarray(probability_NC).T, present_NC.T, strict=True)
    return np.array([auc_or_nan(scores_N, positive_N) for scores_N, positive_N in columns])


def mean_defined(values: NDArray[np.float64]) -> float:
    """The mean without NaN; NaN of nothing else."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan


def confusion_matrix(
    label_N: NDArray[np.integer], predicted_N: NDArray[np.integer], classes: int
) -> NDArray[np.int64]:
    """(C, C) int64: how many slides of each label (row) were called what (column)."""
    pairs = np.asarray(label_N, np.int64) * classes + np.asarray(predicted_N, np.int64)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class ClassRates:
    """Per class, (C,) float64, NaN where a class has no slides (recall) or is never called (precision)."""

    support: NDArray[np.int64]
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    specificity: NDArray[np.float64]
    f1: NDArray[np.float64]

    @classmethod
    def of(cls, confusion_CC: NDArray[np.int64]) -> "ClassRates":
        true, support, called = confusion_CC.diagonal(), confusion_CC.sum(axis=1), confusion_CC.sum(axis=0)
        others = confusion_CC.sum() - support
        return cls(
            support=support,
            recall=share(true, support),
            precision=share(true, called),
            specificity=share(others - called + true, others),
            f1=share(2 * true, support + called),
        )


def share(part: NDArray[np.integer], whole: NDArray[np.integer]) -> NDArray[np.float64]:
    """part / whole, NaN where there is no whole."""
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def accuracy(confusion_CC: NDArray[np.int64]) -> float:
    """The share of slides that were called what they are."""
    return float(confusion_CC.trace() / confusion_CC.sum())


def balanced_accuracy(confusion_CC: NDArray[np.int64]) -> float:
    """The mean recall of the classes that have slides."""
    return mean_defined(ClassRates.of(confusion_CC).recall)


def r_squared(predicted_N: NDArray[np.floating], label_N: NDArray[np.floating]) -> float:
    """1 - residual over total sum of squares; NaN where all labels are equal."""
    total = float(((label_N - label_N.mean()) ** 2).sum())
    return 1 - float(((label_N - predicted_N) ** 2).sum()) / total if total > 0 else math.nan


def spearman(predicted_N: NDArray[np.floating], label_N: NDArray[np.floating]) -> float:
    """Correlation of ranks, ties sharing their mean; NaN where one side is constant."""
    if np.ptp(predicted_N) == 0 or np.ptp(label_N) == 0:
        return math.nan
    return float(stats.spearmanr(predicted_N, label_N).statistic)


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
