"""What ``wsi-ips evaluate`` left: figures with intervals, what became of each slide, plots."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from wsi_ips.errors import ResultsError, one_line
from wsi_ips.report.stored_run import StoredRun

LARGEST_METRICS_BYTES = 2**26
LARGEST_TABLE_BYTES = 2**28
MEND = "name the folder that wsi-ips evaluate wrote"


class _Part(BaseModel):
    """A part of ``metrics.json``; later versions may say more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Figure(_Part):
    """A figure with its interval; None: what these slides cannot tell."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Cases(_Part):
    pooled: int = 0
    mixed: tuple[str, ...] = ()
    metrics: dict[str, Figure] = {}


class Confusion(_Part):
    """rows_are_labels: counts; a row a label, a column a call."""

    classes: tuple[str, ...]
    rows_are_labels: tuple[tuple[int, ...], ...]


class Threshold(_Part):
    value: float
    chosen_on: str | None = None


class TaskFigures(_Part):
    kind: str
    classes: tuple[str, ...]
    metrics: dict[str, Figure]
    cases: Cases = Cases()
    positive: str | None = None
    threshold: Threshold | None = None
    auc_delong: Figure | None = None
    confusion: Confusion | None = None


class Stages(_Part):
    quadratic_kappa: Figure
    incomplete: tuple[str, ...] = ()


class FrocFigures(_Part):
    """sensitivity_at: {false positives a slide: sensitivity}."""

    score: Figure
    sensitivity_at: dict[str, float | None]


class Froc(FrocFigures):
    """detections: what they are the maxima of; empty in evaluations of earlier versions, which had attention
    alone. beside: the same by others."""

    task: str
    slides: int
    lesions: int
    detections: str = ""
    beside: dict[str, FrocFigures] = {}


class Scored(_Part):
    in_split: int
    scored: int
    cases: int
    failed: dict[str, str] = {}
    missing: tuple[str, ...] = ()
    predicted_elsewhere: int = 0


class Intervals(_Part):
    level: float
    resamples: int


class EvaluationJob(_Part):
    """Of what was asked for."""

    split: str
    manifest: str
    pool: str = "max"


class Metrics(_Part):
    """``metrics.json``."""

    job: EvaluationJob
    slides: Scored
    intervals: Intervals
    tasks: dict[str, TaskFigures]
    stages: dict[str, Stages] = {}
    froc: Froc | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """One slide in one task. correct: None where it cannot be said."""

    label: str
    correct: bool | None


@dataclass(frozen=True, slots=True)
class StoredEvaluation:
    """slides: {slide_id: {task: what became of it}}. plots: PNG files, in reading order."""

    folder: Path
    metrics: Metrics
    slides: Mapping[str, Mapping[str, Judged]]
    plots: Sequence[Path]


def read_evaluation(folder: Path, run: StoredRun) -> StoredEvaluation:
    """Read an evaluation of ``run``.

    Raises :class:`ResultsError` for a folder that is none, for files that cannot be read, and for an evaluation of
    other predictions: figures of one run beside pictures of another would mislead.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        raise ResultsError(folder, "holds no metrics.json", MEND)
    if path.stat().st_size > LARGEST_METRICS_BYTES:
        raise ResultsError(path, f"is larger than {LARGEST_METRICS_BYTES} bytes", MEND)
    try:
        metrics = Metrics.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ResultsError(path, f"is no evaluation ({where}: {one_line(first['msg'])})", MEND) from None
    plots = [plot for name in ("roc*", "froc", "reliability*") for plot in sorted(folder.glob(f"{name}.png"))]
    return StoredEvaluation(folder, metrics, _judged(folder / "slides.csv", run), plots)


def _judged(path: Path, run: StoredRun) -> dict[str, dict[str, Judged]]:
    if not path.is_file():
        raise ResultsError(path, "does not exist", MEND)
    if path.stat().st_size > LARGEST_TABLE_BYTES:
        raise ResultsError(path, f"is larger than {LARGEST_TABLE_BYTES} bytes", MEND)
    predicted = {slide.slide_id: slide.probabilities for slide in run.slides}
    found: dict[str, dict[str, Judged]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, strict=True):
                slide_id, task = row["slide_id"], row["task"]
                if row["status"] == "ok":
                    outputs = (predicted.get(slide_id) or {}).get(task, {})
                    _check_same(path, slide_id, row["probability"] or row["predicted"], outputs)
                correct = {"1": True, "0": False}.get(row["correct"])
                found.setdefault(slide_id, {})[task] = Judged(row["label"], correct)
    except (csv.Error, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ResultsError(path, f"is no table of scored slides ({one_line(error)})", MEND) from None
    return found


def _check_same(path: Path, slide_id: str, scored: str, outputs: Mapping[str, float]) -> None:
    """Both tables hold numbers that read back exactly."""
    if not {float(number) for number in scored.split(";")} <= set(outputs.values()):
        raise ResultsError(
            path,
            f"slide {slide_id!r} was scored with other predictions than this run's",
            "evaluate this run: wsi-ips evaluate RUN MANIFEST",
        )
