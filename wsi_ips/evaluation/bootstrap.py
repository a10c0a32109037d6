"""How sure a figure is: intervals from resampled cases (:func:`bootstrap`), and DeLong's interval for the AUC.

The slides of a case are resampled together: slides of one patient are alike, and resampling them one by one
would make intervals too narrow.

Shape suffixes: N slides, P positives, Q negatives.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Picked = NDArray[np.int64]
"""Places of the slides in one resample, with repetitions."""

LEVEL = 0.95
"""Level of the intervals."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its interval.

    Attributes:
        value: The figure.
        low, high: The ends of the interval. NaN if no resample gave the figure.
        undefined: How many resamples did not give the figure, because a class was not drawn. The interval leaves
            them out.
    """

    value: float
    low: float
    high: float
    undefined: int = 0


def bootstrap(
    measure: Callable[[Picked], Mapping[str, float]],
    cases: Sequence[Hashable],
    *,
    strata: Sequence[Hashable] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """Percentile intervals of figures, by resampling cases.

    A figure that is at its limit on these slides (a sensitivity of 1) is at its limit in every resample. The
    interval then has no width, and says nothing of how few slides there were.

    Args:
        measure: Computes figures from some of the slides, given their places. It gives NaN for a figure that a
            resample does not have.
        cases: The case of each slide.
        strata: The stratum of each slide, see :func:`resample_cases`.
        resamples: How often to draw. With 0, intervals are NaN.
        seed: Seed of the draws.
        level: Level of the intervals.
    """
    values = measure(np.arange(len(cases)))
    drawn = [measure(p) for p in resample_cases(cases, strata=strata, resamples=resamples, seed=seed)]
    return {
        name: percentile_interval(value, np.array([one[name] for one in drawn], np.float64), level=level)
        for name, value in values.items()
    }


def resample_cases(
    cases: Sequence[Hashable],
    *,
    strata: Sequence[Hashable] | None = None,
    resamples: int,
    seed: int,
) -> Iterator[Picked]:
    """Draw as many cases as there are, with replacement, ``resamples`` times, and yield the places of their
    slides.

    With strata, each stratum keeps its number of cases: the share of tumours in a test set was chosen, not
    found, so it must not vary. A stratum with one case then shows no variation. The same seed gives the same
    draws. Without cases nothing is yielded.

    Args:
        cases: The case of each slide.
        strata: The stratum of each slide. That of the first slide of a case counts for the case.
        resamples: How often to draw.
        seed: Seed of the draws.
    """
    if not len(cases):
        return
    members: dict[Hashable, list[int]] = {}
    for place, case in enumerate(cases):
        members.setdefault(case, []).append(place)
    slides_of = [np.array(places, np.int64) for places in members.values()]
    by_stratum: dict[Hashable, list[int]] = {}
    for number, places in enumerate(members.values()):
        by_stratum.setdefault(strata[places[0]] if strata is not None else None, []).append(number)
    groups = [np.array(numbers, np.int64) for numbers in by_stratum.values()]
    alone = np.concatenate(slides_of) if len(slides_of) == len(cases) and slides_of else None
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = np.concatenate([rng.choice(group, len(group)) for group in groups])
        # Where every case has one slide, this is faster than case by case.
        yield alone[drawn] if alone is not None else np.concatenate([slides_of[n] for n in drawn])


def percentile_interval(value: float, drawn: NDArray[np.float64], *, level: float = LEVEL) -> Interval:
    """The interval that holds the middle ``level`` of the drawn values. NaN values are left out."""
    defined = drawn[~np.isnan(drawn)]
    if math.isnan(value) or not len(defined):
        return Interval(value, math.nan, math.nan, len(drawn) - len(defined))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), len(drawn) - len(defined))


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """The interval of a curve, point by point.

    Attributes:
        at: float64, where the curve is read.
        low, high: float64, the ends of the interval there.
    """

    at: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def bootstrap_band(
    curve: Callable[[Picked], NDArray[np.float64] | None],
    at: NDArray[np.float64],
    drawn: Iterator[Picked],
    *,
    level: float = LEVEL,
) -> Band | None:
    """The band of a curve over resamples. None if no resample has a curve.

    Args:
        curve: Computes the curve at ``at`` from some of the slides, given their places. None if they have none.
        at: Where the curve is read.
        drawn: The resamples, see :func:`resample_cases`.
        level: Level of the intervals.
    """
    curves = [values for picked in drawn if (values := curve(picked)) is not None]
    if not curves:
        return None
    low, high = np.quantile(np.stack(curves), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Band(at, low, high)


def delong_interval(
    scores_N: NDArray[np.floating], positive_N: NDArray[np.bool_], *, level: float = LEVEL
) -> Interval:
    """The AUC with DeLong's interval (DeLong et al. 1988), cut off at 0 and 1. Slides count as independent.

    Raises:
        ValueError: There are fewer than two positives or negatives.
    """
    scores, positive = np.asarray(scores_N, np.float64), np.asarray(positive_N, bool)
    above, below = np.sort(scores[positive]), np.sort(scores[~positive])
    if len(above) < 2 or len(below) < 2:
        raise ValueError(
            f"{len(above)} positives and {len(below)} negatives are too few for an interval of the AUC"
        )
    placement_P = _share_below(below, above)
    placement_Q = 1 - _share_below(above, below)
    auc = float(placement_P.mean())
    variance = placement_P.var(ddof=1) / len(above) + placement_Q.var(ddof=1) / len(below)
    reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(variance)
    return Interval(auc, max(0.0, auc - reach), min(1.0, auc + reach))


def _share_below(ordered: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each value, the share of ``ordered`` that is below it. Equal values count half."""
    left, right = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return np.asarray((left + right) / (2 * len(ordered)), np.float64)
