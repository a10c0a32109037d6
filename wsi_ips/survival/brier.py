"""How close predicted survival comes to what happened: the Brier score under censoring.

Patients who are censored before a time say nothing of it, and the others weigh the more for it (inverse
probability of censoring). Source: Graf et al. 1999.

Shape suffixes: N patients, T times.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsi_ips.survival.follow_up import FollowUp
from wsi_ips.survival.kaplan_meier import SurvivalCurve


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
