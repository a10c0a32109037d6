"""The figures of a training run, epoch by epoch, as ``finetune`` writes them."""

import csv
from pathlib import Path

from wsi_ips.errors import ResultsError

LARGEST_HISTORY_BYTES = 2**26


def read_history(path: Path) -> dict[str, list[float]]:
    """The columns of ``history.csv`` as numbers, an empty cell as NaN. Raises :class:`ResultsError`."""
    mend = "name the history.csv of a fine-tuning run"
    if not path.is_file():
        raise ResultsError(path, "no such history", mend)
    if path.stat().st_size > LARGEST_HISTORY_BYTES:
        raise ResultsError(path, f"is larger than {LARGEST_HISTORY_BYTES} bytes", mend)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        columns = {name: [float(row[name] or "nan") for row in rows] for name in (rows[0] if rows else ())}
    except (UnicodeDecodeError, csv.Error, ValueError, TypeError) as error:
        raise ResultsError(path, f"is not a table of numbers ({error})", mend) from None
    if "epoch" not in columns or not any(name.endswith("loss") for name in columns):
        raise ResultsError(path, "has no column epoch with losses beside it", mend)
    return columns
