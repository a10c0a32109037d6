"""Two runs on the same slides: each figure of both, how far one is ahead of the other, and how sure that is.

Start with :func:`compare_runs`, what ``wsi-ips evaluate A --against B`` does. :func:`units_of` makes of a model's
predictions what can be compared: slides, and patients where they have several slides.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.manifest import Manifest, read_manifest
from wsi_ips.errors import ConfigError, ResultsError, count, one_line
from wsi_ips.evaluation.intervals import (
    LEVEL,
    OF_A_CLASS,
    Counted,
    DelongTest,
    Interval,
    Measure,
    Pair,
    Rarest,
    bootstrap,
    delong_test,
    paired_bootstrap,
    too_few,
)
from wsi_ips.evaluation.plots import figure_name
from wsi_ips.evaluation.run.config import EvaluationConfig
from wsi_ips.evaluation.run.joined import Joined, join
from wsi_ips.evaluation.run.survival import checked_survival, training_follow_up
from wsi_ips.evaluation.run.tables import without_nan
from wsi_ips.evaluation.run.tasks import score_task
from wsi_ips.evaluation.slide_level import auc_or_nan
from wsi_ips.evaluation.survival_scores import WITH_EVENT, survival_figures
from wsi_ips.evaluation.task_scores import Scored, pool_cases
from wsi_ips.inference.predictions import PredictionRow, read_predictions
from wsi_ips.inference.run_folder import RunFolder, chosen_tasks, tasks_of_run
from wsi_ips.storage.files import whole_file, whole_table
from wsi_ips.storage.fingerprint import versions

COLUMNS = (
    "task", "of", "count", "figure", "a", "a_low", "a_high", "b", "b_low", "b_high",
    "difference", "difference_low", "difference_high", "undefined_resamples", "delong_p", "why_none",
)  # fmt: skip
HEADLINES = ("auc", "auc_macro", "balanced_accuracy", "quadratic_kappa", "c_index", "c_index_uno", "ibs")
"""The figures that are printed. Of numbers, all are."""


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """What one model's figures of a task are computed from: slides, or patients.

    Attributes:
        of: ``slides`` or ``patients``.
        measure: The figures of some of them.
        cases: The case of each, which is resampled.
        strata: See :func:`wsi_ips.evaluation.intervals.resample_cases`.
        rarest: See :data:`wsi_ips.evaluation.intervals.Rarest`.
        counted: What ``rarest`` counts, see :data:`wsi_ips.evaluation.intervals.Counted`.
        binary: Outputs and targets of a binary task whose units are independent, for DeLong's test.
    """

    of: str
    measure: Measure
    cases: Sequence[Any]
    strata: Sequence[Any] | None
    rarest: Rarest = None
    counted: Counted = OF_A_CLASS
    binary: Scored | None = None

    def __len__(self) -> int:
        return len(self.cases)

    def figures(self, *, resamples: int, seed: int) -> dict[str, Interval]:
        """The figures of all of them, with intervals."""
        return bootstrap(
            self.measure, self.cases, strata=self.strata, resamples=resamples, seed=seed,
            rarest=self.rarest, of=self.counted,
        )  # fmt: skip

    def beside(self, other: "Units") -> Pair:
        """These units as one model tells them, and as another does."""
        return Pair(self.measure, other.measure, self.cases, self.strata, self.rarest, self.counted)


@dataclass(frozen=True, slots=True)
class Compared:
    """A figure of two models on the same slides.

    Attributes:
        task: The name of the task.
        of: ``slides`` or ``patients``.
        count: How many of them.
        figure: The name of the figure, as in ``metrics.json``.
        one, other: The figure of each model.
        difference: ``one - other``, with the interval of the resamples that are drawn alike for both.
        delong: DeLong's test, for the AUC of a binary task where each patient has one slide.
    """

    task: str
    of: str
    count: int
    figure: str
    one: Interval
    other: Interval
    difference: Interval
    delong: DelongTest | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """What two runs say of the slides that both have predicted.

    ``common`` are these slides; ``only_one`` and ``only_other`` those of the split that one run lacks.
    """

    config: EvaluationConfig
    figures: tuple[Compared, ...]
    common: tuple[str, ...]
    only_one: tuple[str, ...]
    only_other: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """The main figures in words, and what was left out."""
        shown = [each for each in self.figures if each.figure in HEADLINES] or self.figures
        lines = [f"A: {self.config.run}", f"B: {self.config.against}"]
        return [*lines, *(in_words(each) for each in shown), *self.notes]


def compare_runs(config: EvaluationConfig) -> Comparison:
    """Compare ``config.run`` (A) with ``config.against`` (B) on the slides that both have predicted.

    Raises:
        ResultsError: A run cannot be used, or the runs have no slide in common.
        ManifestError: The manifest cannot be used, or the labels of the common slides are all the same.
        ConfigError: The runs have no task in common, or a task has other labels in one of them.
    """
    assert config.against is not None
    configs = [config, config.model_copy(update={"run": config.against})]
    for each in configs:
        if not each.run.is_dir():
            raise ResultsError(each.run, "no such folder", "name the folder that wsi-ips predict wrote")
    of_run = [tasks_of_run(RunFolder(each.run)) for each in configs]
    tasks, notes = _common_tasks(config, *of_run)
    manifest = read_manifest(config.manifest, tasks=tasks, need_slides=False, need_labels=False)
    rows = [
        read_predictions(RunFolder(c.run).predictions, tasks=t) for c, t in zip(configs, of_run, strict=True)
    ]
    one, other = (_joined(manifest, r, c.split, c) for r, c in zip(rows, configs, strict=True))
    common = _ids(one) & _ids(other)
    if not common:
        raise ResultsError(
            config.against,
            f"has predicted no slide of split {config.split!r} that {config.run} has predicted too",
            "predict the same slides",
        )
    elsewhere = [
        _joined(manifest, r, config.threshold_from, c) if config.threshold_from else None
        for r, c in zip(rows, configs, strict=True)
    ]
    figures: list[Compared] = []
    for task in tasks:
        sides = [
            units_of(task, only_slides(joined, common), manifest, c, elsewhere=away)
            for joined, c, away in zip((one, other), configs, elsewhere, strict=True)
        ]
        for ours, theirs in zip(*sides, strict=True):
            figures += compare_units(task.name, ours, theirs, config)
    only_one, only_other = sorted(_ids(one) - common), sorted(_ids(other) - common)
    for name, lacking in (("A", only_one), ("B", only_other)):
        if lacking:
            notes.append(
                f"left out of the comparison: {count(len(lacking), 'slide')} that only {name} has predicted"
            )
    return Comparison(
        config, tuple(figures), tuple(sorted(common)), tuple(only_one), tuple(only_other), tuple(notes)
    )


def units_of(
    task: TaskConfig,
    joined: Joined,
    manifest: Manifest,
    config: EvaluationConfig,
    *,
    elsewhere: Joined | None = None,
) -> list[Units]:
    """The slides of a task, and its patients where some have several slides; of survival, the patients.

    Args:
        task: The task.
        joined: The slides with what a model says of them.
        manifest: The manifest; a survival task needs its training patients.
        config: How they are scored. ``config.run`` is the run that errors name.
        elsewhere: The slides that the threshold of a binary task is chosen on. None: ``config.threshold``.

    Raises:
        ManifestError: No slide has a label, or all have the same.
        ResultsError: An output cannot be.
    """
    stratified = config.stratify
    if task.survival is not None:
        predicted = checked_survival(task, joined, manifest, config)
        training, _ = training_follow_up(task, predicted, manifest, config)
        strata = predicted.follow_up.event.tolist() if stratified else None
        return [
            Units(
                "patients", lambda p: survival_figures(predicted.pick(p), training), predicted.case, strata,
                rarest=int(predicted.follow_up.event.sum()), counted=WITH_EVENT,
            )
        ]  # fmt: skip
    _, scored, _ = score_task(task, joined, elsewhere, config)
    several = len(set(scored.case)) < len(scored.case)
    units = [_of_labels("slides", scored, stratified=stratified, independent=not several)]
    if several:
        pooled = pool_cases(scored, config.pool).scored
        if len(pooled.case):
            units.append(_of_labels("patients", pooled, stratified=stratified, independent=True))
    return units


def compare_units(task: str, ours: Units, theirs: Units, config: EvaluationConfig) -> list[Compared]:
    """Every figure that both models have of the same slides or patients."""
    resamples, seed = config.bootstrap, config.seed
    one, other = (each.figures(resamples=resamples, seed=seed) for each in (ours, theirs))
    lead = paired_bootstrap([ours.beside(theirs)], resamples=resamples, seed=seed)
    return [
        Compared(
            task,
            ours.of,
            len(ours),
            name,
            one[name],
            other[name],
            difference,
            delong_of(ours, theirs) if name == "auc" else None,
        )
        for name, difference in lead.items()
    ]


def delong_of(ours: Units, theirs: Units) -> DelongTest | None:
    """DeLong's test of the AUCs of a binary task, without a p value where there are too few cases. None where it
    does not hold.
    """
    one, other = ours.binary, theirs.binary
    if one is None or other is None:
        return None
    if why := too_few(one.case, rarest=int(np.bincount(one.label, minlength=2).min())):
        auc, auc_of_other = (auc_or_nan(each.probability, each.positive) for each in (one, other))
        return DelongTest.not_stated(auc, auc_of_other, why)
    return delong_test(one.probability, other.probability, one.positive)


def only_slides(joined: Joined, slide_ids: set[str]) -> Joined:
    """The same with these slides alone."""
    return replace(joined, pairs=tuple(pair for pair in joined.pairs if pair[0].slide_id in slide_ids))


def in_words(each: Compared) -> str:
    """A line such as ``label: AUC 0.912 against 0.874: +0.038 [-0.011, 0.084], DeLong p 0.14``."""
    what = each.task if each.of == "slides" else f"{each.task}, {count(each.count, 'patient')}"
    name = figure_name(each.figure)
    if math.isnan(each.difference.value):
        return f"{what}: {name} not defined"
    line = f"{what}: {name} {each.one.value:.3f} against {each.other.value:.3f}: {each.difference.value:+.3f}"
    if not math.isnan(each.difference.low):
        line += f" [{each.difference.low:+.3f}, {each.difference.high:+.3f}]"
    elif each.difference.why_none:
        and_p = " and a DeLong p" if each.delong is not None and each.delong.why_none else ""
        return f"{line} (too few for an interval{and_p}: {each.difference.why_none})"
    return line if each.delong is None else f"{line}, {each.delong.in_words}"


def write_comparison(out: Path, comparison: Comparison) -> None:
    """Write ``against.csv``, a line for each figure, and ``against.json``, which also names the slides."""
    config = comparison.config
    with whole_table(out / "against.csv") as writer:
        writer.writerow(COLUMNS)
        writer.writerows(_row(each) for each in comparison.figures)
    told = {
        "a": str(config.run),
        "b": str(config.against),
        "manifest": str(config.manifest),
        "split": config.split,
        "slides": {
            "common": len(comparison.common),
            "only_a": list(comparison.only_one),
            "only_b": list(comparison.only_other),
        },
        "intervals": {
            "level": LEVEL,
            "method": "paired percentile bootstrap over cases",
            "resamples": config.bootstrap,
            "stratified": config.stratify,
            "seed": config.seed,
        },
        "figures": [dict(zip(COLUMNS, _row(each), strict=True)) for each in comparison.figures],
        "notes": list(comparison.notes),
        "versions": versions(),
    }
    with whole_file(out / "against.json") as partial:
        text = json.dumps(without_nan(told), indent=2, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")


def _row(each: Compared) -> tuple[Any, ...]:
    ends = [end for one in (each.one, each.other, each.difference) for end in (one.value, one.low, one.high)]
    p, why = None, each.difference.why_none
    if each.delong is not None:
        p, why = None if each.delong.why_none else each.delong.p, why or each.delong.why_none
    return (each.task, each.of, each.count, each.figure, *ends, each.difference.undefined, p, why)


def _of_labels(of: str, scored: Scored, *, stratified: bool, independent: bool) -> Units:
    return Units(
        of,
        lambda places: scored.pick(places).figures(),
        list(scored.case),
        scored.strata if stratified else None,
        rarest=scored.rarest,
        counted=scored.counted,
        binary=scored if independent and scored.kind == "binary" else None,
    )


def _joined(
    manifest: Manifest, rows: Sequence[PredictionRow], split: str, config: EvaluationConfig
) -> Joined:
    """Rows and records of the slides, which must have been read one by one."""
    if any(row.case for row in rows):
        raise ResultsError(
            config.run, "read all slides of a case as one bag", "compare runs of models with bag: slide"
        )
    return join(manifest, rows, split, predictions=RunFolder(config.run).predictions)


def _ids(joined: Joined) -> set[str]:
    return {record.slide_id for record, _ in joined.pairs}


def _common_tasks(
    config: EvaluationConfig, one: Sequence[TaskConfig], other: Sequence[TaskConfig]
) -> tuple[list[TaskConfig], list[str]]:
    """The tasks of both runs, and a note of each that only one has."""
    chosen: Mapping[str, TaskConfig] = {task.name: task for task in chosen_tasks(one, config.task)}
    theirs = {task.name: task for task in other}
    common = [task for name, task in chosen.items() if name in theirs]
    if not common:
        raise ConfigError(
            f"{config.run} and {config.against} have no task in common: the first has {', '.join(chosen)}, "
            f"the second {', '.join(theirs)}"
        )
    for task in common:
        if _labels_of(task) != _labels_of(theirs[task.name]):
            ours, their = (one_line(_in_text(each), most=200) for each in (task, theirs[task.name]))
            raise ConfigError(
                f"task {task.name} has other labels in the two runs, so they cannot be compared: {ours} in "
                f"{config.run}, {their} in {config.against}"
            )
    notes = [f"task {name} is A's alone and is not compared" for name in chosen if name not in theirs]
    if config.task is None:
        notes += [f"task {name} is B's alone and is not compared" for name in theirs if name not in chosen]
    return common, notes


def _labels_of(task: TaskConfig) -> tuple[Any, ...]:
    """What makes the labels of two tasks the same."""
    its = task.survival
    of_survival = None if its is None else (its.time, its.event, its.unit, its.at)
    return task.kind, task.activation, task.classes, task.column_name, of_survival


def _in_text(task: TaskConfig) -> str:
    if task.survival is not None:
        its = task.survival
        return f"{its.time} and {its.event} in {its.unit} at {', '.join(map(str, its.at))}"
    return f"{', '.join(task.classes)} ({task.kind}, {task.activation}) in column {task.column_name}"
