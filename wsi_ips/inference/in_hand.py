"""Slides that may kill the process that reads them: known on disk, read in a process of their own, found ahead.

A damaged slide may crash a native library, or memory may run out over a large one; then the process ends where
it stands.

- :class:`SlidesInHand` keeps on disk which slides are being read now. If a start dies, the next one suspects
  them: it reads them last, each in a process of its own. A slide whose reading ends with an error, Ctrl-C or
  SIGTERM is not suspected.
- :func:`alone` does one piece of work in a process of its own. The process is a new interpreter: a fork would
  copy threads and locks in whatever state they are, and :mod:`multiprocessing` would run the caller's script
  once more. It has the ``sys.path`` and the environment of the caller. Work travels to it pickled over its
  stdin, and the answer comes back over its stdout.
- :func:`looked_ahead` finds the patches of the next slide in such a process while a network on a GPU encodes the
  present one, so that a damaged slide does not cost the slide that is being encoded. What the process needs is
  imported from here, and PyTorch is not, so it starts in a second.
"""

import contextlib
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from wsi_ips.errors import ConfigError, ProcessDied
from wsi_ips.progress import silence_libraries
from wsi_ips.slides.registry import open_slide
from wsi_ips.storage.files import whole_file
from wsi_ips.storage.location import Location
from wsi_ips.storage.system import go_first_when_memory_runs_out, killed_outright
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.patches import FindPatches
from wsi_ips.timeline import carried, in_thread
from wsi_ips.timeline import slide as timeline_slide
from wsi_ips.units import Mpp

if TYPE_CHECKING:
    from wsi_ips.inference.made_from import SlideSource
    from wsi_ips.inference.predict import PreparedSlide
    from wsi_ips.inference.slide_work import SlideJob, SlideRecorder, SlideWork


logger = logging.getLogger(__name__)
Argument = TypeVar("Argument")
Result = TypeVar("Result")

ENDS_IN_S = 10.0
"""Seconds that the process may take to clean up before it is killed."""
LENGTH_BYTES = 8
"""Bytes of the number in front of each message that says how long it is."""
READY = b"+"
"""What the process writes first, when it is about to begin the work."""
_START = "import sys; sys.path[:] = {path!r}; from wsi_ips.inference.in_hand import _answer; _answer()"
"""What the new interpreter runs."""
Job = TypeVar("Job")

IN_HAND = "in_hand.json"
"""File of the slides that are being read."""
LARGEST_BYTES = 2**26
"""Largest such file that is read."""
WANT_OF_MEMORY = "if memory ran out give it more, else leave the slide out"
"""What a message advises where memory may have run out."""

State = Literal["read", "read alone", "deadly"]
"""How a slide was being read: ``read`` by the process that does the batch, ``read alone`` by a process of its
own, ``deadly`` if that one died of it.
"""
STATES: tuple[State, ...] = ("read", "read alone", "deadly")
"""All values of :data:`State`."""
Prepare = Callable[[], "PreparedSlide"]
"""A function that gives a prepared slide, or raises why there is none."""
_Task = tuple[FindPatches, Location, str, Mpp | None]
_Found = tuple[PatchCoords, float]


class Died(Exception):
    """The process ended without an answer: ``Died(code)``, with the exit code as :mod:`subprocess` has it.

    As a text: "was killed by SIGSEGV", "ended with exit code 9".
    """

    def __str__(self) -> str:
        (code,) = self.args
        if code >= 0:
            return f"ended with exit code {code}"
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"

    @property
    def by_kill(self) -> bool:
        """Whether it was killed in the way in which the system kills when memory runs out."""
        return killed_outright(self.args[0])


class NotStarted(ConfigError):
    """The process never began the work, so the slide is not to blame."""


class SlidesInHand:
    """The slides that are being read into a folder, kept on disk. Use it as a context manager.

    Only one start at a time writes into the folder. The file exists only while there is something to know. If it
    cannot be written (a full disk), that is a warning: the slide can be read all the same.
    """

    def __init__(self, folder: Path) -> None:
        """Read what earlier starts left in ``folder``."""
        self._path = folder / IN_HAND
        self._earlier = _read(self._path)
        self._now: dict[str, State] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._now:
            self._now.clear()
            self._write()

    def suspect(self, slide_ids: Iterable[str]) -> None:
        """Note slides that were being read when a process died, as something else has told."""
        read: State = "read"
        known = self._earlier
        self._earlier = dict.fromkeys(slide_ids, read) | known
        if self._earlier != known:
            self._write()

    def suspected(self, slide_id: str) -> bool:
        """Whether an earlier start died while the slide was being read, or it killed a process of its own."""
        return slide_id in self._earlier

    def apart(
        self, jobs: Iterable[Job], slide_id: Callable[[Job], str]
    ) -> tuple[Sequence[Job], Sequence[Job]]:
        """Divide jobs into those whose slides are not suspected, and those whose slides are.

        ``slide_id`` gives the id of the slide of a job.
        """
        both: tuple[list[Job], list[Job]] = ([], [])
        for job in jobs:
            both[self.suspected(slide_id(job))].append(job)
        return both

    def begin(self, slide_id: str, *, alone: bool = False) -> None:
        """Note, on disk, that the slide will be read next. Call it before the slide is touched."""
        self._now[slide_id] = "read alone" if alone else "read"
        self._write()

    def end(self, slide_id: str) -> None:
        """Note that the slide was read, or failed with an error. It is no longer suspected."""
        known = self._now.pop(slide_id, None), self._earlier.pop(slide_id, None)
        if any(known):
            self._write()

    def blame(self, slide_id: str) -> None:
        """Note that the slide killed a process that read nothing else. The process of the batch never reads it
        again.
        """
        self._now.pop(slide_id, None)
        self._earlier[slide_id] = "deadly"
        self._write()

    def check(self, slide_id: str, location: Location) -> None:
        """Raise :class:`ProcessDied` for a slide that took a whole start with it though it was read alone."""
        if self._earlier.get(slide_id) == "read alone":
            self.blame(slide_id)
            raise ProcessDied(
                str(location),
                "a start died while it was being read, and the next start died while it was read in a process of "
                "its own",
                WANT_OF_MEMORY,
            )

    def killed(self, slide_id: str, location: Location, death: Died) -> ProcessDied:
        """Blame the slide for the death of a process that read nothing else, and return the error that says so."""
        self.blame(slide_id)
        fix = WANT_OF_MEMORY if death.by_kill else "its file may be damaged: leave it out, or convert it"
        return ProcessDied(str(location), f"the process that read it {death}", fix)

    def alone(
        self,
        slide_id: str,
        location: Location,
        work: Callable[[Argument], Result],
        argument: Argument,
    ) -> Result:
        """Return ``work(argument)``, computed by a process of its own, for a slide that is suspected.

        What ``work`` raises is raised here.

        Raises:
            ProcessDied: The slide kills that process, or did so in an earlier start and took the start with it.
        """
        self.check(slide_id, location)
        self.begin(slide_id, alone=True)
        try:
            result = alone(work, argument)
        except Died as death:
            raise self.killed(slide_id, location, death) from None
        except Exception:
            self.end(slide_id)
            raise
        self.end(slide_id)
        return result

    def _write(self) -> None:
        slides = self._earlier | self._now
        try:
            if slides:
                with whole_file(self._path) as partial:
                    partial.write_text(json.dumps({"slides": slides}, indent=1) + "\n", encoding="utf-8")
            else:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s is not written: %s", self._path, error)


def _read(path: Path) -> dict[str, State]:
    """``{slide_id: state}`` of what earlier starts left. Empty for a file that cannot be read."""
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise ValueError("too large")
        told = json.loads(path.read_text(encoding="utf-8"))["slides"]
        return {str(slide_id): STATES[STATES.index(state)] for slide_id, state in told.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("%s is ignored, because it cannot be read: %s", path, error)
        return {}


def looked_ahead(
    jobs: "Sequence[SlideJob]", work: "SlideWork"
) -> "Generator[tuple[SlideJob, Prepare | Died | None], None, None]":
    """Find the patches of each slide while the caller works on the one before.

    Yields each job with a function that gives its prepared slide or raises why there is none; with None if
    nobody has looked ahead, as for the first slide; or with :class:`Died` if the process that looked ahead died.
    Whether the slide was to blame, or memory was short, can only be told when nothing else is going on.
    """
    coming: Future[tuple[SlideSource, _Found]] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="wsi_ips-ahead") as pool:
        for number, job in enumerate(jobs):
            current, coming = coming, None
            prepare = None if current is None else _outcome(current, job, work)
            if number + 1 < len(jobs):
                following = jobs[number + 1]
                task: _Task = (work.predictor.find_patches, following.path, following.slide_id, following.mpp)
                find = partial(alone, carried(_find, who="ahead"), task)
                coming = pool.submit(_found_from, work.recorder, following, find)
            yield job, prepare


def looked_at_meanwhile(
    job: "SlideJob", recorder: "SlideRecorder", find_patches: FindPatches, load: "Callable[[], SlideWork]"
) -> "tuple[SlideWork, Prepare]":
    """Find the patches of a slide in a thread while this one loads the network.

    The thread is one of this process, which is to read the slide anyway.

    Args:
        job: The slide.
        recorder: Says what the slide's files are before it is opened.
        find_patches: What the network's predictor will find patches with.
        load: Loads the network. What it raises is raised, once the thread has ended.

    Returns:
        What ``load`` returned, and a function that gives the prepared slide or raises why there is none.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="wsi_ips-ahead") as pool:
        task: _Task = (find_patches, job.path, job.slide_id, job.mpp)
        find = partial(in_thread(_find, who="ahead"), task)
        coming = pool.submit(_found_from, recorder, job, find)
        work = load()

    def prepare() -> "PreparedSlide":
        source, (coords, seconds) = coming.result()
        return replace(work.predictor.opened(job.path, coords, seconds=seconds), source=source)

    return work, prepare


def _find(task: _Task) -> _Found:
    """The patches of a slide, and the seconds that it took to find them."""
    find_patches, location, slide_id, mpp = task
    started = time.perf_counter()
    with timeline_slide(slide_id), open_slide(location) as slide:
        return find_patches(slide, slide_id=slide_id, mpp=mpp), time.perf_counter() - started


def _found_from(
    recorder: "SlideRecorder", job: "SlideJob", find: Callable[[], _Found]
) -> "tuple[SlideSource, _Found]":
    """What the slide is before it is opened, and its patches."""
    return recorder.source(job), find()


def _outcome(
    found: "Future[tuple[SlideSource, _Found]]", job: "SlideJob", work: "SlideWork"
) -> Prepare | Died | None:
    try:
        source, (coords, seconds) = found.result()
    except Died as death:
        return death
    except NotStarted:
        return None
    except Exception as error:  # noqa: BLE001 - whatever a decoder may raise is this slide's failure
        return _raising(error)
    return lambda: replace(work.predictor.opened(job.path, coords, seconds=seconds), source=source)


def _raising(error: Exception) -> Prepare:
    def prepare() -> "PreparedSlide":
        raise error

    return prepare


def alone(work: Callable[[Argument], Result], argument: Argument) -> Result:
    """Return ``work(argument)``, computed by a new process. What it raises is raised here.

    Whatever ends the wait (Ctrl-C) ends the process too, and so does the end of the calling process.

    Args:
        work: A function of a module. It, its argument, its result and its errors have to be picklable.
        argument: Its argument.

    Raises:
        Died: The process died during the work.
        NotStarted: The process never began the work.
    """
    task = pickle.dumps((carried(work), argument))
    process = subprocess.Popen(  # noqa: S603 - this very interpreter
        [sys.executable, "-c", _START.format(path=sys.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin
    assert process.stdout
    try:
        with contextlib.suppress(BrokenPipeError):  # it died at once: its exit code says how
            for part in (pickle.dumps(logging.getLogger().level), task):
                process.stdin.write(len(part).to_bytes(LENGTH_BYTES, "little") + part)
            process.stdin.flush()
        answer = process.stdout.read()
        code = process.wait()
    finally:
        _end(process)
    if not answer.startswith(READY):
        raise NotStarted(f"the process that should read a slide does not start: it {Died(code)}")
    try:
        raised, result = pickle.loads(answer.removeprefix(READY))  # noqa: S301 - from our own process
    except (EOFError, pickle.UnpicklingError):  # there is no answer, or half of one
        raise Died(code) from None
    if raised:
        raise result
    return result  # type: ignore[no-any-return]


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the process if it still runs, cleanly if possible."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(ENDS_IN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _answer() -> None:
    """The main function of the new process."""
    _obey_the_parent_alone()
    # Libraries may print to stdout, which is for the answer. Send that to stderr.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    level = _received()
    logging.basicConfig(level=level, format="%(name)s: %(message)s")
    if level > logging.INFO:
        silence_libraries()
    work, argument = _received()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answers.write(READY)
    answers.flush()
    try:
        answer = pickle.dumps((False, work(argument)))
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGTERM)
    except Exception as error:  # noqa: BLE001 - whatever a decoder may raise is this slide's failure
        answer = _pickled(error)
    answers.write(answer)
    answers.close()
    logging.shutdown()
    # Skip the clean-up: a native library that crashes in it would be blamed on the slide.
    os._exit(0)


def _received() -> Any:
    length = int.from_bytes(_exactly(LENGTH_BYTES), "little")
    return pickle.loads(_exactly(length))  # noqa: S301 - from the process that started this one


def _exactly(length: int) -> bytes:
    """So many bytes of stdin and no more, because its end is waited for later."""
    parts = bytearray()
    while len(parts) < length:
        if not (part := os.read(0, length - len(parts))):
            sys.exit(1)
        parts += part
    return bytes(parts)


def _pickled(error: Exception) -> bytes:
    """The error pickled, or one with its text if it cannot be pickled."""
    try:
        answer = pickle.dumps((True, error))
        pickle.loads(answer)  # noqa: S301 - of the line above
    except Exception:  # noqa: BLE001 - whatever its class does
        return pickle.dumps((True, RuntimeError(f"{type(error).__name__}: {error}")))
    return answer


def _obey_the_parent_alone() -> None:
    """Ignore Ctrl-C, which goes to every process of a terminal. The parent decides what it means, and sends
    SIGTERM.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    go_first_when_memory_runs_out()  # this process, not the batch


def _end_with_parent() -> None:
    """Wait for the end of stdin: then the parent is gone, and nobody holds the folder or hears the answer."""
    while os.read(0, 1):
        pass
    os._exit(1)


def check_shared_memory() -> None:
    """Check that this system lets several processes work together, before any of them is started.

    Their locks are in shared memory (/dev/shm), which some containers do not have.

    Raises:
        ConfigError: There is no shared memory.
    """
    try:
        get_context("spawn").Semaphore()
    except (OSError, ImportError, NotImplementedError) as error:
        raise ConfigError(
            f"the system has no shared memory for several processes ({error}); leave --workers out, or give the "
            "container a writable /dev/shm"
        ) from None
