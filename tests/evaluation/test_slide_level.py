"""Figures against torchmetrics and scipy where they have them, and by hand where they do not."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional import classification as library
from torchmetrics.functional import regression

from wsi_ips.evaluation.slide_level import (
    ClassRates,
    accuracy,
    average_precision,
    balanced_accuracy,
    brier,
    brier_of_classes,
    confusion_matrix,
    mean_defined,
    one_vs_rest_aucs,
    r_squared,
    reliability,
    roc_auc,
    roc_curve,
    spearman,
    top_label,
    youden_threshold,
)

scored = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=40).filter(
    lambda pairs: len({positive for _, positive in pairs}) == 2
)


def arrays(pairs: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    scores, positive = zip(*pairs, strict=True)
    return np.array(scores) / 8, np.array(positive)


@given(scored)
def test_the_curve_is_torchmetrics_s_and_holds_the_area(pairs: list[tuple[int, bool]]) -> None:
    scores, positive = arrays(pairs)
    curve = roc_curve(scores, positive)
    rates, sensitivity, _ = library.binary_roc(torch.tensor(scores), torch.tensor(positive).long())
    assert curve.false_positive_rate_T == pytest.approx(rates.numpy(), abs=1e-6)
    assert curve.sensitivity_T == pytest.approx(sensitivity.numpy(), abs=1e-6)
    area = np.trapezoid(curve.sensitivity_T, curve.false_positive_rate_T)
    assert area == pytest.approx(roc_auc(scores, positive))
    precision = library.binary_average_precision(torch.tensor(scores), torch.tensor(positive).long())
    assert average_precision(scores, positive) == pytest.approx(float(precision), abs=1e-6)


@given(scored)
def test_no_threshold_beats_the_chosen_one(pairs: list[tuple[int, bool]]) -> None:
    scores, positive = arrays(pairs)

    def youden(threshold: float) -> float:
        called = scores >= threshold
        return called[positive].mean() - called[~positive].mean()

    chosen = youden_threshold(scores, positive)
    best = max(youden(threshold) for threshold in scores)
    assert youden(chosen) == pytest.approx(best)
    assert all(youden(threshold) < best - 1e-9 for threshold in scores[scores > chosen])


def test_sensitivity_between_points_is_interpolated_and_at_a_step_the_upper() -> None:
    curve = roc_curve(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False]))
    assert curve.sensitivity_at(np.array([0, 0.25, 0.5, 1])).tolist() == [0.5, 0.75, 1, 1]


several = st.integers(2, 4).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        st.lists(
            st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)), min_size=1, max_size=30
        ),
    )
)


@given(several)
def test_rates_are_torchmetrics_s(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    classes, pairs = drawn
    label, called = (np.array(column) for column in zip(*pairs, strict=True))
    confusion = confusion_matrix(label, called, classes)
    target, predicted = torch.tensor(label), torch.tensor(called)
    assert confusion.tolist() == library.multiclass_confusion_matrix(predicted, target, classes).tolist()
    assert accuracy(confusion) == pytest.approx(np.mean(label == called))
    rates = ClassRates.of(confusion)
    each = {"num_classes": classes, "average": None}
    for ours, theirs in (
        (rates.recall, library.multiclass_recall(predicted, target, **each)),
        (rates.precision, library.multiclass_precision(predicted, target, **each)),
        (rates.specificity, library.multiclass_specificity(predicted, target, **each)),
        (rates.f1, library.multiclass_f1_score(predicted, target, **each)),
    ):
        defined = ~np.isnan(ours)  # where there is nothing to count, theirs say 0
        assert ours[defined] == pytest.approx(theirs.numpy()[defined], abs=1e-6)
    present = np.unique(label)
    assert balanced_accuracy(confusion) == pytest.approx(
        np.mean([np.mean(called[label == k] == k) for k in present])
    )
    assert np.isnan(rates.recall).sum() == classes - len(present)


def test_macro_auc_leaves_out_what_is_absent() -> None:
    rng = np.random.default_rng(0)
    probability = rng.dirichlet(np.ones(4), 60)
    label = rng.integers(0, 3, 60)
    aucs = one_vs_rest_aucs(probability, label[:, np.newaxis] == np.arange(4))
    assert math.isnan(aucs[3])
    theirs = library.multiclass_auroc(torch.tensor(probability[:, :3]), torch.tensor(label), 3, average=None)
    assert aucs[:3] == pytest.approx(theirs.numpy(), abs=1e-6)
    assert mean_defined(aucs) == pytest.approx(aucs[:3].mean())
    assert math.isnan(mean_defined(np.array([np.nan])))


def test_calibration_is_torchmetrics_s() -> None:
    rng = np.random.default_rng(1)
    probability = rng.dirichlet(np.ones(3), 500)
    label = rng.integers(0, 3, 500)
    outcome = rng.random(500) < probability[:, 0]
    theirs = library.binary_calibration_error(
        torch.tensor(probability[:, 0]), torch.tensor(outcome).long(), n_bins=10
    )
    assert reliability(probability[:, 0], outcome).ece == pytest.approx(float(theirs), abs=1e-6)
    theirs = library.multiclass_calibration_error(
        torch.tensor(probability), torch.tensor(label), 3, n_bins=10
    )
    assert reliability(*top_label(probability, label)).ece == pytest.approx(float(theirs), abs=1e-6)
    assert brier(probability[:, 0], outcome) == pytest.approx(np.mean((probability[:, 0] - outcome) ** 2))


def test_reliability_by_hand() -> None:
    curve = reliability(np.array([0.0, 0.05, 0.62, 0.68, 1.0]), np.array([False, True, True, False, True]))
    assert curve.count_B.tolist() == [2, 0, 0, 0, 0, 0, 2, 0, 0, 1]
    assert curve.predicted_B[[0, 6, 9]] == pytest.approx([0.025, 0.65, 1])
    assert curve.observed_B[[0, 6, 9]] == pytest.approx([0.5, 0.5, 1])
    assert np.isnan(curve.observed_B).sum() == 7
    assert curve.ece == pytest.approx((2 * 0.475 + 2 * 0.15) / 5)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        reliability(np.array([1.2]), np.array([True]))


def test_brier_of_two_classes_is_twice_the_binary_one() -> None:
    probability, label = np.array([0.9, 0.2]), np.array([1, 1])
    both = np.stack([1 - probability, probability], axis=1)
    assert brier_of_classes(both, label) == pytest.approx(2 * brier(probability, label == 1))


def test_regression_is_torchmetrics_s_and_constant_labels_have_no_correlation() -> None:
    rng = np.random.default_rng(2)
    label = rng.integers(0, 9, 40).astype(float)
    predicted = np.round(label + rng.normal(0, 2, 40))
    ours, theirs = torch.tensor(predicted), torch.tensor(label)
    assert r_squared(predicted, label) == pytest.approx(float(regression.r2_score(ours, theirs)), abs=1e-6)
    assert spearman(predicted, label) == pytest.approx(
        float(regression.spearman_corrcoef(ours, theirs)), abs=1e-6
    )
    assert math.isnan(r_squared(predicted, np.ones(40)))
    assert math.isnan(spearman(np.ones(40), label))
