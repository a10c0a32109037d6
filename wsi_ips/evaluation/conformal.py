"""Calibrated doubt: temperatures that make probabilities honest, and sets of answers that hold at a stated risk.

:class:`Calibration` is what ``wsi-ips calibrate`` finds for a model, kept as one JSON file
(:func:`read_calibration`, :func:`write_calibration`). It holds for each task a temperature and the thresholds of
its sets.

Temperature scaling (:func:`fit_temperature`): the logits are divided by the temperature before the softmax or
sigmoid (Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2). Above 1 the probabilities
become less extreme, below 1 more. The order of the classes, and whether a probability is 0.5 or more, stay as
they are. The logits are recovered from the probabilities, up to a constant that a softmax does not see. A
float32 probability of 0 or 1 stands for a logit that cannot be recovered; it counts as the largest one that can.

Split-conformal sets (:func:`thresholds`, :func:`in_sets`): the score of a slide is 1 minus the probability that
the network gives to the true answer. On slides with known labels, the threshold is the ceil((n + 1)(1 -
risk))-th smallest of n scores; the set of a new slide holds every answer whose score is at most that. If the new
slide and those n are exchangeable (drawn alike, in no order that matters), the set holds the true answer with a
probability of at least 1 - risk, and of at most 1 - risk + 1 / (n + 1) if scores do not tie. The probability is
over new slides *and* over the n slides; for one set of n slides it varies (:func:`coverage_range`).
:func:`score_sets` measures how often sets hold the true answer, and how much they leave open.

Sources: Vovk, Gammerman and Shafer 2005, Algorithmic Learning in a Random World; Sadinle, Lei and Wasserman
2019, Least Ambiguous Set-Valued Classifiers with Bounded Error Levels (this score; per class as well); Vovk
2012, Conditional Validity of Inductive Conformal Predictors (coverage of one calibration is Beta-distributed).

Shape suffixes: N slides, C classes, A answers.
"""

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction as Exact
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt, model_validator

from wsi_ips.config import Fraction, Section, TaskConfig, Turns
from wsi_ips.errors import CalibrationError, count
from wsi_ips.evaluation.intervals import LEVEL, Interval, Picked, bootstrap
from wsi_ips.storage.files import whole_file
from wsi_ips.storage.stored_json import read_stored_json

Activation = Literal["softmax", "sigmoid"]
"""The activation of a task that can be calibrated."""

LOWEST, HIGHEST = 0.05, 100.0
"""Bounds of the temperatures that are searched."""
SMALLEST_SOFTMAX = float(np.finfo(np.float32).tiny)
"""Smallest probability of a softmax, the smallest normal float32."""
SMALLEST_SIGMOID = 2.0**-24
"""Smallest probability of a sigmoid, and of its complement: float32 has no number between 1 and 1 minus this."""
LARGEST_BYTES = 2**24
"""Largest calibration file that is read."""
Risk = Annotated[float, Field(gt=0, lt=1)]
"""A probability that a set does not hold the true answer."""
AnswerSet = tuple[str, ...]
"""The answers that cannot be ruled out."""


@dataclass(frozen=True, slots=True)
class Temperature:
    """A fitted temperature.

    Attributes:
        value: The temperature.
        fitted: False if no temperature has the lowest loss, because the label of every slide is the likeliest
            class and colder is always better. ``value`` is 1 then.
        nll_before, nll_after: The mean negative log-likelihood of the labels, in nats, without and with
            ``value``.
    """

    value: float
    fitted: bool
    nll_before: float
    nll_after: float


def fit_temperature(
    activation: Activation, probability_NC: NDArray[np.floating], target_NC: NDArray[np.floating]
) -> Temperature:
    """The temperature with the lowest negative log-likelihood of the labels, between 0.05 and 100.

    The loss is convex in the inverse temperature, so the bounded search finds its one minimum. A network that is
    worse than chance gets the highest temperature, which makes its probabilities nearly even.

    Args:
        activation: That of the task.
        probability_NC: The probabilities of the network.
        target_NC: 0 or 1 for each class; for a softmax, one 1 for each slide.

    Raises:
        ValueError: There are no slides, or a number is not a probability.
    """
    logits_NC = recovered_logits(activation, probability_NC)
    target = np.asarray(target_NC, np.float64)
    if target.shape != logits_NC.shape or not len(target):
        raise ValueError(
            f"labels of shape {target.shape} do not fit probabilities of shape {logits_NC.shape}"
        )
    before = _nll(activation, logits_NC, target)
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_t: _nll(activation, logits_NC / np.exp(log_t), target),
        bounds=(np.log(LOWEST), np.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-7},
    )
    value = min(max(float(np.exp(found.x)), LOWEST), HIGHEST)
    if value < LOWEST * 1.01 or _all_right(activation, logits_NC, target):
        return Temperature(1.0, fitted=False, nll_before=before, nll_after=before)
    return Temperature(
        value, fitted=True, nll_before=before, nll_after=_nll(activation, logits_NC / value, target)
    )


def with_temperature(
    activation: Activation, probability_NC: NDArray[np.floating], temperature: float
) -> NDArray[np.float64]:
    """The probabilities (N, C) at this temperature. Raises ``ValueError`` for a number that is not a
    probability.
    """
    logits_NC = recovered_logits(activation, probability_NC) / temperature
    from scipy.special import expit, softmax

    return np.asarray(expit(logits_NC) if activation == "sigmoid" else softmax(logits_NC, axis=1), np.float64)


def negative_log_likelihood(
    activation: Activation, probability_NC: NDArray[np.floating], target_NC: NDArray[np.floating]
) -> float:
    """The mean of -log of the probability that the label was given, in nats.

    The mean is over slides; for a sigmoid, over slides and classes. Raises ``ValueError`` for a number that is
    not a probability.
    """
    return _nll(activation, recovered_logits(activation, probability_NC), np.asarray(target_NC, np.float64))


def recovered_logits(activation: Activation, probability_NC: NDArray[np.floating]) -> NDArray[np.float64]:
    """Logits (N, C) that give these probabilities. Raises ``ValueError`` for a number that is not
    a probability.
    """
    probability = np.asarray(probability_NC, np.float64)
    if probability.ndim != 2 or not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError(f"numbers of shape {probability.shape} are not all probabilities")
    if activation == "sigmoid":
        inside = np.clip(probability, SMALLEST_SIGMOID, 1 - SMALLEST_SIGMOID)
        return np.asarray(np.log(inside) - np.log1p(-inside), np.float64)
    return np.asarray(np.log(np.maximum(probability, SMALLEST_SOFTMAX)), np.float64)


def _nll(activation: Activation, logits_NC: NDArray[np.float64], target_NC: NDArray[np.float64]) -> float:
    if activation == "sigmoid":
        return float((np.logaddexp(0, logits_NC) - target_NC * logits_NC).mean())
    from scipy.special import log_softmax

    return float(-(log_softmax(logits_NC, axis=1) * target_NC).sum(axis=1).mean())


def _all_right(
    activation: Activation, logits_NC: NDArray[np.float64], target_NC: NDArray[np.float64]
) -> bool:
    """Whether every label has the highest logit. The loss then falls forever with the temperature."""
    if activation == "sigmoid":
        return bool(((logits_NC > 0) == (target_NC > 0)).all() and (logits_NC != 0).all())
    others_NC = np.where(target_NC > 0, -np.inf, logits_NC)
    label_N = (logits_NC * target_NC).sum(axis=1)
    return bool((label_N > others_NC.max(axis=1)).all())


@dataclass(frozen=True, slots=True)
class Question:
    """What one set is about: the class of a softmax task, or whether one class of a sigmoid task is present.

    Attributes:
        name: Empty if it is the only question of its task, otherwise the class.
        answers: One of them is true.
        column: For a yes-or-no question, the place of its class among those of the task.
    """

    name: str
    answers: tuple[str, ...]
    column: int | None = None

    def probabilities(self, output_NC: NDArray[np.floating]) -> NDArray[np.float64]:
        """The probabilities (N, A) of the answers, from the outputs (N, C) of the task."""
        output = np.asarray(output_NC, np.float64)
        if self.column is None:
            return output
        yes_N = output[:, self.column]
        return np.stack([1 - yes_N, yes_N], axis=1)

    def truth(self, target_NC: NDArray[np.floating]) -> NDArray[np.int64]:
        """Which answer is true, (N,), from the targets (N, C) of 0 and 1 of the task."""
        if self.column is None:
            return np.asarray(target_NC.argmax(axis=1), np.int64)
        return np.asarray(target_NC[:, self.column] > 0, np.int64)


def questions(task: TaskConfig) -> tuple[Question, ...]:
    """The questions of a task: one for a softmax task, one for each class of a sigmoid task, none for a linear
    task.
    """
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
    """The smallest number of scores that gives a threshold at this risk: ceil(1 / risk) - 1.

    Raises ``ValueError`` for a risk that is not between 0 and 1.
    """
    return math.ceil(1 / _exact(risk)) - 1


def rank(n: int, risk: float) -> int:
    """Which of n scores in ascending order is the threshold, counted from 1: ceil((n + 1)(1 - risk)), without
    rounding.

    Raises ``ValueError`` for fewer than :func:`fewest` scores.
    """
    place = math.ceil((n + 1) * (1 - _exact(risk)))
    if place > n:
        raise ValueError(f"{n} scores are too few for a risk of {risk:g}, which takes {fewest(risk)}")
    return place


def _exact(risk: float) -> Exact:
    """The risk as it was written. As floats, 150 times 1 - 0.18 is a little more than 123, and would round up to
    124.
    """
    if not 0 < risk < 1:
        raise ValueError(f"a risk must be between 0 and 1, not {risk}")
    return Exact(repr(float(risk)))


def scores(probability_NA: NDArray[np.float64]) -> NDArray[np.float64]:
    """How badly each answer fits, (N, A): 1 minus its probability."""
    return np.asarray(1 - probability_NA, np.float64)


def thresholds(
    probability_NA: NDArray[np.float64], truth_N: NDArray[np.int64], *, risk: float, by_class: bool = False
) -> NDArray[np.float64]:
    """The highest score with which each answer is in a set, (A,).

    Args:
        probability_NA: Probabilities of the answers.
        truth_N: Which answer is true.
        risk: The probability that a set does not hold the true answer.
        by_class: Choose the threshold of each answer from the slides for which it is true, so that the risk
            holds among the slides of every class (Mondrian). Otherwise all answers have the same threshold.

    Raises:
        ValueError: There are too few slides, or too few of an answer.
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
    """Which answers are in the set of each slide, (N, A): one, several, or none."""
    return np.asarray(scores(probability_NA) <= np.asarray(threshold_A, np.float64))


def coverage_range(n: int, risk: float, *, level: float = 0.9) -> tuple[float, float]:
    """The range of the share of new slides whose sets hold the true answer, over draws of the n slides of the
    calibration.

    The share is in this range for ``level`` of all draws. Its ends are quantiles of Beta(k, n + 1 - k), where k
    is :func:`rank`.
    """
    place = rank(n, risk)
    from scipy import stats  # two thirds of a second that a run without calibration does not have to wait

    ends = stats.beta.ppf([(1 - level) / 2, (1 + level) / 2], place, n + 1 - place)
    return float(ends[0]), float(ends[1])


def one_of_each_case(cases: Sequence[str], *, seed: int) -> NDArray[np.int64]:
    """The places of one slide of each case, drawn at random. The same seed gives the same slides.

    Slides of one patient are alike, and not exchangeable with those of others. (Dunn, Wasserman and Ramdas 2023,
    Distribution-Free Prediction Sets for Two-Layer Hierarchical Models: subsampling once.)
    """
    members: dict[str, list[int]] = {}
    for place, case in enumerate(cases):
        members.setdefault(case, []).append(place)
    rng = np.random.default_rng(seed)
    return np.array(sorted(places[rng.integers(len(places))] for places in members.values()), np.int64)


@dataclass(frozen=True, slots=True)
class AnswerCoverage:
    """For the slides for which one answer is true: how many there are, and how often the set holds it (NaN for
    none).
    """

    slides: int
    coverage: float


@dataclass(frozen=True, slots=True)
class SetFigures:
    """Figures of the sets of slides.

    Attributes:
        slides: How many there are.
        coverage: The share of sets that hold the true answer. Its interval is that of Clopper and Pearson if
            every case has one slide (``exact``), otherwise from a bootstrap over cases.
        exact: Whether it is the former.
        size: The mean number of answers in a set.
        single: The share of sets with one answer.
        right_if_single: How many of these are right; NaN if there are none.
        empty: The share of sets without an answer.
        by_answer: The coverage of each answer.
    """

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
    """The figures of the sets of N slides.

    Args:
        held_NA: Which answers each set holds.
        truth_N: Which answer is true.
        answers: Their names.
        cases: The case of each slide.
        resamples: Of the bootstrap over cases.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: There are no slides.
    """
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
    too narrow.

    Raises ``ValueError`` if ``hits`` is not in 0..n, or n is 0.
    """
    if not 0 <= hits <= n or not n:
        raise ValueError(f"{hits} of {n} is not a share")
    from scipy import stats

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


class QuestionRule(Section):
    """Which answers of one question are in the set of a slide: those with 1 - probability up to
    their threshold.
    """

    question: str
    """Empty if it is the only question of the task, otherwise the class that is asked for."""
    answers: tuple[str, ...]
    thresholds: tuple[Fraction, ...]
    """The threshold of each answer. All are the same unless the calibration is ``by_class``."""
    cases: tuple[PositiveInt, ...]
    """How many slides, one per case, each threshold was chosen from."""


class TaskCalibration(Section):
    """The calibration of one task.

    The thresholds are for the probabilities of the network itself; the temperature does not move them.
    """

    classes: tuple[str, ...]
    activation: Literal["softmax", "sigmoid"]
    temperature: Annotated[float, Field(ge=LOWEST, le=HIGHEST)]
    temperature_fitted: bool
    """False if every slide was right, so that no temperature fits best and it is 1."""
    slides: PositiveInt
    nll_before: FiniteFloat
    nll_after: FiniteFloat
    ece_before: FiniteFloat
    ece_after: FiniteFloat
    rules: tuple[QuestionRule, ...]

    @model_validator(mode="after")
    def _rules_are_the_tasks(self) -> Self:
        asked = self.questions
        if [(rule.question, rule.answers) for rule in self.rules] != [
            (one.name, one.answers) for one in asked
        ]:
            raise ValueError("the rules are not those of the task's classes")
        for rule in self.rules:
            if not len(rule.answers) == len(rule.thresholds) == len(rule.cases):
                raise ValueError(f"{len(rule.answers)} answers, {len(rule.thresholds)} thresholds")
        return self

    @property
    def questions(self) -> tuple[Question, ...]:
        """The questions of the task."""
        return questions(TaskConfig(classes=self.classes, activation=self.activation))

    def tempered(self, told: Mapping[str, float]) -> dict[str, float]:
        """``{class: probability}`` at the temperature, from that of the network."""
        tempered_1C = with_temperature(self.activation, self._row(told), self.temperature)
        return dict(zip(self.classes, tempered_1C[0].tolist(), strict=True))

    def sets(self, told: Mapping[str, float]) -> tuple[AnswerSet, ...]:
        """The set of each question, from the ``{class: probability}`` of the network."""
        output_1C = self._row(told)
        found = []
        for question, rule in zip(self.questions, self.rules, strict=True):
            held_A = in_sets(question.probabilities(output_1C), rule.thresholds)[0]
            found.append(
                tuple(name for name, held in zip(rule.answers, held_A.tolist(), strict=True) if held)
            )
        return tuple(found)

    def _row(self, told: Mapping[str, float]) -> NDArray[np.float64]:
        return np.array([[told[name] for name in self.classes]], np.float64)


class Calibration(Section):
    """What ``wsi-ips calibrate`` found on the slides of one split, for one checkpoint or several together."""

    format: Literal[1] = 1
    checkpoint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the checkpoint whose run was calibrated; for several, that of their run."""
    turns: Turns | None = None
    """In how many orientations that run read the kept patches. None, as in calibrations of earlier versions: as
    the checkpoint was trained."""
    split: Literal["val", "test"]
    risk: Risk
    by_class: bool
    seed: NonNegativeInt
    slides: Annotated[tuple[str, ...], Field(min_length=1)]
    """Ids of the slides that it was made from. No figure may be measured on them."""
    tasks: Annotated[dict[str, TaskCalibration], Field(min_length=1)]

    @model_validator(mode="after")
    def _all_answers_have_one_threshold(self) -> Self:
        for name, task in self.tasks.items():
            if not self.by_class and any(len(set(rule.thresholds)) > 1 for rule in task.rules):
                raise ValueError(f"tasks.{name}: answers have thresholds of their own, and by_class is false")
        return self

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        return self.model_dump(mode="json")


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration as JSON, completely or not at all."""
    with whole_file(path) as partial:
        text = json.dumps(calibration.to_json(), indent=2, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")


def read_calibration(path: Path) -> Calibration:
    """Read what :func:`write_calibration` wrote.

    Raises:
        CalibrationError: The file is missing or broken.
    """
    fix = "name a file that wsi-ips calibrate wrote"
    if not path.is_file():
        raise CalibrationError(path, "does not exist", fix)
    return read_stored_json(
        path, Calibration, CalibrationError, what="calibration", most=LARGEST_BYTES, fix=fix
    )


def check_belongs(
    path: Path,
    calibration: Calibration,
    *,
    sha256: str,
    turns: int = 1,
    own_turns: int = 1,
    tasks: Sequence[TaskConfig],
) -> None:
    """Check that a calibration was made for this checkpoint, read in so many orientations, and these tasks.

    Args:
        path: The calibration's file, for messages.
        calibration: What it holds.
        sha256: What results name the checkpoint by.
        turns: In how many orientations kept patches are read.
        own_turns: In how many the checkpoint was trained to read them.
        tasks: The tasks of the model.

    Raises:
        CalibrationError: It belongs to another checkpoint, to other turns, or to tasks that the model does not
            have.
    """
    if calibration.checkpoint != sha256:
        raise CalibrationError(
            path,
            f"belongs to checkpoint {calibration.checkpoint[:12]}, this one is {sha256[:12]}",
            "calibrate a run of this checkpoint (for several: of the same ones in the same order)",
        )
    made = calibration.turns or own_turns
    if made != turns:
        raise CalibrationError(
            path,
            f"was made of patches in {count(made, 'orientation')}, and they are read in {turns}",
            f"calibrate a run of predict --turns {turns}, or predict with --turns {made}",
        )
    known = {task.name: (task.classes, task.activation) for task in tasks}
    for name, task in calibration.tasks.items():
        if known.get(name) != (task.classes, task.activation):
            raise CalibrationError(
                path,
                f"task {name!r} with classes {', '.join(task.classes)} is none of the model's",
                "calibrate again",
            )
