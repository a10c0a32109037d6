"""Predicting a folder of slides on a dask cluster, where one slide is one task: :func:`predict_on_workers`.

The workers are processes of our own on this machine, or those of a scheduler that the user names. There are
never more tasks in flight than workers, so that nothing waits on a worker, and a worker that joins late has
something to do. The largest files are begun first, so that no worker is left alone with one at the end. The
results of slides are written by the workers; what travels is one line for each slide. A slide whose worker
dies is begun again by another one, as often as the cluster allows (``BatchConfig.retries`` for workers of our
own).

No other module imports dask.
"""

import logging
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, cast
from uuid import uuid4

import dask
from distributed import Client, Future, KilledWorker, LocalCluster, Worker, WorkerPlugin, get_worker, wait
from distributed.comm.core import CommClosedError
from distributed.security import Security

from wsi_ips.config import BatchConfig
from wsi_ips.errors import ClusterError, ProcessDied
from wsi_ips.inference.in_hand import SlidesInHand, check_shared_memory
from wsi_ips.inference.predict import ScoredPart
from wsi_ips.inference.run_tables import RunTables
from wsi_ips.inference.slide_work import Done, SlideJob
from wsi_ips.inference.worker import Cut, SlideWorker, WorkerSetup, check_versions
from wsi_ips.progress import Advance, Progress, silent
from wsi_ips.storage.fingerprint import versions
from wsi_ips.storage.location import Location
from wsi_ips.timeline import carried

ANSWERS_S = 10.0
"""Seconds that a scheduler may take to answer, and its first worker to come."""
LOST_S = 30.0
"""Seconds that a scheduler may be silent before the run ends."""
LOOK_AGAIN_S = 1.0
"""Seconds between two looks at whether workers came or went."""
MOST_FILES = 10_000
"""Files of a slide whose bytes are added up."""

Announce = Callable[[str], None]
"""A function that is told where the dashboard of the cluster is."""


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
    if batch.scheduler is None and setup.threads is None:
        cores = os.cpu_count() or 1
        setup = replace(setup, threads=max(1, cores // (batch.workers or 1)))
    with connected(batch, slides=len(jobs)) as client:
        if find_spec("bokeh") is not None:  # without bokeh, the dashboard only says that bokeh is missing
            announce(f"dashboard: {client.dashboard_link}")
        desk_of_run = _Desk(client, setup, tables, in_hand)
        with desk_of_run.open() as desk, progress("Predicting", total=len(jobs)) as advance:
            desk.work_off(largest_first(jobs), advance, on_error=batch.on_error)


class _Hands(WorkerPlugin):
    """Gives every worker of the run, also those that join late, what it needs. Nothing is loaded before a slide
    comes.
    """

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self.slides: SlideWorker

    def setup(self, worker: Worker) -> None:
        # The name is 3, or with "dask worker --nworkers 4 --name gpu": gpu-3.
        number = re.search(r"[0-9]+$", str(worker.name))
        self.slides = SlideWorker(self._setup, int(number[0]) if number else 0)

    def __getstate__(self) -> WorkerSetup:
        return self._setup

    def __setstate__(self, setup: WorkerSetup) -> None:
        self._setup = setup


def largest_first(jobs: Sequence[SlideJob]) -> list[SlideJob]:
    """The slides in the order in which workers are to begin them: the largest first, by the bytes of their files.

    What a slide takes is not known before it is opened, and its size is a fair guess. A slide whose size cannot be
    asked (a URL, a missing file) comes first, because it may be large. Slides of equal size keep their order.
    """
    return sorted(jobs, key=lambda job: -_stored_bytes(job.path))


def _stored_bytes(where: Location) -> float:
    """Bytes of a slide's file, or of a folder's files; with those of the folder beside it that is called alike, as
    MIRAX has it."""
    if not isinstance(where, Path):
        return math.inf
    try:
        if where.is_dir():
            return float(_folder_bytes(where))
        beside = where.with_suffix("")
        more = _folder_bytes(beside) if beside != where and beside.is_dir() else 0
        return float(where.stat().st_size + more)
    except OSError:
        return math.inf


def _folder_bytes(folder: Path) -> int:
    """Bytes of the files of a folder and below it, of the first ``MOST_FILES``: a Zarr store may have millions."""
    paths = islice(folder.rglob("*"), MOST_FILES)
    return sum(path.stat().st_size for path in paths if path.is_file())


Kind = Literal["label", "score", "join"]
"""Whether a slide is labelled, a part of it is scored, or its parts are put together."""


@dataclass(frozen=True, slots=True, eq=False)
class _Order:
    """A task for a worker: a slide, or a part of one (``score``), or its parts to be put together (``join``)."""

    job: SlideJob
    kind: Kind = "label"
    part: range | None = None


def _carry_out(run: str, order: _Order, parts: Sequence[ScoredPart] = ()) -> Done | Cut | ScoredPart:
    """Carry out an order. This runs on a worker."""
    worker = get_worker()
    slides = cast(_Hands, worker.plugins[run]).slides
    if order.kind == "label":
        worker.log_event(run, {"slide_id": order.job.slide_id, "worker": str(worker.address)})
        return slides.label(order.job)
    if order.kind == "score":
        assert order.part is not None
        return slides.score(order.job, order.part)
    return slides.join(order.job, parts)


@dataclass(slots=True)
class _CutSlide:
    """A slide whose parts are being scored. ``held`` are the futures of the scored parts, which stay on their
    workers.
    """

    parts: int
    held: list[Future[Any]] = field(default_factory=list)


class _Desk:
    """Hands out orders and takes the results."""

    def __init__(
        self, client: Client, setup: WorkerSetup, tables: RunTables, in_hand: SlidesInHand | None
    ) -> None:
        self._client = client
        self._setup = setup
        self._tables = tables
        self._in_hand = in_hand
        self._run = f"wsi_ips-{uuid4().hex[:12]}"
        self._begun: SimpleQueue[tuple[str, str]] = SimpleQueue()
        self._waiting: deque[tuple[_Order, list[Future[Any]]]] = deque()
        self._in_flight: dict[Future[Any], _Order] = {}
        self._cut: dict[str, _CutSlide] = {}
        self._suspects: deque[SlideJob] = deque()
        self._suspected: set[str] = set()
        self._ending = False

    @contextmanager
    def open(self) -> Iterator["_Desk"]:
        """Tell the workers what is to be done, and at the end that it is over."""
        self._client.subscribe_topic(self._run, self._hear)
        self._client.register_plugin(_Hands(self._setup), name=self._run)
        try:
            yield self
        finally:
            if self._client.status == "running":
                self._client.cancel(list(self._in_flight), force=True)
                self._client.unsubscribe_topic(self._run)
                self._client.unregister_worker_plugin(self._run)

    def work_off(
        self, jobs: Sequence[SlideJob], advance: Advance, *, on_error: Literal["report", "stop"]
    ) -> None:
        """Work until nothing is left, or after the first failure until nothing is in flight."""
        for job in jobs:
            if self._in_hand is not None and self._in_hand.suspected(job.slide_id):
                self._suspected.add(job.slide_id)
                self._suspects.append(job)
            else:
                self._waiting.append((_Order(job), []))
        failure: Exception | None = None
        while self._waiting or self._in_flight or self._suspects:
            self._hand_out()
            for future in self._finished():
                order = self._in_flight.pop(future, None)
                done = None if order is None else self._take(future, order)
                if done is None:
                    continue
                self._note_begun()
                self._tables.add(done)
                self._clear(done)
                advance(f"{done.row.slide_id}: {done.row.status}")
                if done.error is not None and on_error == "stop" and failure is None:
                    failure = done.error
                    self._begin_no_more()
        self._note_begun()
        if failure is not None:
            self._tables.give_up()
            raise failure

    def _clear(self, done: Done) -> None:
        """Stop suspecting a slide that did not kill its workers."""
        if self._in_hand is not None and not isinstance(done.error, ProcessDied):
            self._in_hand.end(done.row.slide_id)

    def _begin_no_more(self) -> None:
        """Begin no other slide. Those that are being scored in parts are finished."""
        self._ending = True
        self._suspects.clear()
        self._waiting = deque(item for item in self._waiting if item[0].kind != "label")

    def _hand_out(self) -> None:
        """Give an order to every worker that has none. Suspects come last, each when nobody else is at work."""
        if self._suspects and not self._waiting and not self._in_flight:
            self._waiting.append((_Order(self._suspects.popleft()), []))
        while self._waiting and len(self._in_flight) < self._workers():
            self._submit(*self._waiting.popleft())

    def _submit(self, order: _Order, parts: list[Future[Any]]) -> None:
        key = f"{order.kind}-{order.job.slide_id}-{uuid4().hex[:8]}"
        future = self._client.submit(carried(_carry_out), self._run, order, parts, key=key, pure=False)
        self._in_flight[future] = order

    def _finished(self) -> list[Future[Any]]:
        """Orders that are done. Waits for one, but not for long, since workers may come."""
        self._note_begun()
        if not self._in_flight:
            time.sleep(LOOK_AGAIN_S)
            return []
        try:
            wait(list(self._in_flight), timeout=LOOK_AGAIN_S, return_when="FIRST_COMPLETED")
        except TimeoutError:
            self._check_connection()
        except CancelledError:
            raise self._lost() from None
        return [future for future in self._in_flight if future.done()]

    def _take(self, future: Future[Any], order: _Order) -> Done | None:
        """The result of an order. None if its slide is not done yet."""
        slide_id = order.job.slide_id
        try:
            result = future.result(timeout=ANSWERS_S)
        except KilledWorker as error:
            return self._killed(order.job, deaths=error.allowed_failures + 1)
        except (CommClosedError, CancelledError, TimeoutError):
            raise self._lost() from None
        if slide_id in self._cut and order.kind == "score":
            return self._take_part(future, order, result)
        if isinstance(result, Cut):
            if self._ending:
                return None
            self._cut[slide_id] = _CutSlide(len(result.parts))
            self._waiting.extendleft(
                (_Order(order.job, "score", part), []) for part in reversed(result.parts)
            )
            return None
        assert isinstance(result, Done)
        return result

    def _take_part(self, future: Future[Any], order: _Order, result: Any) -> Done | None:
        """Note a scored part. When all parts of a slide are there, have them joined. A failed part fails its
        slide, once.
        """
        slide_id = order.job.slide_id
        if isinstance(result, Done):
            self._drop_parts(slide_id)
            return result
        cut = self._cut[slide_id]
        cut.held.append(future)
        if len(cut.held) == cut.parts:
            self._waiting.appendleft((_Order(order.job, "join"), self._cut.pop(slide_id).held))
        return None

    def _drop_parts(self, slide_id: str) -> None:
        self._cut.pop(slide_id, None)
        self._waiting = deque(item for item in self._waiting if item[0].job.slide_id != slide_id)
        for other in [future for future, its in self._in_flight.items() if its.job.slide_id == slide_id]:
            self._client.cancel([other])
            del self._in_flight[other]

    def _killed(self, job: SlideJob, *, deaths: int) -> Done | None:
        """Deal with a slide over which worker after worker died.

        Another slide that waited on the same worker may have been to blame, so it gets one more try, alone,
        before it is given up.
        """
        self._drop_parts(job.slide_id)
        if job.slide_id not in self._suspected:
            self._suspected.add(job.slide_id)
            if not self._ending:
                self._suspects.append(job)
            return None
        if self._in_hand is not None:
            self._in_hand.blame(job.slide_id)
        why = f"{deaths} workers in turn died while they read it alone"
        error = ProcessDied(str(job.path), why, "see the workers' logs: memory may have run out")
        return self._setup.recorder().failed(job, error)

    def _workers(self) -> int:
        """How many workers there are now."""
        try:
            return len(self._client.nthreads())
        except (CommClosedError, OSError, TimeoutError, ValueError):
            self._check_connection()
            return 0

    def _check_connection(self) -> None:
        """Raise ClusterError once the scheduler is gone for good."""
        until = time.monotonic() + LOST_S
        while self._client.status != "running":
            if self._client.status in ("closed", "closing") or time.monotonic() > until:
                raise self._lost()
            time.sleep(0.2)

    @staticmethod
    def _lost() -> ClusterError:
        return ClusterError(
            "the connection to the dask scheduler was lost; what is done stays: start the same command again"
        )

    def _hear(self, event: tuple[float, dict[str, str]]) -> None:
        """Note that a worker begins with a slide. This runs in a thread of the client."""
        _, said = event
        self._begun.put((said["slide_id"], said["worker"]))

    def _note_begun(self) -> None:
        while not self._begun.empty():
            slide_id, worker = self._begun.get()
            self._tables.begun(slide_id, worker=worker)


@contextmanager
def connected(batch: BatchConfig, *, slides: int) -> Iterator[Client]:
    """A client of the scheduler that ``batch`` names, or of at most ``slides`` workers of our own, for a
    ``with`` block.

    Raises:
        ClusterError: No scheduler answers, it has no workers, or they would give other results.
        ConfigError: This system cannot have several processes.
    """
    with _quietly(), _client(batch, slides=slides) as client, client.as_current():
        _check_workers(client)
        yield client


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the log lines of the cluster: the run itself says what goes wrong. With ``-v`` they are shown."""
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
    """A client of the scheduler that is named, or of workers of our own."""
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
                # No pages about the work for other users of this machine.
                "distributed.scheduler.http.routes": [],
                "distributed.worker.http.routes": [],
                # Dask's own value has malloc hand memory back at once, which an encoder then asks for again.
                "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1},
            }
        ),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            protocol="tls",
            # A certificate of this run alone. Otherwise every user of this machine, who can reach the port, could
            # have the workers run anything.
            security=Security.temporary(),
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _check_workers(client: Client) -> None:
    """Raise ClusterError if there are no workers, or some that would give other results."""
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
