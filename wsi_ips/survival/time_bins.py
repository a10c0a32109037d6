"""Cutting follow-up time into bins with about equally many events: :func:`time_bins`.

Source: SURVIVAL.md section 3. Shape suffixes: K bins, N patients.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsi_ips.survival.follow_up import FollowUp

EPS = 1e-6
"""How far the first and the last edge lie outside the times."""


def time_bins(follow_up: FollowUp, bins: int) -> NDArray[np.float64]:
    """The edges of the bins, (K + 1,) float64, rising.

    Inner edges are quantiles (linear interpolation) of the times at which patients had the event. The first edge
    is 1e-6 below the shortest follow-up of all patients, the last 1e-6 above the longest. Equal quantiles, which
    heavily tied times give, become one edge, so K may be smaller than ``bins``. Give it only training patients:
    the scale of time of those that are measured later is not known in advance.

    Raises:
        ValueError: Fewer than two bins are asked for, no patient has the event, or fewer than two bins are left.
    """
    if bins < 2:
        raise ValueError(f"survival needs 2 time bins or more, not {bins}")
    if not follow_up.event.any():
        raise ValueError("no patient has the event, so there are no time bins")
    edges = np.unique(np.quantile(follow_up.time[follow_up.event], np.linspace(0, 1, bins + 1)))
    if len(edges) < 3:
        raise ValueError("the events' times are all alike, so they give fewer than two time bins")
    edges[0], edges[-1] = follow_up.time.min() - EPS, follow_up.time.max() + EPS
    return np.asarray(edges, np.float64)


def bin_of(time: ArrayLike, edges_K1: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bin of each time, (N,): ``edges[k] <= time < edges[k + 1]``. Times outside belong to the first or the
    last bin.
    """
    places = np.searchsorted(edges_K1, np.asarray(time, np.float64), side="right") - 1
    return np.asarray(np.clip(places, 0, len(edges_K1) - 2), np.int64)
