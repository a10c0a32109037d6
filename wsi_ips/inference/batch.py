"""A folder of slides, one after the other: a bad slide becomes a row with its reason, the others finish."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wsi_ips.errors import ResultsError, WsiIpsError
from wsi_ips.inference.predict import Predictor, PreparedSlide
from wsi_ips.inference.results import (
    PredictionRow,
    SlideResult,
    read_result,
    write_predictions,
    write_result,
)
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.location import Location
from wsi_ips.progress import Progress, silent
from wsi_ips.units import Mpp

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SlideJob:
    """One slide to predict; ``mpp`` is used instead of the file's own resolution."""

    slide_id: str
    path: Location
    mpp: Mpp | None = None


def predict_slides(
    jobs: Sequence[SlideJob],
    predictor: Predictor,
    run: RunFolder,
    *,
    draw: Callable[[SlideResult, Path], None] | None = None,
    on_error: Literal["report", "raise"] = "report",
    resume: bool = False,
    observe: Callable[[SlideResult], None] = lambda _: None,
    progress: Progress = silent,
) -> list[PredictionRow]:
    """Predict every job; write each slide's HDF5 and the table so far, so that a killed run leaves whole files.

    ``draw(result, path)`` may draw the slide's overlay; where it fails the label stands, and the row says why.
    With ``report`` a slide's error becomes its row; with ``raise`` it ends the run. ``resume`` leaves slides
    alone whose HDF5 by the same checkpoint is there; an overlay that is missing is drawn. The next slide is
    opened and its tissue found while this one is encoded. ``observe`` sees every new result.
    """
    tasks = predictor.pipeline.model.tasks
    rows: dict[str, PredictionRow] = {}
    with progress("Predicting", total=len(jobs)) as advance:
        for job in jobs if resume else ():
            if (result := _result_of(job, run, predictor.checkpoint)) is not None:
                rows[job.slide_id] = _row(job, result, run, draw=draw, redraw=False)
                advance(f"{job.slide_id}: done before")
        left = [job for job in jobs if job.slide_id not in rows]
        for job, prepared in _prepared_ahead(left, predictor):
            try:
                result = predictor.read(prepared(), progress=progress)
                observe(result)
                write_result(run.attention(job.slide_id), result)
                rows[job.slide_id] = _row(job, result, run, draw=draw, redraw=True)
            except Exception as error:  # whatever a decoder may raise is this slide's failure, not the run's
                if on_error == "raise":
                    raise
                run.forget(job.slide_id)
                rows[job.slide_id] = PredictionRow.failed(job.slide_id, _reason(job, error))
            write_predictions(run.predictions, _in_order(rows, jobs), tasks=tasks)
            advance(f"{job.slide_id}: {rows[job.slide_id].status}")
    if not left:
        write_predictions(run.predictions, _in_order(rows, jobs), tasks=tasks)
    return _in_order(rows, jobs)


def _in_order(rows: dict[str, PredictionRow], jobs: Sequence[SlideJob]) -> list[PredictionRow]:
    return [rows[job.slide_id] for job in jobs if job.slide_id in rows]


def _result_of(job: SlideJob, run: RunFolder, checkpoint: str) -> SlideResult | None:
    """What an earlier run of the same checkpoint found of the same slide; None where it has to be done."""
    path = run.attention(job.slide_id)
    if not checkpoint or not path.exists():
        return None
    try:
        result = read_result(path)
    except ResultsError as error:
        logger.warning("slide %s is done again: %s", job.slide_id, error)
        return None
    same = result.checkpoint == checkpoint and result.slide_path == str(job.path)
    return result if same else None


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


def _row(
    job: SlideJob,
    result: SlideResult,
    run: RunFolder,
    *,
    draw: Callable[[SlideResult, Path], None] | None,
    redraw: bool,
) -> PredictionRow:
    """The slide's line, with its overlay drawn where that is wanted."""
    complaints = []
    if result.bad_tiles:
        shown = ", ".join(result.bad_tiles[:3]) + (", …" if len(result.bad_tiles) > 3 else "")
        complaints.append(f"{job.slide_id}: {len(result.bad_tiles)} tiles unreadable, read as white: {shown}")
    overlay = run.overlay(job.slide_id)
    if draw is not None and (redraw or not overlay.exists()):
        overlay.unlink(missing_ok=True)
        try:
            draw(result, overlay)
        except Exception as error:  # noqa: BLE001 - the label took minutes and stands without its picture
            complaints.append(f"overlay of {job.slide_id} not drawn: {_reason(job, error)}")
    return PredictionRow.done(result, error="; ".join(complaints))


def _reason(job: SlideJob, error: Exception) -> str:
    """The error in words; what was not raised on purpose goes to the log with its trace."""
    if isinstance(error, WsiIpsError):
        return str(error)
    logger.error("slide %s failed", job.slide_id, exc_info=error)
    return f"{type(error).__name__}: {error}"
