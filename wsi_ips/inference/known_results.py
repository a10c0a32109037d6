"""``known.jsonl``: what the results of a run say, so that the next start goes on without opening each of them.

A start that goes on with a run has to know which slides are done. To open a result, and to take the fingerprint
of its slide, are milliseconds on a local disk and far more on a network drive; of 100,000 slides they are hours.
So each result leaves a line when it is stored (:meth:`KnownResults.add`): what a result says beside its
attention, and the stamps of the files that it was made from and is stored in. A stamp is the file's size, the
times of its last changes and its number on the disk. The next start looks at the stamps alone
(:meth:`KnownResults.matching`). Where one differs, or a line is missing or cannot be read, the result is opened
and the content decides, as without this file; it may be deleted at any time.

Only slides that are one file each have lines: not DICOM, MIRAX and Zarr, whose files are many.
"""

import json
import logging
import math
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from wsi_ips.config import TaskConfig
from wsi_ips.errors import one_line
from wsi_ips.inference.made_from import MadeFrom
from wsi_ips.inference.predictions import PredictionRow
from wsi_ips.slides.folder import files_of
from wsi_ips.storage.files import whole_file
from wsi_ips.storage.fingerprint import MIRAX_SUFFIX
from wsi_ips.storage.location import Location

logger = logging.getLogger(__name__)

LARGEST_BYTES = 2**30
"""Largest file that is read."""
LONGEST_LINE = 2**20
"""Most bytes of a line that is read."""
AT_ONCE = 4096
"""Lines whose files are looked at together."""
LOOKING = 16
"""Threads that look at files, which is waiting on a network drive."""
PER_THREAD = 128
"""Files that a thread looks at in one go."""
SETTLED_NS = 2_000_000_000
"""A file that was changed less than this ago may change again without a new stamp: some disks tell time in steps
of two seconds."""
SPARE_LINES = 1000
"""How many lines that newer ones replace the file may hold, beside as many as there are slides."""


class Wanted(Protocol):
    """What a start asks of stored results."""

    checkpoint: str
    embeddings: bool
    gradients: bool

    def same_settings(self, made_from: MadeFrom, mpp: float | None, *, bad_tiles: bool) -> bool:
        """Whether a result made from this would be made with the same settings now, its files being the same."""
        ...

    def coordinates(self, slide_id: str) -> Sequence[Path] | None:
        """The files that the patches of a slide are read from: none if they are found by segmentation, None if
        there are no such files any more.
        """
        ...


class WithPath(Protocol):
    """A slide to predict: its id, its place and the µm per pixel that were given for it."""

    @property
    def slide_id(self) -> str: ...
    @property
    def path(self) -> Location: ...
    @property
    def mpp(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Stamps:
    """The stamps of what a result is made from: the slide's file, and the files of its coordinates, if it has any.

    They have to be taken before the fingerprints that they stand for. ``slide`` is empty if there is none.
    """

    slide: str
    patches: str = ""

    @classmethod
    def of(cls, slide: Location, patches: Sequence[Path] | None) -> "Stamps":
        """The stamps now. None of a slide of several files, and none of files that were changed just now."""
        if (
            patches is None
            or not isinstance(slide, Path)
            or slide.suffix.lower() == MIRAX_SUFFIX
            or files_of(slide) != [slide]
        ):
            return cls("")
        slides, beside = stamp(slide, settled=True), [stamp(path, settled=True) for path in patches]
        return cls(slides if all(beside) else "", " ".join(beside))


def stamp(path: Path | str, *, settled: bool = False) -> str:
    """Size, times of change and number of a file, as text. Empty if it is not there or no plain file.

    With ``settled`` it is also empty for a file that was changed just now.
    """
    try:
        about = os.stat(path)  # noqa: PTH116 - a Path for each of 200,000 files takes a second
    except (OSError, ValueError):
        return ""
    if not stat.S_ISREG(about.st_mode):
        return ""
    if settled and time.time_ns() - max(about.st_mtime_ns, about.st_ctime_ns) < SETTLED_NS:
        return ""
    return f"{about.st_size}-{about.st_mtime_ns}-{about.st_ctime_ns}-{about.st_ino}"


def known_line(
    row: PredictionRow,
    made_from: MadeFrom,
    *,
    slide_path: str,
    stamps: Stamps,
    result: str,
    checkpoint: str,
    bad_tiles: bool,
    holds: Sequence[str],
    note: str,
) -> str:
    """The line of a result; empty if nothing can be known of it by stamps.

    Args:
        row: What the result says, before calibration, without what became of its overlay.
        made_from: What it was made from.
        slide_path: The slide, as it was given.
        stamps: Those of its files, taken before ``made_from`` was.
        result: The stamp of the file that it is stored in.
        checkpoint: SHA-256 of the model.
        bad_tiles: Whether some tiles could not be read.
        holds: Which of ``embeddings`` and ``gradients`` are stored with it.
        note: Its note in ``slides.csv``.
    """
    if not (stamps.slide and result and checkpoint and made_from.slide) or row.case is not None:
        return ""
    told = {
        "slide_id": row.slide_id, "path": slide_path, "stamps": [stamps.slide, stamps.patches, result],
        "checkpoint": checkpoint, "made_from": made_from.to_json(), "bad_tiles": bad_tiles, "holds": list(holds),
        "probabilities": row.probabilities, "spread": row.spread, "n_patches": row.n_patches, "error": row.error,
        "note": note,
    }  # fmt: skip
    return json.dumps(told, separators=(",", ":"))


class KnownResults:
    """The lines of a run's results. What cannot be read or written is left out: results say it all themselves.

    Args:
        path: ``known.jsonl`` of the run.
        attention: The folder of the results, ``<slide_id>.h5``.
    """

    def __init__(self, path: Path, attention: Path) -> None:
        self._path = path
        self._attention = attention
        self._begun = False

    def add(self, line: str) -> None:
        """Add the line of a result that is stored now. It replaces an earlier one of the same slide."""
        try:
            with self._path.open("ab") as file:
                # A start that was killed may have left half a line.
                torn = not self._begun and file.tell() > 0
                self._begun = True
                file.write(b"\n" * torn + line.encode() + b"\n")
        except OSError as error:
            logger.warning("%s is not written: %s", self._path, error)

    def matching(
        self, jobs: Sequence[WithPath], wanted: Wanted, tasks: Sequence[TaskConfig]
    ) -> Iterator[tuple[str, PredictionRow, str]]:
        """Slide id, row and note of each slide whose result is what this start would make, by its stamps.

        A slide is told once. The rows are without calibration. Memory is that of some thousand lines.
        """
        job_of = {job.slide_id: job for job in jobs}
        seen: set[str] = set()
        fits = _Fits(wanted)
        stored_in = str(self._attention) + os.sep
        lines = 0
        with ThreadPoolExecutor(LOOKING, thread_name_prefix="wsi_ips-known") as pool:
            told = self._lines()
            while some := list(islice(told, AT_ONCE)):
                lines += len(some)
                asked = [
                    (line, job) for line in some if (job := job_of.get(line["slide_id"])) and fits(line, job)
                ]
                paths = [str(job.path) for _, job in asked]
                paths += [f"{stored_in}{job.slide_id}.h5" for _, job in asked]
                now = _stamps(paths, pool)
                for place, (line, job) in enumerate(asked):
                    slide, patches, result = line["stamps"]
                    if job.slide_id in seen or now[place] != slide or now[len(asked) + place] != result:
                        continue
                    files = wanted.coordinates(job.slide_id)
                    if files is None or " ".join(map(stamp, files)) != patches:
                        continue
                    if (row := _row(line, tasks)) is not None:
                        seen.add(job.slide_id)
                        yield job.slide_id, row, line["note"]
        if lines > 2 * len(job_of) + SPARE_LINES:
            self._tidy()

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Every line that can be read."""
        try:
            if self._path.stat().st_size > LARGEST_BYTES:
                logger.warning("%s is ignored, because it is larger than %d bytes", self._path, LARGEST_BYTES)
                return
            with self._path.open("rb") as file:
                while text := file.readline(LONGEST_LINE):
                    line = _parsed(text)
                    if line is not None:
                        yield line
        except FileNotFoundError:
            return
        except OSError as error:
            logger.warning("%s is ignored, because it cannot be read: %s", self._path, error)

    def _tidy(self) -> None:
        """Leave the last line of each slide."""
        last: dict[str, bytes] = {}
        try:
            with self._path.open("rb") as file:
                while text := file.readline(LONGEST_LINE):
                    if (line := _parsed(text)) is not None:
                        last.pop(line["slide_id"], None)
                        last[line["slide_id"]] = text.rstrip(b"\n")
            with whole_file(self._path) as partial, partial.open("wb") as out:
                out.writelines(line + b"\n" for line in last.values())
        except OSError as error:
            logger.warning("%s is not written: %s", self._path, error)


def _parsed(text: bytes) -> dict[str, Any] | None:
    """A line, if all that is looked at has its type."""
    try:
        line = json.loads(text.decode())
        stamps = line["stamps"]
        sound = (
            all(isinstance(line[name], str) for name in ("slide_id", "path", "checkpoint", "note", "error"))
            and isinstance(stamps, list)
            and len(stamps) == 3
            and all(isinstance(each, str) for each in stamps)
            and bool(stamps[0] and stamps[2])
            and isinstance(line["bad_tiles"], bool)
            and isinstance(line["holds"], list)
            and isinstance(line["made_from"], dict)
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return line if sound else None


class _Fits:
    """Whether a result is of a slide and is what is wanted, if its files have not changed."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._settings: dict[str, bool] = {}

    def __call__(self, line: Mapping[str, Any], job: WithPath) -> bool:
        wanted, holds = self._wanted, line["holds"]
        if line["checkpoint"] != wanted.checkpoint or line["path"] != str(job.path):
            return False
        if (wanted.embeddings and "embeddings" not in holds) or (
            wanted.gradients and "gradients" not in holds
        ):
            return False
        # The settings of most slides are the same, so they are compared once. Fingerprints are no settings.
        settings = repr([{**line["made_from"], "slide": "", "patches": ""}, line["bad_tiles"], job.mpp])
        if settings not in self._settings:
            self._settings[settings] = self._same_settings(line, job)
        return self._settings[settings]

    def _same_settings(self, line: Mapping[str, Any], job: WithPath) -> bool:
        try:
            made_from = MadeFrom.from_json(line["made_from"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            return False
        return self._wanted.same_settings(made_from, job.mpp, bad_tiles=line["bad_tiles"])


def _stamps(paths: Sequence[str], pool: ThreadPoolExecutor) -> list[str]:
    parts = [paths[first : first + PER_THREAD] for first in range(0, len(paths), PER_THREAD)]
    return [each for part in pool.map(lambda its: [stamp(path) for path in its], parts) for each in part]


def _row(line: Mapping[str, Any], tasks: Sequence[TaskConfig]) -> PredictionRow | None:
    """The row of a line; None if its numbers are not those of exactly these tasks and classes."""
    n_patches = line.get("n_patches")
    if type(n_patches) is not int or n_patches < 0:
        return None
    try:
        probabilities = _numbers(line["probabilities"], tasks, of_spread=False)
        spread = _numbers(line["spread"], tasks, of_spread=True) if line["spread"] else {}
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return PredictionRow(
        slide_id=line["slide_id"],
        status="ok",
        probabilities=probabilities,
        n_patches=n_patches,
        error=one_line(line["error"]),
        spread=spread,
    )


def _numbers(
    told: Mapping[str, Any], tasks: Sequence[TaskConfig], *, of_spread: bool
) -> dict[str, dict[str, float]]:
    """The numbers under our own names, which take no further memory.

    Raises ``ValueError`` for other names and for numbers that no network says, ``AttributeError`` or ``TypeError``
    for what is not made of names and numbers.
    """
    if list(told) != [task.name for task in tasks]:
        raise ValueError("other tasks")
    numbers = {}
    for task in tasks:
        values = list(told[task.name].values())
        if list(told[task.name]) != list(task.classes) or not all(type(value) is float for value in values):
            raise ValueError("other classes")
        most = math.inf if of_spread or task.activation == "linear" else 1.0
        least = -math.inf if task.activation == "linear" else 0.0
        if not all(math.isfinite(value) and least <= value <= most for value in values):
            raise ValueError("no probability")
        numbers[task.name] = dict(zip(task.classes, values, strict=True))
    return numbers
