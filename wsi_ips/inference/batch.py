"""A folder of slides, one after the other: a bad slide becomes a row with its reason, the others finish."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wsi_ips.errors import WsiIpsError
from wsi_ips.files import whole_file
from wsi_ips.inference.predict import Predictor
from wsi_ips.inference.results import PredictionRow, SlideResult, write_predictions, write_result
from wsi_ips.location import Location
from wsi_ips.progress import Progress, silent
from wsi_ips.units import Mpp
from wsi_ips.versions import versions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SlideJob:
    """One slide to predict; ``mpp`` is used instead of the file's own resolution."""

    slide_id: str
    path: Location
    mpp: Mpp | None = None


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a prediction run keeps what it writes."""

    root: Path

    @property
    def predictions(self) -> Path:
        return self.root / "predictions.csv"

    @property
    def description(self) -> Path:
        return self.root / "run.json"

    def attention(self, slide_id: str) -> Path:
        return self.root / "attention" / f"{slide_id}.h5"

    def overlay(self, slide_id: str) -> Path:
        return self.root / "overlays" / f"{slide_id}.png"


def predict_slides(
    jobs: Sequence[SlideJob],
    predictor: Predictor,
    run: RunFolder,
    *,
    draw: Callable[[SlideResult, Path], None] | None = None,
    on_error: Literal["report", "raise"] = "report",
    progress: Progress = silent,
) -> list[PredictionRow]:
    """Predict every job; write each slide's HDF5 and the table so far, so that a killed run leaves whole files.

    ``draw(result, path)`` may draw the slide's overlay; where it fails the label stands, and the row says why.
    With ``report`` a slide's error becomes its row; with ``raise`` it ends the run.
    """
    tasks = predictor.pipeline.model.tasks
    rows: list[PredictionRow] = []
    with progress("Predicting", total=len(jobs)) as advance:
        for job in jobs:
            try:
                rows.append(_predict(job, predictor, run, draw=draw, progress=progress))
            except Exception as error:  # whatever a decoder may raise is this slide's failure, not the run's
                if on_error == "raise":
                    raise
                rows.append(_failure(job, error))
            write_predictions(run.predictions, rows, tasks=tasks)
            advance(f"{job.slide_id}: {rows[-1].status}")
    return rows


def _predict(
    job: SlideJob,
    predictor: Predictor,
    run: RunFolder,
    *,
    draw: Callable[[SlideResult, Path], None] | None,
    progress: Progress,
) -> PredictionRow:
    result = predictor.predict(job.path, slide_id=job.slide_id, mpp=job.mpp, progress=progress)
    write_result(run.attention(job.slide_id), result)
    undrawn = ""
    if draw is not None:
        try:
            draw(result, run.overlay(job.slide_id))
        except Exception as error:  # noqa: BLE001 - the label took minutes and stands without its picture
            undrawn = f"overlay of {job.slide_id} not drawn: {_reason(job, error)}"
    return PredictionRow.done(result, error=undrawn)


def _failure(job: SlideJob, error: Exception) -> PredictionRow:
    return PredictionRow.failed(job.slide_id, _reason(job, error))


def _reason(job: SlideJob, error: Exception) -> str:
    """The error in words; what was not raised on purpose goes to the log with its trace."""
    if isinstance(error, WsiIpsError):
        return str(error)
    logger.error("slide %s failed", job.slide_id, exc_info=error)
    return f"{type(error).__name__}: {error}"


def describe_run(run: RunFolder, *, config: Mapping[str, object], checkpoint: Path, sha256: str) -> None:
    """Write ``run.json``: what was run, with which checkpoint and versions."""
    description = {
        "command": "predict",
        "config": config,
        "checkpoint": {"path": str(checkpoint), "sha256": sha256},
        "versions": versions(),
    }
    with whole_file(run.description) as partial:
        partial.write_text(json.dumps(description, indent=2) + "\n")
