"""Trains one candidate in a process of its own (:class:`ProxyTask`): a crash there ends nothing else."""

import os
import threading
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from wsi_ips.config import SpecificationTable
from wsi_ips.errors import one_line
from wsi_ips.models.spinenet.specification import Specification, content_of, specification_of
from wsi_ips.search.config import ProxyConfig
from wsi_ips.storage.system import forking_context

LONGEST_REASON = 300
"""Characters of an error's reason that are kept."""


@dataclass(frozen=True, slots=True)
class CandidateScore:
    """A candidate's score; None if it failed, and ``error`` says why."""

    score: float | None
    error: str = ""


class Train(Protocol):
    """Trains and scores a network, or says why that failed."""

    def __call__(self, specification: Specification, /) -> CandidateScore: ...


@dataclass(frozen=True, slots=True)
class ProxyTask:
    """The proxy task, with a process per candidate that is killed after ``timeout_s`` seconds.

    ``data`` is a file that :func:`wsi_ips.search.proxy.write_arrays` wrote.
    """

    config: ProxyConfig
    data: Path
    device: str
    timeout_s: float

    def __call__(self, specification: Specification, /) -> CandidateScore:
        return in_own_process(_train, (content_of(specification), self), timeout_s=self.timeout_s)


class Work(Protocol):
    """What is done in the process: a function of a module, which another process finds by its name."""

    def __call__(self, *arguments: Any) -> float: ...


def in_own_process(work: Work, arguments: tuple[Any, ...], *, timeout_s: float) -> CandidateScore:
    """``work(*arguments)`` in a process of its own, where it can crash, hang or run out of memory by itself."""
    context = forking_context(["wsi_ips.search.proxy"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, work, arguments), daemon=True)  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    try:
        if not ours.poll(timeout_s):
            return CandidateScore(None, f"took longer than {timeout_s:g} s")
        score, error = ours.recv()
        return CandidateScore(score, error)
    except EOFError:
        process.join()
        return CandidateScore(None, f"its process died (exit code {process.exitcode})")
    finally:
        process.kill()
        process.join()
        ours.close()


def _end_with_parent() -> None:
    """End a candidate whose search was killed: nobody would receive the answer."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _answer(connection: Connection, work: Work, arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer: tuple[float | None, str] = (work(*arguments), "")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this candidate's
        answer = (None, one_line(f"{type(error).__name__}: {error}", most=LONGEST_REASON))
    connection.send(answer)
    connection.close()


def _train(content: dict[str, Any], task: ProxyTask) -> float:
    import torch

    from wsi_ips.search.proxy import proxy_score, read_arrays

    torch.set_num_threads(task.config.threads)
    specification = specification_of(SpecificationTable.model_validate(content))
    return proxy_score(specification, read_arrays(task.data), task.config, torch.device(task.device))
