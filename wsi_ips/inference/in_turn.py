"""Predicting a folder of slides in this process, one after the other.

:func:`predict_slides` does a whole run. A slide is touched by this process only once the one before it is
stored, because it may kill whoever opens it. Where the network is on a GPU, another process finds the patches of
the next slide meanwhile.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Literal

from wsi_ips.errors import ProcessDied
from wsi_ips.inference.in_hand import Died, SlidesInHand, looked_ahead
from wsi_ips.inference.predict import Predictor
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
    """Predict every job in this process, one after the other, and write all that a run writes.

    Args:
        jobs: The slides.
        predictor: The network.
        run: The folder to write to.
        draw: Draws the overlay of each slide, if given.
        on_error: ``report`` makes a row of a slide that fails and goes on; ``stop`` raises its error.
        resume: Leave slides alone that ``run`` holds from the same checkpoint.
        progress: Shows how far it is.

    Returns:
        The tables of the run.
    """
    recorder = SlideRecorder(run, checkpoint=predictor.checkpoint, draw=draw)
    tables = RunTables(run, jobs, tasks=predictor.pipeline.model.tasks)
    left = tables.take_found(jobs, recorder) if resume else jobs
    work = SlideWork(predictor, recorder)
    predict_in_turn(left, work, tables, on_error=on_error, progress=progress, ahead=False)
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
) -> Sequence[SlideJob]:
    """Label the slide of every job, as part of a run.

    Args:
        jobs: The slides.
        work: The network, and where results go.
        tables: The tables of the run, which are kept up to date.
        on_error: ``report`` goes on when a slide fails; ``stop`` raises its error.
        progress: Shows how far it is.
        in_hand: Is told of a slide before it is touched, and again once what is known of it is written.
        ahead: Whether a process finds the patches of the next slide meanwhile. None: if the network is not on
            the CPU, and finding tissue needs no network.

    Returns:
        The jobs of slides over which that process died. They are not labelled.
    """
    if ahead is None:
        ahead = work.predictor.device.type != "cpu" and work.predictor.pipeline.tiling.tissue.model is None
    suspects = []
    one_by_one = looked_ahead(jobs, work) if ahead else _one_by_one(jobs)
    with progress("Predicting", total=len(jobs)) as advance, closing(one_by_one) as slides:
        for job, prepared in slides:
            if isinstance(prepared, Died):
                suspects.append(job)
                continue
            if in_hand is not None:
                in_hand.begin(job.slide_id)
            tables.begun(job.slide_id)
            done = work.label(job, prepared, progress=progress)
            tables.add(done)
            if in_hand is not None:
                in_hand.end(job.slide_id)
            if done.error is not None and on_error == "stop":
                raise done.error
            advance(f"{job.slide_id}: {done.row.status}")
    return suspects


def _one_by_one(jobs: Sequence[SlideJob]) -> Generator[tuple[SlideJob, None], None, None]:
    for job in jobs:
        yield job, None


def predict_suspects(
    jobs: Sequence[SlideJob],
    setup: WorkerSetup,
    tables: RunTables,
    in_hand: SlidesInHand,
    *,
    on_error: Literal["report", "stop"] = "report",
    progress: Progress = silent,
) -> None:
    """Label slides that may kill the process that reads them, each in a process of its own.

    A slide that kills its process has failed, and the others are labelled all the same.

    Args:
        jobs: The slides.
        setup: What the processes have to know.
        tables: The tables of the run, which are kept up to date.
        in_hand: Knows which slides are being read.
        on_error: ``report`` goes on when a slide fails; ``stop`` raises its error.
        progress: Shows how far it is.
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
