"""Split-conformal sets: they hold the true answer as often as they promise, whatever the model is worth."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import softmax

from wsi_ips.config import TaskConfig
from wsi_ips.evaluation.conformal import (
    clopper_pearson,
    coverage_range,
    fewest,
    in_sets,
    one_of_each_case,
    questions,
    rank,
    score_sets,
    thresholds,
)


def drawn(rng: np.random.Generator, n: int, classes: int, skill: float) -> tuple[np.ndarray, np.ndarray]:
    """Slides of a model that is worth ``skill`` and much too sure of itself."""
    label_N = rng.choice(classes, n, p=np.arange(classes, 0, -1) / sum(range(classes + 1)))
    logits_NC = rng.normal(0, 1, (n, classes)) + skill * np.eye(classes)[label_N]
    return softmax(4 * logits_NC, axis=1), label_N


@pytest.mark.parametrize("n", [30, 45, 100, 200])
@pytest.mark.parametrize(("classes", "skill"), [(2, 0.0), (2, 1.5), (3, 1.0), (3, 4.0)])
def test_coverage_over_many_draws_is_what_was_promised(n: int, classes: int, skill: float) -> None:
    """``conformal_coverage``: 0.87 to 0.93 at a risk of 0.1; and within the bounds of so many slides."""
    rng = np.random.default_rng(n)
    covered = []
    for _ in range(400):
        known, label_N = drawn(rng, n, classes, skill)
        new, truth_N = drawn(rng, 200, classes, skill)
        sets_NA = in_sets(new, thresholds(known, label_N, risk=0.1))
        covered.append(sets_NA[np.arange(200), truth_N].mean())
    coverage, error = np.mean(covered), np.std(covered) / math.sqrt(len(covered))
    assert 0.87 <= coverage <= 0.93
    assert 0.9 - 4 * error <= coverage <= 0.9 + 1 / (n + 1) + 4 * error


def test_by_class_it_holds_in_every_class_where_one_threshold_fails_the_rare_one() -> None:
    rng = np.random.default_rng(0)
    by_class, together = [], []
    for _ in range(200):
        known, label_N = drawn(rng, 150, 3, 1.0)
        known[:, 2] *= 0.05  # a model that dislikes the rarest class
        new, truth_N = drawn(rng, 200, 3, 1.0)
        new[:, 2] *= 0.05
        for kept, each in ((by_class, True), (together, False)):
            sets_NA = in_sets(new, thresholds(known, label_N, risk=0.1, by_class=each))
            kept.append([sets_NA[truth_N == answer, answer].mean() for answer in range(3)])
    assert np.mean(by_class, axis=0).min() > 0.89
    assert np.mean(together, axis=0).min() < 0.8


def test_coverage_of_one_calibration_varies_as_the_range_says() -> None:
    rng = np.random.default_rng(3)
    low, high = coverage_range(30, 0.1)
    inside = []
    for _ in range(600):
        scores = rng.random((30, 2))
        threshold = thresholds(scores, np.zeros(30, np.int64), risk=0.1)[0]
        inside.append(low <= threshold <= high)  # of uniform scores the threshold is the coverage
    assert np.mean(inside) == pytest.approx(0.9, abs=0.05)
    assert low == pytest.approx(stats.beta.ppf(0.05, 28, 3))


@given(st.integers(1, 400), st.sampled_from([0.01, 0.05, 0.1, 0.15, 0.18, 0.19, 0.2, 0.3, 0.5]))
@example(149, 0.18)
def test_the_rank_is_the_first_that_keeps_the_promise(n: int, risk: float) -> None:
    """ceil((n + 1)(1 - risk)) in whole hundredths."""
    hundredths = round(100 * (1 - risk))
    wanted = -(-(n + 1) * hundredths // 100)
    if n < fewest(risk):
        with pytest.raises(ValueError, match="too few"):
            rank(n, risk)
        return
    assert rank(n, risk) == wanted


def test_nine_slides_are_enough_for_a_tenth_and_eight_are_not() -> None:
    assert fewest(0.1) == 9
    assert rank(9, 0.1) == 9
    with pytest.raises(ValueError, match=r"8 scores are too few for a risk of 0\.1, which takes 9"):
        rank(8, 0.1)


@pytest.mark.parametrize("risk", [0.0, 1.0, -0.1, float("nan")])
def test_a_risk_lies_between_0_and_1(risk: float) -> None:
    with pytest.raises(ValueError, match="risk"):
        fewest(risk)


def test_the_threshold_is_the_ranked_score_and_belongs_to_the_set() -> None:
    probability_NA = np.array([[p, 1 - p] for p in (0.9, 0.8, 0.7, 0.6, 0.3, 0.55, 0.95, 0.85, 0.75)])
    threshold_A = thresholds(probability_NA, np.zeros(9, np.int64), risk=0.2)
    assert threshold_A.tolist() == [1 - 0.55, 1 - 0.55]  # the 8th of 9
    assert in_sets(np.array([[0.55, 0.45], [0.5, 0.5]]), threshold_A).tolist() == [
        [True, False],
        [False, False],
    ]


def test_a_sigmoid_task_asks_of_every_class_whether_it_is_there() -> None:
    several = TaskConfig(name="marks", classes=("er", "pr"), activation="sigmoid")
    er, pr = questions(several)
    assert (er.name, pr.answers) == ("er", ("not pr", "pr"))
    output_NC = np.array([[0.2, 0.9]])
    assert pr.probabilities(output_NC).tolist() == [[pytest.approx(0.1), 0.9]]
    assert er.truth(np.array([[1.0, 0.0]])).tolist() == [1]
    (alone,) = questions(TaskConfig(classes=("tumor",), activation="sigmoid"))
    assert (alone.name, alone.answers) == ("", ("not tumor", "tumor"))
    assert questions(TaskConfig(classes=("age",), activation="linear")) == ()


def test_one_slide_a_case_is_drawn_and_the_same_one_by_the_same_seed() -> None:
    cases = ["a", "b", "a", "a", "c", "b"]
    first = one_of_each_case(cases, seed=0)
    assert sorted(cases[place] for place in first) == ["a", "b", "c"]
    assert first.tolist() == one_of_each_case(cases, seed=0).tolist()
    assert {place for seed in range(40) for place in one_of_each_case(cases, seed=seed)} == set(range(6))


def test_figures_of_sets() -> None:
    held_NA = np.array([[1, 0], [1, 1], [0, 0], [0, 1], [1, 0]], bool)
    truth_N = np.array([0, 1, 1, 1, 1])
    found = score_sets(held_NA, truth_N, answers=("normal", "tumor"), cases=range(5), resamples=50, seed=0)
    assert (found.coverage.value, found.size, found.single, found.empty) == (0.6, 1.0, 0.6, 0.2)
    assert found.right_if_single == pytest.approx(2 / 3)
    assert found.by_answer["tumor"].slides == 4
    assert found.by_answer["tumor"].coverage == 0.5
    assert found.exact
    alike = score_sets(held_NA, truth_N, answers=("normal", "tumor"), cases="aabbc", resamples=50, seed=0)
    assert not alike.exact
    assert alike.coverage.why_none == "3 cases, and 10 are needed"
    many_NA, many_N = np.tile(held_NA, (5, 1)), np.tile(truth_N, 5)
    alike = score_sets(
        many_NA, many_N, answers=("normal", "tumor"), cases=[n // 2 for n in range(25)], resamples=50, seed=0
    )
    assert alike.coverage.low <= 0.6 <= alike.coverage.high


@given(st.integers(1, 60), st.data())
def test_the_binomial_interval_is_scipys(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    theirs = stats.binomtest(hits, n).proportion_ci(0.95, method="exact")
    ours = clopper_pearson(hits, n)
    assert (ours.low, ours.high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))
