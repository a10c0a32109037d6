"""The list of a folder of pictures: ``manifest.csv``, a line per picture."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi_ips.errors import ManifestError
from wsi_ips.files import check_table_size


@dataclass(frozen=True, slots=True)
class ListedPicture:
    """line: its number in the file. cells: what it has in the columns that were asked for, in their order."""

    line: int
    cells: tuple[str, ...]


def read_picture_list(folder: Path, columns: Sequence[str], *, kind: str) -> tuple[Path, list[ListedPicture]]:
    """The path of the folder's list, and its lines in file order; an absent cell is empty.

    kind: what such a folder is called, for the message. Raises :class:`ManifestError` for a missing list or
    column, and for a file that is no CSV or too large for one.
    """
    path = folder / "manifest.csv"
    if not path.is_file():
        raise ManifestError(path, "no such manifest", f"a {kind} folder has one with {','.join(columns)}")
    check_table_size(path, ManifestError)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [name for name in columns if name not in (rows.fieldnames or ())]
            if missing:
                raise ManifestError(
                    path, f"lacks the column {missing[0]}", f"it must name {','.join(columns)}"
                )
            listed = [
                ListedPicture(rows.line_num, tuple(row[name] or "" for name in columns)) for row in rows
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(path, f"is not a CSV in UTF-8 ({error})", "save it as CSV") from None
    return path, listed
