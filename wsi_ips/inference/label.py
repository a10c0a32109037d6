"""Slides labelled in turn or by workers, whatever an earlier start has left to do."""

import sys
from collections.abc import Sequence

from wsi_ips.config import BatchConfig
from wsi_ips.errors import UnsupportedSlide
from wsi_ips.inference.in_hand import SlidesInHand
from wsi_ips.inference.in_turn import predict_in_turn, predict_suspects
from wsi_ips.inference.run_tables import RunTables
from wsi_ips.inference.slide_work import SlideJob
from wsi_ips.inference.worker import WorkerSetup
from wsi_ips.progress import Progress
from wsi_ips.slides.registry import check_name


def label(
    jobs: Sequence[SlideJob], setup: WorkerSetup, tables: RunTables, batch: BatchConfig, progress: Progress
) -> None:
    """Label what no earlier start has labelled. Slides that one of them died of come last, and alone."""
    with SlidesInHand(setup.run.root) as in_hand:
        in_hand.suspect(tables.left_running)
        try:
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
