"""How good predictions of survival are: the C-index, and the Brier score under censoring.

How well risks order patients: the C-index of Harrell (:func:`harrell`) and of Uno (:func:`uno`).

Source: SURVIVAL.md section 4.

How close predicted survival comes to what happened: the Brier score under censoring.

Patients who are censored before a time say nothing of it, and the others weigh the more for it (inverse
probability of censoring). Source: Graf et al. 1999.

Shape suffixes: N patients, E of them with the event, T times.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsi_ips.survival.follow_up import FollowUp
from wsi_ips.survival.kaplan_meier import SurvivalCurve

TIED = 1e-8
"""Risks that differ by no more than this count as equal."""
PAIRS_AT_ONCE = 2**22
"""How many pairs are compared at a time."""


@dataclass(frozen=True, slots=True)
class Concordance:
    """Counts of comparable pairs of patients.

    Attributes:
        concordant: Pairs in which the patient with the earlier event has the higher risk.
        discordant: Pairs in which that patient has the lower risk.
        tied_risk: Pairs with equal risks.
        tied_time: Pairs of an event and a censoring at one time, which are among the others.
    """

    concordant: int
    discordant: int
    tied_risk: int
    tied_time: int

    @property
    def pairs(self) -> int:
        """All comparable pairs."""
        return self.concordant + self.discordant + self.tied_risk

    @property
    def index(self) -> float:
        """Harrell's C. Raises ``ValueError`` if no pair is comparable, which is not a C-index of 0.5."""
        if not self.pairs:
            raise ValueError("no two patients can be compared: no event comes before another patient's time")
        return (self.concordant + 0.5 * self.tied_risk) / self.pairs


def harrell(follow_up: FollowUp, risk: ArrayLike) -> Concordance:
    """Count the comparable pairs.

    A pair is comparable if one patient has the event, and the other is followed longer or is censored at the
    same time. Takes time proportional to events times patients, and memory for 4 million pairs at most.

    Args:
        follow_up: The patients.
        risk: (N,) finite, higher for an earlier event.

    Raises:
        ValueError: Risks are not finite.
    """
    rows_E, sums = _pair_sums(follow_up, risk)
    totals = [int(counts_E.sum()) for counts_E in sums] if len(rows_E) else [0, 0, 0, 0]
    return Concordance(*totals)


def uno(follow_up: FollowUp, risk: ArrayLike, censoring: SurvivalCurve, *, tau: float | None = None) -> float:
    """Uno's C-index: each comparable pair weighs 1 / G(t-)^2, which undoes the pattern of censoring.

    Args:
        follow_up: The patients.
        risk: (N,) finite, higher for an earlier event.
        censoring: G, the :func:`wsi_ips.survival.kaplan_meier.censoring_curve` of the training patients. Its
            value just before the event is taken, as in Uno et al. 2011. (scikit-survival takes the value after
            it.)
        tau: Only events before this time count.

    Raises:
        ValueError: No pair is comparable, or G is 0 before an event that counts. For the latter, choose a
            smaller tau, such as :func:`default_tau`.
    """
    rows_E, (concordant_E, discordant_E, tied_E, _) = _pair_sums(follow_up, risk)
    time_E = follow_up.time[rows_E]
    counted_E = np.ones(len(rows_E), bool) if tau is None else time_E < tau
    pairs_E = concordant_E + discordant_E + tied_E
    counted_E &= pairs_E > 0
    if not counted_E.any():
        raise ValueError("no two patients can be compared: no event before tau and another patient's time")
    free_E = censoring.before(time_E[counted_E])
    if (free_E <= 0).any():
        raise ValueError("no training patient is followed until one of the events: choose a smaller tau")
    weight_E = 1 / free_E**2
    score_E = (concordant_E + 0.5 * tied_E)[counted_E]
    return float((weight_E * score_E).sum() / (weight_E * pairs_E[counted_E]).sum())


def default_tau(censoring: SurvivalCurve) -> float:
    """The longest training time at which the probability of being followed is still above 0."""
    return float(censoring.time[censoring.survival > 0].max())


def _pair_sums(
    follow_up: FollowUp, risk: ArrayLike
) -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], ...]]:
    """The patients with events, and for each of them (concordant, discordant, tied risk, tied time), (E,) each."""
    risks = np.asarray(risk, np.float64)
    if risks.shape != follow_up.time.shape or not np.isfinite(risks).all():
        raise ValueError(f"risks {risks.shape} of {len(follow_up)} patients are not all finite numbers")
    rows_E = np.flatnonzero(follow_up.event)
    sums = tuple(np.zeros(len(rows_E), np.int64) for _ in range(4))
    size = max(1, PAIRS_AT_ONCE // max(1, len(risks)))
    for start in range(0, len(rows_E), size):
        rows = rows_E[start : start + size]
        same = (follow_up.time == follow_up.time[rows, None]) & ~follow_up.event
        comparable = (follow_up.time > follow_up.time[rows, None]) | same
        difference = risks[rows, None] - risks
        tied = np.abs(difference) <= TIED
        kinds = (
            comparable & ~tied & (difference > 0),
            comparable & ~tied & (difference < 0),
            comparable & tied,
        )
        for total, pairs in zip(sums, (*kinds, same), strict=True):
            total[start : start + size] = pairs.sum(axis=1)
    return rows_E, sums


def brier_scores(
    follow_up: FollowUp, survival_NT: ArrayLike, at: ArrayLike, censoring: SurvivalCurve
) -> NDArray[np.float64]:
    """The Brier score at each time, (T,) float64. 0 is perfect; predicting 0.5 for everybody gives about 0.25.

    A patient with the event by then adds survival^2 / G(time-), one followed longer adds (1 - survival)^2 /
    G(at), and one censored before adds nothing; the sum is divided by N.

    Args:
        follow_up: The patients.
        survival_NT: Predicted probability to be without the event at each time.
        at: (T,) the times.
        censoring: G, the :func:`wsi_ips.survival.kaplan_meier.censoring_curve` of the training patients.

    Raises:
        ValueError: A number is not a probability, shapes differ, there are no patients, or G is 0 where it is
            needed. For the last, leave out times beyond the follow-up of the training patients.
    """
    said, times = np.asarray(survival_NT, np.float64), np.asarray(at, np.float64)
    if said.shape != (len(follow_up), len(times)) or not len(follow_up):
        raise ValueError(
            f"survival of shape {said.shape} does not fit {len(follow_up)} patients at {len(times)} times"
        )
    if not ((said >= 0) & (said <= 1)).all():
        raise ValueError("a predicted survival is not a probability")
    dead_NT = (follow_up.time[:, None] <= times) & follow_up.event[:, None]
    alive_NT = follow_up.time[:, None] > times
    free_N, free_T = censoring.before(follow_up.time), censoring.at(times)
    if (dead_NT & (free_N[:, None] <= 0)).any() or (alive_NT & (free_T <= 0)).any():
        raise ValueError("no training patient is followed until one of the times")
    with np.errstate(divide="ignore"):
        weight_NT = np.where(dead_NT, 1 / free_N[:, None], np.where(alive_NT, 1 / free_T, 0.0))
    return np.asarray((weight_NT * (alive_NT - said) ** 2).mean(axis=0), np.float64)


def integrated(scores_T: ArrayLike, at: ArrayLike) -> float:
    """The mean of a score over time, by trapezoids from the first to the last time.

    Raises:
        ValueError: There are fewer than two times, or they do not rise.
    """
    scores, times = np.asarray(scores_T, np.float64), np.asarray(at, np.float64)
    if len(times) < 2 or not (np.diff(times) > 0).all():
        raise ValueError("a score is integrated over two rising times or more")
    return float(np.trapezoid(scores, times) / (times[-1] - times[0]))
