"""How far a model's probabilities can be believed, worked out on a run of slides with known labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.manifest import read_manifest
from wsi_ips.errors import ConfigError, ManifestError, ResultsError
from wsi_ips.evaluation.conformal import (
    Calibration,
    Question,
    QuestionRule,
    TaskCalibration,
    coverage_range,
    fewest,
    fit_temperature,
    one_of_each_case,
    questions,
    thresholds,
    with_temperature,
)
from wsi_ips.evaluation.run.joined import Joined, join
from wsi_ips.evaluation.run.tasks import check_scored
from wsi_ips.evaluation.task_scores import Scored
from wsi_ips.inference.predictions import BETWEEN, read_predictions
from wsi_ips.inference.run_folder import RunFolder, chosen_tasks, description_of, tasks_of_run
from wsi_ips.progress import Progress


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
    config, checkpoint = described.get("config"), described.get("checkpoint")
    if isinstance(config, dict) and config.get("held_out") is not None:
        raise ResultsError(
            run.description,
            "each fold's slides are another model's, and a calibration belongs to one",
            "name a run of predict with the checkpoint that new slides will be labelled by",
        )
    sha256 = checkpoint.get("sha256") if isinstance(checkpoint, dict) else None
    if not isinstance(sha256, str) or not sha256:
        raise ResultsError(run.description, "does not say which checkpoint made the run", "predict again")
    return sha256


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
    lines = [f"{name}: {fitted} ({task.slides} slides)"]
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
