import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_ips.evaluation.intervals import (
    Pair,
    Picked,
    bootstrap,
    delong_interval,
    paired_bootstrap,
    percentile_interval,
    resample_cases,
    too_few,
)
from wsi_ips.evaluation.slide_level import auc_or_nan, roc_auc


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=15), st.booleans())
def test_a_case_comes_with_all_its_slides_and_strata_keep_their_numbers(
    slides: list[tuple[int, bool]], stratified: bool
) -> None:
    cases = [case for case, _ in slides]
    positive = {case for case, is_positive in slides if is_positive}
    strata = [case in positive for case in cases]
    for picked in resample_cases(cases, strata=strata if stratified else None, resamples=5, seed=1):
        drawn: dict[int, int] = {}
        for case in set(cases):
            times = {int((picked == place).sum()) for place, name in enumerate(cases) if name == case}
            assert len(times) == 1, "a case's slides must be drawn equally often"
            drawn[case] = times.pop()
        assert sum(drawn.values()) == len(set(cases))
        if stratified:
            assert sum(n for case, n in drawn.items() if case in positive) == len(positive)


def test_the_seed_decides() -> None:
    def draws(seed: int) -> list[list[int]]:
        return [picked.tolist() for picked in resample_cases(range(9), resamples=3, seed=seed)]

    assert draws(4) == draws(4) != draws(5)


def test_resampling_slides_instead_of_cases_is_too_sure() -> None:
    """Five equal slides a patient say no more than one: the interval by cases must not shrink."""
    rng = np.random.default_rng(0)
    per_case = rng.normal(size=40)
    values, cases = np.repeat(per_case, 5), np.repeat(np.arange(40), 5).tolist()
    widths = []
    for unit, data in ((list(range(40)), per_case), (cases, values), (list(range(200)), values)):
        interval = bootstrap(lambda p, d=data: {"mean": float(d[p].mean())}, unit, resamples=800, seed=0)[
            "mean"
        ]
        widths.append(interval.high - interval.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.1)
    assert widths[2] < 0.6 * widths[0]


def test_the_interval_of_a_mean_is_the_textbook_s() -> None:
    data = np.random.default_rng(3).normal(2, 1, 400)
    interval = bootstrap(lambda p: {"mean": float(data[p].mean())}, range(400), resamples=2000, seed=0)[
        "mean"
    ]
    assert interval.value == data.mean()
    reach = 1.96 * data.std() / 20
    assert (interval.low, interval.high) == pytest.approx(
        (data.mean() - reach, data.mean() + reach), abs=0.01
    )


def scores(n: int, shift: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    positive = np.arange(n) % 3 == 0
    return np.round(rng.normal(size=n) + shift * positive, 1), positive


def test_bootstrap_and_delong_agree_on_the_auc() -> None:
    values, positive = scores(300, 1.0, 0)
    interval = bootstrap(
        lambda p: {"auc": auc_or_nan(values[p], positive[p])}, range(300), strata=positive.tolist(), seed=0
    )["auc"]
    delong = delong_interval(values, positive)
    assert interval.value == roc_auc(values, positive) == pytest.approx(delong.value, abs=1e-12)
    assert (interval.low, interval.high) == pytest.approx((delong.low, delong.high), abs=0.01)


def test_delong_s_variance_is_that_of_counting_pairs() -> None:
    values, positive = scores(24, 0.8, 1)
    above, below = values[positive], values[~positive]
    wins = (above[:, None] > below) + 0.5 * (above[:, None] == below)
    variance = wins.mean(axis=1).var(ddof=1) / len(above) + wins.mean(axis=0).var(ddof=1) / len(below)
    interval = delong_interval(values, positive)
    assert interval.high - interval.value == pytest.approx(1.959964 * math.sqrt(variance), abs=1e-6)
    perfect = delong_interval(positive.astype(float), positive)
    assert (perfect.low, perfect.value, perfect.high) == (1, 1, 1)
    with pytest.raises(ValueError, match="too few for an interval"):
        delong_interval(np.array([0.1, 0.2, 0.3]), np.array([True, False, False]))


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """100 data sets of 60 slides: the odds that a 95 % interval covers less than 88 are 1 in 500."""
    truth = 0.7602  # AUC of two normals one deviation apart
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        positive = np.arange(60) < 30
        values = rng.normal(size=60) + positive
        interval = bootstrap(
            lambda p, v=values, y=positive: {"auc": auc_or_nan(v[p], y[p])}, range(60),
            strata=positive.tolist(), resamples=100, seed=seed,
        )["auc"]  # fmt: skip
        covered += interval.low <= truth <= interval.high
    assert covered >= 88


def test_what_a_resample_does_not_tell_is_left_out_and_counted() -> None:
    values, positive = np.linspace(0.9, 0.1, 12), np.arange(12) == 0
    interval = bootstrap(
        lambda p: {"auc": auc_or_nan(values[p], positive[p])}, range(12), resamples=300, seed=0
    )["auc"]
    assert 60 < interval.undefined < 150  # (11/12)^12 of 300 is 106
    assert (interval.low, interval.high) == (1, 1)
    none = percentile_interval(0.5, np.array([]))
    assert (none.value, math.isnan(none.low), none.undefined) == (0.5, True, 0)


def test_a_paired_interval_is_of_the_difference_and_cases_are_drawn_alike() -> None:
    """Two models that differ by 0.25 on every slide: whatever is drawn, they differ by 0.25."""
    values = np.random.default_rng(0).normal(size=30)
    pair = Pair(
        lambda p: {"mean": float(values[p].mean()) + 0.25},
        lambda p: {"mean": float(values[p].mean())},
        range(30),
    )
    for pairs in ([pair], [pair] * 3):
        found = paired_bootstrap(pairs, resamples=50)["mean"]
        assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_the_slides_of_a_case_are_drawn_together_for_both() -> None:
    lead = np.array([1.0, -1.0] * 10)  # within each case the two slides cancel
    pair = Pair(lambda p: {"x": float(lead[p].sum())}, lambda p: {"x": 0.0}, sorted("abcdefghij" * 2))
    found = paired_bootstrap([pair], resamples=200)["x"]
    assert (found.low, found.high) == (0, 0)


def test_too_few_cases_have_no_interval_and_say_why() -> None:
    def measure(places: Picked) -> dict[str, float]:
        return {"auc": 1.0}

    few = bootstrap(measure, [*range(9), 8, 8], resamples=20)["auc"]
    assert (few.value, few.why_none) == (1.0, "9 cases, and 10 are needed")
    assert math.isnan(few.low)
    assert math.isnan(few.high)
    rare = bootstrap(measure, range(50), resamples=20, rarest=4, of="with an event")["auc"]
    assert rare.to_json()["why_none"] == "4 cases with an event, and 5 are needed"
    enough = bootstrap(measure, range(10), resamples=20, rarest=5)["auc"]
    assert enough.to_json() == {"value": 1.0, "low": 1.0, "high": 1.0, "undefined_resamples": 0}
    assert bootstrap(measure, range(2), resamples=0)["auc"].why_none == ""  # none was asked for
    pair = Pair(measure, measure, range(9))
    assert paired_bootstrap([pair], resamples=20)["auc"].why_none == "9 cases, and 10 are needed"
    scarce = Pair(measure, measure, range(50), rarest=4)
    assert paired_bootstrap([scarce], resamples=20)["auc"].why_none == "4 cases of a class, and 5 are needed"
    enough_of_both = Pair(measure, measure, range(50), rarest=5)
    assert paired_bootstrap([enough_of_both, scarce], resamples=20)["auc"].why_none.startswith("4 cases")
    assert paired_bootstrap([enough_of_both], resamples=20)["auc"].why_none == ""
    assert too_few(["a"]) == "1 case, and 10 are needed"


def test_only_the_figure_of_a_rare_class_has_no_interval() -> None:
    def measure(places: Picked) -> dict[str, float]:
        return {"auc_rare": 0.5, "auc_common": float(places.mean())}

    rarest = {"auc_rare": 4, "auc_common": 9}
    found = bootstrap(measure, range(20), resamples=50, rarest=rarest)
    assert found["auc_rare"].why_none == "4 cases of a class, and 5 are needed"
    assert math.isnan(found["auc_rare"].low)
    assert found["auc_common"].low < found["auc_common"].high
    pair = Pair(measure, lambda p: {"auc_rare": 0.0, "auc_common": 0.0}, range(20), rarest=rarest)
    lead = paired_bootstrap([pair], resamples=50)
    assert math.isnan(lead["auc_rare"].low)
    assert lead["auc_common"].low < lead["auc_common"].high


def test_seeds_that_disagree_widen_the_interval() -> None:
    def pair(lead: float) -> Pair:
        return Pair(lambda p: {"x": lead}, lambda p: {"x": 0.0}, range(10))

    found = paired_bootstrap([pair(0.0), pair(0.3)], resamples=400)["x"]
    assert (found.value, found.low, found.high) == pytest.approx((0.15, 0.0, 0.3))


def test_same_slides_do_not_average_out_over_seeds() -> None:
    """Three seeds that lead on the same slides tell no more of the slides than one does; on slides of their own
    they do.
    """
    values = np.random.default_rng(1).normal(size=40)
    pair = Pair(lambda p: {"x": float(values[p].mean())}, lambda p: {"x": 0.0}, range(40))
    width = {
        same: (lambda one: one.high - one.low)(
            paired_bootstrap([pair] * 3, same_slides=same, resamples=1500)["x"]
        )
        for same in (True, False)
    }
    alone = paired_bootstrap([pair], resamples=1500)["x"]
    assert width[True] == pytest.approx(alone.high - alone.low, rel=0.1)
    assert width[False] == pytest.approx(width[True] / np.sqrt(3), rel=0.15)


def test_pairs_of_the_same_slides_have_the_same_cases() -> None:
    def pair(count: int) -> Pair:
        return Pair(lambda p: {"x": 1.0}, lambda p: {"x": 0.0}, range(count))

    with pytest.raises(ValueError, match="same cases"):
        paired_bootstrap([pair(3), pair(4)])
    with pytest.raises(ValueError, match="no pairs"):
        paired_bootstrap([])
