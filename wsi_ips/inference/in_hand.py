"""Whether this system lets several processes work together: their locks lie in shared memory (/dev/shm).

One piece of work in a process of its own, so that native code that crashes there ends nothing else.

The process is a new interpreter, not a fork (threads and locks would be copied in whatever state they are) and not
one of :mod:`multiprocessing`'s (which runs the caller's script once more). It has the caller's ``sys.path`` and
environment. Work travels to it pickled over its stdin, the answer comes back over its stdout.

Which slides are being read now, on disk: a start that dies of one has said which, and the next one knows.

A damaged slide may crash a native library, and memory may run out over a large one: then the process ends where it
stands. What was in hand is suspected by the next start, which reads it last of all and in a process of its own
(:mod:`wsi_ips.inference.in_hand`). What ends with an error, Ctrl-C or SIGTERM has nothing in hand any more.

The next slide's patches, found while this one's are encoded; by a process of its own.

Where a network works on a GPU, the CPU has time to open the next slide and to look for its tissue. A damaged slide
may crash native code meanwhile, and that must not cost the slide that is being encoded. What the process needs is
imported from here, and PyTorch is not: it starts in a second.
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
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from wsi_ips.errors import ConfigError, ProcessDied
from wsi_ips.progress import silence_libraries
from wsi_ips.slides.registry import open_slide
from wsi_ips.storage.files import whole_file
from wsi_ips.storage.location import Location
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.patches import FindPatches
from wsi_ips.units import Mpp

if TYPE_CHECKING:
    from wsi_ips.inference.predict import PreparedSlide
    from wsi_ips.inference.slide_work import SlideJob, SlideWork


def check_shared_memory() -> None:
    """Raise :class:`ConfigError` where there is none, as in some containers, before any process is started."""
    try:
        get_context("spawn").Semaphore()
    except (OSError, ImportError, NotImplementedError) as error:
        raise ConfigError(
            f"the system gives no shared memory for several processes ({error}); leave --workers out, or give the "
            "container a writable /dev/shm"
        ) from None


Argument = TypeVar("Argument")
Result = TypeVar("Result")

ENDS_IN_S = 10.0
"""How long the process may take to put away what it has begun before it is killed."""
LENGTH_BYTES = 8
READY = b"+"
FIRST_TO_GO = "1000"
"""Linux' out-of-memory killer takes the process with the highest of these numbers: this one, not the batch."""
_START = "import sys; sys.path[:] = {path!r}; from wsi_ips.inference.in_hand import _answer; _answer()"


class Died(Exception):
    """``Died(code)``: the process ended with this exit code (as :mod:`subprocess` has it) and without an answer.

    In words: "was killed by SIGSEGV", "ended with exit code 9".
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
        """Whether it was killed as the system kills for want of memory."""
        return bool(self.args == (-signal.SIGKILL,))


class NotStarted(ConfigError):
    """The process did not come to begin: that is nobody's fault who was to be worked on."""


def alone(work: Callable[[Argument], Result], argument: Argument) -> Result:
    """``work(argument)``, done by a new process. What it raises is raised here.

    ``work`` is a function of a module, and it, its argument, its result and its errors can be pickled. Raises
    :class:`Died` where the process dies at it, and :class:`NotStarted` where it never came to begin. Whatever
    ends the wait (Ctrl-C) ends the process too, and the end of this process does.
    """
    task = pickle.dumps((work, argument))
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
        raise NotStarted(f"a process of its own does not start for a slide: it {Died(code)}")
    try:
        raised, result = pickle.loads(answer.removeprefix(READY))  # noqa: S301 - from our own process
    except (EOFError, pickle.UnpicklingError):  # none, or half of one
        raise Died(code) from None
    if raised:
        raise result
    return result  # type: ignore[no-any-return]


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the process where it still runs, cleanly if it lets itself be ended."""
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
    """What the new process does."""
    _obey_the_parent_alone()
    # What libraries print belongs on stderr: stdout is for the answer.
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
    # Native libraries that crash while they are put away have nothing to say about the slide.
    os._exit(0)


def _received() -> Any:
    length = int.from_bytes(_exactly(LENGTH_BYTES), "little")
    return pickle.loads(_exactly(length))  # noqa: S301 - from the process that started this one


def _exactly(length: int) -> bytes:
    """So many bytes of stdin and none more: its end is waited for later."""
    parts = bytearray()
    while len(parts) < length:
        if not (part := os.read(0, length - len(parts))):
            sys.exit(1)
        parts += part
    return bytes(parts)


def _pickled(error: Exception) -> bytes:
    """The error, or one in its words where it does not survive pickling."""
    try:
        answer = pickle.dumps((True, error))
        pickle.loads(answer)  # noqa: S301 - of the line above
    except Exception:  # noqa: BLE001 - whatever its class does
        return pickle.dumps((True, RuntimeError(f"{type(error).__name__}: {error}")))
    return answer


def _obey_the_parent_alone() -> None:
    """Ctrl-C goes to every process of a terminal; the parent decides what it means, and sends SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_GO)


def _end_with_parent() -> None:
    """Once stdin ends the parent is gone: nobody holds the folder any more, or hears the answer."""
    while os.read(0, 1):
        pass
    os._exit(1)


logger = logging.getLogger(__name__)
Job = TypeVar("Job")

IN_HAND = "in_hand.json"
LARGEST_BYTES = 2**26
WANT_OF_MEMORY = "if memory ran out give it more, else leave the slide out"

State = Literal["read", "read alone", "deadly"]
STATES: tuple[State, ...] = ("read", "read alone", "deadly")
"""``read``: by the process that does the batch. ``read alone``: by a process of its own. ``deadly``: that one died
of it."""


class SlidesInHand:
    """``with SlidesInHand(folder) as in_hand:`` the slides that are read into a folder, which one start at a time
    writes into. Its file is there only while there is something to be known.

    A file that cannot be written now (a full disk) is a warning: the slide can be read all the same.
    """

    def __init__(self, folder: Path) -> None:
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
        """These were being read when a process died, as something else has told."""
        read: State = "read"
        known = self._earlier
        self._earlier = dict.fromkeys(slide_ids, read) | known
        if self._earlier != known:
            self._write()

    def suspected(self, slide_id: str) -> bool:
        """Whether an earlier start died while the slide was being read, or it killed a process by itself."""
        return slide_id in self._earlier

    def apart(
        self, jobs: Iterable[Job], slide_id: Callable[[Job], str]
    ) -> tuple[Sequence[Job], Sequence[Job]]:
        """The jobs whose slides nothing is held against, and those of suspected slides."""
        both: tuple[list[Job], list[Job]] = ([], [])
        for job in jobs:
            both[self.suspected(slide_id(job))].append(job)
        return both

    def begin(self, slide_id: str, *, alone: bool = False) -> None:
        """The slide will be read next; on disk before it is touched."""
        self._now[slide_id] = "read alone" if alone else "read"
        self._write()

    def end(self, slide_id: str) -> None:
        """The slide is read, or has failed by an error. Nothing is held against it any more."""
        known = self._now.pop(slide_id, None), self._earlier.pop(slide_id, None)
        if any(known):
            self._write()

    def blame(self, slide_id: str) -> None:
        """The slide killed a process that read nothing else: it is never read by the batch's own again."""
        self._now.pop(slide_id, None)
        self._earlier[slide_id] = "deadly"
        self._write()

    def check(self, slide_id: str, location: Location) -> None:
        """Raises :class:`ProcessDied` for a slide that took a start with it though it was read alone."""
        if self._earlier.get(slide_id) == "read alone":
            self.blame(slide_id)
            raise ProcessDied(
                str(location),
                "a start died while it was being read, and the next one while a process of its own read it",
                WANT_OF_MEMORY,
            )

    def killed(self, slide_id: str, location: Location, death: Died) -> ProcessDied:
        """Blame the slide for the death of a process that read nothing else; gives the error that says so."""
        self.blame(slide_id)
        mend = WANT_OF_MEMORY if death.by_kill else "its file may be damaged: leave it out, or convert it"
        return ProcessDied(str(location), f"the process that read it {death}", mend)

    def alone(
        self,
        slide_id: str,
        location: Location,
        work: Callable[[Argument], Result],
        argument: Argument,
    ) -> Result:
        """``work(argument)`` by a process of its own, for a slide that is suspected; what it raises is raised.

        Raises :class:`ProcessDied` where the slide kills that process, or did so and the whole start with it.
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
    """{slide_id: state} of what earlier starts left; nothing of a file that is none of ours."""
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise ValueError("too large")
        told = json.loads(path.read_text(encoding="utf-8"))["slides"]
        return {str(slide_id): STATES[STATES.index(state)] for slide_id, state in told.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("%s is passed over, it cannot be read: %s", path, error)
        return {}


Prepare = Callable[[], "PreparedSlide"]
_Task = tuple[FindPatches, Location, str, Mpp | None]
_Found = tuple[PatchCoords, float]


def looked_ahead(
    jobs: "Sequence[SlideJob]", work: "SlideWork"
) -> "Generator[tuple[SlideJob, Prepare | Died | None], None, None]":
    """Each job with a call that gives its slide, or raises why there is none; while the caller has one, the next
    one's patches are looked for.

    None: nobody has looked ahead, as for the first. :class:`Died`: the process that did so died. Whether it was
    the slide's fault, or memory was short, can only be told when nothing else is going on.
    """
    coming: Future[_Found] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="wsi_ips-ahead") as pool:
        for number, job in enumerate(jobs):
            current, coming = coming, None
            prepare = None if current is None else _outcome(current, job, work)
            if number + 1 < len(jobs):
                following = jobs[number + 1]
                task: _Task = (work.predictor.find_patches, following.path, following.slide_id, following.mpp)
                coming = pool.submit(alone, _find, task)
            yield job, prepare


def _find(task: _Task) -> _Found:
    """A slide's patches, and the seconds that it took to find them."""
    find_patches, location, slide_id, mpp = task
    started = time.perf_counter()
    with open_slide(location) as slide:
        return find_patches(slide, slide_id=slide_id, mpp=mpp), time.perf_counter() - started


def _outcome(found: "Future[_Found]", job: "SlideJob", work: "SlideWork") -> Prepare | Died | None:
    try:
        coords, seconds = found.result()
    except Died as death:
        return death
    except NotStarted:
        return None
    except Exception as error:  # noqa: BLE001 - whatever a decoder may raise is this slide's failure
        return _raising(error)
    return lambda: work.predictor.opened(job.path, coords, seconds=seconds)


def _raising(error: Exception) -> Prepare:
    def prepare() -> "PreparedSlide":
        raise error

    return prepare
