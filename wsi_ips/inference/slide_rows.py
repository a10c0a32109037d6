"""The table that a command writes of its slides while it works on them, and how often a table is written.

:class:`SlideRows` is the table of ``tile``, ``features`` and ``detect``. A table is written whole, so that a
reader never finds half of one. To do so after each of 100,000 slides would write ten billion lines: :class:`Pace`
says when a write is due.
"""

import csv
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from wsi_ips.errors import ResultsError
from wsi_ips.storage.files import check_table_size, whole_table

SLIDE_ID = "slide_id"
MANY = 500
"""Number of slides above which a table is not written after every change."""
AT_MOST_EVERY_S = 1.0
"""Seconds between two writes then, at least."""
SHARE_OF_WRITING = 0.02
"""The share of a run's time that may go into writing its tables. The more slides there are, the longer a write
takes, and the longer the next one is put off.
"""


class Pace:
    """When a table of many slides is written again."""

    def __init__(self) -> None:
        self._next = 0.0

    def due(self, rows: int) -> bool:
        """Whether a table of so many rows is to be written now."""
        return rows <= MANY or time.monotonic() >= self._next

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Context manager around a write, which takes its time."""
        began = time.monotonic()
        try:
            yield
        finally:
            ended = time.monotonic()
            self._next = ended + max(AT_MOST_EVERY_S, (ended - began) / SHARE_OF_WRITING)

    def at_once(self) -> None:
        """The next write is due."""
        self._next = 0.0


class SlideRows:
    """A CSV with a row a slide, in the order in which the slides were named. Use it as a context manager.

    It is written after each slide, above 500 slides once a second or less often (:class:`Pace`), and at the end
    of the block. What an earlier start wrote of a slide stays until there is something newer, so that a start that
    is killed loses no row of an earlier one. Slides that are not named this time keep their rows, below the
    others, as long as their results are there.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],
        slide_ids: Sequence[str],
        *,
        is_there: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """``columns``: those after the slide's id. ``is_there``: whether the results of this slide are stored."""
        self._path = path
        self._columns = [SLIDE_ID, *columns]
        self._rows = _earlier(path, self._columns)
        named = set(slide_ids)
        others = (slide_id for slide_id in self._rows if slide_id not in named)
        self._order = [*slide_ids, *filter(is_there, others)]
        self._pace = Pace()
        self._unwritten = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._unwritten:
            return
        try:
            self._write()
        except OSError:
            if error is None:
                raise

    def add(self, slide_id: str, cells: Sequence[object]) -> None:
        """Note what became of a slide; a cell that is None is empty. Raises :class:`OSError`."""
        self._rows[slide_id] = ["" if cell is None else str(cell) for cell in cells]
        self._unwritten = True
        if self._pace.due(len(self._order)):
            with self._pace.writing():
                self._write()

    def _write(self) -> None:
        with whole_table(self._path) as writer:
            writer.writerow(self._columns)
            writer.writerows(
                [slide_id, *self._rows[slide_id]] for slide_id in self._order if slide_id in self._rows
            )
        self._unwritten = False


def _earlier(path: Path, columns: Sequence[str]) -> dict[str, list[str]]:
    """Rows of an earlier start, none of a table that is not one of ours."""
    try:
        check_table_size(path, ResultsError)
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file, strict=True)
    except (OSError, ResultsError, csv.Error, ValueError):
        return {}
    if header != list(columns):
        return {}
    return {row[0]: row[1:] for row in rows if len(row) == len(columns)}
