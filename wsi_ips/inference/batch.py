"""A folder of slides on the workers of a dask cluster: one slide is one task.

Never more tasks in flight than there are workers, so that nothing waits on a worker and a worker that joins
late has something to do. The slides' results are written by the workers; what travels is one line a slide. A
slide whose worker dies is begun again by another one, as often as the cluster allows (``BatchConfig.retries`` for
workers of our own). The only module that imports dask.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from queue import SimpleQueue
from typing import Any, Literal, cast
from uuid import uuid4

import dask
from distributed import Client, Future, KilledWorker, LocalCluster, Worker, WorkerPlugin, get_worker, wait
from distributed.comm.core import CommClosedError

from wsi_ips.config import BatchConfig
from wsi_ips.errors import ClusterError, SlideFailed
from wsi_ips.inference.predict import ScoredPart
from wsi_ips.inference.predictions import PredictionRow
from wsi_ips.inference.run_tables import RunTables
from wsi_ips.inference.slide_work import Done, SlideJob
from wsi_ips.inference.worker import Cut, SlideWorker, WorkerSetup
from wsi_ips.progress import Advance, Progress, silent
from wsi_ips.versions import versions

ANSWERS_S = 10.0
"""How long a scheduler may take to answer, and its first worker to come."""
LOST_S = 30.0
"""How long a scheduler may be silent before the run ends."""
LOOK_AGAIN_S = 1.0
"""How often it is looked whether workers came or went."""

AGAIN = "what is done stays: start the same command again to go on"

AGAIN = "what is done stays: start the same command again to go on"

Announce = Callable[[str], None]


def predict_on_workers(
    jobs: Sequence[SlideJob],
    setup: WorkerSetup,
    tables: RunTables,
    batch: BatchConfig,
    *,
    progress: Progress = silent,
    announce: Announce = lambda _: None,
) -> None:
    """Label every job's slide. Where one fails, ``report`` goes on; ``stop`` lets the others in flight end, then
    raises its error. ``announce`` is told where the cluster's dashboard is.

    Raises :class:`ClusterError` where there is no cluster, or it was lost: what is done stays.
    """
    if batch.scheduler is None and setup.threads is None:
        cores = os.cpu_count() or 1
        setup = replace(setup, threads=max(1, cores // (batch.workers or 1)))
    with _quietly(), _connected(batch, slides=len(jobs)) as client, client.as_current():
        _check_workers(client)
        if find_spec("bokeh") is not None:  # without it the dashboard says no more than that
            announce(f"dashboard: {client.dashboard_link}")
        with _Desk(client, setup, tables).open() as desk, progress("Predicting", total=len(jobs)) as advance:
            desk.work_off(jobs, advance, on_error=batch.on_error)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the cluster's own account of itself, but for what goes wrong; ``-v`` tells all."""
    theirs, level = logging.getLogger("distributed"), logging.getLogger("distributed").level
    theirs.setLevel(max(level, logging.getLogger().level))
    try:
        yield
    finally:
        theirs.setLevel(level)


@contextmanager
def _connected(batch: BatchConfig, *, slides: int) -> Iterator[Client]:
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
    workers = min(batch.workers or 1, slides)
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": batch.retries}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
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
    ours = versions()
    for address, found in theirs.items():
        for name in ("wsi_ips", "torch"):
            if found[name] != ours[name]:
                raise ClusterError(
                    f"worker {address} has {name} {found[name]}, here is {ours[name]}; install the same there"
                )


class _Hands(WorkerPlugin):
    """Gives every worker of the run, late ones too, what it needs to begin. Nothing is loaded before a slide."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self.slides: SlideWorker

    def setup(self, worker: Worker) -> None:
        name = str(worker.name)
        self.slides = SlideWorker(self._setup, int(name) if name.isdigit() else 0)

    def __getstate__(self) -> WorkerSetup:
        return self._setup

    def __setstate__(self, setup: WorkerSetup) -> None:
        self._setup = setup


Kind = Literal["label", "score", "join"]


@dataclass(frozen=True, slots=True, eq=False)
class _Order:
    """A slide, or a part of one (``score``), or its parts to be put together (``join``)."""

    job: SlideJob
    kind: Kind = "label"
    part: range | None = None


def _carry_out(run: str, order: _Order, parts: Sequence[ScoredPart] = ()) -> Done | Cut | ScoredPart:
    """On a worker."""
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
    """A slide whose parts are being scored. held: futures of those that are, which stay on their workers."""

    parts: int
    held: list[Future[Any]] = field(default_factory=list)


class _Desk:
    """Hands out orders and takes what comes back."""

    def __init__(self, client: Client, setup: WorkerSetup, tables: RunTables) -> None:
        self._client = client
        self._setup = setup
        self._tables = tables
        self._run = f"wsi_ips-{uuid4().hex[:12]}"
        self._begun: SimpleQueue[tuple[str, str]] = SimpleQueue()
        self._waiting: deque[tuple[_Order, list[Future[Any]]]] = deque()
        self._in_flight: dict[Future[Any], _Order] = {}
        self._cut: dict[str, _CutSlide] = {}

    @contextmanager
    def open(self) -> Iterator["_Desk"]:
        """Tell the workers what is to be done, and in the end that it is over."""
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
        """Until nothing is left, or after the first failure nothing in flight."""
        self._waiting.extend((_Order(job), []) for job in jobs)
        failure: Exception | None = None
        while self._waiting or self._in_flight:
            while self._waiting and len(self._in_flight) < self._workers():
                self._submit(*self._waiting.popleft())
            for future in self._finished():
                done = self._take(future, self._in_flight.pop(future))
                if done is None:
                    continue
                self._note_begun()
                self._tables.add(done)
                advance(f"{done.row.slide_id}: {done.row.status}")
                if done.error is not None and on_error == "stop" and failure is None:
                    failure = done.error
                    self._waiting.clear()
        self._note_begun()
        if failure is not None:
            raise failure

    def _submit(self, order: _Order, parts: list[Future[Any]]) -> None:
        key = f"{order.kind}-{order.job.slide_id}-{uuid4().hex[:8]}"
        future = self._client.submit(_carry_out, self._run, order, parts, key=key, pure=False)
        self._in_flight[future] = order

    def _finished(self) -> list[Future[Any]]:
        """Orders that are done; waits for one, but not for long, since workers may come."""
        self._note_begun()
        if not self._in_flight:
            time.sleep(LOOK_AGAIN_S)
            return []
        try:
            wait(list(self._in_flight), timeout=LOOK_AGAIN_S, return_when="FIRST_COMPLETED")
        except TimeoutError:
            self._check_connection()
        return [future for future in self._in_flight if future.done()]

    def _take(self, future: Future[Any], order: _Order) -> Done | None:
        """What an order came to; None where its slide is not done yet."""
        slide_id = order.job.slide_id
        try:
            result = future.result(timeout=ANSWERS_S)
        except KilledWorker as error:
            deaths = error.allowed_failures + 1
            why = f"{deaths} workers in turn died of it; was it memory? see the workers' logs"
            self._setup.run.forget(slide_id)
            result = Done(PredictionRow.failed(slide_id, why), error=SlideFailed(f"{slide_id}: {why}"))
        except (CommClosedError, TimeoutError, OSError) as error:
            self._check_connection()
            raise ClusterError(f"a result did not come back ({error}); {AGAIN}") from None
        if slide_id in self._cut and order.kind == "score":
            return self._take_part(future, order, result)
        if isinstance(result, Cut):
            self._cut[slide_id] = _CutSlide(len(result.parts))
            self._waiting.extendleft(
                (_Order(order.job, "score", part), []) for part in reversed(result.parts)
            )
            return None
        assert isinstance(result, Done)
        return result

    def _take_part(self, future: Future[Any], order: _Order, result: Any) -> Done | None:
        """A part that is scored brings its slide nearer; one that failed fails it, once."""
        slide_id = order.job.slide_id
        if isinstance(result, Done):
            del self._cut[slide_id]
            self._waiting = deque(item for item in self._waiting if item[0].job.slide_id != slide_id)
            for other in [future for future, its in self._in_flight.items() if its.job.slide_id == slide_id]:
                self._client.cancel([other])
                del self._in_flight[other]
            return result
        cut = self._cut[slide_id]
        cut.held.append(future)
        if len(cut.held) == cut.parts:
            self._waiting.appendleft((_Order(order.job, "join"), self._cut.pop(slide_id).held))
        return None

    def _workers(self) -> int:
        """How many there are now."""
        try:
            return len(self._client.nthreads())
        except (CommClosedError, OSError, TimeoutError, ValueError):
            self._check_connection()
            return 0

    def _check_connection(self) -> None:
        """Raises :class:`ClusterError` once the scheduler is gone for good."""
        until = time.monotonic() + LOST_S
        while self._client.status != "running":
            if self._client.status in ("closed", "closing") or time.monotonic() > until:
                raise ClusterError(f"the connection to the dask scheduler was lost; {AGAIN}")
            time.sleep(0.2)

    def _hear(self, event: tuple[float, dict[str, str]]) -> None:
        """In the client's own thread: a worker begins with a slide."""
        _, said = event
        self._begun.put((said["slide_id"], said["worker"]))

    def _note_begun(self) -> None:
        while not self._begun.empty():
            slide_id, worker = self._begun.get()
            self._tables.begun(slide_id, worker=worker)
