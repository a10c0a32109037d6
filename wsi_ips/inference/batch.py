"""A folder of slides, one after the other: a bad slide becomes a row with its reason, the others finish."""

import json
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wsi_ips.errors import WsiIpsError
from wsi_ips.files import whole_file
from wsi_ips.inference.predict import Predictor, PreparedSlide
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
    observe: Callable[[SlideResult], None] = lambda _: None,
    progress: Progress = silent,
) -> list[PredictionRow]:
    """Predict every job; write each slide's HDF5 and the table so far, so that a killed run leaves whole files.

    ``draw(result, path)`` may draw the slide's overlay; where it fails the label stands, and the row says why.
    With ``report`` a slide's error becomes its row; with ``raise`` it ends the run. The next slide is opened and
    its tissue found while this one is encoded. ``observe`` sees every result.
    """
    tasks = predictor.pipeline.model.tasks
    rows: list[PredictionRow] = []
    with progress("Predicting", total=len(jobs)) as advance:
        for job, prepared in _prepared_ahead(jobs, predictor):
            try:
                result = predictor.read(prepared(), progress=progress)
                observe(result)
                rows.append(_written(job, result, run, draw=draw))
            except Exception as error:  # whatever a decoder may raise is this slide's failure, not the run's
                if on_error == "raise":
                    raise
                rows.append(_failure(job, error))
            write_predictions(run.predictions, rows, tasks=tasks)
            advance(f"{job.slide_id}: {rows[-1].status}")
    return rows


def _prepared_ahead(
    jobs: Sequence[SlideJob], predictor: Predictor
) -> Iterator[tuple[SlideJob, Callable[[], PreparedSlide]]]:
    """Each job with a call that gives its slide, or raises why there is none; one slide is prepared ahead."""

    def submit(job: SlideJob) -> "Future[PreparedSlide]":
        return pool.submit(predictor.prepare, job.path, slide_id=job.slide_id, mpp=job.mpp)

    waiting: deque[Future[PreparedSlide]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="wsi_ips-prepare") as pool:
        try:
            for number, job in enumerate(jobs):
                if not waiting:
                    waiting.append(submit(job))
                current = waiting.popleft()
                if number + 1 < len(jobs):
                    waiting.append(submit(jobs[number + 1]))
                yield job, current.result
        finally:
            for future in waiting:  # the run ended before its turn came
                if not future.cancel() and future.exception() is None:
                    future.result().slide.close()


def _written(
    job: SlideJob,
    result: SlideResult,
    run: RunFolder,
    *,
    draw: Callable[[SlideResult, Path], None] | None,
) -> PredictionRow:
    write_result(run.attention(job.slide_id), result)
    complaints = []
    if result.bad_tiles:
        shown = ", ".join(result.bad_tiles[:3]) + (", …" if len(result.bad_tiles) > 3 else "")
        complaints.append(f"{job.slide_id}: {len(result.bad_tiles)} tiles unreadable, read as white: {shown}")
    if draw is not None:
        try:
            draw(result, run.overlay(job.slide_id))
        except Exception as error:  # noqa: BLE001 - the label took minutes and stands without its picture
            complaints.append(f"overlay of {job.slide_id} not drawn: {_reason(job, error)}")
    return PredictionRow.done(result, error="; ".join(complaints))


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
