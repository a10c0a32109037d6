"""DeLong's test against counting every pair of slides, by hand, and where the variance is degenerate."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsi_ips.evaluation.intervals import delong_interval, delong_test, midranks
from wsi_ips.evaluation.slide_level import roc_auc

Slides = list[tuple[int, int, bool]]
"""(score of one model, score of the other, positive): few values, so that there are many ties."""
slides = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), min_size=4, max_size=30
).filter(lambda rows: 2 <= sum(positive for *_, positive in rows) <= len(rows) - 2)


def columns(rows: Slides) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    one, other, positive = zip(*rows, strict=True)
    return np.array(one, float), np.array(other, float), np.array(positive)


def by_all_pairs(rows: Slides) -> tuple[float, float]:
    """(difference, its variance), from the structural components of DeLong et al., pair by pair."""
    one, other, positive = columns(rows)

    def components(scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        wins = [[(x > y) + 0.5 * (x == y) for y in scores[~positive]] for x in scores[positive]]
        table_PQ = np.array(wins)
        return table_PQ.mean(axis=1), table_PQ.mean(axis=0)

    (a_P, a_Q), (b_P, b_Q) = components(one), components(other)
    s10, s01 = np.cov(a_P, b_P), np.cov(a_Q, b_Q)
    s = s10 / len(a_P) + s01 / len(a_Q)
    return float(a_P.mean() - b_P.mean()), float(s[0, 0] + s[1, 1] - 2 * s[0, 1])


@given(slides)
def test_equals_counting_every_pair(rows: Slides) -> None:
    found = delong_test(*columns(rows))
    difference, variance = by_all_pairs(rows)
    assert found.difference == pytest.approx(difference, abs=1e-12)
    assert found.standard_error == pytest.approx(math.sqrt(max(0, variance)), abs=1e-7)
    if variance > 1e-9:
        z = difference / math.sqrt(variance)
        assert found.p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=1e-9)


@given(slides)
def test_the_aucs_are_those_of_the_curves(rows: Slides) -> None:
    one, other, positive = columns(rows)
    found = delong_test(one, other, positive)
    assert (found.auc, found.other) == pytest.approx((roc_auc(one, positive), roc_auc(other, positive)))
    assert delong_interval(one, positive).value == found.auc


@given(slides)
def test_exchanged_models_and_other_scales_say_the_same(rows: Slides) -> None:
    one, other, positive = columns(rows)
    found, back = delong_test(one, other, positive), delong_test(other, one, positive)
    assert back.difference == -found.difference
    assert back.p == pytest.approx(found.p, nan_ok=True)
    assert delong_test(np.exp(one) * 7 - 3, other, positive) == found


@given(slides)
def test_a_model_does_not_differ_from_itself(rows: Slides) -> None:
    one, _, positive = columns(rows)
    found = delong_test(one, one * 2 + 1, positive)
    assert (found.difference, found.standard_error, found.p) == (0, 0, 1)


def test_by_hand() -> None:
    """3 positives, 2 negatives. One: placements (1, 1, 1/2) and (2/3, 1); other: (1/2, 1/2, 1) and (1, 1/3).

    Differences (1/2, 1/2, -1/2) with variance 1/3, and (-1/3, 2/3) with variance 1/2: 1/9 + 1/4 = 13/36.
    """
    positive = np.array([True, True, True, False, False])
    one, other = np.array([4.0, 5.0, 2.0, 3.0, 1.0]), np.array([2.0, 2.5, 4.0, 1.0, 3.0])
    found = delong_test(one, other, positive)
    assert (found.auc, found.other) == pytest.approx((5 / 6, 4 / 6))
    assert found.standard_error == pytest.approx(math.sqrt(13) / 6)
    assert found.p == pytest.approx(math.erfc(1 / math.sqrt(13) / math.sqrt(2)))


def test_a_difference_that_does_not_vary_has_no_p_value() -> None:
    positive = np.array([True, True, False, False])
    found = delong_test(positive.astype(float), -positive.astype(float), positive)
    assert (found.difference, found.standard_error) == (1, 0)
    assert math.isnan(found.p)


def test_too_few_slides_or_no_number_are_refused() -> None:
    with pytest.raises(ValueError, match="1 positives and 2 negatives"):
        delong_test(np.array([1.0, 2, 3]), np.array([1.0, 2, 3]), np.array([True, False, False]))
    with pytest.raises(ValueError, match="not a number"):
        delong_test(np.array([1, 2, 3, np.nan]), np.ones(4), np.array([True, True, False, False]))


def test_midranks_share_ties() -> None:
    assert midranks(np.array([2.0, 1, 2, 5])).tolist() == [2.5, 1, 2.5, 4]


def test_under_no_difference_p_is_uniform() -> None:
    """400 data sets of equally good correlated scores: 5 % of them differ at the level 0.05, within 3 SD."""
    rng = np.random.default_rng(0)
    positive = np.arange(120) < 60
    below = 0
    for _ in range(400):
        common = rng.normal(size=120) + positive
        below += delong_test(common + rng.normal(size=120), common + rng.normal(size=120), positive).p < 0.05
    assert abs(below - 20) < 3 * math.sqrt(400 * 0.05 * 0.95)
