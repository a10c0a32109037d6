"""``known.jsonl``: what the results of a run say, so that the next start goes on without opening each of them.

A start that goes on with a run has to know which slides are done. To open a result, and to take the fingerprint of
its slide, are milliseconds on a local disk and far more on a network drive; of 100,000 slides they are hours. So
each result leaves a line when it is stored (:meth:`KnownResults.add`): what a result says beside its attention,
and the stamps of the files that it was made from and is stored in (:mod:`wsi_ips.inference.slide_stamps`, which
also says which slides have none). The next start looks at the stamps alone (:meth:`KnownResults.matching`). Where
one differs, or a line is missing or cannot be read, the result is opened and the content decides, as without this
file; it may be deleted at any time.

Where all slides of a case are one bag, a line also says of which case the slide is, and which slides were read
with it. The case is known if all of its slides are.
"""

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

from wsi_ips.config import TaskConfig
from wsi_ips.errors import one_line
from wsi_ips.inference.made_from import MadeFrom
from wsi_ips.inference.predictions import PredictionRow
from wsi_ips.inference.results import PartOfCase
from wsi_ips.inference.slide_stamps import FILE, Asked, Stamps, answer, asked_again, stamp
from wsi_ips.storage.files import whole_file
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
MOST_SHARE = 1.001
"""Largest share of a slide in the attention of its case: 1, and some rounding."""
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
    if not (stamps.slide and stamps.settled and result and checkpoint and made_from.slide):
        return ""
    told = {
        "slide_id": row.slide_id, "path": slide_path, "stamps": [stamps.slide, stamps.patches, result],
        "checkpoint": checkpoint, "made_from": made_from.to_json(), "bad_tiles": bad_tiles, "holds": list(holds),
        "probabilities": row.probabilities, "spread": row.spread, "n_patches": row.n_patches, "error": row.error,
        "note": note, **({} if row.case is None else {"case": row.case.to_json()}),
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
                slides = [asked_again(str(job.path), line["stamps"][0]) for line, job in asked]
                results = [(FILE, f"{stored_in}{job.slide_id}.h5") for _, job in asked]
                now = _answers([*slides, *results], pool)
                for (line, job), its, stored in zip(asked, slides, results, strict=True):
                    slide, patches, result = line["stamps"]
                    if job.slide_id in seen or now[its] != slide or now[stored] != result:
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


def _answers(asked: Sequence[Asked], pool: ThreadPoolExecutor) -> dict[Asked, str]:
    """The stamps now. What is asked for several slides is looked at once."""
    once = list(dict.fromkeys(asked))
    parts = [once[first : first + PER_THREAD] for first in range(0, len(once), PER_THREAD)]
    told = pool.map(lambda its: [answer(each) for each in its], parts)
    return dict(zip(once, chain.from_iterable(told), strict=True))


def _row(line: Mapping[str, Any], tasks: Sequence[TaskConfig]) -> PredictionRow | None:
    """The row of a line; None if its numbers are not those of exactly these tasks and classes."""
    n_patches = line.get("n_patches")
    if type(n_patches) is not int or n_patches < 0:
        return None
    try:
        probabilities = _numbers(line["probabilities"], tasks, of_spread=False)
        spread = _numbers(line["spread"], tasks, of_spread=True) if line["spread"] else {}
        case = None if line.get("case") is None else PartOfCase.from_json(line["case"])
        if case is not None and not 0 <= case.share <= MOST_SHARE:
            return None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    return PredictionRow(
        slide_id=line["slide_id"],
        status="ok",
        probabilities=probabilities,
        n_patches=n_patches,
        error=one_line(line["error"]),
        spread=spread,
        case=case,
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
