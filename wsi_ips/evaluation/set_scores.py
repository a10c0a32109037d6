"""How often sets of answers hold the true one, and how much they leave open.

Shape suffixes: N slides, A answers.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from wsi_ips.evaluation.bootstrap import LEVEL, Interval, Picked, bootstrap


@dataclass(frozen=True, slots=True)
class AnswerCoverage:
    """Of the slides of which one answer is true: how many there are, and how often the set holds it (NaN of
    none)."""

    slides: int
    coverage: float


@dataclass(frozen=True, slots=True)
class SetFigures:
    """coverage: the share of sets that hold the true answer; its interval is Clopper and Pearson's where every
    case has one slide (``exact``), else a bootstrap over cases. size: answers in a set, on average. single:
    share of sets of one answer; right_if_single: how many of those are right, NaN where there are none. empty:
    share of sets that hold no answer. by_answer: {answer: its own coverage}."""

    slides: int
    coverage: Interval
    exact: bool
    size: float
    single: float
    right_if_single: float
    empty: float
    by_answer: dict[str, AnswerCoverage]


def score_sets(
    held_NA: NDArray[np.bool_],
    truth_N: NDArray[np.int64],
    *,
    answers: Sequence[str],
    cases: Sequence[Hashable],
    resamples: int,
    seed: int,
) -> SetFigures:
    """Score the sets of N slides: which answers each holds, and which one is true. Raises ``ValueError`` for
    none."""
    slides = len(truth_N)
    if not slides:
        raise ValueError("no sets to score")
    covered_N = held_NA[np.arange(slides), truth_N]
    size_N = held_NA.sum(axis=1)
    single_N = size_N == 1
    exact = len(set(cases)) == slides
    return SetFigures(
        slides=slides,
        coverage=clopper_pearson(int(covered_N.sum()), slides)
        if exact
        else _over_cases(covered_N, cases, resamples=resamples, seed=seed),
        exact=exact,
        size=float(size_N.mean()),
        single=float(single_N.mean()),
        right_if_single=float(covered_N[single_N].mean()) if single_N.any() else math.nan,
        empty=float((size_N == 0).mean()),
        by_answer={
            name: AnswerCoverage(
                int((truth_N == answer).sum()),
                float(covered_N[truth_N == answer].mean()) if (truth_N == answer).any() else math.nan,
            )
            for answer, name in enumerate(answers)
        },
    )


def clopper_pearson(hits: int, n: int, *, level: float = LEVEL) -> Interval:
    """A share of n independent draws with its exact binomial interval (Clopper and Pearson 1934), which is never
    too narrow. Raises ``ValueError`` for hits that cannot be."""
    if not 0 <= hits <= n or not n:
        raise ValueError(f"{hits} of {n}")
    tail = (1 - level) / 2
    low = float(stats.beta.ppf(tail, hits, n - hits + 1)) if hits else 0.0
    high = float(stats.beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0
    return Interval(hits / n, low, high)


def _over_cases(
    covered_N: NDArray[np.bool_], cases: Sequence[Hashable], *, resamples: int, seed: int
) -> Interval:
    def coverage(picked: Picked) -> dict[str, float]:
        return {"coverage": float(covered_N[picked].mean())}

    return bootstrap(coverage, cases, resamples=resamples, seed=seed)["coverage"]
