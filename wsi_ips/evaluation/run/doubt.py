"""How far the probabilities of a run can be believed.

A calibration is worked out on a run of slides with known labels. On another run, the sets and probabilities
that it gave are held against what it promised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from wsi_ips.config import TaskConfig
from wsi_ips.config.section import first_problem
from wsi_ips.datasets.manifest import Manifest, read_manifest
from wsi_ips.errors import ConfigError, ManifestError, ResultsError, count
from wsi_ips.evaluation.conformal import (
    Calibration,
    Question,
    QuestionRule,
    SetFigures,
    TaskCalibration,
    coverage_range,
    fewest,
    fit_temperature,
    negative_log_likelihood,
    one_of_each_case,
    questions,
    score_sets,
    thresholds,
    with_temperature,
)
from wsi_ips.evaluation.run.config import EvaluationConfig
from wsi_ips.evaluation.run.joined import Joined, join
from wsi_ips.evaluation.run.tasks import check_scored
from wsi_ips.evaluation.task_scores import Scored
from wsi_ips.inference.predictions import BETWEEN, PredictionRow, read_predictions
from wsi_ips.inference.run_folder import RunFolder, chosen_tasks, description_of, tasks_of_run, turns_of_run
from wsi_ips.progress import Progress

SAME_WITHIN = 1e-6
"""How far a calibrated probability of a table may be from what the calibration makes of the raw one beside it."""


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """A figure of the network's own probabilities, and of the calibrated ones."""

    before: float
    after: float


@dataclass(frozen=True, slots=True, eq=False)
class DoubtReport:
    """One task's. left_out: slides that it was calibrated on, or of the same cases. sets: {question: figures}, the
    task's only question under the task's name; empty, and nll and ece None, where all slides are left out."""

    calibration: Calibration
    temperature: float
    left_out: tuple[str, ...]
    sets: Mapping[str, SetFigures]
    nll: BeforeAfter | None
    ece: BeforeAfter | None

    @property
    def complaint(self) -> str:
        """What a reader has to know; empty where there is nothing."""
        if not self.left_out:
            return ""
        slides = f"{len(self.left_out)} slides were calibrated on, or are of the same patients"
        return (
            f"{slides}: they are left out of coverage" if self.sets else f"{slides}: coverage has no others"
        )


def calibration_of_run(run: RunFolder, rows: Sequence[PredictionRow]) -> Calibration | None:
    """The calibration that the run was made with; None of a run without.

    Raises :class:`ResultsError` for one that cannot be read, or that the table of predictions is not of.
    """
    described = description_of(run)
    held = described.get("calibration")
    try:
        calibration = None if held is None else Calibration.model_validate(held)
    except ValidationError as error:
        reason = first_problem(error, most=200)
        raise ResultsError(run.description, f"holds no calibration ({reason})", "predict again") from None
    if calibration is not None and calibration.checkpoint != _named_checkpoint(described):
        raise ResultsError(run.description, "holds the calibration of another checkpoint", "predict again")
    told = {name for row in rows for name in row.sets}
    labelled = any(row.status == "ok" for row in rows)
    if labelled and told != set(calibration.tasks if calibration else ()):
        raise ResultsError(
            run.predictions, "was calibrated for other tasks than run.json says", "predict again"
        )
    for row in rows:
        if calibration is not None and row.status == "ok" and not _is_calibrated(row, calibration):
            raise ResultsError(
                run.predictions,
                f"{row.slide_id} was calibrated in another way than run.json says",
                "predict again",
            )
    return calibration


def _is_calibrated(row: PredictionRow, calibration: Calibration) -> bool:
    """Whether a calibrated row is what this calibration makes of the network's own probabilities in it."""
    try:
        again = replace(row, probabilities={**row.probabilities, **row.raw}).calibrated(calibration)
    except ValueError:  # a raw number that is not a probability
        return False
    return again.sets == row.sets and all(
        abs(row.probabilities[task][name] - value) <= SAME_WITHIN
        for task in calibration.tasks
        for name, value in again.probabilities[task].items()
    )


def unseen(joined: Joined, calibration: Calibration, manifest: Manifest) -> Joined:
    """Without the slides that the calibration comes from, and others of their cases."""
    seen = set(calibration.slides)
    cases = {record.case_id for record in manifest.records if record.slide_id in seen}
    pairs = tuple(
        (record, row)
        for record, row in joined.pairs
        if record.slide_id not in seen and record.case_id not in cases
    )
    return replace(joined, pairs=pairs)


def report_doubt(
    task: TaskConfig, joined: Joined, calibration: Calibration, manifest: Manifest, config: EvaluationConfig
) -> DoubtReport | None:
    """Score one task's sets, and its probabilities with and without calibration; None of a task that has none.

    ``joined``: the slides that have a label for the task.
    """
    its = calibration.tasks.get(task.name)
    if its is None:
        return None
    fresh = unseen(joined, calibration, manifest)
    kept = {record.slide_id for record, _ in fresh.pairs}
    left_out = tuple(record.slide_id for record, _ in joined.pairs if record.slide_id not in kept)
    if not fresh.pairs:
        return DoubtReport(calibration, its.temperature, left_out, {}, None, None)
    after = fresh.scored(task)
    before = replace_outputs(after, [row.raw[task.name] for _, row in fresh.pairs])
    nll = [negative_log_likelihood(its.activation, one.output_NC, one.target_NC) for one in (before, after)]
    sets = {}
    for place, question in enumerate(questions(task)):
        told = [row.sets[task.name][place] for _, row in fresh.pairs]
        held_NA = np.array([[answer in one for answer in question.answers] for one in told], bool)
        sets[question.name or task.name] = score_sets(
            held_NA,
            question.truth(after.target_NC),
            answers=question.answers,
            cases=after.case,
            resamples=config.bootstrap,
            seed=config.seed,
        )
    return DoubtReport(
        calibration,
        its.temperature,
        left_out,
        sets,
        BeforeAfter(*nll),
        BeforeAfter(before.reliability.ece, after.reliability.ece),
    )


def replace_outputs(scored: Scored, outputs: Sequence[Mapping[str, float]]) -> Scored:
    """The same slides with other {class: probability}."""
    output_NC = np.array([[one[name] for name in scored.task.classes] for one in outputs], np.float64)
    return replace(scored, output_NC=output_NC)


def doubt_in_words(name: str, doubt: DoubtReport) -> list[str]:
    """Lines to print."""
    lines = []
    for asked, figures in doubt.sets.items():
        which = name if asked == name else f"{name}, {asked}"
        cover = figures.coverage
        ends = "" if np.isnan(cover.low) else f" [{cover.low:.3f}, {cover.high:.3f}]"
        right = "" if np.isnan(figures.right_if_single) else f", {figures.right_if_single:.3f} of these right"
        lines.append(
            f"{which}: sets hold the true answer for {cover.value:.3f}{ends} of "
            f"{count(figures.slides, 'slide')} (promised {1 - doubt.calibration.risk:.3g}); "
            f"{figures.size:.2f} answers a set, {figures.single:.3f} of one answer{right}"
        )
    if doubt.nll is not None and doubt.ece is not None:
        lines.append(
            f"{name}: temperature {doubt.temperature:.3g}: negative log-likelihood {doubt.nll.before:.3f} before, "
            f"{doubt.nll.after:.3f} after; calibration error {doubt.ece.before:.3f}, {doubt.ece.after:.3f}"
        )
    return [*lines, f"{name}: {doubt.complaint}"] if doubt.complaint else lines


def doubt_json(doubt: DoubtReport) -> dict[str, Any]:
    """For ``metrics.json``."""
    calibration = doubt.calibration
    return {
        "calibrated_on": {"split": calibration.split, "slides": len(calibration.slides)},
        "risk": calibration.risk,
        "by_class": calibration.by_class,
        "temperature": doubt.temperature,
        "left_out": list(doubt.left_out),
        "nll": _two(doubt.nll),
        "ece": _two(doubt.ece),
        "sets": {name: _set_json(figures) for name, figures in doubt.sets.items()},
    }


def _two(figure: BeforeAfter | None) -> dict[str, float] | None:
    return None if figure is None else {"before": figure.before, "after": figure.after}


def _set_json(figures: SetFigures) -> dict[str, Any]:
    return {
        "slides": figures.slides,
        "coverage": figures.coverage.to_json(),
        "interval_method": "Clopper-Pearson" if figures.exact else "percentile bootstrap over cases",
        "mean_size": figures.size,
        "single": figures.single,
        "right_if_single": figures.right_if_single,
        "empty": figures.empty,
        "by_answer": {
            name: {"slides": one.slides, "coverage": one.coverage} for name, one in figures.by_answer.items()
        },
    }


def calibrate_run(
    folder: Path,
    manifest: Path,
    *,
    split: Literal["val", "test"],
    task: str | None,
    risk: float,
    by_class: bool,
    seed: int,
    progress: Progress,
) -> tuple[Calibration, Joined]:
    """Fit a temperature per task, and the thresholds of its sets of answers; give them with their slides.

    folder: what ``predict`` wrote, without a calibration. task: the one to calibrate; None: all that have classes.
    risk: how often a set may miss the true answer; with by_class among the slides of each class. seed: draws one
    slide of a case that has several.

    Raises :class:`ResultsError` and :class:`ManifestError` for a run or manifest that cannot be used, too few
    cases, and labels that are all the same; :class:`ConfigError` where there is no task with classes.
    """
    run = RunFolder(folder)
    all_tasks = tasks_of_run(run)
    checkpoint = _checkpoint_of(run)
    tasks = [one for one in chosen_tasks(all_tasks, task) if one.activation != "linear"]
    _check_can_calibrate(tasks)
    rows = read_predictions(run.predictions, tasks=all_tasks)
    calibration_of_run(run, rows)  # a table that was calibrated where run.json says nothing of it is refused
    listed = read_manifest(manifest, tasks=tasks, need_slides=False, need_labels=len(tasks) == len(all_tasks))
    slides = join(listed, rows, split, predictions=run.predictions)
    joined = slides.by_case(listed, tasks)
    found: dict[str, TaskCalibration] = {}
    with progress("Calibrating", total=len(tasks)) as advance:
        for one in tasks:
            found[one.name] = _calibrated(
                one,
                joined.of_task(one),
                manifest=manifest,
                run=folder,
                risk=risk,
                by_class=by_class,
                seed=seed,
            )
            advance(one.name)
    calibration = Calibration(
        checkpoint=checkpoint,
        turns=turns_of_run(run),
        split=split,
        risk=risk,
        by_class=by_class,
        seed=seed,
        slides=tuple(record.slide_id for record, _ in slides.pairs),
        tasks=found,
    )
    return calibration, joined


def _checkpoint_of(run: RunFolder) -> str:
    """The SHA-256 that the run names its model by. Raises :class:`ResultsError` for a run that says none, or that
    more or other than one model's own probabilities lie in."""
    described = description_of(run)
    if described.get("calibration") is not None:
        raise ResultsError(
            run.description,
            "the run is calibrated already",
            "predict again without --calibration; into the same folder, nothing is computed again",
        )
    config = described.get("config")
    if isinstance(config, dict) and config.get("held_out") is not None:
        raise ResultsError(
            run.description,
            "each fold's slides are another model's, and a calibration belongs to one",
            "name a run of predict with the checkpoint that new slides will be labelled by",
        )
    sha256 = _named_checkpoint(described)
    if not isinstance(sha256, str) or not sha256:
        raise ResultsError(run.description, "does not say which checkpoint made the run", "predict again")
    return sha256


def _named_checkpoint(described: Mapping[str, Any]) -> object:
    """The SHA-256 of the model as ``run.json`` says it; None if it says none."""
    checkpoint = described.get("checkpoint")
    return checkpoint.get("sha256") if isinstance(checkpoint, dict) else None


def _check_can_calibrate(tasks: Sequence[TaskConfig]) -> None:
    """Raise :class:`ConfigError` where no task has classes, or a class whose name a set cannot hold."""
    if not tasks:
        raise ConfigError(
            "there is no task with classes to calibrate: numbers (linear) have no probabilities"
        )
    for task in tasks:
        for name in task.classes:
            if BETWEEN in name or not name:
                raise ConfigError(
                    f"class {name!r} of task {task.name!r} cannot be told in a set: it holds a |"
                )


def _calibrated(
    task: TaskConfig, joined: Joined, *, manifest: Path, run: Path, risk: float, by_class: bool, seed: int
) -> TaskCalibration:
    """The temperature and the thresholds of one task, fitted on the slides of ``joined``.

    manifest, run: named where their slides cannot be used. risk: how often a set may miss the true answer; with
    by_class among the slides of each class. seed: draws one slide of a case that has several. Raises
    :class:`ManifestError` for too few cases, or labels that are all the same.
    """
    scored = joined.scored(task)
    check_scored(scored, joined, manifest=manifest, run=run)
    assert task.activation != "linear"
    temperature = fit_temperature(task.activation, scored.output_NC, scored.target_NC)
    tempered_NC = with_temperature(task.activation, scored.output_NC, temperature.value)
    after = Scored(task, tempered_NC, scored.target_NC, scored.case)
    one_a_case = one_of_each_case([record.case_id for record, _ in joined.pairs], seed=seed)
    return TaskCalibration(
        classes=task.classes,
        activation=task.activation,
        temperature=temperature.value,
        temperature_fitted=temperature.fitted,
        slides=len(joined.pairs),
        nll_before=temperature.nll_before,
        nll_after=temperature.nll_after,
        ece_before=scored.reliability.ece,
        ece_after=after.reliability.ece,
        rules=tuple(
            _rule(
                question,
                scored,
                one_a_case,
                split=joined.split,
                manifest=manifest,
                risk=risk,
                by_class=by_class,
            )
            for question in questions(task)
        ),
    )


def _rule(
    question: Question,
    scored: Scored,
    places: NDArray[np.int64],
    *,
    split: str,
    manifest: Path,
    risk: float,
    by_class: bool,
) -> QuestionRule:
    """Raises :class:`ManifestError` for too few cases."""
    probability_NA = question.probabilities(scored.output_NC[places])
    truth_N = question.truth(scored.target_NC[places])
    counts = np.bincount(truth_N, minlength=len(question.answers)) if by_class else [len(truth_N)]
    cases = [int(n) for n in np.broadcast_to(counts, len(question.answers))]
    for answer, n in zip(question.answers, cases, strict=True):
        if n < fewest(risk):
            of = f" that are {answer!r}" if by_class else ""
            raise ManifestError(
                manifest,
                f"has {n} cases{of} with a {scored.task.column_name} and a prediction in split {split!r}; "
                f"a risk of {risk:g} takes {fewest(risk)} or more",
                "add slides, or allow more with --risk" + (", or leave --by-class out" if by_class else ""),
            )
    found = thresholds(probability_NA, truth_N, risk=risk, by_class=by_class)
    return QuestionRule(
        question=question.name,
        answers=question.answers,
        thresholds=tuple(found.tolist()),
        cases=tuple(cases),
    )


def calibration_in_words(calibration: Calibration) -> list[str]:
    """What was fitted for each task, as lines to print."""
    return [
        line
        for name, task in calibration.tasks.items()
        for line in _in_words(name, task, risk=calibration.risk, by_class=calibration.by_class)
    ]


def _in_words(name: str, task: TaskCalibration, *, risk: float, by_class: bool) -> list[str]:
    if task.temperature_fitted:
        fitted = (
            f"temperature {task.temperature:.3g}; negative log-likelihood {task.nll_before:.3f} before, "
            f"{task.nll_after:.3f} after"
        )
    else:
        fitted = "every label is the likeliest class, which no temperature fits best: 1 stays"
    lines = [f"{name}: {fitted} ({count(task.slides, 'slide')})"]
    for rule in task.rules:
        asked = f"{name}, {rule.question}" if rule.question else name
        ends = {n: coverage_range(n, risk) for n in rule.cases}
        lines += [
            f"{asked}: sets miss the true answer with a probability of {risk:.3g} or less, over "
            f"calibrations and slides; with {n} cases{_whose(rule, n) if by_class else ''}, 9 of 10 "
            f"calibrations hold it for {low:.1%} to {high:.1%} of new slides"
            for n, (low, high) in ends.items()
        ]
    return lines


def _whose(rule: QuestionRule, n: int) -> str:
    names = [answer for answer, cases in zip(rule.answers, rule.cases, strict=True) if cases == n]
    return f" of {', '.join(names)}"
