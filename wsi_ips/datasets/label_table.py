"""Tables of labels as data sets publish them, CSV, TSV or XLSX: :func:`read_label_table`.

A workbook (XLSX, Office Open XML, ECMA-376 part 1) is a zip of XML files; only the texts and numbers of its first
sheet are read. Nothing of a table is trusted: sizes are checked before anything is unpacked, and XML with a
document type is refused.
"""

import csv
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError
from zipfile import BadZipFile, ZipFile

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from wsi_ips.errors import DatasetError, one_line
from wsi_ips.storage.files import check_size

LARGEST_BYTES = 20_000_000
"""The largest table that is read."""
LARGEST_UNPACKED = 30_000_000
"""The largest part of a workbook that is unpacked."""
MOST_COLUMNS = 1000
"""Most columns of a table."""
MOST_CELLS = 2_000_000
"""Most cells of a workbook, those that are left out between others included."""

_BROKEN = (
    BadZipFile, LookupError, ParseError, DefusedXmlException, RuntimeError, OSError, ValueError, OverflowError,
    EOFError, zlib.error, struct.error,
)  # fmt: skip
"""What zipfile and expat raise for a damaged workbook."""
_SHEET, _TEXTS = "xl/worksheets/sheet1.xml", "xl/sharedStrings.xml"
_FIX = "download it again"


@dataclass(frozen=True, slots=True)
class LabelTable:
    """A table with named columns.

    Attributes:
        path: Its file.
        columns: Names of the columns in lower case.
        rows: ``(line number in the file, {column: cell})`` of every line that is not empty.
    """

    path: Path
    columns: tuple[str, ...]
    rows: Sequence[tuple[int, Mapping[str, str]]]

    def column(self, *names: str) -> str:
        """The first of these columns that the table has, names in lower case.

        Raises :class:`DatasetError` if it has none.
        """
        for name in names:
            if name in self.columns:
                return name
        wanted = " or ".join(names)
        raise DatasetError(
            self.path, f"has no column {wanted}", f"its columns are {', '.join(self.columns)[:300]}"
        )


def read_label_table(path: Path) -> LabelTable:
    """Read a table by the end of its name: ``.xlsx``, ``.tsv`` and ``.txt`` (tabs), else commas.

    Lines that begin with ``#`` before the header are left out, as cBioPortal writes them.

    Raises :class:`DatasetError` for a file that is missing, too large, no such table or empty, or has a column
    twice.
    """
    if not path.is_file():
        raise DatasetError(path, "no such table of labels", "check the path")
    check_size(path, DatasetError, most=LARGEST_BYTES, fix="give a table of labels")
    end = path.suffix.lower()
    lines = (
        _workbook_lines(path)
        if end == ".xlsx"
        else _text_lines(path, "\t" if end in (".tsv", ".txt") else ",")
    )
    while lines and lines[0][1][0].startswith("#"):
        del lines[0]
    if len(lines) < 2:
        raise DatasetError(path, "has no line of labels", _FIX)
    columns = tuple(cell.strip().lower() for cell in lines[0][1])
    named = [column for column in columns if column]
    if len(columns) > MOST_COLUMNS or len(set(named)) < len(named):
        raise DatasetError(path, "has a column twice, or too many", "keep one column of each name")
    return LabelTable(
        path,
        columns,
        [
            (
                line,
                {
                    name: cells[at].strip() if at < len(cells) else ""
                    for at, name in enumerate(columns)
                    if name
                },
            )
            for line, cells in lines[1:]
        ],
    )


def _text_lines(path: Path, delimiter: str) -> list[tuple[int, list[str]]]:
    try:
        reader = csv.reader(StringIO(path.read_text(encoding="utf-8-sig"), newline=""), delimiter=delimiter)
        return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(path, f"is not a table in UTF-8 ({error})", "save it as CSV") from None


def _workbook_lines(path: Path) -> list[tuple[int, list[str]]]:
    try:
        with ZipFile(path) as book:
            names = book.namelist()
            texts = _texts(_part(path, book, _TEXTS)) if _TEXTS in names else []
            sheet = _part(path, book, _SHEET)
    except _BROKEN as error:
        raise DatasetError(
            path, f"is no workbook that can be read ({one_line(error, most=200)})", "save it as CSV"
        ) from None
    lines: list[tuple[int, list[str]]] = []
    held = 0
    for number, row in enumerate(_named(sheet, "row"), 1):
        cells: list[str] = []
        for cell in _named(row, "c"):
            at = _column_number(cell.get("r", ""), len(cells))
            if at >= MOST_COLUMNS:
                raise DatasetError(
                    path, f"row {number} has more than {MOST_COLUMNS} columns", "save it as CSV"
                )
            cells += [""] * (at + 1 - len(cells))
            cells[at] = _cell(path, cell, texts)
        if any(text.strip() for text in cells):
            lines.append((number, cells))
            held += len(cells)
        if held > MOST_CELLS:
            raise DatasetError(path, f"has more than {MOST_CELLS} cells", "give a table of labels")
    return lines


def _part(path: Path, book: ZipFile, name: str) -> Element:
    if book.getinfo(name).file_size > LARGEST_UNPACKED:
        raise DatasetError(path, f"{name} unpacks to more than {LARGEST_UNPACKED} bytes", "save it as CSV")
    with book.open(name) as part:
        content = part.read(LARGEST_UNPACKED + 1)
    if len(content) > LARGEST_UNPACKED:
        raise DatasetError(path, f"{name} unpacks to more than {LARGEST_UNPACKED} bytes", "save it as CSV")
    root: Element = ElementTree.fromstring(content, forbid_dtd=True)
    return root


def _texts(root: Element) -> list[str]:
    return ["".join(text.text or "" for text in _named(item, "t")) for item in _named(root, "si")]


def _named(root: Element, name: str) -> list[Element]:
    """Elements of this name in whatever namespace."""
    return [element for element in root.iter() if element.tag.rpartition("}")[2] == name]


def _column_number(reference: str, following: int) -> int:
    """0 for ``A7``; a cell without a reference follows the one before it."""
    letters = re.match(r"[A-Z]{1,3}(?=\d)", reference)
    if letters is None:
        return following
    number = 0
    for letter in letters[0]:
        number = number * 26 + ord(letter) - ord("A") + 1
    return number - 1


def _cell(path: Path, cell: Element, texts: Sequence[str]) -> str:
    if cell.get("t") == "inlineStr":
        return "".join(text.text or "" for text in _named(cell, "t"))
    value = next((element.text or "" for element in _named(cell, "v")), "")
    if cell.get("t") != "s":
        return value
    if not value.isdecimal() or int(value) >= len(texts):
        raise DatasetError(path, f"cell {cell.get('r', '')} names a text that is not there", "save it as CSV")
    return texts[int(value)]


def read_split_tables(folder: Path, *columns: str) -> dict[str, str]:
    """Read the splits of a folder of ``train.csv``, ``val.csv`` and ``test.csv``: ``{name: split}``.

    ``columns``: what the column of names may be called, in lower case.

    Raises :class:`DatasetError` for a table that is missing or has no such column, and a name in two splits.
    """
    split_of: dict[str, str] = {}
    for split in ("train", "val", "test"):
        table = read_label_table(folder / f"{split}.csv")
        column = table.column(*columns)
        for line, row in table.rows:
            if split_of.setdefault(row[column], split) != split:
                raise DatasetError(
                    table.path,
                    f"line {line}: {row[column]!r} is in {split_of[row[column]]}.csv too",
                    "keep one",
                )
    return split_of
