"""Patients in groups of risk (:func:`risk_group`), and whether survival differs between groups
(:func:`log_rank`).

Source: SURVIVAL.md section 5. Shape suffixes: N patients, G groups, T distinct event times.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2 as chi2_distribution

from wsi_ips.survival.follow_up import FollowUp
from wsi_ips.survival.kaplan_meier import Z95

STEPS = 50
"""Most Newton steps of a Cox regression."""


@dataclass(frozen=True, slots=True, eq=False)
class LogRank:
    """The result of a log-rank test.

    Attributes:
        chi2: The statistic, with G - 1 degrees of freedom.
        p: Its upper tail.
        observed: (G,) events of each group.
        expected: (G,) how many it would have if all groups were alike.
        covariance: (G, G) of observed minus expected.
    """

    chi2: float
    p: float
    observed: NDArray[np.float64]
    expected: NDArray[np.float64]
    covariance: NDArray[np.float64]


def log_rank(follow_up: FollowUp, group: ArrayLike, groups: int) -> LogRank:
    """Test whether survival is the same in all groups (Mantel 1966; Peto and Peto 1972).

    Args:
        follow_up: The patients.
        group: (N,) from 0 to ``groups`` - 1.
        groups: Number of groups.

    Raises:
        ValueError: There are fewer than two groups, a group has no patients, or no event has patients of several
            groups at risk, so that the groups cannot be compared.
    """
    group_N = np.asarray(group, np.int64)
    sizes = np.bincount(group_N, minlength=groups)
    if groups < 2 or len(sizes) > groups or not sizes.all():
        raise ValueError(f"{groups} groups of {sizes.tolist()} patients cannot be compared")
    times = np.unique(follow_up.time[follow_up.event])
    member_GN = np.arange(groups)[:, None] == group_N
    at_risk_GT = _count(follow_up.time, member_GN, times)
    dead_GT = np.stack(
        [(follow_up.time[of & follow_up.event][:, None] == times).sum(axis=0) for of in member_GN]
    )
    n_T, d_T = at_risk_GT.sum(axis=0), dead_GT.sum(axis=0)
    share_GT = at_risk_GT / n_T
    spread_T = np.divide(d_T * (n_T - d_T), n_T - 1, out=np.zeros(len(times)), where=n_T > 1)
    covariance = np.diag(share_GT @ spread_T) - (share_GT * spread_T) @ share_GT.T
    observed, expected = dead_GT.sum(axis=1).astype(np.float64), share_GT @ d_T
    difference, inner = (observed - expected)[:-1], covariance[:-1, :-1]
    if np.linalg.matrix_rank(inner) < groups - 1:
        raise ValueError("no event has patients of every group at risk, so the groups cannot be compared")
    chi2 = float(difference @ np.linalg.solve(inner, difference))
    return LogRank(chi2, float(chi2_distribution.sf(chi2, groups - 1)), observed, expected, covariance)


def _count(
    time: NDArray[np.float64], member_GN: NDArray[np.bool_], times: NDArray[np.float64]
) -> NDArray[np.int64]:
    """(G, T) how many of each group are followed at least until each time."""
    return np.stack([of.sum() - np.searchsorted(np.sort(time[of]), times, side="left") for of in member_GN])


@dataclass(frozen=True, slots=True)
class HazardRatio:
    """How many times the hazard rises per step of a number, with its 95 % interval (Wald)."""

    value: float
    low: float
    high: float


def hazard_ratio(follow_up: FollowUp, number: ArrayLike) -> HazardRatio:
    """Cox regression on one number per patient, such as the group 0 or 1, with Efron's ties, by Newton's method.

    Raises:
        ValueError: There is no finite estimate: the number is the same everywhere, there is no event, or it
            separates the patients perfectly.
    """
    # Half a gigabyte, which the evaluation of classes does not need.
    import torch

    from wsi_ips.survival.losses import cox_loss

    number_N = torch.as_tensor(np.asarray(number, np.float64))
    time_N, event_N = torch.from_numpy(follow_up.time.copy()), torch.from_numpy(follow_up.event.copy())
    beta = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for _ in range(STEPS):
        with torch.enable_grad():
            loss = cox_loss(beta * number_N, time_N, event_N, reduction="sum")
            slope = torch.autograd.grad(loss, beta, create_graph=True)[0]
            curve = torch.autograd.grad(slope, beta)[0] if slope.requires_grad else torch.zeros(())
        if not curve > 1e-10:
            break
        step = (slope / curve).detach().clamp(-2, 2)
        beta = (beta.detach() - step).requires_grad_()
        if abs(float(step)) < 1e-10:
            value, reach = float(beta.detach()), Z95 / math.sqrt(float(curve))
            return HazardRatio(math.exp(value), math.exp(value - reach), math.exp(value + reach))
    raise ValueError("the hazard ratio has no finite estimate from these patients")


def risk_group_edges(risk: ArrayLike, groups: int) -> NDArray[np.float64]:
    """The risks between equally large groups, (G - 1,) float64 (quantiles, linear interpolation).

    Take them from training or validation patients. Groups that are cut at the quantiles of the very patients
    that are measured flatter.

    Raises:
        ValueError: There are fewer than two groups, or risks are not finite.
    """
    risks = np.asarray(risk, np.float64)
    if groups < 2:
        raise ValueError(f"patients are compared in 2 groups of risk or more, not {groups}")
    if not len(risks) or not np.isfinite(risks).all():
        raise ValueError(f"{len(risks)} risks are not all finite numbers")
    return np.asarray(np.quantile(risks, np.arange(1, groups) / groups), np.float64)


def risk_group(risk: ArrayLike, edges: ArrayLike) -> NDArray[np.int64]:
    """The group of each patient, (N,), 0 for the lowest risk. A risk at an edge belongs to the group below it."""
    return np.asarray(np.searchsorted(np.asarray(edges), np.asarray(risk), side="left"), np.int64)
