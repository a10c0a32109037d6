"""What a report is made from: a prediction run, and the training and evaluation that belong to it.

- :func:`read_run`: the slides of a run with their status and answers, and its settings. A run that is still going
  on or was killed can be reported too, for the tables in its folder are always whole.
- :func:`read_training`: what ``wsi-ips finetune`` left: losses by epoch, settings, and whether the run used its
  checkpoint.
- :func:`read_evaluation`: what ``wsi-ips evaluate`` left: figures with intervals, each slide's verdict, plots.
"""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from wsi_ips.config import TaskConfig
from wsi_ips.errors import ResultsError, harmless, one_line
from wsi_ips.inference.case_answers import JOINER
from wsi_ips.inference.predictions import PredictionRow, read_predictions
from wsi_ips.inference.results import Probabilities
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.telemetry import SlideRow, SlideTelemetry, read_slide_table
from wsi_ips.report.stored_comparison import StoredComparison, read_comparison
from wsi_ips.storage.files import check_size, many_objects
from wsi_ips.storage.held_folder import read_description
from wsi_ips.storage.location import is_file_name
from wsi_ips.storage.stored_json import read_stored_json
from wsi_ips.timeline import TIMELINE_NAME, read_timeline
from wsi_ips.timeline import Stages as StageSums
from wsi_ips.training.model_card import CARD_NAME

SlideStatus = Literal["ok", "failed", "unfinished"]
"""What became of a slide."""

CHECKPOINTS = ("model.safetensors", "last.safetensors", "head_start.safetensors")
"""The checkpoints that a training run leaves."""

TRAINING_FIX = "name the folder that wsi-ips finetune wrote"
"""What to do about a folder that is no training run."""

LARGEST_METRICS_BYTES = 2**26
"""The largest ``metrics.json`` that is read."""

LARGEST_TABLE_BYTES = 2**28
"""The largest ``slides.csv`` of an evaluation that is read."""

LARGEST_CARD_BYTES = 2**20
"""The largest model card that is read."""

EVALUATION_FIX = "name the folder that wsi-ips evaluate wrote"
"""What to do about a folder that is no evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSlide:
    """One slide of a run.

    ``number`` is its place in the run, from 1. ``path`` is where predict read it, empty if that is not known. The
    status ``unfinished`` means that the run ended before the slide, or is still going on. ``error`` of a slide
    that is ok says what else failed. ``telemetry`` is None if its time was not recorded.
    """

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
    """A run as it is stored.

    ``tasks`` are the model's, ``slides`` are in the run's order, ``description`` is ``run.json``. ``notes`` say in
    words what is not as it should be. ``timeline`` are the sums of its ``timeline.json``, None without one.
    """

    folder: RunFolder
    tasks: Sequence[TaskConfig]
    slides: Sequence[StoredSlide]
    description: Mapping[str, Any]
    notes: Sequence[str] = ()
    timeline: StageSums | None = None

    @property
    def of_features(self) -> bool:
        """Whether the run predicted from stored features and not from slides."""
        config = self.description.get("config")
        return isinstance(config, dict) and bool(config.get("features"))


def read_run(folder: RunFolder, tasks: Sequence[TaskConfig]) -> StoredRun:
    """Read a run's tables and its description.

    If ``slides.csv`` or ``timeline.json`` cannot be read, only the times are missing. Raises
    :class:`ResultsError` for predictions or a description that cannot be read, and for a run without slides.
    """
    notes = []
    begun: Mapping[str, SlideRow] = {}
    with many_objects():
        predicted = read_predictions(folder.predictions, tasks=tasks)
        try:
            if folder.slides.is_file():
                begun = read_slide_table(folder.slides)
            else:
                notes.append("The run has no slides.csv: where its time went is not known.")
        except ResultsError as error:
            notes.append(f"Where the time went is not known: {error}")
    return run_of_tables(folder, tasks, predicted, begun, notes=notes)


def run_of_tables(
    folder: RunFolder,
    tasks: Sequence[TaskConfig],
    predictions: Sequence[PredictionRow],
    begun: Mapping[str, SlideRow],
    *,
    notes: Sequence[str] = (),
) -> StoredRun:
    """The run whose tables hold these rows. Only its description is read.

    ``begun`` maps slide ids to their rows of ``slides.csv``. Raises :class:`ResultsError` for a description that
    cannot be read, and for a run without slides.
    """
    with many_objects():
        predicted = {row.slide_id: row for row in predictions}
        slides = [
            _slide(number, slide_id, predicted.get(slide_id), begun.get(slide_id))
            for number, slide_id in enumerate(dict.fromkeys([*begun, *predicted]), start=1)
        ]
    if not slides:
        raise ResultsError(folder.predictions, "holds no slides", "let wsi-ips predict finish some first")
    try:
        description = read_description(folder.description)
    except (OSError, ValueError) as error:
        raise ResultsError(
            folder.description, f"cannot be read ({one_line(error)})", "predict again"
        ) from None
    timeline, why = _timeline(folder.root / TIMELINE_NAME)
    return StoredRun(folder, tasks, slides, description, [*notes, *why], timeline)


def _timeline(path: Path) -> tuple[StageSums | None, list[str]]:
    """The sums of a timeline, and a note if there is one that cannot be read."""
    if not path.is_file():
        return None, []
    try:
        return read_timeline(path), []
    except ResultsError as error:
        return None, [f"The timeline is left out: {error}"]


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
    """Where a slide's attention is stored; None for an id that is no file name.

    For such an id predict stores nothing.
    """
    return run.folder.attention(slide_id) if is_file_name(slide_id) else None


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A training run as it is stored.

    ``history`` maps columns to one number per epoch. ``checkpoint`` is the file with which the prediction run was
    made, None if it was made with neither. ``description`` is its ``run.json``, empty if there is none. ``card``
    is the text of its model card, empty if there is none.
    """

    folder: Path
    history: Mapping[str, Sequence[float]]
    checkpoint: str | None
    description: Mapping[str, Any]
    card: str = ""

    @property
    def doubts(self) -> list[str]:
        """The reasons to doubt that training has found anything, as ``finetune`` stated them."""
        said = self.description.get("doubts", [])
        return [str(doubt) for doubt in said] if isinstance(said, list) else []

    @property
    def best_epoch(self) -> int | None:
        """The epoch, from 1, with the lowest validation loss; None if none was measured."""
        losses = self.history.get("val_loss", ())
        known = [(loss, place) for place, loss in enumerate(losses) if loss == loss]
        return int(self.history["epoch"][min(known)[1]]) + 1 if known else None


def read_training(folder: Path, run: StoredRun) -> TrainingRun:
    """Read the folder of a training run. Raises :class:`ResultsError` if it is none, or cannot be read."""
    if not (folder / "history.csv").is_file():
        folds = sorted(path.name for path in folder.glob("fold_*") if (path / "history.csv").is_file())
        fix = f"name one fold's: {folder / folds[0]}" if folds else TRAINING_FIX
        raise ResultsError(folder, "holds no history.csv", fix)
    from wsi_ips.evaluation.plots import (
        read_history,
    )  # imports a quarter of SciPy, which a summary does without

    history = read_history(folder / "history.csv")
    try:
        description = read_description(folder / "run.json")
    except (OSError, ValueError):
        description = {}  # the losses are what was asked for
    return TrainingRun(folder, history, _checkpoint(folder, run), description, _card(folder / CARD_NAME))


def _card(path: Path) -> str:
    if not path.is_file():
        return ""
    check_size(path, ResultsError, most=LARGEST_CARD_BYTES, fix="move the file away, or train again")
    return harmless(path.read_text(encoding="utf-8", errors="replace"))


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


class _Part(BaseModel):
    """A part of ``metrics.json``. Later versions may write more than is read here."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Figure(_Part):
    """A figure with its interval; None if these slides do not determine it."""

    value: float | None
    low: float | None = None
    high: float | None = None
    why_none: str = ""
    """Why no interval is stated although one was asked for."""


class Cases(_Part):
    """Figures by case: how many cases were pooled, those with mixed labels, and metrics."""

    pooled: int = 0
    mixed: tuple[str, ...] = ()
    metrics: dict[str, Figure] = {}


class Confusion(_Part):
    """A confusion matrix of counts: one row per label, one column per predicted class."""

    classes: tuple[str, ...]
    rows_are_labels: tuple[tuple[int, ...], ...]


class Threshold(_Part):
    """The threshold of a yes-or-no task, and the split on which it was chosen."""

    value: float
    chosen_on: str | None = None


class TaskFigures(_Part):
    """The figures of one task."""

    kind: str
    classes: tuple[str, ...]
    metrics: dict[str, Figure]
    cases: Cases = Cases()
    positive: str | None = None
    threshold: Threshold | None = None
    auc_delong: Figure | None = None
    confusion: Confusion | None = None


class Stages(_Part):
    """pN stages of CAMELYON17: the challenge's kappa, and the patients without all their slides."""

    quadratic_kappa: Figure
    incomplete: tuple[str, ...] = ()


class GroupTest(_Part):
    """The log-rank test between groups of risk."""

    p: float


class RiskGroups(_Part):
    """Groups of patients by risk: their log-rank test, and the split whose risks they are cut at."""

    log_rank: GroupTest | None = None
    edges_from: str = ""


class SurvivalFigures(_Part):
    """The figures of a survival task over patients. ``unit`` is the unit of times."""

    patients: int
    events: int
    unit: str
    metrics: dict[str, Figure]
    risk_groups: RiskGroups = RiskGroups()


class FrocFigures(_Part):
    """A FROC score, and the sensitivity at each number of false positives per slide."""

    score: Figure
    sensitivity_at: dict[str, float | None]


class Froc(FrocFigures):
    """FROC of a task: of its own detections, and of others beside them.

    ``detections`` says of what they are the maxima; it is empty in evaluations of earlier versions, which only
    knew attention.
    """

    task: str
    slides: int
    lesions: int
    detections: str = ""
    beside: dict[str, FrocFigures] = {}


class FaithfulMap(_Part):
    """How faithful one map is: areas between curves, means over slides."""

    between: Figure
    random: Figure
    above_random: Figure


class Faithfulness(_Part):
    """How faithful the maps of a task are, by their names."""

    slides: int
    random_orders: int
    explanations: dict[str, FaithfulMap]


class SlideCounts(_Part):
    """How many slides were scored, and what became of the others."""

    in_split: int
    bag: Literal["slide", "case"] = "slide"
    scored: int
    cases: int
    failed: dict[str, str] = {}
    missing: tuple[str, ...] = ()
    predicted_elsewhere: int = 0


class Intervals(_Part):
    """How intervals were computed."""

    level: float
    resamples: int


class EvaluationJob(_Part):
    """What was asked of the evaluation, as far as the report says it."""

    split: str
    manifest: str
    pool: str = "max"


class Metrics(_Part):
    """The content of ``metrics.json``."""

    job: EvaluationJob
    slides: SlideCounts
    intervals: Intervals
    tasks: dict[str, TaskFigures]
    stages: dict[str, Stages] = {}
    survival: dict[str, SurvivalFigures] = {}
    froc: Froc | None = None
    faithfulness: dict[str, Faithfulness] = {}


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict on one slide in one task. ``correct`` is None if it cannot be said."""

    label: str
    correct: bool | None


@dataclass(frozen=True, slots=True)
class StoredEvaluation:
    """An evaluation as it is stored.

    ``slides`` maps slide ids to {task: verdict}. ``plots`` are PNG files in reading order. ``comparison`` is with
    another run on the same slides, if there is one.
    """

    folder: Path
    metrics: Metrics
    slides: Mapping[str, Mapping[str, Judged]]
    plots: Sequence[Path]
    comparison: StoredComparison | None = None


def read_evaluation(folder: Path, run: StoredRun) -> StoredEvaluation:
    """Read an evaluation of ``run``.

    Raises :class:`ResultsError` for a folder that is no evaluation, for files that cannot be read, and for an
    evaluation of other predictions, because figures of one run beside pictures of another would mislead.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        raise ResultsError(folder, "holds no metrics.json", EVALUATION_FIX)
    metrics = read_stored_json(
        path, Metrics, ResultsError, what="evaluation", most=LARGEST_METRICS_BYTES, fix=EVALUATION_FIX
    )
    names = ("roc*", "kaplan_meier*", "froc", "faithfulness*", "reliability*")
    plots = [plot for name in names for plot in sorted(folder.glob(f"{name}.png"))]
    judged = _judged(folder / "slides.csv", run)
    return StoredEvaluation(folder, metrics, judged, plots, read_comparison(folder))


def _judged(path: Path, run: StoredRun) -> dict[str, dict[str, Judged]]:
    if not path.is_file():
        raise ResultsError(path, "does not exist", EVALUATION_FIX)
    check_size(path, ResultsError, most=LARGEST_TABLE_BYTES, fix=EVALUATION_FIX)
    predicted = {slide.slide_id: slide.probabilities for slide in run.slides}
    found: dict[str, dict[str, Judged]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, strict=True):
                task, correct = row["task"], {"1": True, "0": False}.get(row["correct"])
                named = row["slide_id"]
                # Where all slides of a case were read as one bag, a row is a case.
                for slide_id in [named] if named in predicted else named.split(JOINER):
                    if row["status"] == "ok":
                        outputs = (predicted.get(slide_id) or {}).get(task, {})
                        _check_same(path, slide_id, row["probability"] or row["predicted"], outputs)
                    found.setdefault(slide_id, {})[task] = Judged(row["label"], correct)
    except (csv.Error, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ResultsError(
            path, f"is no table of scored slides ({one_line(error)})", EVALUATION_FIX
        ) from None
    return found


def _check_same(path: Path, slide_id: str, scored: str, outputs: Mapping[str, float]) -> None:
    """Raise :class:`ResultsError` if a scored probability is none of the run's; both tables hold exact numbers."""
    if not {float(number) for number in scored.split(";")} <= set(outputs.values()):
        raise ResultsError(
            path,
            f"slide {slide_id!r} was scored with other predictions than this run's",
            "evaluate this run: wsi-ips evaluate RUN MANIFEST",
        )
