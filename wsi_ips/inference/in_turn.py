"""A folder of slides in this process, one after the other.

Where the network is on a GPU, the next slide is opened while this one is encoded. On the CPU it is not: that would
save little, and a slide that kills the process as it is opened would cost the one before it as well.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

from wsi_ips.errors import ProcessDied
from wsi_ips.inference.in_hand import SlidesInHand
from wsi_ips.inference.predict import Predictor, PreparedSlide
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.run_tables import RunTables
from wsi_ips.inference.slide_work import Done, Draw, SlideJob, SlideRecorder, SlideWork
from wsi_ips.inference.worker import WorkerSetup
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
    in_hand: SlidesInHand | None = None,
    ahead: bool | None = None,
) -> None:
    """Label every job's slide. Where one fails, ``report`` goes on and ``stop`` raises its error.

    ``in_hand`` is told of a slide before it is touched, and again once what is known of it is written. ``ahead``:
    whether the next slide is opened meanwhile; None: where the network is not on the CPU.
    """
    ahead = work.predictor.device.type != "cpu" if ahead is None else ahead
    begin = in_hand.begin if in_hand is not None else _nothing
    with progress("Predicting", total=len(jobs)) as advance:
        for job, prepared in _prepared_ahead(jobs, work, begin) if ahead else _not_prepared(jobs, begin):
            tables.begun(job.slide_id)
            done = work.label(job, prepared, progress=progress)
            tables.add(done)
            if in_hand is not None:
                in_hand.end(job.slide_id)
            if done.error is not None and on_error == "stop":
                raise done.error
            advance(f"{job.slide_id}: {done.row.status}")


def predict_suspects(
    jobs: Sequence[SlideJob],
    setup: WorkerSetup,
    tables: RunTables,
    in_hand: SlidesInHand,
    *,
    on_error: Literal["report", "stop"] = "report",
    progress: Progress = silent,
) -> None:
    """Label slides that may kill the process which reads them, each in a process of its own.

    One that does so has failed, and the others are labelled all the same.
    """
    with progress("Predicting, each alone", total=len(jobs)) as advance:
        for job in jobs:
            tables.begun(job.slide_id)
            try:
                done = in_hand.alone(job.slide_id, job.path, _label_alone, (setup, job))
            except ProcessDied as error:
                done = setup.recorder().died(job, error)
            tables.add(done)
            if done.error is not None and on_error == "stop":
                raise done.error
            advance(f"{job.slide_id}: {done.row.status}")


def _label_alone(task: tuple[WorkerSetup, SlideJob]) -> Done:
    setup, job = task
    work = setup.load(0)
    return work.recorder.found(job) or work.label(job)


def _nothing(slide_id: str) -> None:
    """Nobody is told."""


def _not_prepared(
    jobs: Sequence[SlideJob], begin: Callable[[str], None]
) -> Iterator[tuple[SlideJob, Callable[[], PreparedSlide] | None]]:
    for job in jobs:
        begin(job.slide_id)
        yield job, None


def _prepared_ahead(
    jobs: Sequence[SlideJob], work: SlideWork, begin: Callable[[str], None]
) -> Iterator[tuple[SlideJob, Callable[[], PreparedSlide] | None]]:
    """Each job with a call that gives its slide, or raises why there is none; one slide is prepared ahead."""
    waiting: deque[Future[PreparedSlide]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="wsi_ips-prepare") as pool:
        try:
            for number, job in enumerate(jobs):
                if not waiting:
                    begin(job.slide_id)
                    waiting.append(pool.submit(work.prepare, job))
                current = waiting.popleft()
                if number + 1 < len(jobs):
                    begin(jobs[number + 1].slide_id)
                    waiting.append(pool.submit(work.prepare, jobs[number + 1]))
                yield job, current.result
        finally:
            for future in waiting:  # the run ended before its turn came
                if not future.cancel() and future.exception() is None:
                    future.result().slide.close()
