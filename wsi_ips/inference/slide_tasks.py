"""What slides that are shared out have in common, whatever is done to them: :class:`SlideTask`.

A command describes what is to be done to each slide as a :class:`SlideTask`, which is sent to every process that
takes part, and :mod:`wsi_ips.inference.cluster` hands out the slides. Nothing here needs PyTorch or dask.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

from wsi_ips.config import WorkersConfig
from wsi_ips.errors import ClusterError, ResultsError
from wsi_ips.storage.location import Location

MOST_FILES = 10_000
"""Files of a slide whose bytes are added up."""
SAME = ("wsi_ips", "torch")
"""Packages whose versions decide what a network says."""


class SlideToDo(Protocol):
    """A slide that something is to be done to."""

    @property
    def slide_id(self) -> str: ...

    @property
    def path(self) -> Location: ...


JobIn = TypeVar("JobIn", bound=SlideToDo, contravariant=True)
ResultOut = TypeVar("ResultOut", covariant=True)
Job = TypeVar("Job", bound=SlideToDo)


@dataclass(frozen=True, slots=True)
class Cut:
    """A slide that is too large for one worker, and the parts that it is cut into."""

    parts: tuple[range, ...]


class Part:
    """The base class of what a worker finds of a part of a slide, on its way to whoever joins the parts."""

    __slots__ = ()


class SlideHands(Protocol[JobIn, ResultOut]):
    """What one process does in a run. It is made once in each process, and loads what it needs (a network) when
    the first slide comes.

    Hands that return a :class:`Cut` have two more methods: ``score(job, part)``, which returns a :class:`Part`, or
    the result of the slide if that fails, and ``join(job, parts)``, which makes the result of the slide of them.
    """

    def work(self, job: JobIn) -> ResultOut | Cut:
        """Do what is to be done to a slide. An error of the slide is a result; what is raised ends the run."""
        ...


class SlideTask(Protocol[JobIn, ResultOut]):
    """What is to be done to every slide of a run: plain data that can be pickled, with absolute paths."""

    def on_worker(self, place: int) -> SlideHands[JobIn, ResultOut]:
        """What the process with the number ``place`` (among the workers of one machine) works with."""
        ...


def largest_first(jobs: Sequence[Job]) -> list[Job]:
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


def check_versions(theirs: Mapping[str, str], ours: Mapping[str, str], *, where: str) -> None:
    """Compare the versions of a worker with ours. ``where`` names the worker.

    Raises:
        ClusterError: The worker would give other results.
    """
    for name in SAME:
        if theirs[name] != ours[name]:
            raise ClusterError(
                f"worker {where} has {name} {theirs[name]}, here is {ours[name]}; install the same there"
            )


def check_shared(root: Path, there: Path) -> None:
    """Check on a worker that it sees the folder ``root`` that the run writes to.

    ``there`` is what the folder has once a run has begun. Without this check, a worker on another machine would
    write its results into a folder of its own.

    Raises:
        ResultsError: It is not there.
    """
    if not there.exists():
        raise ResultsError(
            root, "does not exist where a worker runs", "write to a folder that all workers share"
        )


def workers_wanted(batch: WorkersConfig, device: str) -> int | None:
    """How many workers of our own there are to be: those that are asked for, or one for each GPU where there are
    several. None: this process does it all. With a scheduler the number says nothing.

    ``device`` is the name of the device or devices, see
    :func:`wsi_ips.streaming.device.device_of_worker`.
    """
    from wsi_ips.streaming.device import count_devices

    several = count_devices(device)
    if batch.scheduler is None and batch.workers is None and several < 2:
        return None
    return batch.workers or max(1, several)
