"""``calibrate``: how far a model's probabilities can be believed, from a run of slides with known labels."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wsi_ips.commands.evaluate_join import Joined, chosen_tasks, description_of, join, tasks_of_run
from wsi_ips.commands.evaluate_task import check_scored
from wsi_ips.commands.outcome import Outcome
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
    write_calibration,
)
from wsi_ips.evaluation.task_scores import Scored
from wsi_ips.inference.predictions import BETWEEN, read_predictions
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.progress import Progress
from wsi_ips.recipe import CalibrateJob

EPOCH_NOTE = (
    "the epoch was probably chosen on these validation slides too, so they may flatter the model a little; "
    "slides that chose nothing are better to calibrate on"
)


def calibrate(job: CalibrateJob, progress: Progress) -> Outcome:
    """Write ``calibration.json``: a temperature per task, and the thresholds of its sets of answers.

    A slide that has no prediction is named, and the exit code says so. Raises a
    :class:`wsi_ips.errors.WsiIpsError`, before anything is written, for a run or manifest that cannot be used, for
    too few slides, and for labels that are all the same.
    """
    run = RunFolder(job.run)
    all_tasks = tasks_of_run(run)
    checkpoint = _checkpoint(run)
    tasks = [task for task in chosen_tasks(all_tasks, job.task) if task.activation != "linear"]
    _check_tasks(tasks)
    rows = read_predictions(run.predictions, tasks=all_tasks)
    manifest = read_manifest(
        job.manifest, tasks=tasks, need_slides=False, need_labels=len(tasks) == len(all_tasks)
    )
    joined = join(manifest, rows, job.split, predictions=run.predictions)
    found: dict[str, TaskCalibration] = {}
    with progress("Calibrating", total=len(tasks)) as advance:
        for task in tasks:
            found[task.name] = _calibrated(task, joined.of_task(task), job)
            advance(task.name)
    calibration = Calibration(
        checkpoint=checkpoint,
        split=job.split,
        risk=job.risk,
        by_class=job.by_class,
        seed=job.seed,
        slides=tuple(record.slide_id for record, _ in joined.pairs),
        tasks=found,
    )
    out = job.out or job.run / "calibration.json"
    write_calibration(out, calibration)
    details = [line for name, task in found.items() for line in _in_words(name, task, job)]
    if job.split == "val":
        details.append(EPOCH_NOTE)
    summary = f"{len(joined.pairs)} slides of split {job.split} calibrated on: predict --calibration {out}"
    return Outcome.of_slides(joined.complaints, summary, details=details)


def _checkpoint(run: RunFolder) -> str:
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


def _check_tasks(tasks: Sequence[TaskConfig]) -> None:
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


def _calibrated(task: TaskConfig, joined: Joined, job: CalibrateJob) -> TaskCalibration:
    scored = joined.scored(task)
    check_scored(scored, joined, manifest=job.manifest, run=job.run)
    assert task.activation != "linear"
    temperature = fit_temperature(task.activation, scored.output_NC, scored.target_NC)
    tempered_NC = with_temperature(task.activation, scored.output_NC, temperature.value)
    after = Scored(task, tempered_NC, scored.target_NC, scored.case)
    one_a_case = one_of_each_case([record.case_id for record, _ in joined.pairs], seed=job.seed)
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
        rules=tuple(_rule(question, task, scored, one_a_case, job) for question in questions(task)),
    )


def _rule(
    question: Question, task: TaskConfig, scored: Scored, places: NDArray[np.int64], job: CalibrateJob
) -> QuestionRule:
    """Raises :class:`ManifestError` for too few cases."""
    probability_NA = question.probabilities(scored.output_NC[places])
    truth_N = question.truth(scored.target_NC[places])
    counts = np.bincount(truth_N, minlength=len(question.answers)) if job.by_class else [len(truth_N)]
    cases = [int(n) for n in np.broadcast_to(counts, len(question.answers))]
    for answer, n in zip(question.answers, cases, strict=True):
        if n < fewest(job.risk):
            of = f" that are {answer!r}" if job.by_class else ""
            raise ManifestError(
                job.manifest,
                f"has {n} cases{of} with a {task.column_name} and a prediction in split {job.split!r}; "
                f"a risk of {job.risk:g} takes {fewest(job.risk)} or more",
                "add slides, or allow more with --risk"
                + (", or leave --by-class out" if job.by_class else ""),
            )
    found = thresholds(probability_NA, truth_N, risk=job.risk, by_class=job.by_class)
    return QuestionRule(
        question=question.name,
        answers=question.answers,
        thresholds=tuple(found.tolist()),
        cases=tuple(cases),
    )


def _in_words(name: str, task: TaskCalibration, job: CalibrateJob) -> list[str]:
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
        ends = {n: coverage_range(n, job.risk) for n in rule.cases}
        lines += [
            f"{asked}: sets miss the true answer with a probability of {job.risk:.3g} or less, over "
            f"calibrations and slides; with {n} cases{_whose(rule, n) if job.by_class else ''}, 9 of 10 "
            f"calibrations hold it for {low:.1%} to {high:.1%} of new slides"
            for n, (low, high) in ends.items()
        ]
    return lines


def _whose(rule: QuestionRule, n: int) -> str:
    names = [answer for answer, cases in zip(rule.answers, rule.cases, strict=True) if cases == n]
    return f" of {', '.join(names)}"
