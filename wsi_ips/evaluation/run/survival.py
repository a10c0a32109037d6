"""What ``evaluate`` says of a survival task: figures with intervals, curves of risk groups, tables."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.manifest import Manifest
from wsi_ips.errors import ConfigError, ManifestError, ResultsError, count
from wsi_ips.evaluation.intervals import Interval
from wsi_ips.evaluation.risk_groups import RiskGroups, draw_kaplan_meier, group_by_risk
from wsi_ips.evaluation.run.config import EvaluationConfig
from wsi_ips.evaluation.run.joined import Joined
from wsi_ips.evaluation.survival_scores import PredictedSurvival, TrainingFollowUp, survival_intervals
from wsi_ips.inference.predictions import PredictionRow
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.storage.files import whole_table
from wsi_ips.survival.follow_up import FollowUp
from wsi_ips.survival.log_rank import risk_group_edges

FEWEST_PER_GROUP = 5
"""Patients for each group, without which others' risks give no edges between groups."""
KAPLAN_MEIER_COLUMNS = (
    "task", "group", "time", "survival", "low", "high", "at_risk", "events", "censored",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class SurvivalReport:
    """joined: the slides with a time and an event. censoring_from: whose censoring the figures are weighted by."""

    task: TaskConfig
    joined: Joined
    predicted: PredictedSurvival
    training: TrainingFollowUp
    censoring_from: str
    figures: dict[str, Interval]
    groups: RiskGroups
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        config, follow_up = self.predicted.config, self.predicted.follow_up
        return {
            "unit": config.unit,
            "loss": config.loss,
            "patients": len(follow_up),
            "events": int(follow_up.event.sum()),
            "without_label": [record.slide_id for record in self.joined.unlabelled],
            "censoring_from": self.censoring_from,
            "tau": self.training.tau,
            "brier_times": [config.at[place] for place in self.training.times(config.at).tolist()],
            "metrics": {name: one.to_json() for name, one in self.figures.items()},
            "risk_groups": self.groups.to_json(self.predicted),
            "notes": list(self.notes),
        }


def report_survival(
    task: TaskConfig,
    joined: Joined,
    rows: Sequence[PredictionRow],
    manifest: Manifest,
    config: EvaluationConfig,
) -> SurvivalReport:
    """Score one survival task on the patients of the split.

    joined: the split's slides with their predictions. rows: all predictions, among which those of validation or
    training patients say where groups of risk are cut. Raises :class:`ManifestError` where no patient of the split
    has a time and an event, or no two of them can be compared; :class:`ResultsError` for a prediction that cannot
    be; :class:`ConfigError` for several splits at once.
    """
    joined = joined.of_task(task)
    predicted = checked_survival(task, joined, manifest, config)
    notes: list[str] = []
    training, censoring_from = training_follow_up(task, predicted, manifest, config)
    if censoring_from == config.split:
        notes.append(
            f"the manifest has no training patients: censoring is estimated on split {config.split} itself"
        )
    if not predicted.tells_survival:
        notes.append("this model tells no survival at times, only risks: there is no Brier score")
    others = {
        split: _mean_risks(task, rows, manifest, split) for split in ("val", "train") if split != config.split
    }
    groups = _groups(predicted, others, config)
    if groups.edges_from == config.split:
        notes.append(_why_own_edges(others, manifest, config))
    if groups.test is None:
        notes.append("the groups of risk cannot be compared: too few events, or all patients in one group")
    figures = survival_intervals(
        predicted, training, resamples=config.bootstrap, seed=config.seed, stratified=config.stratify
    )
    return SurvivalReport(task, joined, predicted, training, censoring_from, figures, groups, tuple(notes))


def checked_survival(
    task: TaskConfig, joined: Joined, manifest: Manifest, config: EvaluationConfig
) -> PredictedSurvival:
    """The patients of a survival task and what was predicted for them. Errors are those of
    :func:`report_survival`.
    """
    if "+" in config.split:
        raise ConfigError(
            f"task {task.name}: split {config.split} may hold predictions of several folds' models, whose risks "
            "do not compare; cv.csv has each fold's own C-index"
        )
    return _checked(_predicted(task, joined.of_task(task)), task, manifest, config)


def training_follow_up(
    task: TaskConfig, predicted: PredictedSurvival, manifest: Manifest, config: EvaluationConfig
) -> tuple[TrainingFollowUp, str]:
    """What the figures need of the training patients, and the split that they are from: the scored one where the
    manifest has no training patients.
    """
    train = manifest.split("train")
    known = {r.case_id: r.targets([task])[task.name] for r in train if r.targets([task])}
    targets = [each for each in known.values() if isinstance(each, tuple)]
    follow_up = FollowUp.of(*zip(*targets, strict=True)) if targets else predicted.follow_up
    return TrainingFollowUp.of(follow_up), "train" if targets else config.split


def _predicted(task: TaskConfig, joined: Joined) -> PredictedSurvival:
    return PredictedSurvival.of(
        task,
        [row.probabilities[task.name] for _, row in joined.pairs],
        [record.targets([task])[task.name] for record, _ in joined.pairs],
        [record.case_id for record, _ in joined.pairs],
    )


def _checked(
    predicted: PredictedSurvival, task: TaskConfig, manifest: Manifest, config: EvaluationConfig
) -> PredictedSurvival:
    assert task.survival is not None
    follow_up = predicted.follow_up
    if not len(follow_up):
        raise ManifestError(
            manifest.path,
            f"no scored slide of split {config.split!r} has a {task.survival.time} and a {task.survival.event}",
            "name another split or --task",
        )
    path = RunFolder(config.run).predictions
    told = predicted.survival_NT[~np.isnan(predicted.survival_NT)]
    if not np.isfinite(predicted.risk_N).all() or ((told < 0) | (told > 1)).any():
        raise ResultsError(path, f"a risk or survival of task {task.name!r} cannot be", "predict again")
    first_event = follow_up.time[follow_up.event].min(initial=math.inf)
    if not ((follow_up.time > first_event) | ((follow_up.time == first_event) & ~follow_up.event)).any():
        raise ManifestError(
            manifest.path,
            f"of no two patients of split {config.split!r} it is known whose event came first "
            f"({follow_up.counts})",
            "nothing can be compared: name another split or --task",
        )
    return predicted


def _mean_risks(
    task: TaskConfig, rows: Sequence[PredictionRow], manifest: Manifest, split: str
) -> list[float]:
    """The risk of each patient of a split that is in the run: the mean over the patient's slides."""
    row_of = {row.slide_id: row for row in rows if row.status == "ok"}
    risks: dict[str, list[float]] = {}
    for record in manifest.split(split):
        if record.slide_id in row_of:
            risk = row_of[record.slide_id].probabilities[task.name]["risk"]
            risks.setdefault(record.case_id, []).append(risk)
    return [math.fsum(each) / len(each) for each in risks.values()]


def _groups(
    predicted: PredictedSurvival, others: Mapping[str, Sequence[float]], config: EvaluationConfig
) -> RiskGroups:
    """Cut where validation patients' risks say, else training patients', else the scored patients' own.

    others: the risks of each split's patients, those of validation first.
    """
    for split, risks in others.items():
        if len(risks) >= FEWEST_PER_GROUP * config.risk_groups and all(map(math.isfinite, risks)):
            return group_by_risk(predicted, risk_group_edges(risks, config.risk_groups), edges_from=split)
    edges = risk_group_edges(predicted.risk_N, config.risk_groups)
    return group_by_risk(predicted, edges, edges_from=config.split)


def _why_own_edges(
    others: Mapping[str, Sequence[float]], manifest: Manifest, config: EvaluationConfig
) -> str:
    """Why the edges of the risk groups are quantiles of the risks of the scored patients, which makes the groups
    look better apart than they are, and what to do so that they come from other patients.
    """
    there = " and ".join(count(len(risks), f"{split} patient") for split, risks in others.items())
    needed = FEWEST_PER_GROUP * config.risk_groups
    listed = {split: {record.case_id for record in manifest.split(split)} for split in others}
    enough = [split for split, cases in listed.items() if len(cases) >= needed]
    fix = (
        f"predict all {' or '.join(enough)} slides of {manifest.path.name}"
        if enough
        else f"{manifest.path.name} lists no more"
        if all(len(listed[split]) == len(risks) for split, risks in others.items())
        else f"{manifest.path.name} lists fewer, too"
    )
    return (
        f"risk groups are cut at quantiles of the scored patients' own risks, which flatters: {there} are in the "
        f"run, {needed} of one split are needed ({FEWEST_PER_GROUP} per group); {fix}"
    )


def write_survival(out: Path, reports: Mapping[str, SurvivalReport]) -> None:
    """``survival.csv``, a line per patient of each task, and ``kaplan_meier.csv``, a line per step of a curve."""
    if not reports:
        return
    times = list(dict.fromkeys(name for report in reports.values() for name in report.task.classes[1:]))
    with whole_table(out / "survival.csv") as writer:
        writer.writerow(["task", "case_id", "slides", "time", "event", "group", "risk", *times])
        writer.writerows(
            row for name, report in reports.items() for row in _patient_rows(name, report, times)
        )
    with whole_table(out / "kaplan_meier.csv") as writer:
        writer.writerow(KAPLAN_MEIER_COLUMNS)
        writer.writerows(row for name, report in reports.items() for row in _curve_rows(name, report))


def _patient_rows(task: str, report: SurvivalReport, times: Sequence[str]) -> Iterable[Sequence[Any]]:
    predicted, groups = report.predicted, report.groups
    for place, (case, slides) in enumerate(zip(predicted.case, predicted.slides, strict=True)):
        survival = dict(zip(report.task.classes[1:], predicted.survival_NT[place].tolist(), strict=True))
        yield (
            task, case, slides, float(predicted.follow_up.time[place]), int(predicted.follow_up.event[place]),
            groups.names[int(groups.group_N[place])], float(predicted.risk_N[place]),
            *(survival.get(name, "") for name in times),
        )  # fmt: skip


def _curve_rows(task: str, report: SurvivalReport) -> Iterable[Sequence[Any]]:
    for name, curve in zip(report.groups.names, report.groups.curves, strict=True):
        columns = (
            curve.time,
            curve.survival,
            curve.low,
            curve.high,
            curve.at_risk,
            curve.events,
            curve.censored,
        )
        for row in zip(*(column.tolist() for column in columns), strict=True):
            yield (task, name, *row)


def draw_survival(out: Path, reports: Mapping[str, SurvivalReport], *, several: bool, split: str) -> None:
    """``kaplan_meier.png``; of several tasks, ``kaplan_meier_<task>.png`` each."""
    for name, report in reports.items():
        end = f"_{name}" if several else ""
        draw_kaplan_meier(
            out / f"kaplan_meier{end}.png",
            report.groups,
            unit=report.predicted.config.unit,
            title=f"{name}, split {split}",
        )
