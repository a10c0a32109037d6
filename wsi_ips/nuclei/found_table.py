"""The table of the objects that ``detect`` found in a slide, read without torch: :class:`FoundTable`.

Shape suffixes: N objects, V vertices.
"""

import csv
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import Polygon

from wsi_ips.errors import ResultsError, one_line
from wsi_ips.units import LARGEST_COORDINATE

COLUMNS = ("class", "score", "l0_x", "l0_y", "l0_left", "l0_top", "l0_right", "l0_bottom")
"""Columns of the table."""
OUTLINE = "l0_outline"
"""The last column of the tables of detectors with masks: an outline as WKT."""
DETECT_AGAIN = "run wsi-ips detect again"
"""What to do about a broken table."""
MOST_OBJECTS = 4_000_000
"""The most objects of a table; each takes 30 bytes of memory."""
MOST_CLASSES = 1000
"""The most classes of a table."""
LONGEST_ROW = 2**16
"""Bytes of the longest row: an outline of three thousand vertices."""


@dataclass(frozen=True, slots=True, eq=False)
class FoundTable:
    """The objects of a slide.

    ``l0_boxes_N4``, float32, holds left, top, right and bottom in level-0 pixels, ``scores_N``, float32, the
    scores, and ``classes_N``, uint16, indices into ``classes``. ``starts_N``, int64, is where each row begins in
    the file: outlines are only read when they are asked for.
    """

    path: Path
    classes: tuple[str, ...]
    outlined: bool
    l0_boxes_N4: NDArray[np.float32]
    scores_N: NDArray[np.float32]
    classes_N: NDArray[np.uint16]
    starts_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores_N)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a table.

        Raises :class:`ResultsError` for a file that is no such table, or has more than ``MOST_OBJECTS`` objects.
        """
        try:
            with path.open("rb") as file:
                return cls._of(path, file)
        except (ValueError, csv.Error) as error:
            raise ResultsError(
                path, f"is no table of found objects ({one_line(error, most=120)})", DETECT_AGAIN
            ) from None

    @classmethod
    def _of(cls, path: Path, file: BinaryIO) -> Self:
        rows = _rows(file)
        _, header = next(rows, (0, []))
        outlined = header == [*COLUMNS, OUTLINE]
        if not outlined and header != list(COLUMNS):
            raise ValueError(f"its columns are not {','.join(COLUMNS)}")
        places: dict[str, int] = {}
        boxes, scores, classes, starts = array("f"), array("f"), array("H"), array("q")
        for start, row in rows:
            if len(row) != len(header):
                raise ValueError(f"row {len(scores) + 1} has {len(row)} cells")
            if len(scores) == MOST_OBJECTS or len(places) > MOST_CLASSES:
                raise ValueError(f"more than {MOST_OBJECTS:,} objects or {MOST_CLASSES:,} classes")
            scores.append(float(row[1]))
            boxes.extend(float(cell) for cell in row[4:8])
            classes.append(places.setdefault(row[0], len(places)))
            starts.append(start)
        l0_boxes_N4 = np.asarray(boxes, np.float32).reshape(-1, 4)
        scores_N = np.asarray(scores, np.float32)
        if not (np.isfinite(l0_boxes_N4).all() and np.isfinite(scores_N).all()):
            raise ValueError("a number is not finite")
        if (np.abs(l0_boxes_N4) > LARGEST_COORDINATE).any():
            raise ValueError(f"a box lies beyond {LARGEST_COORDINATE:.0f} pixels")
        return cls(
            path, tuple(places), outlined, l0_boxes_N4, scores_N, np.asarray(classes, np.uint16),
            np.asarray(starts, np.int64),
        )  # fmt: skip

    def rows_in(self, left: float, top: float, right: float, bottom: float) -> NDArray[np.int64]:
        """Rows of the objects whose box meets this part of the slide, (n,) int64.

        The part is in level-0 pixels; rows are in the table's order.
        """
        x0_N, y0_N, x1_N, y1_N = self.l0_boxes_N4.T
        return np.flatnonzero((x1_N >= left) & (x0_N <= right) & (y1_N >= top) & (y0_N <= bottom))

    def l0_rings(self, rows: Sequence[int]) -> list[NDArray[np.float64]]:
        """The outlines of these objects, (V, 2) float64 x, y in level-0 pixels each, not closed.

        An object without an outline has its box instead.
        """
        boxes = self.l0_boxes_N4[list(rows)].astype(np.float64)
        rings = [np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]) for x0, y0, x1, y1 in boxes]
        if self.outlined:
            with self.path.open("rb") as file:
                for place, row in enumerate(rows):
                    ring = _outline_at(file, int(self.starts_N[row]))
                    rings[place] = rings[place] if ring is None else ring
        return rings


def _rows(file: BinaryIO) -> Iterator[tuple[int, list[str]]]:
    """Each row with the byte at which it begins."""
    read = 0

    def lines() -> Iterator[str]:
        nonlocal read
        while line := file.readline(LONGEST_ROW + 1):
            if len(line) > LONGEST_ROW:
                raise ValueError(f"a row of more than {LONGEST_ROW:,} bytes")
            read += len(line)
            yield line.decode()

    start = 0
    for row in csv.reader(lines()):
        yield start, row
        start = read


def _outline_at(file: BinaryIO, start: int) -> NDArray[np.float64] | None:
    """The outline in a row; None if there is none that can be drawn, for the file may have changed meanwhile."""
    file.seek(start)
    try:
        row = next(csv.reader([file.readline(LONGEST_ROW).decode()]))
        with np.errstate(all="ignore"):  # a coordinate that is no number, or larger than any
            outline = shapely.from_wkt(row[len(COLUMNS)])
    except (ValueError, LookupError, StopIteration, csv.Error, shapely.GEOSException):
        return None
    if not isinstance(outline, Polygon) or outline.is_empty:
        return None
    ring = shapely.get_coordinates(outline.exterior)[:-1]
    return ring if (np.abs(ring) <= LARGEST_COORDINATE).all() else None
