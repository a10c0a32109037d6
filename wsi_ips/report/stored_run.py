"""What a prediction run left behind, put together: its slides with status and answers, its settings.

A run that is still going on, or was killed, can be reported too: the tables in its folder are always whole.

What ``wsi-ips finetune`` left: losses epoch by epoch, its settings, and whether the run's checkpoint is its.

What ``wsi-ips evaluate`` left: figures with intervals, what became of each slide, plots.
"""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from wsi_ips.config import TaskConfig
from wsi_ips.errors import ResultsError, one_line
from wsi_ips.evaluation.plots import read_history
from wsi_ips.inference.predictions import PredictionRow, read_predictions
from wsi_ips.inference.results import Probabilities
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.telemetry import SlideRow, SlideTelemetry, read_slide_table
from wsi_ips.storage.files import check_size
from wsi_ips.storage.held_folder import read_description
from wsi_ips.storage.location import is_file_name

SlideStatus = Literal["ok", "failed", "unfinished"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSlide:
    """One slide of a run. number: its place in the run, from 1. path: where predict read it; empty where that is
    not known. unfinished: the run ended, or is still going on. error: of a slide that is ok, what else failed.
    telemetry: None where its time was not written down."""

    number: int
    slide_id: str
    status: SlideStatus
    path: str = ""
    probabilities: Probabilities | None = None
    n_patches: int | None = None
    error: str = ""
    telemetry: SlideTelemetry | None = None


@dataclass(frozen=True, slots=True)
class StoredRun:
    """tasks: the model's. slides: in the run's order. description: ``run.json``. notes: what is not as it should
    be, in words."""

    folder: RunFolder
    tasks: Sequence[TaskConfig]
    slides: Sequence[StoredSlide]
    description: Mapping[str, Any]
    notes: Sequence[str] = ()

    @property
    def of_features(self) -> bool:
        """Whether stored features were labelled, not slides."""
        config = self.description.get("config")
        return isinstance(config, dict) and bool(config.get("features"))


def read_run(folder: RunFolder, tasks: Sequence[TaskConfig]) -> StoredRun:
    """Read a run's tables and its description.

    A ``slides.csv`` that cannot be read costs the times only. Raises :class:`ResultsError` for predictions or a
    description that cannot be read, and for a run without a slide.
    """
    predicted = {row.slide_id: row for row in read_predictions(folder.predictions, tasks=tasks)}
    notes = []
    begun: Mapping[str, SlideRow] = {}
    try:
        if folder.slides.is_file():
            begun = read_slide_table(folder.slides)
        else:
            notes.append("The run has no slides.csv: where its time went is not known.")
    except ResultsError as error:
        notes.append(f"Where the time went is not known: {error}")
    slide_ids = list(dict.fromkeys([*begun, *predicted]))
    if not slide_ids:
        raise ResultsError(folder.predictions, "holds no slides", "let wsi-ips predict finish some first")
    slides = [
        _slide(number, slide_id, predicted.get(slide_id), begun.get(slide_id))
        for number, slide_id in enumerate(slide_ids, start=1)
    ]
    try:
        description = read_description(folder.description)
    except (OSError, ValueError) as error:
        raise ResultsError(
            folder.description, f"cannot be read ({one_line(error)})", "predict again"
        ) from None
    return StoredRun(folder, tasks, slides, description, notes)


def _slide(number: int, slide_id: str, row: PredictionRow | None, begun: SlideRow | None) -> StoredSlide:
    path = begun.path if begun else ""
    if row is None:
        status: SlideStatus = "failed" if begun and begun.status == "failed" else "unfinished"
        return StoredSlide(
            number=number, slide_id=slide_id, status=status, path=path, error=begun.error if begun else ""
        )
    measured = begun is not None and begun.status == "ok" and begun.telemetry.seconds > 0
    return StoredSlide(
        number=number,
        slide_id=slide_id,
        status=row.status,
        path=path,
        probabilities=row.probabilities if row.status == "ok" else None,
        n_patches=row.n_patches,
        error=row.error,
        telemetry=begun.telemetry if begun and measured else None,
    )


def attention_file(run: StoredRun, slide_id: str) -> Path | None:
    """Where a slide's attention is stored; None for an id that is no file name, which predict never wrote."""
    return run.folder.attention(slide_id) if is_file_name(slide_id) else None


CHECKPOINTS = ("model.safetensors", "last.safetensors")
MEND = "name the folder that wsi-ips finetune wrote"


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """history: {column: a number an epoch}. checkpoint: which of its files the run was made with, None: neither.
    description: its ``run.json``, empty where there is none."""

    folder: Path
    history: Mapping[str, Sequence[float]]
    checkpoint: str | None
    description: Mapping[str, Any]

    @property
    def doubts(self) -> list[str]:
        """What says that the run has not found anything, as ``finetune`` said it."""
        said = self.description.get("doubts", [])
        return [str(doubt) for doubt in said] if isinstance(said, list) else []

    @property
    def best_epoch(self) -> int | None:
        """The epoch, from 1, with the lowest validation loss; None where none was measured."""
        losses = self.history.get("val_loss", ())
        known = [(loss, place) for place, loss in enumerate(losses) if loss == loss]
        return int(self.history["epoch"][min(known)[1]]) + 1 if known else None


def read_training(folder: Path, run: StoredRun) -> TrainingRun:
    """Read a training run's folder. Raises :class:`ResultsError` for one that is none, with the mend."""
    if not (folder / "history.csv").is_file():
        folds = sorted(path.name for path in folder.glob("fold_*") if (path / "history.csv").is_file())
        mend = f"name one fold's: {folder / folds[0]}" if folds else MEND
        raise ResultsError(folder, "holds no history.csv", mend)
    history = read_history(folder / "history.csv")
    try:
        description = read_description(folder / "run.json")
    except (OSError, ValueError):
        description = {}  # the losses are what was asked for
    return TrainingRun(folder, history, _checkpoint(folder, run), description)


def _checkpoint(folder: Path, run: StoredRun) -> str | None:
    described = run.description.get("checkpoint")
    wanted = described.get("sha256") if isinstance(described, dict) else None
    for name in CHECKPOINTS:
        path = folder / name
        if wanted and path.is_file():
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == wanted:
                    return name
    return None


LARGEST_METRICS_BYTES = 2**26
LARGEST_TABLE_BYTES = 2**28
EVALUATION_MEND = "name the folder that wsi-ips evaluate wrote"


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


class GroupTest(_Part):
    """The log-rank test of groups of risk."""

    p: float


class RiskGroups(_Part):
    log_rank: GroupTest | None = None
    edges_from: str = ""


class SurvivalFigures(_Part):
    """Of patients. unit: what times are counted in."""

    patients: int
    events: int
    unit: str
    metrics: dict[str, Figure]
    risk_groups: RiskGroups = RiskGroups()


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


class SlideCounts(_Part):
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
    slides: SlideCounts
    intervals: Intervals
    tasks: dict[str, TaskFigures]
    stages: dict[str, Stages] = {}
    survival: dict[str, SurvivalFigures] = {}
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
        raise ResultsError(folder, "holds no metrics.json", EVALUATION_MEND)
    check_size(path, ResultsError, most=LARGEST_METRICS_BYTES, mend=EVALUATION_MEND)
    try:
        metrics = Metrics.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ResultsError(
            path, f"is no evaluation ({where}: {one_line(first['msg'])})", EVALUATION_MEND
        ) from None
    names = ("roc*", "kaplan_meier*", "froc", "reliability*")
    plots = [plot for name in names for plot in sorted(folder.glob(f"{name}.png"))]
    return StoredEvaluation(folder, metrics, _judged(folder / "slides.csv", run), plots)


def _judged(path: Path, run: StoredRun) -> dict[str, dict[str, Judged]]:
    if not path.is_file():
        raise ResultsError(path, "does not exist", EVALUATION_MEND)
    check_size(path, ResultsError, most=LARGEST_TABLE_BYTES, mend=EVALUATION_MEND)
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
        raise ResultsError(
            path, f"is no table of scored slides ({one_line(error)})", EVALUATION_MEND
        ) from None
    return found


def _check_same(path: Path, slide_id: str, scored: str, outputs: Mapping[str, float]) -> None:
    """Both tables hold numbers that read back exactly."""
    if not {float(number) for number in scored.split(";")} <= set(outputs.values()):
        raise ResultsError(
            path,
            f"slide {slide_id!r} was scored with other predictions than this run's",
            "evaluate this run: wsi-ips evaluate RUN MANIFEST",
        )
