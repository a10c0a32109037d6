"""Every ``surv_*.npz`` of the golden folder: outputs of scikit-survival, lifelines, torchsurv, MCAT, Patho-Bench.

A file's arrays say which of the functions it is about, so that files that are added later are tested too.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import SHARED
from wsi_ips.survival.follow_up import FollowUp
from wsi_ips.survival.kaplan_meier import censoring_curve, kaplan_meier
from wsi_ips.survival.log_rank import log_rank, risk_group, risk_group_edges
from wsi_ips.survival.losses import cox_loss, hazard_loss, hazard_risk, hazard_survival
from wsi_ips.survival.scores import harrell, uno
from wsi_ips.survival.time_bins import bin_of, time_bins

FOLDER = Path(os.environ.get("WSI_IPS_GOLDEN", SHARED / "golden"))
Case = Mapping[str, np.ndarray]
EXACT = {"rtol": 1e-10, "atol": 1e-10}
REDUCTIONS = {"sum": "sum", "per_event": "event", "per_bag": "bag"}


def cases() -> list[tuple[str, Case]]:
    found = []
    for path in sorted(FOLDER.glob("surv_*.npz")):
        with np.load(path) as arrays:
            found.append((path.stem, dict(arrays)))
    return found


def having(name: str) -> list[object]:
    """The cases with this array, or one that is skipped where there are none."""
    some = [pytest.param(case, id=stem) for stem, case in CASES if name in case]
    why = f"no golden arrays with {name} at {FOLDER}; name their folder with WSI_IPS_GOLDEN"
    return some or [pytest.param(None, marks=pytest.mark.skip(reason=why))]


CASES = cases()
KINDS = (
    "out_loss_sum_efron",
    "out_hazards",
    "out_edges",
    "out_harrell",
    "out_logrank_chi2",
)


def follow_up(case: Case) -> FollowUp:
    return FollowUp.of(case["in_time"], case["in_event"])


def test_every_case_is_of_a_kind_that_is_tested() -> None:
    if not CASES:
        pytest.skip(f"no golden arrays at {FOLDER}; name their folder with WSI_IPS_GOLDEN")
    assert [stem for stem, case in CASES if not any(kind in case for kind in KINDS)] == []


@pytest.mark.parametrize("ties", ["breslow", "efron"])
@pytest.mark.parametrize("case", having("out_loss_sum_efron"))
def test_cox_loss_and_gradient(case: Case, ties: str) -> None:
    risk = torch.from_numpy(case["in_risk"]).requires_grad_()
    time, event = torch.from_numpy(case["in_time"]), torch.from_numpy(case["in_event"])
    for stored, reduction in REDUCTIONS.items():
        loss = cox_loss(risk, time, event, ties=ties, reduction=reduction)  # type: ignore[arg-type]
        np.testing.assert_allclose(loss.item(), case[f"out_loss_{stored}_{ties}"], **EXACT)
    total = cox_loss(risk, time, event, ties=ties, reduction="sum")  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(total, risk)
    np.testing.assert_allclose(gradient.numpy(), case[f"grad_risk_sum_{ties}"], **EXACT)
    if ties == "breslow" and "out_loss_mcat" in case:
        per_bag = cox_loss(risk, time, event, ties="breslow", reduction="bag")
        np.testing.assert_allclose(per_bag.item(), case["out_loss_mcat"], **EXACT)
        np.testing.assert_allclose(
            torch.autograd.grad(per_bag, risk)[0].numpy(), case["grad_risk_mcat"], **EXACT
        )


@pytest.mark.parametrize("case", having("out_hazards"))
def test_hazards_their_likelihood_and_gradient(case: Case) -> None:
    logits = torch.from_numpy(case["in_logits"]).requires_grad_()
    bins, event = torch.from_numpy(case["in_bin"]), torch.from_numpy(case["in_event"])
    np.testing.assert_allclose(logits.detach().sigmoid().numpy(), case["out_hazards"], **EXACT)
    np.testing.assert_allclose(hazard_survival(logits).detach().numpy(), case["out_survival"], **EXACT)
    np.testing.assert_allclose(hazard_risk(logits).detach().numpy(), case["out_risk"], **EXACT)
    loss = hazard_loss(logits, bins, event)
    np.testing.assert_allclose(loss.item(), case["derived_loss_exact_alpha0"], **EXACT)
    (gradient,) = torch.autograd.grad(loss, logits)
    np.testing.assert_allclose(gradient.numpy(), case["derived_grad_logits_exact_alpha0"], **EXACT)
    # The references clamp each logarithm at 1e-7: ours is theirs where no clamp binds.
    if np.isclose(case["out_loss_alpha0"], case["derived_loss_exact_alpha0"], rtol=1e-12):
        for stored, alpha in (("0", 0.0), ("0p15", 0.15), ("0p4", 0.4)):
            weighed = hazard_loss(logits, bins, event, alpha=alpha)
            np.testing.assert_allclose(weighed.item(), case[f"out_loss_alpha{stored}"], **EXACT)
            (gradient,) = torch.autograd.grad(weighed, logits)
            np.testing.assert_allclose(gradient.numpy(), case[f"grad_logits_alpha{stored}"], **EXACT)


@pytest.mark.parametrize("case", having("out_edges"))
def test_time_bins(case: Case) -> None:
    edges = time_bins(follow_up(case), int(case["cfg_bins"]))
    np.testing.assert_allclose(edges, case["out_edges"], **EXACT)
    np.testing.assert_array_equal(bin_of(case["in_time"], edges), case["out_bin"])
    np.testing.assert_array_equal(bin_of(case["in_new_time"], edges), case["derived_new_bin"])


@pytest.mark.parametrize("case", having("out_harrell"))
def test_c_index_of_harrell_and_uno(case: Case) -> None:
    patients = follow_up(case)
    counted = harrell(patients, case["in_risk"])
    np.testing.assert_allclose(counted.index, case["out_harrell"], **EXACT)
    assert (counted.concordant, counted.discordant, counted.tied_risk, counted.tied_time) == tuple(
        int(case[f"out_{name}"]) for name in ("concordant", "discordant", "tied_risk", "tied_time")
    )
    censoring = censoring_curve(FollowUp.of(case["in_train_time"], case["in_train_event"]))
    np.testing.assert_allclose(
        uno(patients, case["in_risk"], censoring), case["derived_uno_left_limit"], **EXACT
    )
    np.testing.assert_allclose(
        uno(patients, case["in_risk"], censoring, tau=float(case["cfg_tau"])),
        case["derived_uno_tau_left_limit"],
        **EXACT,
    )
    np.testing.assert_allclose(
        censoring.at(case["out_censoring_time"]), case["out_censoring_survival"], **EXACT
    )
    at_events = patients.event & (case["out_ipcw_weight"] > 0)
    np.testing.assert_allclose(
        1 / censoring.at(patients.time[at_events]), case["out_ipcw_weight"][at_events], **EXACT
    )


@pytest.mark.parametrize("case", having("out_logrank_chi2"))
def test_kaplan_meier_and_log_rank(case: Case) -> None:
    patients, groups = follow_up(case), int(case["cfg_groups"])
    edges = risk_group_edges(case["in_risk"], groups)
    np.testing.assert_allclose(edges, case["out_group_edges"], **EXACT)
    group = risk_group(case["in_risk"], edges)
    np.testing.assert_array_equal(group, case["out_group"])
    for number in range(groups):
        curve = kaplan_meier(patients.pick(group == number))
        stored = {
            name: case[f"out_group{number}_{name}"] for name in ("time", "at_risk", "events", "censored")
        }
        for name, values in stored.items():
            np.testing.assert_array_equal(getattr(curve, name), values)
        np.testing.assert_allclose(curve.survival, case[f"out_group{number}_survival"], **EXACT)
        np.testing.assert_allclose(curve.low, case[f"out_group{number}_lower95"], **EXACT)
        np.testing.assert_allclose(curve.high, case[f"out_group{number}_upper95"], **EXACT)
        np.testing.assert_allclose(curve.median, case[f"out_group{number}_median"], **EXACT)
    test = log_rank(patients, group, groups)
    np.testing.assert_allclose(test.chi2, case["out_logrank_chi2"], **EXACT)
    np.testing.assert_allclose(test.p, case["out_logrank_p"], rtol=1e-9)
    np.testing.assert_allclose(test.observed, case["out_logrank_observed"], **EXACT)
    np.testing.assert_allclose(test.expected, case["out_logrank_expected"], **EXACT)
    np.testing.assert_allclose(test.covariance, case["out_logrank_covariance"], **EXACT)
