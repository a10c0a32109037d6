"""The evaluation of a prediction run against a manifest's labels: everything worked out, drawn, and in words.

Start with :func:`work_out`; ``tables.py`` writes what it finds.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.manifest import Manifest, read_manifest
from wsi_ips.errors import ConfigError, ResultsError, count
from wsi_ips.evaluation.intervals import Interval
from wsi_ips.evaluation.plots import (
    NamedFroc,
    NamedRoc,
    draw_confusion,
    draw_froc,
    draw_history,
    draw_reliability,
    draw_roc,
    figure_name,
)
from wsi_ips.evaluation.run.config import EvaluationConfig
from wsi_ips.evaluation.run.doubt import DoubtReport, calibration_of_run, doubt_in_words, report_doubt
from wsi_ips.evaluation.run.froc import FrocReport, report_froc
from wsi_ips.evaluation.run.joined import Joined, join
from wsi_ips.evaluation.run.survival import SurvivalReport, draw_survival, report_survival
from wsi_ips.evaluation.run.tasks import (
    StageReport,
    TaskReport,
    report_patient_stages,
    report_stages,
    report_task,
    roc_plots,
)
from wsi_ips.inference.case_answers import with_labels_of_cases
from wsi_ips.inference.predictions import read_predictions
from wsi_ips.inference.run_folder import RunFolder, chosen_tasks, tasks_of_run
from wsi_ips.progress import Progress

if TYPE_CHECKING:
    from wsi_ips.evaluation.run.faithfulness import FaithfulnessReport

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
    faithfulness: "Mapping[str, FaithfulnessReport]"


def work_out(config: EvaluationConfig, progress: Progress, *, bands: bool) -> Evaluation:
    """Score the run. bands: whether plots will want ROC curves with their bands.

    Raises a :class:`wsi_ips.errors.WsiIpsError` for a run, manifest or folder of outlines that cannot be used, and
    for a split whose labels are all the same.
    """
    run = RunFolder(config.run)
    if not config.run.is_dir():
        raise ResultsError(config.run, "no such folder", "name the folder that wsi-ips predict wrote")
    all_tasks = tasks_of_run(run)
    tasks = chosen_tasks(all_tasks, config.task)
    rows = read_predictions(run.predictions, tasks=all_tasks)
    calibration = calibration_of_run(run, rows)
    manifest = read_manifest(
        config.manifest, tasks=tasks, need_slides=False, need_labels=len(tasks) == len(all_tasks)
    )
    slides = join(manifest, rows, config.split, predictions=run.predictions)
    joined = slides.by_case(manifest, tasks)
    elsewhere = None
    if config.threshold_from is not None:
        elsewhere = join(manifest, rows, config.threshold_from, predictions=run.predictions)
        elsewhere = elsewhere.by_case(manifest, tasks)
    reports: dict[str, TaskReport] = {}
    doubts: dict[str, DoubtReport] = {}
    rocs: dict[str, list[NamedRoc]] = {}
    stages: dict[str, StageReport] = {}
    survival: dict[str, SurvivalReport] = {}
    slides_of_case = Counter(record.case_id for record in manifest.split(config.split))
    with progress("Scoring", total=len(tasks)) as advance:
        for task in tasks:
            if task.survival is not None:
                survival[task.name] = report_survival(task, joined, rows, manifest, config)
                advance(task.name)
                continue
            reports[task.name] = report_task(task, joined, elsewhere, config)
            rocs[task.name] = roc_plots(reports[task.name], config) if bands else []
            if calibration is not None:
                doubt = report_doubt(task, reports[task.name].joined, calibration, manifest, config)
                doubts |= {task.name: doubt} if doubt is not None else {}
            staged = report_stages(reports[task.name], slides_of_case, config)
            staged = staged or report_patient_stages(reports[task.name], config)
            if staged is not None:
                stages[task.name] = staged
            advance(task.name)
    froc, froc_task = None, None
    if config.annotations is not None:
        froc_task = _froc_task(reports)
        froc = report_froc(_slide_by_slide(reports[froc_task], slides, manifest), config, progress)
    faithful = _faithfulness(tasks, joined, config, progress) if config.faithfulness else {}
    return Evaluation(joined, reports, rocs, stages, froc, froc_task, doubts, survival, faithful)


def _faithfulness(
    tasks: Sequence[TaskConfig], joined: Joined, config: EvaluationConfig, progress: Progress
) -> "Mapping[str, FaithfulnessReport]":
    from wsi_ips.evaluation.run.faithfulness import report_faithfulness  # torch is needed for nothing else

    if joined.bag == "case":
        raise ResultsError(
            config.run,
            "read all slides of a case as one bag, and patches are removed slide by slide",
            "leave --faithfulness out",
        )
    return report_faithfulness(tasks, [record for record, _ in joined.pairs], config, progress)


def _slide_by_slide(report: TaskReport, slides: Joined, manifest: Manifest) -> TaskReport:
    """The same report with a pair for each slide, whose outlines are its own, where cases were read as bags."""
    if report.joined.bag == "slide":
        return report
    task = report.scored.task
    pairs = with_labels_of_cases(slides.pairs, manifest, [task])
    joined = replace(slides, pairs=tuple(pairs)).of_task(task)
    return replace(report, joined=joined, scored=joined.scored(task, threshold=report.scored.threshold))


def _froc_task(reports: Mapping[str, TaskReport]) -> str:
    """The first task that says whether there is a lesion."""
    for name, report in reports.items():
        if report.scored.kind in ("binary", "multiclass"):
            return name
    raise ConfigError(
        f"FROC needs a task with classes of which the first has no lesion, not {', '.join(reports)}"
    )


def draw(
    out: Path, config: EvaluationConfig, done: Evaluation, history: Mapping[str, list[float]] | None
) -> None:
    """Draw the plots into ``out`` as PNGs. history: losses of the training, by column."""
    for name, report in done.tasks.items():
        end = f"_{name}" if len(done.tasks) > 1 else ""
        title = f"{name}, split {config.split}"
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
    draw_survival(out, done.survival, several=len(done.tasks) + len(done.survival) > 1, split=config.split)
    if done.froc is not None:
        named = [NamedFroc(by, one.curve, one.score, one.band) for by, one in done.froc.by.items()]
        draw_froc(out / "froc.png", named, title=f"{done.froc_task}, split {config.split}")
    if done.faithfulness:
        from wsi_ips.evaluation.run.faithfulness import draw_faithfulness

        for name, faithful in done.faithfulness.items():
            end = f"_{name}" if len(done.faithfulness) > 1 else ""
            draw_faithfulness(out / f"faithfulness{end}.png", faithful, split=config.split)
    if history is not None and config.history is not None:
        draw_history(out / "loss.png", history, title=f"losses of {config.history.resolve().parent.name}")


def headlines(done: Evaluation) -> list[str]:
    """The figures that count, as lines to print."""
    lines = []
    for name, report in done.tasks.items():
        wanted = HEADLINES[report.scored.kind] or tuple(report.figures)
        wanted = (*(["quadratic_kappa"] if "quadratic_kappa" in report.figures else []), *wanted)
        lines.append(f"{name}: {_figures_in_words(wanted, report.figures)}")
        if report.case_figures:
            first = wanted[0]
            cases = len(report.pooled.slides)
            lines.append(
                f"{name}, {count(cases, 'patient')}: " + _in_words(first, report.case_figures[first])
            )
        if name in done.stages:
            lines.append(f"{name}: " + _in_words("pN stage, quadratic kappa", done.stages[name].kappa))
        if name in done.doubts:
            lines += doubt_in_words(name, done.doubts[name])
    for name, survival in done.survival.items():
        lines.append(f"{name}: {survival.predicted.follow_up.counts}")
        shown = [
            key for key in ("c_index", "c_index_uno", "ibs", "ibs_kaplan_meier") if key in survival.figures
        ]
        lines.append(f"{name}: {_figures_in_words(shown, survival.figures)}")
        if survival.groups.test is not None:
            lines.append(f"{name}: log-rank p of the risk groups {survival.groups.test.p:.3g}")
    if done.froc is not None:
        for by, one in done.froc.by.items():
            counts = f"{count(one.curve.lesions, 'lesion')}, {count(one.curve.slides, 'slide')}"
            lines.append(_in_words(f"FROC score by {by}", one.score) + f" ({counts})")
    for faithful in done.faithfulness.values():
        lines += faithful.in_words()
    return lines


def _figures_in_words(names: Sequence[str], figures: Mapping[str, Interval]) -> str:
    """Figures of the same slides in one line; why there are no intervals stands once, at its end."""
    reasons = {figures[name].why_none for name in names} - {""}
    told = ", ".join(_in_words(name, replace(figures[name], why_none="")) for name in names)
    return told + "".join(f" (too few for an interval: {why})" for why in sorted(reasons))


def _in_words(name: str, interval: Interval) -> str:
    name = figure_name(name)
    if math.isnan(interval.value):
        return f"{name} not defined"
    if interval.why_none:
        return f"{name} {interval.value:.3f} (too few for an interval: {interval.why_none})"
    if math.isnan(interval.low):
        return f"{name} {interval.value:.3f}"
    return f"{name} {interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
