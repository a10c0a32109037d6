"""Work shared out to processes, where a process that dies costs one piece of work and not the run."""

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from typing import TypeVar

from wsi_ips.inference.in_hand import Died, alone, check_shared_memory
from wsi_ips.progress import silence_libraries
from wsi_ips.timeline import carried

Key = TypeVar("Key")
Result = TypeVar("Result")


@contextmanager
def started_early(workers: int, *, modules: Sequence[str]) -> Iterator[ProcessPoolExecutor | None]:
    """Processes for :func:`shared_out` that import ``modules`` while this process prepares their work.

    Args:
        workers: How many processes. None are started for one worker or none, and the pool is None.
        modules: Names of the modules that the work needs.

    Raises :class:`ConfigError` where the system gives no processes.
    """
    if workers <= 1:
        yield None
        return
    with _pool(workers) as pool:
        for _ in range(workers):
            pool.submit(_import, modules)
        yield pool


def shared_out(
    work: Callable[[Key], Result],
    keys: Sequence[Key],
    *,
    workers: int,
    pool: ProcessPoolExecutor | None = None,
) -> Generator[tuple[Key, Result | Died], None, None]:
    """Each key with what ``work`` makes of it, in the order in which they are done.

    ``work`` runs in ``workers`` new processes, so it and its keys must be picklable. When a process dies, all that
    was being worked on is tried once more, each by itself: the one that kills its process again comes with how
    that died. Processes of a ``pool`` that :func:`started_early` gave are used until one of them dies.
    What ``work`` raises is raised. Raises :class:`ConfigError` where the system gives no processes.

    A caller that may stop early closes the generator (``contextlib.closing``), which ends the processes.
    """
    left = deque(keys)
    while left:
        suspects = yield from _until_one_dies(work, left, pool or _pool(workers), workers=workers)
        pool = None
        for suspect in suspects:
            try:
                yield suspect, alone(work, suspect)
            except Died as death:
                yield suspect, death


def _until_one_dies(
    work: Callable[[Key], Result], left: deque[Key], pool: ProcessPoolExecutor, *, workers: int
) -> Generator[tuple[Key, Result], None, list[Key]]:
    """Take from ``left`` until nothing is left or a process dies; returns what was worked on then."""
    running: dict[Future[Result], Key] = {}
    with pool:
        while left or running:
            try:
                while left and len(running) < workers:
                    running[pool.submit(carried(work), left[0])] = left[0]
                    left.popleft()
            except BrokenProcessPool:
                if not running:
                    return []
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            finished = [future for future in done if not isinstance(future.exception(), BrokenProcessPool)]
            for future in finished:
                yield running.pop(future), future.result()
            if len(finished) < len(done):
                return list(running.values())
    return []


def _initialiser() -> Callable[[], None] | None:
    """A new process is as quiet as this one: what was asked for here is not known there."""
    return silence_libraries if logging.getLogger().getEffectiveLevel() > logging.INFO else None


def _import(modules: Sequence[str]) -> None:
    for module in modules:
        import_module(module)


def _pool(workers: int) -> ProcessPoolExecutor:
    check_shared_memory()
    # Not forked: threads and locks of this process would be copied in whatever state they are.
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_initialiser())
