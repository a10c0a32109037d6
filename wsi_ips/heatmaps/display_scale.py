"""From raw values to a place on the colour scale. For display only: stored numbers stay raw.

The attention of a slide's N patches sums to 1, so a patch with no more than its even share has 1 / N. By default
colours stand for attention as a multiple of that share, on one logarithmic scale for all slides. Colours by rank
would give half of the patches of every slide the warm half of the colours, even where attention is flat.

Contributions have a sign and a unit, logits: their scale has 0 in its middle and the same ends for all slides.

Shape suffix: N patches.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import ConfigError

Scale = Literal["even", "rank", "absolute", "signed"]
"""``even``: multiples of the even share 1 / N. ``rank``: percentiles of the slide's own patches. ``absolute``:
raw attention. ``signed``: contributions, in logits, with 0 in the middle."""

EVEN_ENDS = (0.25, 64.0)
"""The colours' ends, in times the even share. The share itself lies a quarter of the way up. A factor of 4 takes
as much colour everywhere; a patch beyond 64 times looks like one at 64 times."""

SIGNED_END = 1.0
"""Logits at the ends of the scale of contributions. One patch that adds as much multiplies the odds by 2.7 (those
of a softmax task of two classes by 7.4)."""

SIGNED_LINEAR = 0.01
"""As a share of the end: within it the scale of contributions is about linear, beyond it about logarithmic. A
logit is the sum of as many as a hundred contributions: a linear scale would show most of them as nothing."""

FLAT_WITHIN = 1.5
"""Attention is called flat where every patch has between 1 / 1.5 and 1.5 times the even share."""


class DisplayScale:
    """``DisplayScale(values_N)``: from raw values to places on the colour scale, 0 to 1.

    ``even``: logarithmic between ``low`` and ``high`` times the even share 1 / N, by default
    :data:`EVEN_ENDS`, which are the same for every slide. ``rank``: by rank among ``values_N`` (0 the smallest, 1
    the largest, ties share their mean rank, values in between lie in between); ``low`` and ``high`` are the
    percentiles, 0 to 100, at the scale's ends. ``absolute``: linear; ``low`` and ``high`` are raw values, by
    default the smallest and the largest of ``values_N``. Equal values all lie at 0.5 of the latter two.
    ``signed``: from ``-high`` to ``high`` logits, by default :data:`SIGNED_END`, with 0 at 0.5 exactly: the
    inverse hyperbolic sine, linear near 0 (:data:`SIGNED_LINEAR`), logarithmic beyond. Raises as
    :func:`scale_ends`.
    """

    def __init__(
        self,
        values_N: NDArray[np.floating],
        *,
        scale: Scale = "even",
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        self.scale = scale
        self.low, self.high = scale_ends(values_N, scale=scale, low=low, high=high)
        self.even_share = 1 / max(1, len(values_N))
        self._ranked, self._percentiles = _percentiles(values_N)

    def __call__(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Shares of the same shape, float32 in 0..1; NaN stays NaN."""
        shown = values.astype(np.float64)
        if self.scale == "even":
            low, high = np.log2([self.low, self.high])
            times = (shown / self.even_share).clip(self.low, self.high)  # clipped first: log2(0) is no number
            return np.asarray((np.log2(times) - low) / (high - low), np.float32)
        if self.scale == "signed":
            bent = np.arcsinh(shown.clip(self.low, self.high) / (SIGNED_LINEAR * self.high))
            return np.asarray(0.5 + 0.5 * bent / np.arcsinh(1 / SIGNED_LINEAR), np.float32)
        if self.scale == "rank" and len(self._ranked):
            shown = np.interp(shown, self._ranked, self._percentiles)
        if self.high == self.low:
            return np.where(np.isnan(shown), np.nan, 0.5).astype(np.float32)
        return ((shown - self.low) / (self.high - self.low)).clip(0, 1).astype(np.float32)

    def values_at(self, places: NDArray[np.floating]) -> NDArray[np.float64]:
        """Raw values, float64, at places on the scale, 0 to 1: the inverse of a call between the scale's ends."""
        if self.scale == "even":
            return np.asarray(self.low * (self.high / self.low) ** places * self.even_share, np.float64)
        if self.scale == "signed":
            bent = (2 * places.astype(np.float64) - 1) * np.arcsinh(1 / SIGNED_LINEAR)
            return np.asarray(np.sinh(bent) * SIGNED_LINEAR * self.high, np.float64)
        along = self.low + places * (self.high - self.low)
        if self.scale == "rank":
            return np.asarray(np.interp(along, self._percentiles, self._ranked), np.float64)
        return np.asarray(along, np.float64)

    def coloured(self, values: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which of these values get a colour, of the same shape: not NaN, where no patch is.

        On the signed scale not 0 either: patches that were not kept add exactly nothing, and the slide shows as it
        is.
        """
        held: NDArray[np.bool_] = np.isfinite(values)
        return held & (values != 0) if self.scale == "signed" else held


def is_flat(values_N: NDArray[np.floating]) -> bool:
    """Does no patch stand out? See :data:`FLAT_WITHIN`; False without patches."""
    times_N = values_N.astype(np.float64) * len(values_N)
    # float32 holds seven digits: a patch of exactly 1.5 times counts as within.
    within_N = (times_N <= FLAT_WITHIN * (1 + 1e-6)) & (times_N >= (1 - 1e-6) / FLAT_WITHIN)
    return bool(len(values_N)) and bool(within_N.all())


def display_values(
    values_N: NDArray[np.floating],
    *,
    scale: Scale = "even",
    low: float | None = None,
    high: float | None = None,
) -> NDArray[np.float32]:
    """Where each value lies on the colour scale of its slide, (N,) in 0..1: see :class:`DisplayScale`."""
    return DisplayScale(values_N, scale=scale, low=low, high=high)(values_N)


def scale_ends(
    values_N: NDArray[np.floating], *, scale: Scale, low: float | None, high: float | None
) -> tuple[float, float]:
    """What the two ends of the colour scale stand for: times the even share, percentiles, raw values or logits.

    Raises :class:`ConfigError` where the low end is above the high one, a percentile is not 0 to 100, a multiple
    is not above 0, or the ends of a signed scale do not lie opposite each other.
    """
    if scale == "even":
        ends = EVEN_ENDS[0] if low is None else float(low), EVEN_ENDS[1] if high is None else float(high)
        valid = 0 < ends[0] < ends[1] < np.inf
    elif scale == "rank":
        ends = 0.0 if low is None else float(low), 100.0 if high is None else float(high)
        valid = 0 <= ends[0] < ends[1] <= 100
    elif scale == "signed":
        end = SIGNED_END if high is None else float(high)
        ends = -end if low is None else float(low), end
        valid = 0 < end < np.inf and ends[0] == -end
    else:
        smallest, largest = (float(values_N.min()), float(values_N.max())) if len(values_N) else (0.0, 0.0)
        ends = smallest if low is None else float(low), largest if high is None else float(high)
        valid = ends[0] <= ends[1]
    if not valid:
        raise ConfigError(f"the {scale} colour scale cannot go from {ends[0]:g} to {ends[1]:g}")
    return ends


def _percentiles(values_N: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The distinct values, ascending, and their percentiles, 0 to 100: the inverse of ``np.percentile``.

    A single value is its own median.
    """
    distinct, counts = np.unique(values_N.astype(np.float64), return_counts=True)
    if len(values_N) < 2:
        return distinct, np.full(len(distinct), 50.0)
    mean_ranks = counts.cumsum() - (counts + 1) / 2
    return distinct, mean_ranks / (len(values_N) - 1) * 100
