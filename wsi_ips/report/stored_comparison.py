"""What ``wsi-ips evaluate A --against B`` left of two runs on the same slides: :func:`read_comparison`."""

from itertools import groupby
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from wsi_ips.errors import ResultsError
from wsi_ips.storage.stored_json import read_stored_json

COMPARISON_NAME = "against.json"
"""The file of a comparison, in the folder of an evaluation."""

LARGEST_COMPARISON_BYTES = 2**26
"""The largest file of a comparison that is read."""

COMPARISON_FIX = "evaluate again with --against, or without it"
"""What to do about a file that is no comparison."""


class _Part(BaseModel):
    """A part of ``against.json``. Later versions may write more than is read here."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class ComparedFigure(_Part):
    """A figure of both runs, ``a`` and ``b``, and the difference ``a - b``, each with its interval.

    None for what these slides do not determine; ``why_none`` says why there is no interval or p value although one
    was asked for.
    """

    task: str
    of: str
    count: int
    figure: str
    a: float | None
    a_low: float | None = None
    a_high: float | None = None
    b: float | None
    b_low: float | None = None
    b_high: float | None = None
    difference: float | None
    difference_low: float | None = None
    difference_high: float | None = None
    delong_p: float | None = None
    why_none: str = ""


class ComparedSlides(_Part):
    """How many slides both runs have predicted, and the names of those that only one has."""

    common: int
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()


class ComparedIntervals(_Part):
    """How intervals were made."""

    level: float = 0.95
    resamples: int = 0


class StoredComparison(_Part):
    """A comparison as it is stored; ``a`` and ``b`` are the folders of the runs."""

    a: str
    b: str
    split: str
    slides: ComparedSlides
    intervals: ComparedIntervals = ComparedIntervals()
    figures: tuple[ComparedFigure, ...]

    @property
    def tables(self) -> list[tuple[str, str, int, list[ComparedFigure]]]:
        """(task, ``slides`` or ``patients``, how many, figures) of each table, in the order of the file."""
        return [
            (task, of, number, list(figures))
            for (task, of, number), figures in groupby(
                self.figures, key=lambda each: (each.task, each.of, each.count)
            )
        ]


def read_comparison(folder: Path) -> StoredComparison | None:
    """Read the comparison in the folder of an evaluation. None if it holds none.

    Raises :class:`ResultsError` for a file that is no comparison.
    """
    path = folder / COMPARISON_NAME
    if not path.is_file():
        return None
    return read_stored_json(
        path,
        StoredComparison,
        ResultsError,
        what="comparison",
        most=LARGEST_COMPARISON_BYTES,
        fix=COMPARISON_FIX,
    )
