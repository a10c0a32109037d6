"""The table that a command writes of its slides while it works on them."""

import csv
from collections.abc import Sequence
from pathlib import Path

from wsi_ips.errors import ResultsError
from wsi_ips.storage.files import check_table_size, whole_table

SLIDE_ID = "slide_id"


class SlideRows:
    """A CSV with a row a slide, written whole after each, in the order in which the slides were named.

    What an earlier start wrote of a slide stays until there is something newer, so that a start that is killed
    loses no row.
    """

    def __init__(self, path: Path, columns: Sequence[str], slide_ids: Sequence[str]) -> None:
        """``columns``: those after the slide's id."""
        self._path = path
        self._columns = [SLIDE_ID, *columns]
        self._order = slide_ids
        self._rows = _earlier(path, self._columns)

    def add(self, slide_id: str, cells: Sequence[object]) -> None:
        """Write what became of a slide; a cell that is None is empty. Raises :class:`OSError`."""
        self._rows[slide_id] = ["" if cell is None else str(cell) for cell in cells]
        with whole_table(self._path) as writer:
            writer.writerow(self._columns)
            writer.writerows(
                [slide_id, *self._rows[slide_id]] for slide_id in self._order if slide_id in self._rows
            )


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
