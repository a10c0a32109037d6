"""What ``evaluate`` leaves: tables as CSV, figures as JSON."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.manifest import SlideRecord
from wsi_ips.evaluation.froc import RATES, write_detections
from wsi_ips.evaluation.intervals import LEVEL, Interval
from wsi_ips.evaluation.run.config import EvaluationConfig
from wsi_ips.evaluation.run.doubt import DoubtReport, doubt_json
from wsi_ips.evaluation.run.froc import FrocReport, FrocScore
from wsi_ips.evaluation.run.joined import Joined
from wsi_ips.evaluation.run.survival import SurvivalReport
from wsi_ips.evaluation.run.tasks import StageReport, TaskReport
from wsi_ips.evaluation.staging import write_stages, write_submission
from wsi_ips.evaluation.task_scores import Scored, class_rows, positive_class
from wsi_ips.inference.case_answers import JOINER
from wsi_ips.storage.files import whole_file, whole_table
from wsi_ips.storage.fingerprint import versions
from wsi_ips.storage.location import is_file_name

if TYPE_CHECKING:  # its module loads torch
    from wsi_ips.evaluation.run.faithfulness import FaithfulnessReport

SLIDE_COLUMNS = (
    "task",
    "slide_id",
    "case_id",
    "label",
    "predicted",
    "probability",
    "correct",
    "status",
    "error",
)
FROC_COLUMNS = ("threshold", "fps_per_slide", "sensitivity", "detections")
CASE_COLUMNS = ("task", "case_id", "slides", "label", "predicted", "probability", "correct")


def write_tables(
    out: Path,
    tasks: Mapping[str, TaskReport],
    stages: Mapping[str, StageReport],
    froc: FrocReport | None,
    survival: Mapping[str, SurvivalReport],
) -> None:
    """``slides.csv``, ``cases.csv``; of node classes ``submission.csv``; ``froc.csv`` and ``detections/``."""
    labels = (
        row for name, report in tasks.items() for row in _slide_rows(name, report.scored, report.joined)
    )
    times = (row for name, report in survival.items() for row in _survival_rows(name, report))
    _write_csv(out / "slides.csv", SLIDE_COLUMNS, chain(labels, times))
    _write_csv(
        out / "cases.csv",
        CASE_COLUMNS,
        (row for name, report in tasks.items() for row in _case_rows(name, report)),
    )
    for name, report in stages.items():
        end = f"_{name}" if len(tasks) > 1 else ""
        if report.nodes:
            write_submission(out / f"submission{end}.csv", report.nodes)
        else:
            write_stages(out / f"submission{end}.csv", report.predicted)
    if froc is not None:
        _write_csv(out / "froc.csv", FROC_COLUMNS, _froc_rows(froc))
        for slide_id, found in froc.first[1].detections.items():
            write_detections(out / "detections" / f"{slide_id}.csv", found)


def _froc_rows(froc: FrocReport) -> Iterable[Sequence[Any]]:
    """One curve after the other, the one that is asked for first."""
    for by, one in froc.by.items():
        thresholds = [*one.curve.thresholds_T.tolist(), math.inf]
        points = (one.curve.fps_per_slide.tolist(), one.curve.sensitivity.tolist())
        for threshold, fps_per_slide, sensitivity in zip(thresholds, *points, strict=True):
            yield threshold, fps_per_slide, sensitivity, by


def _slide_rows(task: str, scored: Scored, joined: Joined) -> Iterable[Sequence[Any]]:
    """``probability``: of the positive; of one class of several, of the class that is called."""
    for place, ((record, row), called) in enumerate(zip(joined.pairs, _called(scored), strict=True)):
        label = _names(scored, scored.target_NC[place])
        yield (task, record.slide_id, record.case_id, label, *called, "ok", row.error)
    yield from _unscored_rows(scored.task, joined)


def _survival_rows(task: str, report: SurvivalReport) -> Iterable[Sequence[Any]]:
    """``predicted``: risk and survival at the times, as a task of numbers has them."""
    for record, row in report.joined.pairs:
        said = ";".join(repr(row.probabilities[task][name]) for name in report.task.classes)
        label = _cell(record, report.task)
        yield (task, record.slide_id, record.case_id, label, said, "", "", "ok", row.error)
    yield from _unscored_rows(report.task, report.joined)


def _cell(record: SlideRecord, task: TaskConfig) -> str:
    """The manifest's label; of survival, the time and how it ended."""
    if task.survival is None:
        return record.labels[task.column_name]
    time, event = record.labels[task.survival.time], record.labels[task.survival.event]
    return f"{time} {task.survival.unit}, {'event' if event == '1' else 'censored'}" if time else ""


def _unscored_rows(task: TaskConfig, joined: Joined) -> Iterable[Sequence[Any]]:
    unscored = [(record, "failed", row.error) for record, row in joined.failed]
    unscored += [(record, "missing", "not in the predictions") for record in joined.missing]
    unscored += [(record, "unlabelled", "has no label for this task") for record in joined.unlabelled]
    for record, status, why in unscored:
        yield (task.name, record.slide_id, record.case_id, _cell(record, task), "", "", "", status, why)


def _case_rows(task: str, report: TaskReport) -> Iterable[Sequence[Any]]:
    scored = report.pooled.scored
    sizes = report.pooled.slides
    if report.joined.bag == "case":
        sizes = tuple(len(record.slide_id.split(JOINER)) for record, _ in report.joined.pairs)
    rows = zip(scored.case, sizes, _called(scored), strict=True)
    for place, (case, slides, called) in enumerate(rows):
        yield (task, case, slides, _names(scored, scored.target_NC[place]), *called)
    for case in report.pooled.mixed:
        yield (task, case, "", "mixed", "", "", "")


def _called(scored: Scored) -> Iterator[tuple[str, str, str]]:
    """(predicted, probability, correct) of each slide as cells."""
    if scored.kind == "regression":
        yield from ((";".join(map(repr, outputs.tolist())), "", "") for outputs in scored.output_NC)
        return
    # What is called is worked out for all slides at once: for each row it would take as long as for all.
    for outputs, called, correct in zip(scored.output_NC, scored.called, scored.correct, strict=True):
        if scored.kind == "multilabel":
            probability = ";".join(map(repr, outputs.tolist()))
        elif scored.kind == "binary":
            probability = repr(float(outputs[-1]))
        else:
            probability = repr(float(outputs.max()))
        yield _names(scored, called), probability, str(int(correct))


def _names(scored: Scored, values: Any) -> str:
    """Targets or calls of one slide as a manifest's cell would say them."""
    if scored.kind == "regression":
        return ";".join(map(repr, values.tolist()))
    if scored.kind == "multilabel" or len(scored.task.classes) == 1:
        present = [name for name, value in zip(scored.task.classes, values, strict=True) if value]
        return ";".join(present) or "none"
    return scored.task.classes[int(values.argmax())]


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with whole_table(path) as writer:
        writer.writerow(columns)
        writer.writerows(rows)


ONCE = ("froc.csv", "survival.csv", "kaplan_meier.csv", "faithfulness.csv", "against.csv", "against.json",
        "froc.png", "loss.png", "metrics.json")  # fmt: skip
"""What an evaluation may leave beside the tables that each one writes."""
OF_A_TASK = ("submission{}.csv", "roc{}.png", "reliability{}.png", "confusion{}.png", "kaplan_meier{}.png",
             "faithfulness{}.png")  # fmt: skip
"""What it may leave of each task, the only one or one of several."""
LARGEST_METRICS = 2**26
"""Bytes of a ``metrics.json`` that is looked at."""


def forget_evaluation(out: Path) -> None:
    """Remove what an earlier evaluation left in ``out``, so that no plot or table of it lies beside the figures of
    this one, which may have been asked for less. Nothing is removed from a folder that holds no evaluation, and
    ``metrics.json`` goes first: where it is, the evaluation is whole.
    """
    path = out / "metrics.json"
    try:
        if path.stat().st_size > LARGEST_METRICS:
            return
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["job"]["command"] != "evaluate":
            return
        tasks = [str(name) for name in (*held["tasks"], *held.get("survival", {}))]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    path.unlink()
    ends = ["", *(f"_{name}" for name in tasks if is_file_name(name))]
    for name in [*ONCE, *(each.format(end) for each in OF_A_TASK for end in ends)]:
        (out / name).unlink(missing_ok=True)
    if held.get("froc"):
        for old in (out / "detections").glob("*.csv"):
            old.unlink()


def write_metrics(
    path: Path,
    config: EvaluationConfig,
    joined: Joined,
    tasks: Mapping[str, TaskReport],
    stages: Mapping[str, StageReport],
    froc: FrocReport | None,
    *,
    froc_task: str | None,
    doubts: Mapping[str, DoubtReport],
    survival: Mapping[str, SurvivalReport],
    faithfulness: "Mapping[str, FaithfulnessReport]" = MappingProxyType({}),
) -> None:
    """Every figure with its interval. What these slides cannot tell is null."""
    metrics: dict[str, Any] = {
        "job": {"command": "evaluate", **config.model_dump(mode="json")},
        "slides": joined.to_json(),
        "intervals": {
            "level": LEVEL,
            "method": "percentile bootstrap over cases",
            "resamples": config.bootstrap,
            "stratified": config.stratify,
            "seed": config.seed,
        },
        "tasks": {name: _task_json(report, doubts.get(name)) for name, report in tasks.items()},
        "stages": {name: _stage_json(report) for name, report in stages.items()},
        "survival": {name: report.to_json() for name, report in survival.items()},
        "froc": _froc_json(froc, froc_task) if froc else None,
        "versions": versions(),
    }
    if faithfulness:
        metrics["faithfulness"] = {
            name: report.to_json(seed=config.seed) for name, report in faithfulness.items()
        }
    with whole_file(path) as partial:
        partial.write_text(
            json.dumps(without_nan(metrics), indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )


def _task_json(report: TaskReport, doubt: DoubtReport | None) -> dict[str, Any]:
    scored = report.scored
    described: dict[str, Any] = {
        "kind": scored.kind,
        "classes": list(scored.task.classes),
        "without_label": [record.slide_id for record in report.joined.unlabelled],
        "metrics": {name: Interval.to_json(one) for name, one in report.figures.items()},
        "cases": {
            "pooled": len(report.pooled.slides),
            "mixed": list(report.pooled.mixed),
            "metrics": {name: Interval.to_json(one) for name, one in report.case_figures.items()},
        },
    }
    if scored.kind == "binary":
        described["positive"] = positive_class(scored.task)
    if scored.kind in ("binary", "multilabel"):
        described["threshold"] = {"value": scored.threshold, "chosen_on": report.threshold_from}
    if doubt is not None:
        described["doubt"] = doubt_json(doubt)
    if report.delong is not None:
        described["auc_delong"] = Interval.to_json(report.delong)
    if scored.kind != "regression":
        curve = scored.reliability
        described["per_class"] = class_rows(scored)
        described["reliability"] = {
            "slides": curve.count_B.tolist(),
            "predicted": curve.predicted_B.tolist(),
            "observed": curve.observed_B.tolist(),
        }
    if scored.kind in ("binary", "multiclass"):
        described["confusion"] = {
            "classes": list(scored.class_names),
            "rows_are_labels": scored.confusion.tolist(),
        }
    return described


def _stage_json(report: StageReport) -> dict[str, Any]:
    return {
        "quadratic_kappa": Interval.to_json(report.kappa),
        "patients": {
            case: {"label": label, "predicted": report.predicted[case]}
            for case, label in report.labels.items()
        },
        "incomplete": list(report.incomplete),
    }


def _froc_json(froc: FrocReport, task: str | None) -> dict[str, Any]:
    rules = {(rule.l0_mpp, rule.level) for rule in froc.rules.values()}
    by, first = froc.first
    return {
        "task": task,
        "detections": by,
        **_froc_figures(first),
        "beside": {name: _froc_figures(one) for name, one in froc.by.items() if name != by},
        "slides": first.curve.slides,
        "lesions": first.curve.lesions,
        "scales": [{"l0_mpp": float(mpp), "level": level} for mpp, level in sorted(rules)],
        "left_out": {
            "without_outlines": list(froc.unannotated),
            "unread": froc.unread,
            "partly_annotated": froc.partly,
        },
    }


def _froc_figures(one: FrocScore) -> dict[str, Any]:
    return {
        "score": Interval.to_json(one.score),
        "sensitivity_at": dict(zip(map(str, RATES), one.curve.sensitivity_at().tolist(), strict=True)),
    }


def without_nan(value: Any) -> Any:
    """The same without NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
