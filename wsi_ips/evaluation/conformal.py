"""Split-conformal sets: of each slide the answers that cannot be ruled out at a stated risk.

A slide's score is 1 minus the probability that the network gives to the true answer. On slides with known
labels the threshold is the ceil((n + 1)(1 - risk))-th smallest of n scores; the set of a new slide holds every
answer whose score is at most that. If the new slide and those n are exchangeable (drawn alike, in no order that
matters), the set holds the true answer with a probability of at least 1 - risk, and of at most 1 - risk + 1 /
(n + 1) where scores do not tie. The probability is over new slides *and* over the n slides: of one set of n it
varies (:func:`coverage_range`).

Sources: Vovk, Gammerman and Shafer 2005, Algorithmic Learning in a Random World; Sadinle, Lei and Wasserman 2019,
Least Ambiguous Set-Valued Classifiers with Bounded Error Levels (this score; per class as well); Vovk 2012,
Conditional Validity of Inductive Conformal Predictors (coverage of one calibration is Beta-distributed).

Shape suffixes: N slides, C classes, A answers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction as Exact

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from wsi_ips.config import TaskConfig


@dataclass(frozen=True, slots=True)
class Question:
    """What one set is about: a softmax task's class, or whether one class of a sigmoid task is there.

    name: empty where it is its task's only one, else the class. answers: one of them is true. column: of a
    yes-or-no question, its class's place among the task's.
    """

    name: str
    answers: tuple[str, ...]
    column: int | None = None

    def probabilities(self, output_NC: NDArray[np.floating]) -> NDArray[np.float64]:
        """(N, A) of the answers, from the task's (N, C) outputs."""
        output = np.asarray(output_NC, np.float64)
        if self.column is None:
            return output
        yes_N = output[:, self.column]
        return np.stack([1 - yes_N, yes_N], axis=1)

    def truth(self, target_NC: NDArray[np.floating]) -> NDArray[np.int64]:
        """(N,) which answer is true, from the task's (N, C) targets of 0 and 1."""
        if self.column is None:
            return np.asarray(target_NC.argmax(axis=1), np.int64)
        return np.asarray(target_NC[:, self.column] > 0, np.int64)


def questions(task: TaskConfig) -> tuple[Question, ...]:
    """A softmax task asks one question, a sigmoid task one for each class, a linear task none."""
    if task.activation == "linear":
        return ()
    if task.activation == "softmax":
        return (Question("", task.classes),)
    alone = len(task.classes) == 1
    return tuple(
        Question("" if alone else name, (f"not {name}", name), column)
        for column, name in enumerate(task.classes)
    )


def fewest(risk: float) -> int:
    """Scores without which there is no threshold at this risk: ceil(1 / risk) - 1. Raises ``ValueError`` for a
    risk that is not between 0 and 1."""
    return math.ceil(1 / _exact(risk)) - 1


def rank(n: int, risk: float) -> int:
    """Which of n scores in ascending order is the threshold, from 1: ceil((n + 1)(1 - risk)), without rounding.

    Raises ``ValueError`` for fewer than :func:`fewest` scores.
    """
    place = math.ceil((n + 1) * (1 - _exact(risk)))
    if place > n:
        raise ValueError(f"{n} scores are too few for a risk of {risk:g}, which takes {fewest(risk)}")
    return place


def _exact(risk: float) -> Exact:
    """The risk as it was written: as a float, 150 times 1 - 0.18 is a little more than 123, and rounds up to
    124."""
    if not 0 < risk < 1:
        raise ValueError(f"a risk of {risk}")
    return Exact(repr(float(risk)))


def scores(probability_NA: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, A) how little each answer fits: 1 minus its probability."""
    return np.asarray(1 - probability_NA, np.float64)


def thresholds(
    probability_NA: NDArray[np.float64], truth_N: NDArray[np.int64], *, risk: float, by_class: bool = False
) -> NDArray[np.float64]:
    """(A,) the highest score with which an answer is in a set.

    One for all answers; ``by_class``: each from the slides of which it is true, so that the risk holds among the
    slides of every class (Mondrian). Raises ``ValueError`` for too few slides, or too few of an answer.
    """
    true_N = scores(probability_NA)[np.arange(len(truth_N)), truth_N]
    answers = probability_NA.shape[1]
    if not by_class:
        return np.full(answers, _threshold(true_N, risk))
    return np.array([_threshold(true_N[truth_N == answer], risk) for answer in range(answers)])


def _threshold(score_N: NDArray[np.float64], risk: float) -> float:
    return float(np.sort(score_N)[rank(len(score_N), risk) - 1])


def in_sets(
    probability_NA: NDArray[np.float64], threshold_A: Sequence[float] | NDArray[np.float64]
) -> NDArray[np.bool_]:
    """(N, A) which answers are in each slide's set: one, several, or none."""
    return np.asarray(scores(probability_NA) <= np.asarray(threshold_A, np.float64))


def coverage_range(n: int, risk: float, *, level: float = 0.9) -> tuple[float, float]:
    """Between which shares of true answers in the sets of many new slides lie, in ``level`` of all draws of the n
    slides that the threshold comes from: quantiles of Beta(k, n + 1 - k), k being :func:`rank`."""
    place = rank(n, risk)
    ends = stats.beta.ppf([(1 - level) / 2, (1 + level) / 2], place, n + 1 - place)
    return float(ends[0]), float(ends[1])


def one_of_each_case(cases: Sequence[str], *, seed: int) -> NDArray[np.int64]:
    """Places of one slide a case, drawn at random: slides of one patient are alike, and not exchangeable with
    those of others. (Dunn, Wasserman and Ramdas 2023, Distribution-Free Prediction Sets for Two-Layer
    Hierarchical Models: subsampling once.) The same seed gives the same slides."""
    members: dict[str, list[int]] = {}
    for place, case in enumerate(cases):
        members.setdefault(case, []).append(place)
    rng = np.random.default_rng(seed)
    return np.array(sorted(places[rng.integers(len(places))] for places in members.values()), np.int64)
