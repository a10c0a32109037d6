"""``evaluate``: a run's predictions against a manifest's labels."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wsi_ips.commands.evaluate_doubt import DoubtReport, calibration_of_run, doubt_in_words, report_doubt
from wsi_ips.commands.evaluate_froc import FrocReport, report_froc
from wsi_ips.commands.evaluate_join import Joined, chosen_tasks, join, tasks_of_run
from wsi_ips.commands.evaluate_survival import (
    SurvivalReport,
    draw_survival,
    report_survival,
    write_survival,
)
from wsi_ips.commands.evaluate_task import (
    StageReport,
    TaskReport,
    report_stages,
    report_task,
    roc_plots,
)
from wsi_ips.commands.evaluate_write import write_metrics, write_tables
from wsi_ips.commands.outcome import Outcome
from wsi_ips.datasets.manifest import read_manifest
from wsi_ips.errors import ConfigError, ResultsError
from wsi_ips.evaluation.bootstrap import Interval
from wsi_ips.evaluation.plots import (
    NamedFroc,
    NamedRoc,
    check_can_plot,
    draw_confusion,
    draw_froc,
    draw_history,
    draw_reliability,
    draw_roc,
    figure_name,
    read_history,
)
from wsi_ips.inference.predictions import read_predictions
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.progress import Progress
from wsi_ips.recipe import EvaluateJob

HEADLINES = {
    "binary": ("auc", "balanced_accuracy", "sensitivity", "specificity", "ece"),
    "multiclass": ("auc_macro", "balanced_accuracy", "accuracy", "ece"),
    "multilabel": ("auc_macro", "exact_match", "f1_macro", "ece"),
    "regression": (),
}


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """All that was worked out, before anything is written."""

    joined: Joined
    tasks: Mapping[str, TaskReport]
    rocs: Mapping[str, list[NamedRoc]]
    stages: Mapping[str, StageReport]
    froc: FrocReport | None
    froc_task: str | None
    doubts: Mapping[str, DoubtReport]
    survival: Mapping[str, SurvivalReport]


def evaluate(job: EvaluateJob, progress: Progress) -> Outcome:
    """Write ``metrics.json``, ``slides.csv``, ``cases.csv``, with outlines ``froc.csv`` and ``detections/``, of
    survival tasks ``survival.csv`` and ``kaplan_meier.csv``, PNGs.

    A slide that could not be scored is named, and the exit code says so. Raises a
    :class:`wsi_ips.errors.WsiIpsError`, before anything is written, for a run, manifest or folder of outlines
    that cannot be used, and for a split whose labels are all the same.
    """
    can_plot = _can_plot(job)
    history = read_history(job.history) if job.history else None
    worked_out = _work_out(job, progress, bands=can_plot)
    out = job.out or job.run / "evaluation"
    write_tables(out, worked_out.tasks, worked_out.stages, worked_out.froc, worked_out.survival)
    write_survival(out, worked_out.survival)
    if can_plot:
        _draw(out, job, worked_out, history)
    write_metrics(
        out / "metrics.json", job, worked_out.joined, worked_out.tasks, worked_out.stages, worked_out.froc,
        froc_task=worked_out.froc_task, doubts=worked_out.doubts, survival=worked_out.survival,
    )  # fmt: skip
    unasked = not can_plot and job.plots is None
    notes = ["no plots: matplotlib is not installed; pip install 'wsi_ips[plots]'"] if unasked else []
    complaints = [*worked_out.joined.complaints, *(worked_out.froc.complaints if worked_out.froc else ())]
    notes += [
        f"{name}: {len(report.joined.unlabelled)} slides have no label and are left out of its figures"
        for name, report in worked_out.tasks.items()
        if report.joined.unlabelled
    ]
    notes += worked_out.froc.notes if worked_out.froc else []
    notes += [f"{name}: {note}" for name, report in worked_out.survival.items() for note in report.notes]
    scored = worked_out.joined.to_json()
    summary = f"{scored['scored']} of {scored['in_split']} slides of split {job.split} scored; see {out}"
    return Outcome.of_slides(complaints, summary, details=[*_headlines(worked_out), *notes])


def _can_plot(job: EvaluateJob) -> bool:
    """Whether to draw. Raises :class:`ConfigError` where plots are asked for and cannot be drawn."""
    if job.plots is False:
        return False
    try:
        check_can_plot()
    except ConfigError:
        if job.plots:
            raise
        return False
    return True


def _work_out(job: EvaluateJob, progress: Progress, *, bands: bool) -> Evaluation:
    run = RunFolder(job.run)
    if not job.run.is_dir():
        raise ResultsError(job.run, "no such folder", "name the folder that wsi-ips predict wrote")
    all_tasks = tasks_of_run(run)
    tasks = chosen_tasks(all_tasks, job.task)
    rows = read_predictions(run.predictions, tasks=all_tasks)
    calibration = calibration_of_run(run, rows)
    manifest = read_manifest(
        job.manifest, tasks=tasks, need_slides=False, need_labels=len(tasks) == len(all_tasks)
    )
    joined = join(manifest, rows, job.split, predictions=run.predictions)
    elsewhere = None
    if job.threshold_from is not None:
        elsewhere = join(manifest, rows, job.threshold_from, predictions=run.predictions)
    reports: dict[str, TaskReport] = {}
    doubts: dict[str, DoubtReport] = {}
    rocs: dict[str, list[NamedRoc]] = {}
    stages: dict[str, StageReport] = {}
    survival: dict[str, SurvivalReport] = {}
    slides_of_case = Counter(record.case_id for record in manifest.split(job.split))
    with progress("Scoring", total=len(tasks)) as advance:
        for task in tasks:
            if task.survival is not None:
                survival[task.name] = report_survival(task, joined, rows, manifest, job)
                advance(task.name)
                continue
            reports[task.name] = report_task(task, joined, elsewhere, job)
            rocs[task.name] = roc_plots(reports[task.name], job) if bands else []
            if calibration is not None:
                doubt = report_doubt(task, reports[task.name].joined, calibration, manifest, job)
                doubts |= {task.name: doubt} if doubt is not None else {}
            staged = report_stages(reports[task.name], slides_of_case, job)
            if staged is not None:
                stages[task.name] = staged
            advance(task.name)
    froc, froc_task = None, None
    if job.annotations is not None:
        froc_task = _froc_task(reports)
        froc = report_froc(reports[froc_task], job, progress)
    return Evaluation(joined, reports, rocs, stages, froc, froc_task, doubts, survival)


def _froc_task(reports: Mapping[str, TaskReport]) -> str:
    """The first task that says whether there is a lesion."""
    for name, report in reports.items():
        if report.scored.kind in ("binary", "multiclass"):
            return name
    raise ConfigError(
        f"FROC needs a task with classes of which the first has no lesion, not {', '.join(reports)}"
    )


def _draw(out: Path, job: EvaluateJob, done: Evaluation, history: Mapping[str, list[float]] | None) -> None:
    for name, report in done.tasks.items():
        end = f"_{name}" if len(done.tasks) > 1 else ""
        title = f"{name}, split {job.split}"
        if done.rocs[name]:
            draw_roc(out / f"roc{end}.png", done.rocs[name], title=title)
        scored = report.scored
        if scored.kind == "regression":
            continue
        of = {"binary": scored.task.classes[-1], "multiclass": "the called class"}.get(
            scored.kind, "any label"
        )
        draw_reliability(
            out / f"reliability{end}.png", scored.reliability, ece=report.figures["ece"], of=of, title=title
        )
        if scored.kind != "multilabel":
            draw_confusion(out / f"confusion{end}.png", scored.confusion, scored.class_names, title=title)
    draw_survival(out, done.survival, several=len(done.tasks) + len(done.survival) > 1, split=job.split)
    if done.froc is not None:
        named = [NamedFroc(by, one.curve, one.score, one.band) for by, one in done.froc.by.items()]
        draw_froc(out / "froc.png", named, title=f"{done.froc_task}, split {job.split}")
    if history is not None and job.history is not None:
        draw_history(out / "loss.png", history, title=f"losses of {job.history.resolve().parent.name}")


def _headlines(done: Evaluation) -> list[str]:
    lines = []
    for name, report in done.tasks.items():
        wanted = HEADLINES[report.scored.kind] or tuple(report.figures)
        wanted = (*(["quadratic_kappa"] if "quadratic_kappa" in report.figures else []), *wanted)
        lines.append(f"{name}: " + ", ".join(_in_words(key, report.figures[key]) for key in wanted))
        if report.case_figures:
            first = wanted[0]
            cases = len(report.pooled.slides)
            lines.append(f"{name}, {cases} patients: " + _in_words(first, report.case_figures[first]))
        if name in done.stages:
            lines.append(f"{name}: " + _in_words("pN stage, quadratic kappa", done.stages[name].kappa))
        if name in done.doubts:
            lines += doubt_in_words(name, done.doubts[name])
    for name, survival in done.survival.items():
        lines.append(f"{name}: {survival.predicted.follow_up.counts}")
        shown = [
            key for key in ("c_index", "c_index_uno", "ibs", "ibs_kaplan_meier") if key in survival.figures
        ]
        lines.append(f"{name}: " + ", ".join(_in_words(key, survival.figures[key]) for key in shown))
        if survival.groups.test is not None:
            lines.append(f"{name}: log-rank p of the risk groups {survival.groups.test.p:.3g}")
    if done.froc is not None:
        for by, one in done.froc.by.items():
            counts = f"{one.curve.lesions} lesions, {one.curve.slides} slides"
            lines.append(_in_words(f"FROC score by {by}", one.score) + f" ({counts})")
    return lines


def _in_words(name: str, interval: Interval) -> str:
    name = figure_name(name)
    if math.isnan(interval.value):
        return f"{name} not defined"
    if math.isnan(interval.low):
        return f"{name} {interval.value:.3f}"
    return f"{name} {interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
