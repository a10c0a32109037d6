"""What must hold of survival figures whatever the numbers: order, scale, ties; plain loops for comparison."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from wsi_ips.survival.follow_up import FollowUp
from wsi_ips.survival.kaplan_meier import censoring_curve, kaplan_meier
from wsi_ips.survival.log_rank import hazard_ratio, log_rank, risk_group, risk_group_edges
from wsi_ips.survival.losses import (
    baseline_hazard,
    cox_loss,
    cox_survival,
    hazard_loss,
    hazard_survival,
    hazard_survival_at,
)
from wsi_ips.survival.scores import brier_scores, default_tau, harrell, integrated, uno
from wsi_ips.survival.time_bins import bin_of, time_bins

Patients = tuple[FollowUp, np.ndarray]


@st.composite
def patients(draw: st.DrawFn) -> Patients:
    """Some patients with many ties in time and risk, at least one of them with the event."""
    rows = draw(
        st.lists(st.tuples(st.integers(1, 8), st.booleans(), st.integers(-6, 6)), min_size=3, max_size=14)
    )
    time, event, risk = map(np.array, zip(*rows, strict=True))
    event[0] = True
    return FollowUp.of(time, event), risk / 4


@pytest.mark.parametrize("half", range(1, 40))
def test_the_median_is_where_half_of_the_patients_had_the_event(half: int) -> None:
    """On paper the curve is one half there; in floating point the product of its steps may be a little more."""
    curve = kaplan_meier(FollowUp.of(np.arange(1, 2 * half + 1), np.ones(2 * half)))
    assert curve.median == half


def loss_of(follow_up: FollowUp, risk: np.ndarray, **how: str) -> float:
    tensors = (torch.from_numpy(each.copy()) for each in (risk, follow_up.time, follow_up.event))
    return float(cox_loss(*tensors, **how))  # type: ignore[arg-type]


def plain_cox(follow_up: FollowUp, risk: np.ndarray, *, efron: bool) -> float:
    total = 0.0
    for time in set(follow_up.time[follow_up.event].tolist()):
        dead = follow_up.event & (follow_up.time == time)
        at_risk, deaths = np.exp(risk[follow_up.time >= time]).sum(), int(dead.sum())
        total -= risk[dead].sum()
        for gone in range(deaths):
            total += math.log(at_risk - efron * gone / deaths * np.exp(risk[dead]).sum())
    return total


@given(patients(), st.randoms(use_true_random=False), st.floats(-50, 50))
@settings(max_examples=60, deadline=None)
def test_cox_loss_is_the_plain_sum_in_any_order_and_at_any_level(
    some: Patients, random, level: float
) -> None:
    follow_up, risk = some
    order = np.array(random.sample(range(len(risk)), len(risk)))
    for ties in ("efron", "breslow"):
        expected = plain_cox(follow_up, risk, efron=ties == "efron")
        for shown, its in ((follow_up, risk + level), (follow_up.pick(order), risk[order])):
            assert_allclose(loss_of(shown, its, ties=ties, reduction="sum"), expected, rtol=1e-9, atol=1e-9)


@given(patients())
@settings(max_examples=40, deadline=None)
def test_cox_gradient_sums_to_zero_and_is_that_of_the_value(some: Patients) -> None:
    follow_up, risk = some
    tensor = torch.from_numpy(risk.copy()).requires_grad_()
    time, event = torch.from_numpy(follow_up.time), torch.from_numpy(follow_up.event)
    (gradient,) = torch.autograd.grad(cox_loss(tensor, time, event), tensor)
    assert abs(float(gradient.sum())) < 1e-10
    assert torch.autograd.gradcheck(lambda r: cox_loss(r, time, event), tensor)


def test_a_censored_patient_at_an_event_time_is_at_risk_wherever_it_stands() -> None:
    """torchsurv 0.2.0 gives 0.371 for one of these orders."""
    follow_up, risk = FollowUp.of([2, 2, 3], [0, 1, 0]), np.array([1.0, 0.2, -0.5])
    for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0]):
        assert loss_of(follow_up.pick(np.array(order)), risk[order], reduction="sum") == pytest.approx(
            math.log(np.exp(risk).sum()) - 0.2
        )


def test_cox_loss_of_huge_risks_and_of_half_precision_is_finite() -> None:
    time, event = torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([1, 1, 1, 0])
    huge = torch.tensor([-800.0, 800.0, 0.0, -800.0], requires_grad=True)
    loss = cox_loss(huge, time, event)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(huge.grad).all()  # type: ignore[arg-type]
    assert cox_loss(torch.ones(4, dtype=torch.bfloat16), time, event).dtype == torch.float32


def test_cox_loss_without_events_is_zero_with_zero_gradient() -> None:
    risk = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = cox_loss(risk, torch.tensor([1.0, 2.0]), torch.tensor([0, 0]))
    loss.backward()
    assert loss.item() == 0
    assert risk.grad is not None
    assert risk.grad.tolist() == [0, 0]


@given(patients())
@settings(max_examples=60, deadline=None)
def test_c_index_is_the_plain_count_and_turns_with_the_risk(some: Patients) -> None:
    follow_up, risk = some
    score, pairs = 0.0, 0
    for i in np.flatnonzero(follow_up.event):
        for j in range(len(risk)):
            later = follow_up.time[j] > follow_up.time[i]
            if later or (follow_up.time[j] == follow_up.time[i] and not follow_up.event[j]):
                pairs += 1
                score += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    counted = harrell(follow_up, risk)
    assert counted.pairs == pairs
    if not pairs:
        with pytest.raises(ValueError, match="no two patients can be compared"):
            _ = counted.index
        return
    assert counted.index == pytest.approx(score / pairs)
    assert harrell(follow_up, -risk).index == pytest.approx(1 - counted.index)
    assert harrell(follow_up, 3 * risk + 7).index == counted.index
    everybody_followed = censoring_curve(FollowUp.of([1, 99], [1, 1]))
    assert uno(follow_up, risk, everybody_followed) == pytest.approx(counted.index)


@given(patients())
@settings(max_examples=40, deadline=None)
def test_brier_and_kaplan_meier_without_censoring_are_plain_means(some: Patients) -> None:
    follow_up = FollowUp(some[0].time, np.ones(len(some[1]), bool))
    at = np.array([2.0, 4.0, 6.0])
    alive = follow_up.time[:, None] > at
    assert_allclose(kaplan_meier(follow_up).at(at), alive.mean(axis=0), atol=1e-12)
    free = censoring_curve(follow_up)
    assert_allclose(brier_scores(follow_up, alive.astype(float), at, free), 0, atol=0)
    assert_allclose(brier_scores(follow_up, np.full(alive.shape, 0.5), at, free), 0.25)


def test_brier_under_censoring_is_about_what_it_is_without() -> None:
    rng = np.random.default_rng(0)
    risk = rng.normal(size=6000)
    true = rng.exponential(np.exp(-risk))
    until = rng.exponential(1.5, size=6000)
    at = np.array([0.3, 0.7, 1.1])
    said = np.exp(-np.exp(risk)[:, None] * at)
    seen = FollowUp.of(np.minimum(true, until), true <= until)
    whole = FollowUp.of(true, np.ones(6000))
    assert 0.3 < 1 - seen.event.mean() < 0.5
    expected = brier_scores(whole, said, at, censoring_curve(whole))
    found = brier_scores(seen, said, at, censoring_curve(seen))
    assert_allclose(found, expected, atol=0.01)
    assert integrated(found, at) == pytest.approx(integrated(expected, at), abs=0.01)
    # Uno's C does not depend on the censoring, Harrell's does a little.
    assert uno(seen, risk, censoring_curve(seen), tau=1.5) == pytest.approx(
        uno(whole, risk, censoring_curve(whole), tau=1.5), abs=0.01
    )


def test_the_baseline_hazard_gives_back_known_survival() -> None:
    rng = np.random.default_rng(1)
    risk, at = rng.normal(size=4000), np.array([0.2, 0.5, 1.0])
    true, until = rng.exponential(np.exp(-risk)), rng.exponential(1.5, size=4000)
    baseline = baseline_hazard(FollowUp.of(np.minimum(true, until), true <= until), risk, at)
    assert_allclose(baseline, at, rtol=0.06)  # the hazard is 1 per unit of time
    assert_allclose(baseline_hazard(FollowUp.of([1, 2, 3], [1, 1, 0]), [300, 300, 300], [2.5]) * np.exp(300.0),
                    [1 / 3 + 1 / 2])  # fmt: skip
    survival = cox_survival(torch.tensor([0.0, 1.0]), torch.tensor([0.5]))
    assert_allclose(survival.numpy(), np.exp([[-0.5], [-0.5 * math.e]]), rtol=1e-6)


def test_hazards_survive_along_a_straight_line_of_log_survival() -> None:
    logits = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    edges = torch.tensor([1.0, 3.0, 7.0])
    ends = hazard_survival(logits)[0]
    found = hazard_survival_at(logits, edges, torch.tensor([0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 8.0]))[0]
    expected = [1, 1, ends[0] ** 0.5, ends[0], (ends[0] * ends[1]) ** 0.5, ends[1], math.nan]
    assert_allclose(found.numpy(), np.array(expected, float))


def test_hazard_loss_keeps_its_gradient_where_the_references_lose_it() -> None:
    logits = torch.tensor([[40.0, 0.0]], requires_grad=True)
    hazard_loss(logits, torch.tensor([1]), torch.tensor([1])).backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] == pytest.approx(1.0)


def test_time_bins_merge_equal_quantiles_and_refuse_what_they_cannot_cut() -> None:
    tied = FollowUp.of([1, 1, 1, 1, 5, 9, 12], [1, 1, 1, 1, 1, 0, 1])
    edges = time_bins(tied, 4)
    assert len(edges) == 3
    assert (np.diff(edges) > 0).all()
    assert bin_of([0.5, 1, 100], edges).tolist() == [0, 0, len(edges) - 2]
    with pytest.raises(ValueError, match="no patient has the event"):
        time_bins(FollowUp.of([1, 2], [0, 0]), 4)
    with pytest.raises(ValueError, match="all alike"):
        time_bins(FollowUp.of([3, 3, 4], [1, 1, 0]), 4)


def test_log_rank_and_hazard_ratio_of_two_groups() -> None:
    rng = np.random.default_rng(2)
    group = np.repeat([0, 1], 300)
    true = rng.exponential(np.where(group == 1, 0.5, 1.0))
    follow_up = FollowUp.of(np.minimum(true, 2.0), true <= 2.0)
    assert log_rank(follow_up, group, 2).p < 1e-6
    ratio = hazard_ratio(follow_up, group)
    assert ratio.low < 2 < ratio.high
    assert log_rank(follow_up, rng.permutation(group), 2).p > 0.001
    with pytest.raises(ValueError, match="cannot be compared"):
        log_rank(follow_up, np.zeros(600, int), 2)
    with pytest.raises(ValueError, match="no finite estimate"):
        hazard_ratio(FollowUp.of([1, 2, 3, 4], [1, 1, 0, 0]), [1, 1, 0, 0])
    assert risk_group([1, 2, 3, 4], risk_group_edges([1, 2, 3, 4], 2)).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("time", "event", "match"),
    [([0.0], [1], "above 0"), ([-1.0], [1], "above 0"), ([math.nan], [0], "finite"), ([1.0], [2], "neither")],
)
def test_impossible_follow_up_is_refused(time: list[float], event: list[int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        FollowUp.of(time, event)


def test_tau_is_where_training_patients_are_still_followed() -> None:
    train = censoring_curve(FollowUp.of([1, 2, 3, 4], [1, 0, 1, 0]))
    assert default_tau(train) == 3
    late = FollowUp.of([5, 6], [1, 0])
    with pytest.raises(ValueError, match="smaller tau"):
        uno(late, [1, 0], train)
    with pytest.raises(ValueError, match="no two patients"):
        uno(late, [1, 0], train, tau=3)
