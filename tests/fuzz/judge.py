"""Runs a target on one input and says what is wrong with how it ended.

Wrong is: an exception that is no class of :mod:`wsi_ips.errors`; words that a user would not understand (a control
character, a page of text, a warning of a library, anything that a library prints); too much time or memory; a file
that was left half-written.
"""

import logging
import os
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from wsi_ips.errors import WsiIpsError, harmless
from wsi_ips.storage.files import PARTIAL

MOST_CPU_S = 8.0
MOST_GROWN_MB = 500
LONGEST_MESSAGE = 2500
ADDRESS_SPACE_BYTES = 6 << 30
"""Beyond what a child has before an input: a last resort that turns the end of all memory into an exception. Half
of it is for libraries that the input is the first to need: torch alone takes 3 GB of addresses."""
SILENT_BY_DEFAULT = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
PACKAGE = "wsi_ips"
TOO_MUCH = "too much"


@dataclass(frozen=True, slots=True)
class Verdict:
    """problem: what is wrong, in one line; empty: nothing. where: of an exception, the innermost lines of ours.

    said: the refusal, where the input was refused as it should be.
    """

    problem: str = ""
    where: str = ""
    said: str = ""

    @property
    def key(self) -> str:
        """Equal for inputs that fail alike."""
        return f"{self.problem.split(' | ')[0]} {self.where}".strip()


def judge(run: Callable[[Path, Path], None], given: Path, out: Path) -> Verdict:
    """Run the target. ``out`` is a folder that is there and empty."""
    heard: list[str] = []
    said = ""
    began, memory = time.process_time(), _Memory()
    try:
        with _listening(heard):
            run(given, out)
    except WsiIpsError as error:
        said = str(error)
        problem = _unclear(said)
        if problem:
            return Verdict(f"{problem} | {said[:200]!r}", type(error).__name__, said)
    except Exception as error:
        return Verdict(f"{type(error).__name__} | {str(error)[:200]}", _place_of(error))
    seconds, grown = time.process_time() - began, memory.grown_mb()
    if seconds > MOST_CPU_S:
        return Verdict(f"{TOO_MUCH} time | {seconds:.1f} s", said=said)
    if grown > MOST_GROWN_MB:
        return Verdict(f"{TOO_MUCH} memory | {grown:.0f} MB", said=said)
    if heard:
        return Verdict(heard[0], said=said)
    left = [str(path.relative_to(out)) for path in out.rglob(PARTIAL)]
    return Verdict(f"a half-written file is left | {left[0]}" if left else "", said=said)


def _unclear(text: str) -> str:
    """Why no user should be shown this."""
    if "\n" in text or text != harmless(text):
        return "a control character in a message"
    if len(text) > LONGEST_MESSAGE:
        return "a message longer than a page"
    return "an empty message" if not text.strip() else ""


def _place_of(error: BaseException) -> str:
    """The innermost two places of ours, with the function and not the line: lines move."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"/{PACKAGE}/" in frame.filename]
    return " < ".join(f"{Path(frame.filename).name}:{frame.name}" for frame in reversed(ours[-2:]))


@contextmanager
def _listening(heard: list[str]) -> Iterator[None]:
    """Collects warnings, lines of other packages' logs, tracebacks in our own, and what native code prints."""
    handler = _Handler(heard)
    root = logging.getLogger()
    root.addHandler(handler)
    before = _stderr_size()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for kind in SILENT_BY_DEFAULT:
                warnings.simplefilter("ignore", kind)
            yield
    finally:
        root.removeHandler(handler)
    heard += [f"{each.category.__name__} | {each.message} ({Path(each.filename).name}:{each.lineno})"
              for each in caught]  # fmt: skip
    sys.stderr.flush()
    if _stderr_size() > before:
        os.lseek(2, before, os.SEEK_SET)
        printed = os.read(2, 300).decode("utf-8", "replace").strip()
        os.lseek(2, 0, os.SEEK_END)
        heard.append(f"printed by a library | {' '.join(printed.split())}")


class _Handler(logging.Handler):
    def __init__(self, heard: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        words = record.getMessage()
        if record.exc_info:
            kind = record.exc_info[0].__name__ if record.exc_info[0] else ""
            place = _place_of(record.exc_info[1]) if record.exc_info[1] else ""
            self._heard.append(f"a traceback in the log: {kind} at {place} | {words[:200]}")
        elif record.name.partition(".")[0] != PACKAGE:
            self._heard.append(f"a line of {record.name}'s log | {words[:200]}")
        elif len(words) > LONGEST_MESSAGE:  # the terminal's handler takes care of control characters
            self._heard.append(f"a line of the log longer than a page | {words[:200]!r}")


def _stderr_size() -> int:
    """Bytes in the file that a child's standard error is; 0 where it is none."""
    try:
        return os.fstat(2).st_size
    except OSError:
        return 0


class _Memory:
    """How far the process grew beyond what it had, at its highest."""

    def __init__(self) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from now on
        self._before = _peak_mb()

    def grown_mb(self) -> float:
        return _peak_mb() - self._before


def _peak_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def limit_memory() -> None:
    """Allow no more address space than there is now and ``ADDRESS_SPACE_BYTES``.

    To be called before each input: what the inputs before it have loaded stays.
    """
    size = next(int(line.split()[1]) << 10 for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("VmSize:"))  # fmt: skip
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_SPACE_BYTES, most))
