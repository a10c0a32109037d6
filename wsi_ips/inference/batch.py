"""Predicting a folder of slides on a dask cluster: :func:`predict_on_workers`.

How slides are handed out, and what becomes of those whose workers die, is in :mod:`wsi_ips.inference.cluster`.
"""

from collections.abc import Sequence
from dataclasses import replace

from wsi_ips.config import BatchConfig
from wsi_ips.errors import ProcessDied
from wsi_ips.inference.cluster import Announce, desk_of, threads_each
from wsi_ips.inference.in_hand import SlidesInHand
from wsi_ips.inference.run_tables import RunTables
from wsi_ips.inference.slide_tasks import largest_first
from wsi_ips.inference.slide_work import SlideJob
from wsi_ips.inference.worker import WorkerSetup
from wsi_ips.progress import Progress, silent


def predict_on_workers(
    jobs: Sequence[SlideJob],
    setup: WorkerSetup,
    tables: RunTables,
    batch: BatchConfig,
    *,
    progress: Progress = silent,
    announce: Announce = lambda _: None,
    in_hand: SlidesInHand | None = None,
) -> None:
    """Label the slide of every job on the workers of a cluster.

    Slides that ``in_hand`` suspects come last, each at a time when nobody else is at work.

    Args:
        jobs: The slides.
        setup: What a worker has to know.
        tables: The tables of the run, which are kept up to date.
        batch: Which cluster, and what happens when a slide fails: ``report`` goes on; ``stop`` lets the others
            in flight end, then raises the error of the slide.
        progress: Shows how far it is.
        announce: Is told where the dashboard of the cluster is.
        in_hand: Knows which slides are being read, and which ones may have killed an earlier start.

    Raises:
        ClusterError: There is no cluster, or it was lost. What is done stays.
        ConfigError: This system cannot have several processes.
    """
    setup = replace(setup, threads=setup.threads or threads_each(batch))
    failure: Exception | None = None
    with (
        desk_of(
            setup,
            batch,
            slides=len(jobs),
            in_hand=in_hand,
            announce=announce,
            begun=lambda slide_id, worker: tables.begun(slide_id, worker=worker),
        ) as desk,
        progress("Predicting", total=len(jobs)) as advance,
    ):
        for job, result in desk.work_off(largest_first(jobs)):
            done = setup.recorder().failed(job, result) if isinstance(result, ProcessDied) else result
            tables.add(done)
            advance(f"{job.slide_id}: {done.row.status}")
            if done.error is not None and batch.on_error == "stop" and failure is None:
                failure = done.error
                desk.begin_no_more()
    if failure is not None:
        tables.give_up()
        raise failure
