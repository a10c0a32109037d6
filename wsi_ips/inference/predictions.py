"""``predictions.csv``: what the network says of every slide of a run. The same run gives the same bytes."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from wsi_ips.config import TaskConfig
from wsi_ips.errors import ResultsError, one_line
from wsi_ips.files import LONGEST_CELL, check_table_size, whole_table
from wsi_ips.inference.results import PREDICT_AGAIN, Probabilities, SlideResult


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionRow:
    """One slide of ``predictions.csv``. A failed slide has its error, in one line, and no probabilities.

    A labelled slide may have an error too: what else was wanted of it and failed.
    """

    slide_id: str
    status: Literal["ok", "failed"]
    probabilities: Probabilities = field(default_factory=dict)
    n_patches: int | None = None
    error: str = ""

    @classmethod
    def done(cls, result: SlideResult, *, error: str = "") -> Self:
        return cls(
            slide_id=result.coords.slide_id,
            status="ok",
            probabilities=result.probabilities,
            n_patches=len(result.coords) if result.coarse is None else result.coarse.patches,
            error=one_line(error),
        )

    @classmethod
    def failed(cls, slide_id: str, error: str) -> Self:
        return cls(slide_id=slide_id, status="failed", error=one_line(error))


def write_predictions(path: Path, rows: Sequence[PredictionRow], *, tasks: Sequence[TaskConfig]) -> None:
    """Write the table whole.

    Columns: ``slide_id, prob_<class>…, pred, n_patches, status, error``; with several tasks
    ``prob_<task>_<class>…, pred_<task>`` for each. ``pred`` is the likeliest class; of a sigmoid task, the
    classes from 0.5 on, joined by ``|``; of a linear task, its numbers. Numbers read back exactly.
    """
    with whole_table(path) as writer:
        writer.writerow(_columns(tasks))
        writer.writerows(_cells(row, tasks) for row in rows)


def read_predictions(path: Path, *, tasks: Sequence[TaskConfig]) -> list[PredictionRow]:
    """Read what :func:`write_predictions` wrote for these tasks. Raises :class:`ResultsError`."""
    if not path.is_file():
        raise ResultsError(path, "does not exist", "name a table that wsi-ips predict wrote")
    check_table_size(path, ResultsError)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file, strict=True)
    except (csv.Error, UnicodeDecodeError, ValueError) as error:
        raise ResultsError(path, f"is not a CSV table ({error})", PREDICT_AGAIN) from None
    columns = _columns(tasks)
    if header != columns:
        raise ResultsError(path, f"has the columns {', '.join(header)}, not {', '.join(columns)}")
    rows = []
    for number, line in enumerate(lines, start=2):
        try:
            rows.append(_row(dict(zip(columns, line, strict=True)), tasks))
        except ValueError as error:
            raise ResultsError(path, f"row {number} is broken ({error})", PREDICT_AGAIN) from None
    return rows


def _columns(tasks: Sequence[TaskConfig]) -> list[str]:
    return ["slide_id", *answer_columns(tasks), "n_patches", "status", "error"]


def answer_columns(tasks: Sequence[TaskConfig]) -> list[str]:
    """``prob_<class>…, pred``; with several tasks ``prob_<task>_<class>…, pred_<task>`` for each."""
    columns = []
    for task in tasks:
        columns += [name for name, _ in _probability_columns(task, tasks)]
        columns.append("pred" if len(tasks) == 1 else f"pred_{task.name}")
    return columns


def _probability_columns(task: TaskConfig, tasks: Sequence[TaskConfig]) -> Iterator[tuple[str, str]]:
    """(column, class) for every class of a task."""
    prefix = "prob_" if len(tasks) == 1 else f"prob_{task.name}_"
    return ((prefix + name, name) for name in task.classes)


def _cells(row: PredictionRow, tasks: Sequence[TaskConfig]) -> list[str]:
    answers = answer_cells(row.probabilities if row.status == "ok" else None, tasks)
    n_patches = "" if row.n_patches is None else str(row.n_patches)
    return [row.slide_id, *answers, n_patches, row.status, one_line(row.error, most=LONGEST_CELL)]


def answer_cells(probabilities: Probabilities | None, tasks: Sequence[TaskConfig]) -> list[str]:
    """The cells of :func:`answer_columns`; empty ones where there is no answer."""
    if probabilities is None:
        return [""] * len(answer_columns(tasks))
    cells = []
    for task in tasks:
        cells += [repr(float(probabilities[task.name][name])) for name in task.classes]
        cells.append(_predicted(task, probabilities[task.name]))
    return cells


def _predicted(task: TaskConfig, probabilities: Mapping[str, float]) -> str:
    if task.activation == "linear":
        return "|".join(f"{probabilities[name]:.6g}" for name in task.classes)
    if task.activation == "sigmoid":
        return "|".join(name for name in task.classes if probabilities[name] >= 0.5)
    return max(task.classes, key=lambda name: probabilities[name])


def _output(column: str, cell: str, task: TaskConfig) -> float:
    """A probability, or of a linear task any number. Raises ``ValueError`` for what a network cannot say."""
    value = float(cell)
    if math.isinf(value) or (task.activation != "linear" and not math.isnan(value) and not 0 <= value <= 1):
        raise ValueError(f"{column} is {cell!r}, " + ("no number" if math.isinf(value) else "no probability"))
    return value


def _row(cells: Mapping[str, str], tasks: Sequence[TaskConfig]) -> PredictionRow:
    if cells["status"] not in ("ok", "failed"):
        raise ValueError(f"status {cells['status']!r}")
    ok = cells["status"] == "ok"
    probabilities = {}
    if ok:
        probabilities = {
            task.name: {
                name: _output(column, cells[column], task)
                for column, name in _probability_columns(task, tasks)
            }
            for task in tasks
        }
    return PredictionRow(
        slide_id=cells["slide_id"],
        status="ok" if ok else "failed",
        probabilities=probabilities,
        n_patches=int(cells["n_patches"]) if cells["n_patches"] else None,
        error=cells["error"],
    )
