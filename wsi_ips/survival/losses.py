"""What survival is learned by: Cox's partial likelihood, and hazards in bins of time.

Cox's partial likelihood as a loss (:func:`cox_loss`), and the baseline hazard that turns risks into survival.

Sources: SURVIVAL.md section 2; Cox 1972, Breslow 1974, Efron 1977.

Survival in time bins: a hazard for each bin, its likelihood (:func:`hazard_loss`), and the survival that
follows.

Everything is computed from logits, so that confident mistakes keep their gradient. Source: SURVIVAL.md section 3
(Zadeh and Schmid 2020, as MCAT, PORPOISE and Patho-Bench use it).

Shape suffixes: B bags (patients), G groups of bags of equal time, E events, N patients, T times, B bags, K
bins.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from wsi_ips.survival.follow_up import FollowUp
from wsi_ips.survival.time_bins import bin_of

Ties = Literal["efron", "breslow"]
"""How events of equal time share their risk set."""
Reduction = Literal["sum", "event", "bag"]
"""What the sum of the loss is divided by."""


def cox_loss(
    risk_B: Tensor, time_B: Tensor, event_B: Tensor, *, ties: Ties = "efron", reduction: Reduction = "event"
) -> Tensor:
    """The negative logarithm of Cox's partial likelihood, a scalar in the precision of ``risk_B``.

    The risk set of an event time is every bag whose time is equal or later, found by time and never by position.
    Nothing is exponentiated on its own, so risks may be of any size. If no bag has the event, the loss and its
    gradient are 0. Half precision is computed in float32. Source: SURVIVAL.md section 2.

    Args:
        risk_B: Floating, logarithms of relative hazards: higher means an earlier event.
        time_B: Times, above 0.
        event_B: 1 where the event happened, 0 where the bag was censored.
        ties: How events of equal time share their risk set. Without ties both are the same.
        reduction: ``sum``, or the sum divided by the number of events (``event``) or of bags (``bag``).
    """
    risk_B = risk_B.float() if risk_B.dtype.itemsize < 4 else risk_B
    event_B = event_B.to(torch.bool)
    if not event_B.any():
        return risk_B.sum() * 0
    order = torch.argsort(time_B, descending=True, stable=True)
    risk_B, event_B = risk_B[order], event_B[order]
    _, group_B, bags_G = torch.unique_consecutive(time_B[order], return_inverse=True, return_counts=True)
    at_risk_G = torch.logcumsumexp(risk_B, dim=0)[bags_G.cumsum(0) - 1]
    group_E, risk_E = group_B[event_B], risk_B[event_B]
    deaths_G = torch.bincount(group_E, minlength=len(bags_G))
    logs_E = at_risk_G[group_E]
    if ties == "efron":
        starts_G = deaths_G.cumsum(0) - deaths_G
        before_E = torch.arange(len(group_E), device=risk_B.device) - starts_G[group_E]
        gone_E = before_E.to(risk_B) / deaths_G[group_E].to(risk_B)
        # tied - at_risk is the log of the share of the risk set that the events of this time make up. The share is
        # at most 1 and gone_E below 1, so the logarithm is finite.
        tied_G = _log_sum_by_group(risk_E, group_E, len(bags_G))
        logs_E = logs_E + torch.log1p(-gone_E * (tied_G[group_E] - logs_E).exp().clamp(max=1))
    total = (logs_E - risk_E).sum()
    if reduction == "sum":
        return total
    return total / (len(risk_E) if reduction == "event" else len(risk_B))


def _log_sum_by_group(risk_E: Tensor, group_E: Tensor, groups: int) -> Tensor:
    """The log of the sum of exp(risk) in each group, (G,). Minus infinity for a group without entries."""
    highest_G = risk_E.detach().new_full((groups,), -torch.inf)
    highest_G = highest_G.scatter_reduce(0, group_E, risk_E.detach(), "amax")
    sum_G = torch.zeros_like(highest_G).index_add(0, group_E, (risk_E - highest_G[group_E]).exp())
    return sum_G.log() + highest_G


def baseline_hazard(follow_up: FollowUp, risk: ArrayLike, at: ArrayLike) -> NDArray[np.float64]:
    """Breslow's cumulative baseline hazard H at some times, (T,) float64. The survival of a patient is exp(-H
    exp(r)).

    H(t) is the sum over event times s <= t of the number of events at s over the sum of exp(risk) of the
    patients at risk at s.

    Args:
        follow_up: The patients that were learned from.
        risk: (N,) their risks.
        at: (T,) times in the same unit.

    Raises:
        ValueError: There is no event, or a risk is not finite.
    """
    risks, times = np.asarray(risk, np.float64), np.asarray(at, np.float64)
    if not follow_up.event.any():
        raise ValueError("no patient has the event, so there is no baseline hazard")
    if risks.shape != follow_up.time.shape or not np.isfinite(risks).all():
        raise ValueError(f"risks {risks.shape} of {len(follow_up)} patients are not all finite numbers")
    highest = risks.max()
    order = np.argsort(follow_up.time)
    ordered = follow_up.time[order]
    remaining = np.cumsum(np.exp(risks[order] - highest)[::-1])[::-1]
    event_times, deaths = np.unique(follow_up.time[follow_up.event], return_counts=True)
    with np.errstate(divide="ignore"):
        steps = deaths / remaining[np.searchsorted(ordered, event_times, side="left")]
    cumulative = np.concatenate([[0.0], np.cumsum(steps)])
    return np.asarray(cumulative[np.searchsorted(event_times, times, side="right")] * np.exp(-highest))


def cox_survival(risk_B: Tensor, baseline_T: Tensor) -> Tensor:
    """The probability to be without the event until each time, (B, T), from risks and :func:`baseline_hazard`."""
    # Logarithms are added, because infinity times 0 would be NaN.
    return torch.exp(-torch.exp(baseline_T.to(risk_B).log() + risk_B[:, None]))


def hazard_loss(logits_BK: Tensor, bin_B: Tensor, event_B: Tensor, *, alpha: float = 0.0) -> Tensor:
    """The mean negative log-likelihood of the hazards h = sigmoid(logits), a scalar.

    With S_k = (1 - h_0) ... (1 - h_k), a bag with the event in bin y adds -log S_{y-1} - log h_y, and a censored
    one adds -log S_y: it counts as having survived the whole bin in which it was last seen. Half precision is
    computed in float32. Source: SURVIVAL.md section 3.

    Args:
        logits_BK: The output of the head.
        bin_B: int64, the bin of the time of each bag.
        event_B: 1 or 0.
        alpha: How much less censored bags weigh. 0 is the likelihood.
    """
    logits_BK = logits_BK.float() if logits_BK.dtype.itemsize < 4 else logits_BK
    event_B = event_B.to(logits_BK)
    bins_K = torch.arange(logits_BK.shape[1], device=logits_BK.device)
    survived_BK = softplus(logits_BK)
    before_B = torch.where(bins_K < bin_B[:, None], survived_BK, 0).sum(dim=1)
    with_event_B = before_B - logsigmoid(logits_BK.gather(1, bin_B[:, None])[:, 0])
    censored_B = before_B + survived_BK.gather(1, bin_B[:, None])[:, 0]
    return (event_B * with_event_B + (1 - alpha) * (1 - event_B) * censored_B).mean()


def hazard_survival(logits_BK: Tensor) -> Tensor:
    """The probability to be without the event at the end of each bin, (B, K)."""
    return torch.exp(-softplus(logits_BK).cumsum(dim=1))


def hazard_risk(logits_BK: Tensor) -> Tensor:
    """One risk for each bag, (B,), higher for an earlier event: minus the sum of the survival over the bins."""
    return -hazard_survival(logits_BK).sum(dim=1)


def hazard_survival_at(logits_BK: Tensor, edges_K1: Tensor, at_T: Tensor) -> Tensor:
    """The probability to be without the event until each time, (B, T).

    Within a bin the hazard per unit of time is constant, so log survival falls in a straight line from edge to
    edge. Before the first edge the probability is 1. Behind the last edge it is NaN, because nothing was learned
    there.

    Args:
        logits_BK: The output of the head.
        edges_K1: (K + 1,) the edges of the bins, rising.
        at_T: The times.
    """
    edges_K1, at_T = edges_K1.to(logits_BK), at_T.to(logits_BK)
    until_BK = softplus(logits_BK).cumsum(dim=1)
    until_BK1 = torch.cat([torch.zeros_like(until_BK[:, :1]), until_BK], dim=1)
    bin_T = (torch.searchsorted(edges_K1, at_T, right=True) - 1).clamp(0, logits_BK.shape[1] - 1)
    width_T = edges_K1[bin_T + 1] - edges_K1[bin_T]
    share_T = ((at_T - edges_K1[bin_T]) / width_T).clamp(0, 1)
    at_BT = until_BK1[:, bin_T] + share_T * (until_BK1[:, bin_T + 1] - until_BK1[:, bin_T])
    return torch.where(at_T <= edges_K1[-1], torch.exp(-at_BT), torch.nan)


def bins_of(follow_up: FollowUp, edges: Tensor) -> Tensor:
    """The bin of the time of every patient, (N,) int64."""
    return torch.from_numpy(bin_of(follow_up.time, edges.numpy()))
