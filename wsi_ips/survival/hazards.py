"""Survival in time bins: a hazard for each bin, its likelihood (:func:`hazard_loss`), and the survival that
follows.

Everything is computed from logits, so that confident mistakes keep their gradient. Source: SURVIVAL.md section 3
(Zadeh and Schmid 2020, as MCAT, PORPOISE and Patho-Bench use it).

Shape suffixes: B bags, K bins, T times.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from wsi_ips.survival.follow_up import FollowUp
from wsi_ips.survival.time_bins import bin_of


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
