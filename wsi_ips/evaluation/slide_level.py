"""Figures of slides: how well classes are told apart, how far off numbers are, and whether probabilities are
honest.

The first part is about classes (:func:`roc_auc`, :func:`roc_curve`, :func:`confusion_matrix` and more) and
numbers, the second about calibration (:func:`reliability`, :func:`brier`), the last about attention: whether it
lies where the lesions are (:func:`attention_auc`).

If slides do not give a figure (an AUC with only one class), that is an error of a function for this figure
alone, and NaN where it is one of several.

Shape suffixes: N slides (for attention, patches), C classes, T thresholds, B bins. A confusion matrix CC has a
row for each label and a column for each prediction.
"""

import math
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import MultiPolygon

BINS = 10
"""Bins of a reliability curve."""


def roc_auc(scores_N: NDArray[np.floating], positive_N: NDArray[np.bool_]) -> float:
    """The area under the ROC curve: how often a positive scores above a negative. Ties count half.

    It is computed from ranks (Mann-Whitney U).

    Raises:
        ValueError: One of the classes is absent, or a score is not finite.
    """
    scores, positive = np.asarray(scores_N, np.float64), np.asarray(positive_N, bool)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative or not np.isfinite(scores).all():
        raise ValueError(
            f"a ROC curve needs both classes and finite scores, not {n_positive} positives and {n_negative} "
            "negatives"
        )
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[place]
    wins = ranks[positive].sum() - n_positive * (n_positive + 1) / 2
    return float(wins / (n_positive * n_negative))


def auc_or_nan(scores_N: NDArray[np.floating], positive_N: NDArray[np.bool_]) -> float:
    """The area under the ROC curve, as :func:`roc_auc` computes it. NaN if one of the classes is absent."""
    return roc_auc(scores_N, positive_N) if 0 < positive_N.sum() < len(positive_N) else math.nan


@dataclass(frozen=True, slots=True, eq=False)
class RocCurve:
    """A ROC curve, from (0, 0), where nothing is called positive, to (1, 1).

    Attributes:
        thresholds_T: float64, descending from infinity. A slide is called positive if its score is at least the
            threshold.
        false_positive_rate_T: float64.
        sensitivity_T: float64.
    """

    thresholds_T: NDArray[np.float64]
    false_positive_rate_T: NDArray[np.float64]
    sensitivity_T: NDArray[np.float64]

    def sensitivity_at(self, false_positive_rates: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sensitivity at these false-positive rates, interpolated; at a step, its upper end."""
        rates, last = np.unique(self.false_positive_rate_T[::-1], return_index=True)
        return np.interp(false_positive_rates, rates, self.sensitivity_T[::-1][last])


def roc_curve(scores_N: NDArray[np.floating], positive_N: NDArray[np.bool_]) -> RocCurve:
    """The ROC curve with every operating point.

    Raises:
        ValueError: One of the classes is absent, or a score is not finite.
    """
    roc_auc(scores_N, positive_N)
    scores, positive = np.asarray(scores_N, np.float64), np.asarray(positive_N, bool)
    thresholds = np.unique(scores)[::-1]
    rates = []
    for members in (scores[~positive], scores[positive]):
        reached = len(members) - np.searchsorted(np.sort(members), thresholds, side="left")
        rates.append(np.append(0.0, reached / len(members)))
    return RocCurve(np.append(np.inf, thresholds), rates[0], rates[1])


def youden_threshold(scores_N: NDArray[np.floating], positive_N: NDArray[np.bool_]) -> float:
    """The threshold with the largest sensitivity + specificity, the highest among equals.

    It has to be chosen on other slides than those that it is used on.

    Raises:
        ValueError: One of the classes is absent, or a score is not finite.
    """
    curve = roc_curve(scores_N, positive_N)
    best = np.argmax(np.round(curve.sensitivity_T - curve.false_positive_rate_T, 12)[1:])
    return float(curve.thresholds_T[1:][best])


def average_precision(scores_N: NDArray[np.floating], positive_N: NDArray[np.bool_]) -> float:
    """The area under the precision-recall curve by its steps, without interpolation.

    Raises:
        ValueError: One of the classes is absent, or a score is not finite.
    """
    curve = roc_curve(scores_N, positive_N)
    positives = int(positive_N.sum())
    true = curve.sensitivity_T[1:] * positives
    called = true + curve.false_positive_rate_T[1:] * (len(positive_N) - positives)
    return float((np.diff(curve.sensitivity_T) * true / called).sum())


def one_vs_rest_aucs(
    probability_NC: NDArray[np.floating], present_NC: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The AUC of each class against all others, (C,). NaN if no slide, or every slide, is of the class."""
    columns = zip(np.asarray(probability_NC).T, present_NC.T, strict=True)
    return np.array([auc_or_nan(scores_N, positive_N) for scores_N, positive_N in columns])


def mean_defined(values: NDArray[np.float64]) -> float:
    """The mean of the values that are not NaN; NaN if there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan


def confusion_matrix(
    label_N: NDArray[np.integer], predicted_N: NDArray[np.integer], classes: int
) -> NDArray[np.int64]:
    """How many slides of each label (row) were called what (column), (C, C) int64."""
    pairs = np.asarray(label_N, np.int64) * classes + np.asarray(predicted_N, np.int64)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class ClassRates:
    """Rates of each class, (C,) float64. NaN if a class has no slides (recall) or is never called (precision)."""

    support: NDArray[np.int64]
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    specificity: NDArray[np.float64]
    f1: NDArray[np.float64]

    @classmethod
    def of(cls, confusion_CC: NDArray[np.int64]) -> "ClassRates":
        """The rates of a confusion matrix."""
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
    """part / whole. NaN where the whole is 0."""
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def accuracy(confusion_CC: NDArray[np.int64]) -> float:
    """The share of slides that were called correctly."""
    return float(confusion_CC.trace() / confusion_CC.sum())


def balanced_accuracy(confusion_CC: NDArray[np.int64]) -> float:
    """The mean recall of the classes that have slides."""
    return mean_defined(ClassRates.of(confusion_CC).recall)


def r_squared(predicted_N: NDArray[np.floating], label_N: NDArray[np.floating]) -> float:
    """1 - residual over total sum of squares. NaN if all labels are equal."""
    total = float(((label_N - label_N.mean()) ** 2).sum())
    return 1 - float(((label_N - predicted_N) ** 2).sum()) / total if total > 0 else math.nan


def spearman(predicted_N: NDArray[np.floating], label_N: NDArray[np.floating]) -> float:
    """The correlation of ranks, where ties share their mean rank. NaN if one side is constant."""
    if np.ptp(predicted_N) == 0 or np.ptp(label_N) == 0:
        return math.nan
    from scipy import stats  # half a second to import

    return float(stats.spearmanr(predicted_N, label_N).statistic)


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Slides by their probability, in bins of equal width: [0, 0.1), …, [0.9, 1].

    Attributes:
        count_B: int64, slides in each bin.
        predicted_B: Mean probability; NaN in empty bins.
        observed_B: Share of outcomes that came true; NaN in empty bins.
    """

    count_B: NDArray[np.int64]
    predicted_B: NDArray[np.float64]
    observed_B: NDArray[np.float64]

    @property
    def ece(self) -> float:
        """The expected calibration error: the distance of the bins from the diagonal, weighted by their slides."""
        filled = self.count_B > 0
        gaps = np.abs(self.predicted_B - self.observed_B)[filled]
        return float((gaps * self.count_B[filled]).sum() / self.count_B.sum())


def reliability(
    probability_N: NDArray[np.floating], outcome_N: NDArray[np.bool_], *, bins: int = BINS
) -> Reliability:
    """The reliability curve of probabilities against what came true.

    For two classes, give the probability of the positive one; for several, take :func:`top_label` first.

    Raises:
        ValueError: There are no slides, or a probability is outside 0..1.
    """
    probability = np.asarray(probability_N, np.float64)
    if not len(probability) or not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError(f"reliability needs probabilities in 0..1; these {len(probability)} are not all")
    bin_N = np.minimum((probability * bins).astype(np.int64), bins - 1)
    count_B = np.bincount(bin_N, minlength=bins).astype(np.int64)
    sums = (np.bincount(bin_N, weights, minlength=bins) for weights in (probability, outcome_N))
    predicted_B, observed_B = (np.where(count_B > 0, s / np.maximum(count_B, 1), np.nan) for s in sums)
    return Reliability(count_B, predicted_B, observed_B)


def top_label(
    probability_NC: NDArray[np.floating], label_N: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The probability of the likeliest class, and whether that class is the label, each (N,)."""
    predicted_N = probability_NC.argmax(axis=1)
    return np.asarray(probability_NC.max(axis=1), np.float64), predicted_N == label_N


def brier(probability_N: NDArray[np.floating], outcome_N: NDArray[np.bool_]) -> float:
    """The mean squared distance of a probability from 0 or 1, whichever came true. 0 is best; 0.5 for everybody
    gives 0.25.
    """
    return float(((np.asarray(probability_N, np.float64) - outcome_N) ** 2).mean())


def brier_of_classes(probability_NC: NDArray[np.floating], label_N: NDArray[np.integer]) -> float:
    """Brier's own score for several classes: squared distances summed over classes. 0 is best, 2 worst."""
    truth_NC = np.eye(probability_NC.shape[1])[label_N]
    return float(((np.asarray(probability_NC, np.float64) - truth_NC) ** 2).sum(axis=1).mean())


def lesion_share_of_patches(
    l0_xy_N2: NDArray[np.int64], l0_patch: float, lesions: MultiPolygon
) -> NDArray[np.float64]:
    """The share of the footprint of each patch that is in a lesion, exact, (N,) in 0..1.

    Args:
        l0_xy_N2: Top-left corners (x, y) in level-0 pixels.
        l0_patch: Patch side in level-0 pixels.
        lesions: Outlines in level-0 pixels.
    """
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
    """The ROC AUC of attention for telling lesion patches from normal ones within one slide.

    Args:
        attention_N: Attention of the patches.
        share_N: Share of each patch that is in a lesion.
        positive_share: A patch with this share or more is a lesion.
        negative_share: A patch with this share or less is normal. Those in between are left out.

    Raises:
        ValueError: There are no lesion patches, or no normal ones.
    """
    positive, negative = share_N >= positive_share, share_N <= negative_share
    counted = positive | negative
    return roc_auc(np.asarray(attention_N)[counted], positive[counted])


def attention_auc_or_nan(attention_N: NDArray[np.floating], share_N: NDArray[np.floating]) -> float:
    """The same as :func:`attention_auc` at its thresholds. NaN if there are no lesion patches, or no normal ones,
    as on a slide with a tiny lesion.
    """
    both = (share_N >= 0.5).any() and (share_N <= 0.0).any()
    return attention_auc(attention_N, share_N) if both else math.nan
