"""The timeline of a run: which stage of which slide ran when, in which thread and process.

A command opens a :func:`recording`. Work below it marks its stages with one line::

    with recording(out, command="predict", on=job.profile) as recorded:
        with slide("slide_03"):
            with span("tissue"):
                mask = find_tissue(...)

At the end the recording becomes ``timeline.json``, in the Chrome trace event format (JSON object format, complete
events), which https://ui.perfetto.dev and chrome://tracing open. Without a recording, :func:`span` and
:func:`slide` do nothing, at the cost of looking up one context variable.

How often a stage is recorded:

- once for each slide or step: ``open``, ``tissue``, ``head``, ``optimizer``, ``draw overlay``, ``draw preview``;
- once for each pass over patches: ``plan`` (also once for the grid of a slide), ``kept patches``;
- once for each chunk of patches: ``wait for decoder``, ``copy to device``, ``encode``, ``select`` (and once more
  at the end of a pass), and in the decoding threads ``chunk`` with the sums of its ``read``, ``decode``,
  ``assemble`` and ``area means``. (The only chunk of a pass is shared out to the threads.) Within a chunk these
  four are drawn one after another: their lengths are measured, their places are not, because a chunk of small
  tiles switches between them thousands of times;
- ``backward`` once for each loss and micro-batch, ``write results`` once for each file or block of rows.

On CUDA, the stages of the program are the times that it took to hand work over; where it then waits for the card
is ``wait for device``.

Every process writes lines of its own into a hidden folder while it works, so that memory does not grow with the
slide; a process writes no more than :data:`MOST_BYTES`, and only counts what comes after that. The process that
began the recording joins these files when it ends, whether it ends well or with an error.
"""

import json
import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from threading import Lock, Thread, current_thread, local
from time import perf_counter_ns
from types import TracebackType
from typing import Any, BinaryIO, Final, Generic, Literal, ParamSpec, Self, TypeVar

from wsi_ips.errors import ResultsError, one_line
from wsi_ips.storage.files import whole_file

P = ParamSpec("P")
Result = TypeVar("Result")
Item = TypeVar("Item")

TIMELINE_NAME = "timeline.json"
"""Name of the file in the folder of a run."""
PARTS = ".timeline.partial"
"""The folder in which processes write while a run goes on. Its name is one that the next run sweeps away."""
MOST_BYTES = 2**25
"""Bytes of stages that one process writes; of slides and steps it writes all."""
AT_ONCE = 500
"""Lines that are held in memory before they are written."""
APART_NS = 100
"""Nanoseconds between the ends of a span and those of sums that are drawn inside it."""
LONGEST_LINE = 2**16
"""The longest line that is read back."""
LARGEST_HEAD = 2**20
"""Bytes of the first line of ``timeline.json``, at most. It holds the sums."""
LONGEST_S = 1e12
"""Seconds of a stage that are believed, at most."""
MOST_TRACKS = 100_000
"""More than the threads that a process has at a time."""
MOST_STAGES = 200
"""The most stages whose sums are read back."""

Who = Literal["main", "ahead", "threads"]
"""Who does something: ``main`` works on a slide or a step, ``threads`` decode for it, ``ahead`` prepares the next
slide meanwhile.
"""
WHO: tuple[Who, ...] = ("main", "ahead", "threads")
REST: Final = "the rest"
"""What is not in a stage of its own: in the main thread of a slide, in a decoding thread of a chunk."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stage:
    """The sum over one stage.

    Attributes:
        who: Who did it.
        name: The stage.
        times: How often.
        seconds: How long in all, without the stages inside it. The stages of ``main`` therefore add up to the
            time of all slides and steps.
    """

    who: Who
    name: str
    times: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Stages:
    """What a timeline says in sums.

    Attributes:
        stages: All stages.
        slides: How many slides (or steps) were begun, in all processes.
        left_out: How many stages are counted here and not in the file, because it would have become too large.
    """

    stages: Sequence[Stage]
    slides: int = 0
    left_out: int = 0

    def of(self, who: Who) -> list[Stage]:
        """The stages of one, the longest first."""
        return sorted((one for one in self.stages if one.who == who), key=lambda one: -one.seconds)

    def seconds(self, who: Who) -> float:
        """Seconds of all stages of one."""
        return math.fsum(one.seconds for one in self.stages if one.who == who)


@dataclass(slots=True)
class Recorded:
    """What a recording became. Empty without one.

    Attributes:
        path: The file; None if none was written.
        stages: Its sums.
    """

    path: Path | None = None
    stages: Stages = field(default_factory=lambda: Stages(()))

    def told(self) -> list[str]:
        """A line that names the file; none without a file."""
        return [] if self.path is None else [f"timeline: {self.path} (https://ui.perfetto.dev opens it)"]

    def table(self) -> list[str]:
        """Lines to print: the share of each stage in the time of slides and steps, and the file."""
        whole = self.stages.seconds("main")
        if self.path is None or not whole:
            return self.told()
        lines = [f"stage               seconds   share of {whole:.1f} s"]
        lines += [
            f"{one.name:18} {one.seconds:8.2f} {one.seconds / whole:7.1%}"
            for one in self.stages.of("main")
            if one.seconds / whole >= 0.001
        ]
        beside = [f"{one.name} {one.seconds:.2f} s" for one in self.stages.of("threads")]
        if beside:
            lines.append(f"decoding threads beside: {', '.join(beside)}")
        return [*lines, *self.told()]


@dataclass(frozen=True, slots=True)
class _Now:
    """Where spans are recorded at present: in which timeline, as whose, of which slide."""

    timeline: "Timeline"
    who: Who = "main"
    slide: str = ""


_NOW: ContextVar[_Now | None] = ContextVar("wsi_ips_timeline", default=None)
"""Set by :func:`recording` for the length of its block, and in the threads and processes that work for it."""


_EARLIER: ContextVar[Path | None] = ContextVar("wsi_ips_earlier_timeline", default=None)
"""The timeline of an earlier start, within a :func:`recording` that is off, until something is done."""


class _Nothing(AbstractContextManager["_Nothing"]):
    """A span where nothing is recorded."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def inside(self, seconds: Mapping[str, float]) -> None:
        """Nothing."""


_NOTHING = _Nothing()


class Span(AbstractContextManager["Span"]):
    """A stage that is going on. It is recorded when the block ends, also by an error. Never ``yield`` inside one:
    the caller's stages would count as this one's.
    """

    __slots__ = ("_above", "_name", "_now", "_scope", "_started", "_within")

    def __init__(self, now: _Now, name: str, *, scope: bool = False) -> None:
        self._now = now
        self._name = name
        self._scope = scope
        self._within = 0

    def __enter__(self) -> Self:
        thread = self._now.timeline.thread
        self._above: Span | None = getattr(thread, "span", None)
        thread.span = self
        self._started = perf_counter_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = perf_counter_ns()
        timeline, above, took = self._now.timeline, self._above, ended - self._started
        timeline.thread.span = above
        if above is not None:
            above._within += took
        stage = REST if self._scope or self._name == "chunk" else self._name
        begun = self._scope and above is None and self._now.who == "main"
        timeline.count(self._now.who, stage, took - self._within, begun=begun)
        timeline.write(
            self._now, self._name, self._started, took, scope=self._scope, error=kind.__name__ if kind else ""
        )
        if self._scope and above is None:
            timeline.flush()

    def inside(self, seconds: Mapping[str, float]) -> None:
        """Record stages of which only the sums are known, ``{stage: seconds}``. They are drawn one after another
        from the beginning of this span on, and cut at the present."""
        # A little later and earlier, so that a viewer that rounds sees that they are inside.
        at, now = self._started + APART_NS, perf_counter_ns() - APART_NS
        for name, each in seconds.items():
            took = min(round(each * 1e9), now - at)
            if took > 0:
                self._now.timeline.count(self._now.who, name, took)
                self._now.timeline.write(self._now, name, at, took)
                self._within += took
                at += took


def span(name: str) -> Span | _Nothing:
    """A stage of the present slide, for the length of a ``with`` block."""
    now = _NOW.get()
    return _NOTHING if now is None else Span(now, name)


def slide(slide_id: str) -> AbstractContextManager[object]:
    """All that is done for a slide (or another bag), for the length of a ``with`` block."""
    return _scope(slide_id, slide_id)


def step(number: int) -> AbstractContextManager[object]:
    """A step of the optimiser, for the length of a ``with`` block."""
    return _scope(f"step {number + 1}", "")


def _scope(name: str, slide_id: str) -> AbstractContextManager[object]:
    now = _NOW.get()
    return _NOTHING if now is None else _scoped(now, name, slide_id)


@contextmanager
def _scoped(now: _Now, name: str, slide_id: str) -> Iterator[None]:
    its = replace(now, slide=slide_id)
    token = _NOW.set(its)
    try:
        with Span(its, name, scope=True):
            yield
    finally:
        _NOW.reset(token)


def staged(name: str) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """A decorator: each call of the function is a stage."""

    def decorate(function: Callable[P, Result]) -> Callable[P, Result]:
        @wraps(function, updated=())  # a module's attributes stay its own
        def timed(*args: P.args, **kwargs: P.kwargs) -> Result:
            with span(name):
                return function(*args, **kwargs)

        return timed

    return decorate


def each_staged(name: str, items: Iterable[Item]) -> Iterator[Item]:
    """The same items. Getting each of them is a stage; what the caller does with it is not."""
    coming = iter(items)
    while True:
        with span(name):
            try:
                item = next(coming)
            except StopIteration:
                return
        yield item


def in_thread(
    work: Callable[P, Result], *, who: Who = "threads", slide_id: str | None = None
) -> Callable[P, Result]:
    """``work`` to be called in another thread of this process: its spans go into the recording of the caller.

    Without a recording it is ``work`` itself. ``slide_id`` names the slide, by default the caller's.
    """
    now = _NOW.get()
    if now is None:
        return work
    its = replace(now, who=who, slide=now.slide if slide_id is None else slide_id)

    def there(*args: P.args, **kwargs: P.kwargs) -> Result:
        token = _NOW.set(its)
        try:
            return work(*args, **kwargs)
        finally:
            _NOW.reset(token)

    return there


@dataclass(frozen=True, slots=True)
class _Carried(Generic[P, Result]):
    """Work that is recorded in the process that does it. It can be pickled if the work can."""

    work: Callable[P, Result]
    parts: Path
    who: Who

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Result:
        if _NOW.get() is not None:  # it stayed in the process
            return self.work(*args, **kwargs)
        timeline = Timeline(self.parts)
        token = _NOW.set(_Now(timeline, self.who))
        try:
            return self.work(*args, **kwargs)
        finally:
            _NOW.reset(token)
            timeline.close()


def carried(work: Callable[P, Result], *, who: Who = "main") -> Callable[P, Result]:
    """``work`` to be called in another process, on a machine that has the folder of the run, too.

    Without a recording, or if it is carried already, it is ``work`` itself.
    """
    now = _NOW.get()
    if now is None or isinstance(work, _Carried):
        return work
    return _Carried(work, now.timeline.parts, who)


class Timeline:
    """What one process records. Safe to use from several threads.

    A file that cannot be written to (a full disk, a folder that is gone) costs the timeline and not the run: it is
    a warning, and nothing more is written.
    """

    def __init__(self, parts: Path) -> None:
        """Write below ``parts``, into a file of this process. Files are opened only when there is something to
        write.
        """
        self.parts = parts
        self.thread = local()
        self._path = parts / f"{platform.node()}-{os.getpid()}.jsonl"
        # Clocks of processes and machines agree on the time of day only.
        self._offset = time.time_ns() - perf_counter_ns()
        self._lock = Lock()
        self._lines: list[str] = []
        self._sums: dict[tuple[Who, str], list[int]] = {}
        self._slides = 0
        self._left_out = 0
        self._tracks: list[Thread] = []
        self._file: BinaryIO | None = None
        self._bytes = 0
        self._broken = False

    def count(self, who: Who, stage: str, own_ns: int, *, begun: bool = False) -> None:
        """Add to the sum of a stage.

        Args:
            who: Who did it.
            stage: Its name.
            own_ns: Nanoseconds, without those of the stages inside it.
            begun: Whether it is a slide or a step that is inside no other one.
        """
        with self._lock:
            its = self._sums.setdefault((who, stage), [0, 0])
            its[0] += 1
            its[1] += max(0, own_ns)
            self._slides += begun

    def write(
        self, now: _Now, name: str, started: int, took: int, *, scope: bool = False, error: str = ""
    ) -> None:
        """Record a span. ``started`` is a time of ``perf_counter_ns``, ``took`` nanoseconds."""
        track = self._track()
        line = json.dumps([name, now.who, started + self._offset, took, track, now.slide, int(scope), error])
        with self._lock:
            if self._bytes > MOST_BYTES and not scope:
                self._left_out += 1
                return
            self._append(line)
            full = len(self._lines) >= AT_ONCE
        if full:
            self.flush()

    def _append(self, line: str) -> None:
        self._lines.append(line)
        self._bytes += len(line) + 1

    def _track(self) -> int:
        """The number of this thread's track, from 1. A thread takes over the track of an ended one of its name,
        because every pass over a slide has threads of its own."""
        found: int | None = getattr(self.thread, "track", None)
        if found is not None:
            return found
        me = current_thread()
        with self._lock:
            for number, other in enumerate(self._tracks):
                if other.name == me.name and not other.is_alive():
                    self._tracks[number] = me
                    break
            else:
                number = len(self._tracks)
                self._tracks.append(me)
                self._append(json.dumps({"track": number + 1, "name": me.name}))
        self.thread.track = number + 1
        return number + 1

    def flush(self) -> None:
        """Write what is held in memory, with the sums of it."""
        with self._lock:
            if not self._lines and not self._sums:
                return
            sums = [[who, stage, *its] for (who, stage), its in self._sums.items()]
            held = {"sums": sums, "slides": self._slides, "left_out": self._left_out}
            lines, self._lines = [*self._lines, json.dumps(held)], []
            self._sums, self._slides, self._left_out = {}, 0, 0
            if self._broken:
                return
            try:
                if self._file is None:
                    self._file = self._opened()
                self._file.write(("\n".join(lines) + "\n").encode())
            except OSError as error:
                self._broken = True
                logger.warning("the timeline is not written any more: %s", error)

    def _opened(self) -> BinaryIO:
        self.parts.mkdir(parents=True, exist_ok=True)
        file = self._path.open("ab", buffering=0)
        self._bytes += file.tell()
        file.write(b"\n")  # behind what a killed process of the same number left
        return file

    def close(self) -> None:
        """Write the rest."""
        self.flush()
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None


@contextmanager
def recording(folder: Path, *, command: str, on: bool, joins: bool = True) -> Iterator[Recorded]:
    """Record what is done in the block, also in threads (:func:`in_thread`) and processes (:func:`carried`) that
    work for it, and write ``timeline.json`` into ``folder`` at the end, also if the block fails.

    An earlier ``timeline.json`` is replaced, unless nothing was done in the block. A block that fails before
    anything was done leaves none. Where nothing is recorded, an earlier ``timeline.json`` is removed as soon as
    something is done (:func:`working`): it tells where the time of another start went.

    Args:
        folder: The folder of the run. Only one run at a time writes into it.
        command: What is recorded, for the file.
        on: Whether anything is recorded at all.
        joins: False for the other processes of a run that was started several times: they only add their part.
    """
    recorded = Recorded()
    if not on:
        earlier = _EARLIER.set(folder.absolute() / TIMELINE_NAME if joins else None)
        try:
            yield recorded
        finally:
            _EARLIER.reset(earlier)
        return
    parts = folder.absolute() / PARTS
    if joins:
        shutil.rmtree(parts, ignore_errors=True)
    timeline = Timeline(parts)
    token = _NOW.set(_Now(timeline))
    failed = True
    try:
        yield recorded
        failed = False
    finally:
        _NOW.reset(token)
        timeline.close()
        if joins:
            try:
                _join(parts, folder / TIMELINE_NAME, command, recorded, failed=failed)
            except OSError as error:
                logger.warning("%s is not written: %s", folder / TIMELINE_NAME, error)
            shutil.rmtree(parts, ignore_errors=True)


def working() -> None:
    """Say that the command begins to work on a slide or a training, which an earlier start had not finished. What
    is recorded of that start is then no longer what the folder of the run was made by, unless it is replaced.
    """
    earlier = _EARLIER.get()
    if earlier is None:
        return
    _EARLIER.set(None)
    try:
        earlier.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s is of an earlier start, and cannot be removed: %s", earlier, error)


def _join(parts: Path, path: Path, command: str, recorded: Recorded, *, failed: bool) -> None:
    """Make one file of the parts of all processes."""
    files = sorted(parts.glob("*.jsonl"))
    stages, first_ns = _sums(files)
    if first_ns is None and (failed or path.exists() or not path.parent.is_dir()):
        return
    head = {
        "otherData": {
            "program": "wsi_ips",
            "command": command,
            "slides": stages.slides,
            "left_out": stages.left_out,
            "stages": [[one.who, one.name, one.times, one.seconds] for one in stages.stages],
        },
    }
    # Names of files that are not UTF-8 are escaped; all others are written as they are, for Perfetto's sake.
    with (
        whole_file(path) as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as out,
    ):
        out.write(json.dumps(head)[:-1] + ',\n"traceEvents": [')
        before = "\n"
        for number, file in enumerate(files, start=1):
            for event in _events(file, number, first_ns or 0):
                out.write(before + json.dumps(event, ensure_ascii=False, separators=(",", ":")))
                before = ",\n"
        out.write("\n]}\n")
    recorded.path, recorded.stages = path, stages


def _lines(path: Path) -> Iterator[Any]:
    """What a process wrote, line by line, without lines that are no JSON: that of a process that was killed."""
    with path.open("rb") as file:
        while line := file.readline(LONGEST_LINE):
            try:
                yield json.loads(line)
            except ValueError:
                continue


def _sums(files: Iterable[Path]) -> tuple[Stages, int | None]:
    """The sums over all parts, and the time at which the first span began."""
    sums: dict[tuple[Who, str], list[int]] = {}
    slides = left_out = 0
    first_ns: int | None = None
    for file in files:
        for line in _lines(file):
            if isinstance(line, list):
                first_ns = line[2] if first_ns is None else min(first_ns, line[2])
            elif "sums" in line:
                slides += line["slides"]
                left_out += line["left_out"]
                for who, stage, times, own_ns in line["sums"]:
                    its = sums.setdefault((who, stage), [0, 0])
                    its[0] += times
                    its[1] += own_ns
    stages = [Stage(who, stage, times, own / 1e9) for (who, stage), (times, own) in sums.items()]
    return Stages(stages, slides, left_out), first_ns


def _events(file: Path, number: int, first_ns: int) -> Iterator[dict[str, Any]]:
    """The events of one process, in the Chrome trace event format. Times are µs since the first span."""
    yield _named("process_name", number, 0, file.stem)
    for line in _lines(file):
        if isinstance(line, list):
            name, who, started, took, track, slide_id, scope, error = line
            event = {
                "ph": "X", "ts": (started - first_ns) / 1e3, "dur": took / 1e3, "pid": number,
                "tid": _tid(number, track), "name": name, "cat": "slide" if scope else who,
            }  # fmt: skip
            args = {key: value for key, value in (("slide", slide_id), ("error", error)) if value}
            yield {**event, "args": args} if args else event
        elif "track" in line:
            yield _named("thread_name", number, line["track"], line["name"])


def _named(what: str, process: int, track: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": _tid(process, track), "args": {"name": name}}


def _tid(process: int, track: int) -> int:
    """A number that no other thread of any process has."""
    return process * MOST_TRACKS + track


def read_timeline(path: Path) -> Stages:
    """The sums that a ``timeline.json`` begins with. Only its first line is read.

    Raises:
        ResultsError: It is no timeline of wsi_ips, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            line = file.readline(LARGEST_HEAD)
        if not line.endswith(b",\n"):
            raise ValueError("its first line is too long")
        about = json.loads(line[:-2] + b"}")["otherData"]
        stages = [_stage(*each) for each in about["stages"][: MOST_STAGES + 1]]
        if len(stages) > MOST_STAGES or about["program"] != "wsi_ips":
            raise ValueError("it is of another program")
        return Stages(stages, _whole(about["slides"]), _whole(about["left_out"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = one_line(error, most=200)
        raise ResultsError(
            path, f"is no timeline of wsi_ips ({why})", "remove it, or run again with --profile"
        ) from None


def _stage(who: object, name: object, times: object, seconds: object) -> Stage:
    (known,) = (each for each in WHO if each == who)
    if not isinstance(seconds, int | float) or not 0 <= seconds <= LONGEST_S:
        raise ValueError(f"seconds are not between 0 and {LONGEST_S:g}")
    return Stage(known, one_line(str(name), most=60), _whole(times), float(seconds))


def _whole(number: object) -> int:
    if not isinstance(number, int) or not 0 <= number < 2**63:
        raise ValueError("a count is no whole number below 2**63")
    return number
