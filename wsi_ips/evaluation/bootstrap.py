"""How sure a figure is: intervals from resampled cases, and DeLong's for the AUC.

A case's slides come and go together: slides of one patient are alike, and resampling them one by one would
make intervals too narrow.

Shape suffixes: N slides, P positives, Q negatives.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Picked = NDArray[np.int64]
"""Places of the slides that one resample holds, with repetitions."""

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and the interval around it; NaN ends where no resample gave the figure.

    undefined: resamples that did not give it (a class was not drawn), which the interval leaves out.
    """

    value: float
    low: float
    high: float
    undefined: int = 0


def resample_cases(
    cases: Sequence[Hashable],
    *,
    strata: Sequence[Hashable] | None = None,
    resamples: int,
    seed: int,
) -> Iterator[Picked]:
    """Draw as many cases as there are, with replacement, ``resamples`` times; yield their slides' places.

    ``cases`` and ``strata`` name each slide's. With strata (of all slides of a case, its first's) each stratum
    keeps its number of cases: the test set's share of tumours was chosen, not found, so it does not vary. A
    stratum with one case then has none of its own variation. The same seed gives the same draws; of no cases
    there are none.
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
        # Case by case takes seconds of a resampling of thousands.
        yield alone[drawn] if alone is not None else np.concatenate([slides_of[n] for n in drawn])


def bootstrap(
    measure: Callable[[Picked], Mapping[str, float]],
    cases: Sequence[Hashable],
    *,
    strata: Sequence[Hashable] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """Percentile intervals of every figure that ``measure`` takes from some of the slides, given their places.

    ``measure`` gives NaN for what a resample does not tell. With no resamples, intervals are NaN. A figure that
    these slides put at its end (a sensitivity of 1) is at its end in every resample: the interval has no width,
    and says nothing of how few slides there were.
    """
    values = measure(np.arange(len(cases)))
    drawn = [measure(p) for p in resample_cases(cases, strata=strata, resamples=resamples, seed=seed)]
    return {
        name: percentile_interval(value, np.array([one[name] for one in drawn], np.float64), level=level)
        for name, value in values.items()
    }


def percentile_interval(value: float, drawn: NDArray[np.float64], *, level: float = LEVEL) -> Interval:
    """The middle ``level`` of what was drawn, NaN left out."""
    defined = drawn[~np.isnan(drawn)]
    if math.isnan(value) or not len(defined):
        return Interval(value, math.nan, math.nan, len(drawn) - len(defined))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), len(drawn) - len(defined))


def delong_interval(
    scores_N: NDArray[np.floating], positive_N: NDArray[np.bool_], *, level: float = LEVEL
) -> Interval:
    """The AUC with DeLong's interval (DeLong et al. 1988), cut off at 0 and 1: slides count as independent.

    Raises ``ValueError`` for fewer than two positives or negatives.
    """
    scores, positive = np.asarray(scores_N, np.float64), np.asarray(positive_N, bool)
    above, below = np.sort(scores[positive]), np.sort(scores[~positive])
    if len(above) < 2 or len(below) < 2:
        raise ValueError(f"no variance from {len(above)} positives and {len(below)} negatives")
    placement_P = _share_below(below, above)
    placement_Q = 1 - _share_below(above, below)
    auc = float(placement_P.mean())
    variance = placement_P.var(ddof=1) / len(above) + placement_Q.var(ddof=1) / len(below)
    reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(variance)
    return Interval(auc, max(0.0, auc - reach), min(1.0, auc + reach))


def _share_below(ordered: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each value, the share of ``ordered`` that lies below it, equals counting half."""
    left, right = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return np.asarray((left + right) / (2 * len(ordered)), np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """A curve's interval at every ``at``, point by point; low and high like ``at``, float64."""

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
    """The band of a curve that is read at ``at``; None where no resample gives one.

    ``curve`` gives None for a resample that has none.
    """
    curves = [values for picked in drawn if (values := curve(picked)) is not None]
    if not curves:
        return None
    low, high = np.quantile(np.stack(curves), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Band(at, low, high)
