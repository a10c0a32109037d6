"""How sure a figure is: intervals by resampling, DeLong's for the AUC, and the spread over seeds.

:func:`bootstrap` resamples cases, :func:`paired_bootstrap` does it for the difference of two models on the same
slides. The slides of a case are resampled together: slides of one patient are alike, and resampling them one by
one would make intervals too narrow.

DeLong's interval, and his test of two AUCs on the same slides, need no resampling (DeLong, DeLong and
Clarke-Pearson 1988). They are computed from mid-ranks in O(N log N) as Sun and Xu 2014 do ("Fast implementation of
DeLong's algorithm for comparing the areas under correlated receiver operating characteristic curves"). Slides
count as independent: several slides of one patient are not.

:class:`OverSeeds` is the mean, the deviation and the worst of a figure over trainings with several seeds.

Shape suffixes: N slides, P positives, Q negatives.
"""

import math
import statistics
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import count

Picked = NDArray[np.int64]
"""Places of the slides in one resample, with repetitions."""

Measure = Callable[[Picked], Mapping[str, float]]
"""Computes figures from some of the slides, given their places. NaN for a figure that they do not give."""

Rarest = int | Mapping[str, int] | None
"""How many cases there are of the smaller class, or with an event: one number for all figures, or one for each
figure that has one. None: that does not matter.
"""

OF_A_CLASS = "of a class"
OUTSIDE_THE_COMMONEST = "outside the most frequent class"

Counted = str | Mapping[str, str]
"""What :data:`Rarest` counts, in words: for all figures, or for each figure that counts something else than cases
of a class.
"""

LEVEL = 0.95
"""Level of the intervals."""

FEWEST_CASES = 10
"""Fewest cases that an interval, or DeLong's p value, is stated for. Resamples of fewer are nearly all alike, so
that the interval comes out far too narrow: at its limit (an AUC of 1) it has no width at all, however few slides
there were.
"""
FEWEST_OF_A_CLASS = 5
"""Fewest cases of either class of a yes-or-no task, of a class whose own AUC is told, and with a lesion for FROC,
and fewest events of a survival task, for the same reason: how well two classes are told apart is known no better
than the smaller one. A mean over classes, each of which counts the same, is known no better than its rarest class.
For kappa it is the cases outside the most frequent class: it is relative to chance, which calling everything that
class reaches.
"""

LOWER_IS_BETTER = ("brier", "ece", "mae", "rmse", "ibs")
"""What the names of figures begin with that are the better, the lower they are."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its interval.

    Attributes:
        value: The figure.
        low, high: The ends of the interval. NaN if no resample gave the figure.
        undefined: How many resamples did not give the figure, because a class was not drawn. The interval leaves
            them out.
        why_none: Why no interval is stated although one was asked for, in a few words. Empty otherwise.
    """

    value: float
    low: float
    high: float
    undefined: int = 0
    why_none: str = ""

    @classmethod
    def not_stated(cls, value: float, why: str) -> "Interval":
        """A figure of too few cases for an interval."""
        return cls(value, math.nan, math.nan, 0, why)

    def to_json(self) -> dict[str, float | int | str]:
        """The interval as ``metrics.json`` has it; ``why_none`` only where there is something to say."""
        ends: dict[str, float | int | str] = {
            "value": self.value, "low": self.low, "high": self.high, "undefined_resamples": self.undefined,
        }  # fmt: skip
        return ends | ({"why_none": self.why_none} if self.why_none else {})


def too_few(cases: Sequence[Hashable], *, rarest: int | None = None, of: str = OF_A_CLASS) -> str:
    """Why an interval over these cases would mean nothing, in a few words; "" if it would mean something.

    Args:
        cases: The case of each slide.
        rarest: How many cases there are of the smaller class, or with an event. None: that does not matter.
        of: What ``rarest`` counts.
    """
    known = len(set(cases))
    if known < FEWEST_CASES:
        return f"{count(known, 'case')}, and {FEWEST_CASES} are needed"
    if rarest is not None and rarest < FEWEST_OF_A_CLASS:
        return f"{count(rarest, 'case')} {of}, and {FEWEST_OF_A_CLASS} are needed"
    return ""


def _without_too_few(
    intervals: Mapping[str, Interval], cases: Sequence[Hashable], rarest: Rarest, of: Counted
) -> dict[str, Interval]:
    """The same figures, without the intervals of those whose cases are :func:`too_few`."""
    stated = {}
    for name, interval in intervals.items():
        its = rarest.get(name) if isinstance(rarest, Mapping) else rarest
        why = too_few(cases, rarest=its, of=of if isinstance(of, str) else of.get(name, OF_A_CLASS))
        stated[name] = Interval.not_stated(interval.value, why) if why else interval
    return stated


class OverSeeds:
    """What the values of one figure over several seeds come to. A subclass has the attributes.

    Attributes:
        figure: The name of the figure.
        values: Its value for each seed; NaN for a seed that does not have it.
    """

    __slots__ = ()

    figure: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over seeds. NaN if a seed does not have the figure."""
        return math.fsum(self.values) / len(self.values)

    @property
    def sd(self) -> float:
        """The sample standard deviation over seeds. NaN for one seed, or if a seed does not have the figure."""
        known = len(self.values) > 1 and all(map(math.isfinite, self.values))
        return statistics.stdev(self.values) if known else math.nan

    @property
    def worst(self) -> float:
        """The worst seed. NaN if a seed does not have the figure."""
        if any(map(math.isnan, self.values)):
            return math.nan
        return max(self.values) if self.figure.startswith(LOWER_IS_BETTER) else min(self.values)


def bootstrap(
    measure: Measure,
    cases: Sequence[Hashable],
    *,
    strata: Sequence[Hashable] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
    rarest: Rarest = None,
    of: Counted = OF_A_CLASS,
) -> dict[str, Interval]:
    """Percentile intervals of figures, by resampling cases; none of cases that are :func:`too_few`.

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
        rarest: See :data:`Rarest`.
        of: What ``rarest`` counts.
    """
    values = measure(np.arange(len(cases)))
    none = {name: Interval(value, math.nan, math.nan) for name, value in values.items()}
    if not resamples:
        return none
    stated = _without_too_few(none, cases, rarest, of)
    if all(interval.why_none for interval in stated.values()):
        return stated
    drawn = [measure(p) for p in resample_cases(cases, strata=strata, resamples=resamples, seed=seed)]
    found = {
        name: percentile_interval(value, np.array([one[name] for one in drawn], np.float64), level=level)
        for name, value in values.items()
    }
    return _without_too_few(found, cases, rarest, of)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models on the same slides, for :func:`paired_bootstrap`.

    Attributes:
        one, other: Compute the figures of each model from some of the slides, given their places.
        cases: The case of each slide.
        strata: The stratum of each slide, see :func:`resample_cases`.
        rarest: See :data:`Rarest`.
        of: What ``rarest`` counts.
    """

    one: Measure
    other: Measure
    cases: Sequence[Hashable]
    strata: Sequence[Hashable] | None = None
    rarest: Rarest = None
    of: Counted = OF_A_CLASS

    def lead(self, picked: Picked) -> dict[str, float]:
        """Each figure of ``one`` minus that of ``other`` on these slides. Only figures that both have."""
        one, other = self.one(picked), self.other(picked)
        return {name: value - other[name] for name, value in one.items() if name in other}


def paired_bootstrap(
    pairs: Sequence[Pair],
    *,
    same_slides: bool = True,
    resamples: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """Percentile intervals of how far one model is ahead of another, by resampling cases alike for both; none
    where the cases of a pair are :func:`too_few`.

    With several pairs, such as one for each seed of a training, a figure is the mean over the pairs, and the pairs
    are resampled too.

    Args:
        pairs: The pairs, one or more. All have the same figures.
        same_slides: Whether the slides of all pairs are the same: a resample then draws the same cases in each
            pair. False: it draws in each pair by itself.
        resamples: How often to draw. With 0, intervals are NaN.
        seed: Seed of the draws.
        level: Level of the intervals.

    Raises:
        ValueError: There are no pairs, or pairs of the same slides have different cases.
    """
    if not pairs:
        raise ValueError("no pairs")
    if same_slides and any(list(pair.cases) != list(pairs[0].cases) for pair in pairs):
        raise ValueError("pairs of the same slides have the same cases")
    n_pairs = len(pairs)
    draws = [
        resample_cases(pair.cases, strata=pair.strata, resamples=resamples * n_pairs, seed=seed + number)
        for number, pair in enumerate(pairs[:1] if same_slides else pairs)
    ]
    whole = _mean_of([pair.lead(np.arange(len(pair.cases))) for pair in pairs])
    none = {name: Interval(value, math.nan, math.nan) for name, value in whole.items()}
    if not resamples or not len(pairs[0].cases):
        return none
    stated = _of_all_pairs(none, pairs)
    if all(interval.why_none for interval in stated.values()):
        return stated
    rng = np.random.default_rng([seed, n_pairs])
    drawn: list[dict[str, float]] = []
    for _ in range(resamples):
        chosen = rng.integers(n_pairs, size=n_pairs).tolist()
        if same_slides:
            picked = next(draws[0])
            leads = {number: pairs[number].lead(picked) for number in set(chosen)}
            drawn.append(_mean_of([leads[number] for number in chosen]))
        else:
            drawn.append(_mean_of([pairs[number].lead(next(draws[number])) for number in chosen]))
    found = {
        name: percentile_interval(value, np.array([one[name] for one in drawn], np.float64), level=level)
        for name, value in whole.items()
    }
    return _of_all_pairs(found, pairs)


def _of_all_pairs(intervals: Mapping[str, Interval], pairs: Sequence[Pair]) -> dict[str, Interval]:
    """The same figures, without the intervals of those for which the cases of a pair are :func:`too_few`."""
    stated = dict(intervals)
    for pair in pairs:
        stated = _without_too_few(stated, pair.cases, pair.rarest, pair.of)
    return stated


def _mean_of(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(each[name] for each in figures) / len(figures) for name in figures[0]}


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
    in_order = np.concatenate([np.array(places, np.int64) for places in members.values()])
    sizes = np.array([len(places) for places in members.values()])
    begins = sizes.cumsum() - sizes
    by_stratum: dict[Hashable, list[int]] = {}
    for number, places in enumerate(members.values()):
        by_stratum.setdefault(strata[places[0]] if strata is not None else None, []).append(number)
    groups = [np.array(numbers, np.int64) for numbers in by_stratum.values()]
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = np.concatenate([rng.choice(group, len(group)) for group in groups])
        # The slides of each drawn case stand together in in_order: where they begin there, less where they begin
        # in this resample, is one number for all slides of the case.
        of_each = sizes[drawn]
        shift = begins[drawn] - (of_each.cumsum() - of_each)
        yield in_order[np.repeat(shift, of_each) + np.arange(of_each.sum())]


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


@dataclass(frozen=True, slots=True)
class DelongTest:
    """Two AUCs on the same slides, and whether they differ.

    Attributes:
        auc, other: The two AUCs.
        difference: ``auc - other``.
        standard_error: That of the difference; 0 if it does not vary.
        p: The two-sided p value. 1 if both rank every positive among the negatives alike. NaN if the difference
            is not 0 and does not vary, as between an AUC of 1 and one of 0, because the normal distribution says
            nothing then.
        why_none: Why no p value is stated, in a few words: the cases are :func:`too_few`. Empty otherwise.
    """

    auc: float
    other: float
    difference: float
    standard_error: float
    p: float
    why_none: str = ""

    @classmethod
    def not_stated(cls, auc: float, other: float, why: str) -> "DelongTest":
        """Two AUCs of too few cases for a p value."""
        return cls(auc, other, auc - other, math.nan, math.nan, why)

    @property
    def in_words(self) -> str:
        """``DeLong p 0.14``, or why there is none."""
        if self.why_none:
            return f"no DeLong p (too few: {self.why_none})"
        return "DeLong p not defined" if math.isnan(self.p) else f"DeLong p {self.p:.2g}"


def delong_test(
    scores_N: NDArray[np.floating], other_N: NDArray[np.floating], positive_N: NDArray[np.bool_]
) -> DelongTest:
    """Test whether two AUCs on the same slides are equal.

    Args:
        scores_N: What one model says of each slide; more means positive.
        other_N: What the other model says.
        positive_N: Which slides are positive.

    Raises:
        ValueError: There are fewer than two positives or negatives, or a score is NaN.
    """
    one, other = placements(scores_N, positive_N), placements(other_N, positive_N)
    lead_P, lead_Q = one.of_positives_P - other.of_positives_P, one.of_negatives_Q - other.of_negatives_Q
    # Placements are whole numbers of half slides, so whether they vary can be told exactly.
    halves_P, halves_Q = np.rint(lead_P * 2 * len(lead_Q)), np.rint(lead_Q * 2 * len(lead_P))
    if np.ptp(halves_P) == 0 and np.ptp(halves_Q) == 0:
        same = not halves_P[0] and not halves_Q[0]
        return DelongTest(
            one.auc, other.auc, 0.0 if same else one.auc - other.auc, 0.0, 1.0 if same else math.nan
        )
    error = math.sqrt(lead_P.var(ddof=1) / len(lead_P) + lead_Q.var(ddof=1) / len(lead_Q))
    difference = float(lead_P.mean())
    p = math.erfc(abs(difference) / error / math.sqrt(2))
    return DelongTest(one.auc, other.auc, difference, error, p)


def delong_interval(
    scores_N: NDArray[np.floating], positive_N: NDArray[np.bool_], *, level: float = LEVEL
) -> Interval:
    """The AUC with DeLong's interval, cut off at 0 and 1.

    Raises:
        ValueError: There are fewer than two positives or negatives, or a score is NaN.
    """
    placed = placements(scores_N, positive_N)
    above_P, below_Q = placed.of_positives_P, placed.of_negatives_Q
    variance = above_P.var(ddof=1) / len(above_P) + below_Q.var(ddof=1) / len(below_Q)
    reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(variance)
    return Interval(placed.auc, max(0.0, placed.auc - reach), min(1.0, placed.auc + reach))


@dataclass(frozen=True, slots=True, eq=False)
class Placements:
    """Where each slide stands among those of the other class. The mean of either is the AUC.

    Attributes:
        of_positives_P: float64, the share of negatives below each positive. Equal scores count half.
        of_negatives_Q: float64, the share of positives above each negative, likewise.
    """

    of_positives_P: NDArray[np.float64]
    of_negatives_Q: NDArray[np.float64]

    @property
    def auc(self) -> float:
        return float(self.of_positives_P.mean())


def placements(scores_N: NDArray[np.floating], positive_N: NDArray[np.bool_]) -> Placements:
    """The placements of all slides, in the order of the slides of each class.

    Raises:
        ValueError: There are fewer than two positives or negatives, or a score is NaN.
    """
    scores, positive = np.asarray(scores_N, np.float64), np.asarray(positive_N, bool)
    above_P, below_Q = scores[positive], scores[~positive]
    if len(above_P) < 2 or len(below_Q) < 2:
        raise ValueError(
            f"{len(above_P)} positives and {len(below_Q)} negatives are too few for an interval of the AUC"
        )
    if np.isnan(scores).any():
        raise ValueError("a score is not a number")
    rank_N = midranks(np.concatenate([above_P, below_Q]))
    below_P = rank_N[: len(above_P)] - midranks(above_P)
    above_Q = len(above_P) - (rank_N[len(above_P) :] - midranks(below_Q))
    return Placements(below_P / len(below_Q), above_Q / len(above_P))


def midranks(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rank of each value from 1 on, (N,) float64. Equal values share the mean of their ranks."""
    ordered = np.sort(values_N)
    first, last = (np.searchsorted(ordered, values_N, side=side) for side in ("left", "right"))
    return np.asarray((first + 1 + last) / 2, np.float64)
