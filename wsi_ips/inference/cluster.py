"""A dask cluster to work with: workers of our own on this machine, or a scheduler that is named."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import dask
from distributed import Client, LocalCluster
from distributed.security import Security

from wsi_ips.config import BatchConfig
from wsi_ips.errors import ClusterError
from wsi_ips.inference.shared_memory import check_shared_memory
from wsi_ips.inference.worker import check_versions
from wsi_ips.versions import versions

ANSWERS_S = 10.0
"""How long a scheduler may take to answer, and its first worker to come."""


@contextmanager
def connected(batch: BatchConfig, *, slides: int) -> Iterator[Client]:
    """A client of the scheduler that is named, or of at most ``slides`` workers of our own; its workers are fit.

    Raises :class:`ClusterError` where no scheduler answers, it has no workers, or they would give other results.
    """
    with _quietly(), _client(batch, slides=slides) as client, client.as_current():
        _check_workers(client)
        yield client


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the cluster's own account of itself: what goes wrong is told by the run. ``-v`` tells all."""
    if logging.getLogger().level <= logging.INFO:
        yield
        return
    levels = {"distributed": logging.CRITICAL, "distributed.worker.memory": logging.WARNING}
    before = {name: logging.getLogger(name).level for name in levels}
    try:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _client(batch: BatchConfig, *, slides: int) -> Iterator[Client]:
    """A client of the scheduler that is named, or of workers of our own.

    Raises :class:`ConfigError` where this system cannot have several processes.
    """
    if batch.scheduler is not None:
        try:
            client = Client(batch.scheduler, timeout=ANSWERS_S, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise ClusterError(
                f"no dask scheduler answers at {batch.scheduler} ({error}); start one with: dask scheduler"
            ) from None
        with client:
            yield client
        return
    check_shared_memory()
    workers = min(batch.workers or 1, slides)
    with (
        dask.config.set(
            {
                "distributed.scheduler.allowed-failures": batch.retries,
                # Its own has malloc hand memory back at every turn, which an encoder asks for again at the next.
                # No pages about the work for whoever else is on this machine.
                "distributed.scheduler.http.routes": [],
                "distributed.worker.http.routes": [],
                "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1},
            }
        ),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            protocol="tls",
            # A certificate of this run alone: who can reach the port, as any user of this machine can, could have
            # the workers run anything otherwise.
            security=Security.temporary(),
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _check_workers(client: Client) -> None:
    """Raises :class:`ClusterError` without workers, or with some that would give other results."""
    try:
        client.wait_for_workers(1, timeout=ANSWERS_S)
    except TimeoutError:
        raise ClusterError("the dask scheduler has no workers; start some with: dask worker") from None
    try:
        theirs = client.run(versions)
    except ModuleNotFoundError as error:
        raise ClusterError(f"a worker has no wsi_ips ({error}); install the same version there") from None
    for address, found in theirs.items():
        check_versions(found, versions(), where=address)
