"""Slides on a dask cluster, one task each, whatever is done to them: :class:`Desk`.

The workers are processes of our own on this machine, or those of a scheduler that the user names. There are
never more tasks in flight than workers, so that nothing waits on a worker, and a worker that joins late has
something to do. The results of slides are written by the workers; what travels is one line for each slide. A slide
whose worker dies is begun again by another one, as often as the cluster allows (``WorkersConfig.retries`` for
workers of our own).

No other module imports dask.
"""

import logging
import os
import platform
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from queue import SimpleQueue
from typing import Any, Generic, Literal, TypeVar, cast
from uuid import uuid4

import dask
from distributed import Client, Future, KilledWorker, LocalCluster, Worker, WorkerPlugin, get_worker, wait
from distributed.comm.core import CommClosedError
from distributed.security import Security

from wsi_ips.config import WorkersConfig
from wsi_ips.errors import ClusterError, ProcessDied, UnsupportedSlide, WsiIpsError
from wsi_ips.inference.in_hand import SlidesInHand, check_shared_memory
from wsi_ips.inference.slide_tasks import Cut, Part, SlideTask, SlideToDo, check_versions, largest_first
from wsi_ips.slides.registry import check_name
from wsi_ips.storage.fingerprint import versions
from wsi_ips.timeline import carried

ANSWERS_S = 10.0
"""Seconds that a scheduler may take to answer, and its first worker to come."""
LOST_S = 30.0
"""Seconds that a scheduler may be silent before the run ends."""
LOOK_AGAIN_S = 1.0
"""Seconds between two looks at whether workers came or went."""
Announce = Callable[[str], None]
"""A function that is told where the dashboard of the cluster is."""
Job = TypeVar("Job", bound=SlideToDo)
Result = TypeVar("Result")


def shared_on_cluster(
    jobs: Sequence[Job],
    task: SlideTask[Job, Result],
    batch: WorkersConfig,
    *,
    in_hand: SlidesInHand | None = None,
    announce: Announce = lambda _: None,
) -> Generator[tuple[Job, Result | WsiIpsError], None, None]:
    """Each slide with what became of it, in the order in which they are done; the largest are begun first.

    A slide that kills its workers, and one whose name cannot be sent to a worker, comes with its error. For the
    arguments and errors see :func:`desk_of`.

    A caller that may stop early closes the generator (``contextlib.closing``). Left to the garbage collector, the
    connection may be closed in a thread of dask, which then waits for itself forever.
    """
    sent: list[Job] = []
    for job in jobs:
        try:
            check_name(job.path)
        except UnsupportedSlide as error:
            yield job, error
        else:
            sent.append(job)
    if sent:
        with desk_of(task, batch, slides=len(sent), in_hand=in_hand, announce=announce) as desk:
            yield from desk.work_off(largest_first(sent))


@contextmanager
def desk_of(
    task: SlideTask[Job, Result],
    batch: WorkersConfig,
    *,
    slides: int,
    in_hand: SlidesInHand | None = None,
    announce: Announce = lambda _: None,
    begun: Callable[[str, str], None] = lambda slide_id, worker: None,
) -> "Iterator[Desk[Job, Result]]":
    """A desk that hands out slides to the workers of a cluster, for a ``with`` block.

    Args:
        task: What is to be done to every slide.
        batch: Which cluster.
        slides: How many slides there are, at most as many workers of our own are started.
        in_hand: Knows which slides may have killed an earlier start. They come last, each when nobody else is at
            work.
        announce: Is told where the dashboard of the cluster is.
        begun: Is told of a slide that is begun, and of the address of its worker.

    Raises:
        ClusterError: There is no cluster, or it was lost. What is done stays.
        ConfigError: This system cannot have several processes.
    """
    with connected(batch, slides=slides) as client:
        if find_spec("bokeh") is not None:  # without bokeh, the dashboard only says that bokeh is missing
            announce(f"dashboard: {client.dashboard_link}")
        desk: Desk[Job, Result] = Desk(client, task, in_hand, begun)
        with desk.open():
            yield desk


def threads_each(batch: WorkersConfig) -> int | None:
    """CPU threads of a worker: those that are asked for, or of workers of our own an equal share of the cores.
    None: workers elsewhere keep their defaults.
    """
    if batch.threads is not None or batch.scheduler is not None:
        return batch.threads
    return max(1, (os.cpu_count() or 1) // (batch.workers or 1))


class _Hands(WorkerPlugin):
    """Gives every worker of the run, also those that join late, what it needs. Nothing is loaded before a slide
    comes.
    """

    def __init__(self, task: SlideTask[Any, Any], wanted: Mapping[str, str]) -> None:
        self._task = task
        self._wanted = wanted

    def setup(self, worker: Worker) -> None:
        # The name is 3, or with "dask worker --nworkers 4 --name gpu": gpu-3.
        number = re.search(r"[0-9]+$", str(worker.name))
        self._place = int(number[0]) if number else 0
        self._hands: Any = None
        self._one_at_a_time = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[Any]:
        """The hands of this worker, for one order at a time, however many threads the worker has.

        Raises:
            ClusterError: The versions of a worker that joined late differ from those that the run began with.
        """
        with self._one_at_a_time:
            if self._hands is None:
                check_versions(versions(), self._wanted, where=platform.node())
                self._hands = self._task.on_worker(self._place)
            yield self._hands

    def __getstate__(self) -> tuple[SlideTask[Any, Any], Mapping[str, str]]:
        return self._task, self._wanted

    def __setstate__(self, state: tuple[SlideTask[Any, Any], Mapping[str, str]]) -> None:
        self._task, self._wanted = state


Kind = Literal["whole", "part", "join"]
"""Whether a slide is worked on, or a part of it, or its parts are put together."""


@dataclass(frozen=True, slots=True, eq=False)
class _Order(Generic[Job]):
    """A task for a worker: a slide, or a part of one, or its parts to be put together."""

    job: Job
    kind: Kind = "whole"
    part: range | None = None


def _carry_out(run: str, order: _Order[Any], parts: Sequence[Any] = ()) -> Any:
    """Carry out an order. This runs on a worker."""
    worker = get_worker()
    with cast(_Hands, worker.plugins[run]).taken() as hands:
        if order.kind == "whole":
            worker.log_event(run, {"slide_id": order.job.slide_id, "worker": str(worker.address)})
            return hands.work(order.job)
        if order.kind == "part":
            return hands.score(order.job, order.part)
        return hands.join(order.job, parts)


@dataclass(slots=True)
class _CutSlide:
    """A slide whose parts are being worked on. ``held`` are the futures of the parts that are done, which stay on
    their workers.
    """

    parts: int
    held: list[Future[Any]] = field(default_factory=list)


class Desk(Generic[Job, Result]):
    """Hands out orders and takes the results. :func:`desk_of` opens one."""

    def __init__(
        self,
        client: Client,
        task: SlideTask[Job, Result],
        in_hand: SlidesInHand | None = None,
        begun: Callable[[str, str], None] = lambda slide_id, worker: None,
    ) -> None:
        self._client = client
        self._task = task
        self._in_hand = in_hand
        self._tell_begun = begun
        self._run = f"wsi_ips-{uuid4().hex[:12]}"
        self._begun: SimpleQueue[tuple[str, str]] = SimpleQueue()
        self._waiting: deque[tuple[_Order[Job], list[Future[Any]]]] = deque()
        self._in_flight: dict[Future[Any], _Order[Job]] = {}
        self._cut: dict[str, _CutSlide] = {}
        self._suspects: deque[Job] = deque()
        self._suspected: set[str] = set()
        self._ending = False

    @contextmanager
    def open(self) -> Iterator[None]:
        """Tell the workers what is to be done, and at the end that it is over."""
        self._client.subscribe_topic(self._run, self._hear)
        self._client.register_plugin(_Hands(self._task, versions()), name=self._run)
        try:
            yield
        finally:
            if self._client.status == "running":
                self._client.cancel(list(self._in_flight), force=True)
                self._client.unsubscribe_topic(self._run)
                self._client.unregister_worker_plugin(self._run)

    def work_off(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Result | ProcessDied]]:
        """Yield each slide with its result, in the order in which they are done, until nothing is left.

        A slide over which worker after worker died comes with that as an error.
        """
        for job in jobs:
            if self._in_hand is not None and self._in_hand.suspected(job.slide_id):
                self._suspected.add(job.slide_id)
                self._suspects.append(job)
            else:
                self._waiting.append((_Order(job), []))
        while self._waiting or self._in_flight or self._suspects:
            self._hand_out()
            for future in self._finished():
                order = self._in_flight.pop(future, None)
                done = None if order is None else self._take(future, order)
                if order is None or done is None:
                    continue
                self._note_begun()
                yield order.job, done
                if self._in_hand is not None and not isinstance(done, ProcessDied):
                    self._in_hand.end(order.job.slide_id)
        self._note_begun()

    def begin_no_more(self) -> None:
        """Begin no other slide. Those that are begun are finished."""
        self._ending = True
        self._suspects.clear()
        self._waiting = deque(item for item in self._waiting if item[0].kind != "whole")

    def _hand_out(self) -> None:
        """Give an order to every worker that has none. Suspects come last, each when nobody else is at work."""
        if self._suspects and not self._waiting and not self._in_flight:
            self._waiting.append((_Order(self._suspects.popleft()), []))
        while self._waiting and len(self._in_flight) < self._workers():
            self._submit(*self._waiting.popleft())

    def _submit(self, order: _Order[Job], parts: list[Future[Any]]) -> None:
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

    def _take(self, future: Future[Any], order: _Order[Job]) -> Result | ProcessDied | None:
        """The result of an order. None if its slide is not done yet."""
        slide_id = order.job.slide_id
        try:
            result = future.result(timeout=ANSWERS_S)
        except KilledWorker as error:
            return self._killed(order.job, deaths=error.allowed_failures + 1)
        except (CommClosedError, CancelledError, TimeoutError):
            raise self._lost() from None
        if slide_id in self._cut and order.kind == "part":
            return self._take_part(future, order, result)
        if isinstance(result, Cut):
            if self._ending:
                return None
            self._cut[slide_id] = _CutSlide(len(result.parts))
            self._waiting.extendleft((_Order(order.job, "part", part), []) for part in reversed(result.parts))
            return None
        return cast(Result, result)

    def _take_part(self, future: Future[Any], order: _Order[Job], result: Any) -> Result | None:
        """Note a part. When all parts of a slide are there, have them joined. A failed part fails its
        slide, once.
        """
        slide_id = order.job.slide_id
        if not isinstance(result, Part):
            self._drop_parts(slide_id)
            return cast(Result, result)
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

    def _killed(self, job: Job, *, deaths: int) -> ProcessDied | None:
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
        return ProcessDied(str(job.path), why, "see the workers' logs: memory may have run out")

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
            self._tell_begun(slide_id, worker)


@contextmanager
def connected(batch: WorkersConfig, *, slides: int) -> Iterator[Client]:
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
def _client(batch: WorkersConfig, *, slides: int) -> Iterator[Client]:
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
                "distributed.nanny.pre-spawn-environ": _environment_of_workers(),
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


def _environment_of_workers() -> dict[str, str]:
    """What is set before workers of our own start, in place of what dask sets.

    Dask's own value has malloc give memory back at once, which an encoder then asks for again. So does glibc in
    threads other than the main one, whose memory comes in pieces of 64 MB, and dask works in such a thread: with a
    single arena, :func:`wsi_ips.storage.system.keep_freed_memory` holds there too. What the user has set stays.
    """
    own = {"OMP_NUM_THREADS": "1"}
    return own if "MALLOC_ARENA_MAX" in os.environ else {**own, "MALLOC_ARENA_MAX": "1"}


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
