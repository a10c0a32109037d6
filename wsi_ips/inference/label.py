"""Labelling the slides of a run, in this process or by workers, whatever an earlier start has left to do.

:func:`predict_slides` labels one slide after the other in this process. It touches a slide only once the one
before it is stored, because a slide may kill whoever opens it. Where the network is on a GPU, another process
finds the patches of the next slide meanwhile.
"""

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Literal

from wsi_ips.config import BatchConfig
from wsi_ips.errors import ProcessDied, UnsupportedSlide
from wsi_ips.inference.in_hand import Died, SlidesInHand, looked_ahead
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.run_tables import RunTables
from wsi_ips.inference.slide_work import Done, Draw, SlideJob, SlideRecorder, SlideWork
from wsi_ips.inference.worker import WorkerSetup
from wsi_ips.progress import Progress, silent
from wsi_ips.slides.registry import check_name

if TYPE_CHECKING:
    from wsi_ips.inference.predict import Predictor


def predict_slides(
    jobs: Sequence[SlideJob],
    predictor: "Predictor",
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
    left = tables.take_found(tables.take_known(jobs, recorder), recorder) if resume else jobs
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


def label(
    jobs: Sequence[SlideJob],
    setup: WorkerSetup,
    tables: RunTables,
    batch: BatchConfig,
    progress: Progress,
    *,
    begin: Callable[[], tuple[WorkerSetup, BatchConfig]] | None = None,
) -> None:
    """Label what no earlier start has labelled. Slides that one of them died of come last, and alone.

    ``begin`` is called once it is known that something may be left to do. It returns the setup and the batch that
    do it, and may look for GPUs, which takes seconds that a finished run does not have to wait.
    """
    with SlidesInHand(setup.run.root) as in_hand:
        in_hand.suspect(tables.left_running)
        try:
            jobs = tables.take_known(jobs, setup.recorder(), in_hand=in_hand)
            if not jobs:
                return
            if begin is not None:
                setup, batch = begin()
            left = tables.take_found(jobs, setup.recorder(), redraw=batch.workers is None, in_hand=in_hand)
            if batch.workers is None:
                _label_here(left, setup, tables, in_hand, batch, progress)
            else:
                _label_on_workers(left, setup, tables, in_hand, batch, progress)
        except BaseException:
            # Ended by an error, Ctrl-C or SIGTERM: no slide is left as one that the process died of.
            tables.give_up()
            raise


def _label_here(
    jobs: Sequence[SlideJob],
    setup: WorkerSetup,
    tables: RunTables,
    in_hand: SlidesInHand,
    batch: BatchConfig,
    progress: Progress,
) -> None:
    others, suspects = in_hand.apart(jobs, lambda job: job.slide_id)
    if others:
        died = predict_in_turn(
            others, setup.load(0), tables, on_error=batch.on_error, progress=progress, in_hand=in_hand
        )
        in_hand.suspect(slide.slide_id for slide in died)
        suspects = [*suspects, *died]
    if suspects:
        predict_suspects(suspects, setup, tables, in_hand, on_error=batch.on_error, progress=progress)


def _label_on_workers(
    jobs: Sequence[SlideJob],
    setup: WorkerSetup,
    tables: RunTables,
    in_hand: SlidesInHand,
    batch: BatchConfig,
    progress: Progress,
) -> None:
    nameable = [job for job in jobs if not _fails_by_name(job, setup, tables, batch)]
    if not nameable:
        return
    # Imported here: a second that a single slide does not have to wait.
    from wsi_ips.inference.batch import predict_on_workers

    predict_on_workers(
        nameable,
        setup,
        tables,
        batch,
        progress=progress,
        announce=lambda line: print(line, file=sys.stderr),  # noqa: T201 - for people, beside the bars
        in_hand=in_hand,
    )


def _fails_by_name(job: SlideJob, setup: WorkerSetup, tables: RunTables, batch: BatchConfig) -> bool:
    """Whether the slide's name is none that may be sent to a worker; its failure is recorded then."""
    try:
        check_name(job.path)
    except UnsupportedSlide as error:
        tables.begun(job.slide_id)
        tables.add(setup.recorder().failed(job, error))
        if batch.on_error == "stop":
            raise
        return True
    return False
