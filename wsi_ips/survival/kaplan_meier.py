"""The estimate of Kaplan and Meier, for survival (:func:`kaplan_meier`) and for censoring
(:func:`censoring_curve`).

Source: SURVIVAL.md sections 4 and 5. Shape suffixes: N patients, T distinct times.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsi_ips.survival.follow_up import FollowUp

Z95 = 1.959963984540054
"""Half the width of a two-sided 95 % interval of the normal distribution, in standard deviations."""


@dataclass(frozen=True, slots=True, eq=False)
class SurvivalCurve:
    """A falling step function with its table. Every array has shape (T + 1,): time 0, then every distinct time.

    Attributes:
        time: The times.
        survival: The value just after each time.
        at_risk: How many patients were followed at least so long.
        events: How many of them had the event at this time.
        censored: How many of them were censored at this time.
        low, high: The pointwise 95 % band.
    """

    time: NDArray[np.float64]
    survival: NDArray[np.float64]
    at_risk: NDArray[np.int64]
    events: NDArray[np.int64]
    censored: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def at(self, times: ArrayLike) -> NDArray[np.float64]:
        """The value at each time. Behind the end it is that of the last step."""
        return np.asarray(self.survival[np.searchsorted(self.time, times, side="right") - 1])

    def before(self, times: ArrayLike) -> NDArray[np.float64]:
        """The value just before each time, without the steps at the time itself. At time 0 it is 1."""
        places = np.searchsorted(self.time, times, side="left") - 1
        return np.asarray(self.survival[np.maximum(places, 0)])

    def at_risk_at(self, times: ArrayLike) -> NDArray[np.int64]:
        """How many patients were followed at least until each time."""
        places = np.searchsorted(self.time, times, side="left")
        return np.asarray(np.append(self.at_risk, 0)[places])

    @property
    def median(self) -> float:
        """The first time at which survival is 0.5 or less. Infinite if there is none."""
        # A product that is one half on paper may be a little more in floating point.
        reached = np.flatnonzero(self.survival <= 0.5 + 1e-12)
        return float(self.time[reached[0]]) if len(reached) else math.inf


def kaplan_meier(follow_up: FollowUp) -> SurvivalCurve:
    """Survival as the product over times of (1 - events / at risk), with a log-log band after Greenwood.

    Where survival is 1 or 0, the band has no width. Raises ``ValueError`` without patients.
    """
    time, at_risk, events, censored = _table(follow_up)
    steps = 1 - events / at_risk
    survival = np.cumprod(steps)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.cumsum(events / (at_risk * (at_risk - events)))
        reach = Z95 * np.sqrt(variance) / np.log(survival)
        low, high = survival ** np.exp(-reach), survival ** np.exp(reach)
    flat = (survival == 1) | (survival == 0)
    low, high = np.where(flat, survival, low), np.where(flat, survival, high)
    return SurvivalCurve(time, np.asarray(survival, np.float64), at_risk, events, censored, low, high)


def censoring_curve(follow_up: FollowUp) -> SurvivalCurve:
    """The probability to be still followed: the same estimate with censorings in the place of events.

    At equal times events come first, so those patients have left when censorings are counted. Its band is not
    estimated, and NaN. Raises ``ValueError`` without patients.
    """
    time, at_risk, events, censored = _table(follow_up)
    left = at_risk - events
    steps = 1 - np.divide(censored, left, out=np.zeros(len(left)), where=left > 0)
    unknown = np.full(len(time), np.nan)
    return SurvivalCurve(time, np.cumprod(steps), at_risk, events, censored, unknown, unknown)


def _table(
    follow_up: FollowUp,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(time, at risk, events, censored), each (T + 1,)."""
    if not len(follow_up):
        raise ValueError("a survival curve needs patients, and there are none")
    time, place, count = np.unique(follow_up.time, return_inverse=True, return_counts=True)
    events = np.bincount(place, weights=follow_up.event, minlength=len(time)).astype(np.int64)
    at_risk = len(follow_up) - np.concatenate([[0], np.cumsum(count)[:-1]])
    return (
        np.concatenate([[0.0], time]),
        np.concatenate([[len(follow_up)], at_risk]).astype(np.int64),
        np.concatenate([[0], events]).astype(np.int64),
        np.concatenate([[0], count - events]).astype(np.int64),
    )
