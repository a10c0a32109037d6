"""How well slides are told apart, and how far off their numbers are.

A figure that these slides cannot give (an AUC with one class only) is an error where it is asked for by
itself, and NaN where it is one of several.

Shape suffixes: N slides, C classes, T thresholds; a confusion matrix CC has a row per label, a column per
prediction.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats


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
