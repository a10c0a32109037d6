"""``slides.csv``: how every slide of a run went. Times, attempts and where: what differs from run to run."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from wsi_ips.errors import ResultsError, one_line
from wsi_ips.files import LONGEST_CELL, check_table_size, whole_table
from wsi_ips.inference.telemetry import SlideTelemetry

Status = Literal["waiting", "running", "ok", "failed"]
STATUSES: tuple[Status, ...] = ("waiting", "running", "ok", "failed")

MEASURED = tuple(measure.name for measure in fields(SlideTelemetry) if measure.name != "seconds")
COLUMNS = ("slide_id", "path", "status", "attempts", "seconds", "worker", "error", "note", *MEASURED)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideRow:
    """path: as it was read. attempts: how often the slide was begun, over all starts of the run; a slide that
    ``running`` was left at by a dead run has been begun and not finished. worker: who had it last. error: as in
    ``predictions.csv``. note: what a reader of the result has to know, such as patches that were enlarged."""

    slide_id: str
    path: str
    status: Status = "waiting"
    attempts: int = 0
    worker: str = ""
    error: str = ""
    note: str = ""
    telemetry: SlideTelemetry = field(default_factory=SlideTelemetry)


def write_slide_table(path: Path, rows: Sequence[SlideRow]) -> None:
    """Write the table whole; a number that was not measured is an empty cell."""
    with whole_table(path) as writer:
        writer.writerow(COLUMNS)
        writer.writerows(_cells(row) for row in rows)


def read_slide_table(path: Path) -> dict[str, SlideRow]:
    """{slide_id: row} of what :func:`write_slide_table` wrote. Raises :class:`ResultsError`."""
    check_table_size(path, ResultsError)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {row["slide_id"]: _row(row) for row in csv.DictReader(file, strict=True)}
    except (csv.Error, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ResultsError(path, f"is no table of slides ({one_line(error)})", "remove it") from None


def _cells(row: SlideRow) -> list[str]:
    telemetry = row.telemetry.to_json()
    nothing = row.status in ("waiting", "running") or row.telemetry == SlideTelemetry()
    measured = ["" if nothing else f"{telemetry[name]:.6g}" for name in MEASURED]
    seconds = f"{row.telemetry.seconds:.3f}" if row.telemetry.seconds else ""
    cells = [row.slide_id, row.path, row.status, str(row.attempts), seconds, row.worker]
    words = (one_line(text, most=LONGEST_CELL) for text in (row.error, row.note))
    return [*cells, *words, *measured]


def _row(cells: Mapping[str, str]) -> SlideRow:
    (status,) = (known for known in STATUSES if known == cells["status"])
    numbers = {name: float(cells[name]) for name in ("seconds", *MEASURED) if cells[name]}
    return SlideRow(
        slide_id=cells["slide_id"],
        path=cells["path"],
        status=status,
        attempts=int(cells["attempts"]),
        worker=cells["worker"],
        error=cells["error"],
        note=cells.get("note") or "",  # not there in tables of earlier versions
        telemetry=SlideTelemetry.from_json(numbers),
    )
