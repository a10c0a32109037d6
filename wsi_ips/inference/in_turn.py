"""A folder of slides in this process, one after the other, the next one opened while this one is encoded."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

from wsi_ips.inference.predict import Predictor, PreparedSlide
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.run_tables import RunTables
from wsi_ips.inference.slide_work import Draw, SlideJob, SlideRecorder, SlideWork
from wsi_ips.progress import Progress, silent


def predict_slides(
    jobs: Sequence[SlideJob],
    predictor: Predictor,
    run: RunFolder,
    *,
    draw: Draw | None = None,
    on_error: Literal["report", "stop"] = "report",
    resume: bool = False,
    progress: Progress = silent,
) -> RunTables:
    """Predict every job, here and one after the other, and write all that a run writes; give its tables.

    ``draw`` draws each slide's overlay. Where a slide fails, ``report`` makes a row of it and goes on, ``stop``
    raises its error. ``resume`` leaves slides alone that ``run`` holds by the same checkpoint.
    """
    recorder = SlideRecorder(run, checkpoint=predictor.checkpoint, draw=draw)
    tables = RunTables(run, jobs, tasks=predictor.pipeline.model.tasks)
    left = tables.take_found(jobs, recorder) if resume else jobs
    predict_in_turn(left, SlideWork(predictor, recorder), tables, on_error=on_error, progress=progress)
    tables.close()
    return tables


def predict_in_turn(
    jobs: Sequence[SlideJob],
    work: SlideWork,
    tables: RunTables,
    *,
    on_error: Literal["report", "stop"] = "report",
    progress: Progress = silent,
) -> None:
    """Label every job's slide. Where one fails, ``report`` goes on and ``stop`` raises its error."""
    with progress("Predicting", total=len(jobs)) as advance:
        for job, prepared in _prepared_ahead(jobs, work):
            tables.begun(job.slide_id)
            done = work.label(job, prepared, progress=progress)
            tables.add(done)
            if done.error is not None and on_error == "stop":
                raise done.error
            advance(f"{job.slide_id}: {done.row.status}")


def _prepared_ahead(
    jobs: Sequence[SlideJob], work: SlideWork
) -> Iterator[tuple[SlideJob, Callable[[], PreparedSlide]]]:
    """Each job with a call that gives its slide, or raises why there is none; one slide is prepared ahead."""
    waiting: deque[Future[PreparedSlide]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="wsi_ips-prepare") as pool:
        try:
            for number, job in enumerate(jobs):
                if not waiting:
                    waiting.append(pool.submit(work.prepare, job))
                current = waiting.popleft()
                if number + 1 < len(jobs):
                    waiting.append(pool.submit(work.prepare, jobs[number + 1]))
                yield job, current.result
        finally:
            for future in waiting:  # the run ended before its turn came
                if not future.cancel() and future.exception() is None:
                    future.result().slide.close()
