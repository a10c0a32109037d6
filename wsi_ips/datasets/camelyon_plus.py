"""CAMELYON+: the slides of CAMELYON16 and 17 with corrected labels in four classes.

Ling et al. (Scientific Data 2025, doi 10.1038/s41597-025-05586-5) looked through all 1,399 slides again, removed
49, corrected labels, outlined the lesions of CAMELYON17's test slides, and call every slide negative, itc, micro
or macro. The slides are those of CAMELYON16 and 17; the labels are ``Camelyon+(4-classes).xlsx``, whose columns
``slide`` and ``label`` are read here (from a CSV too). A label that is not known is an error.

The authors' split was not published, so the official ones are kept: test are CAMELYON16's test slides and
CAMELYON17's patients 100 to 199, whose labels only CAMELYON+ has; the rest is divided as in the manifests of
CAMELYON16 and 17. Slides of the table that are not there are missing; slides that the table does not have were
removed by it, and are told.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from wsi_ips.datasets.camelyon import (
    NODE_CLASSES,
    NODES_PER_PATIENT,
    TRAINING_PATIENTS,
    Row,
    SlideFinder,
    shipped_rows,
)
from wsi_ips.datasets.known_sets import Listed, held
from wsi_ips.datasets.label_table import LabelTable, read_label_table
from wsi_ips.errors import DatasetError

SLIDES = 1350
"""Slides that CAMELYON+ keeps."""
LAST_PATIENT = 199
"""Patients of CAMELYON17 are numbered from 0 to this."""

_TABLE = re.compile(r"camelyon\s*(\+|-?plus)?\s*\(?4[ -]?classes\)?\.(xlsx|csv)", re.IGNORECASE)
_FOLDERS = ("", "CAMELYON+", "camelyon+", "CAMELYON_PLUS", "camelyon_plus", "CAMELYON-PLUS")
_CLASSES = {
    **{name: name for name in NODE_CLASSES},
    "normal": "negative",
    "isolated tumor cells": "itc",
    "micro-metastasis": "micro",
    "macro-metastasis": "macro",
}


def look(root: Path, labels: Path | None, splits: Path | None) -> Listed | None:
    """List the slides that CAMELYON+ has labels for; None where no slide of CAMELYON16 or 17 is there.

    Raises :class:`DatasetError` where slides are there and the table of labels is not, or cannot be used.
    """
    finder = SlideFinder(root)
    if not finder.files.slides:
        return None
    table = read_label_table(labels or find_table(root))
    classes = read_classes(table)
    known = _known_rows()
    unknown = [slide_id for slide_id in classes if slide_id not in known]
    if unknown:
        raise DatasetError(
            table.path,
            f"{unknown[0]!r} is no slide of CAMELYON16 or 17",
            "give the table of CAMELYON+'s release",
        )
    rows: list[Row] = []
    removed: list[str] = []
    for slide_id, row in known.items():
        path = finder(slide_id, row["path"])
        if slide_id not in classes:
            removed += [slide_id] if path is not None else []
        elif path is not None:
            rows.append(_row(row, classes[slide_id], path))
    outlines = [(row["slide_id"], path) for row in rows if (path := finder.files.annotation(row["slide_id"]))]
    there = {row["slide_id"] for row in rows}
    absent = [slide_id for slide_id in classes if slide_id not in there]
    wrong = (
        [f"{len(absent)} slides of {table.path} are not there, the first: expected {known[absent[0]]['origin']}/"
         f"{known[absent[0]]['path']}"] if absent else []
    )  # fmt: skip
    return Listed(rows, len(classes), told=_told(table, rows, removed), wrong=wrong, outlines=outlines)


def find_table(root: Path) -> Path:
    """The table of labels in ``root``. Raises :class:`DatasetError` where there is none."""
    for name in _FOLDERS:
        folder = root / name
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                if _TABLE.fullmatch(path.name) and path.is_file():
                    return path
    raise DatasetError(
        root, "has no labels of CAMELYON+",
        "expected Camelyon+(4-classes).xlsx (doi.org/10.57760/sciencedb.16442) in it, or --labels FILE; it holds "
        + held(root),
    )  # fmt: skip


def read_classes(table: LabelTable) -> dict[str, str]:
    """``{slide_id: class}`` of a table with the columns ``slide`` and ``label``.

    Raises :class:`DatasetError` with the line for a class that is not known and a slide that occurs twice.
    """
    name, label = table.column("slide", "slide_id", "image"), table.column("label", "class")
    classes: dict[str, str] = {}
    for line, row in table.rows:
        slide_id = row[name].lower().removesuffix(".tif")
        its = _CLASSES.get(row[label].lower())
        if its is None:
            known = ", ".join(NODE_CLASSES)
            raise DatasetError(table.path, f"line {line}: unknown class {row[label]!r}", f"known: {known}")
        if slide_id in classes:
            raise DatasetError(table.path, f"line {line}: {slide_id} occurs twice", "download it again")
        classes[slide_id] = its
    return classes


def _known_rows() -> Mapping[str, Row]:
    """Every slide of CAMELYON16 and 17, test patients included, with its official label where it has one."""
    rows: dict[str, Row] = {
        row["slide_id"]: {**row, "origin": "CAMELYON16"} for row in shipped_rows("camelyon16")
    }
    rows |= {row["slide_id"]: {**row, "origin": "CAMELYON17"} for row in shipped_rows("camelyon17")}
    for patient in range(TRAINING_PATIENTS, LAST_PATIENT + 1):
        for node in range(NODES_PER_PATIENT):
            slide_id = f"patient_{patient}_node_{node}"
            rows[slide_id] = {
                "slide_id": slide_id, "case_id": f"patient_{patient}", "label": "", "split": "test",
                "path": f"images/{slide_id}.tif", "origin": "CAMELYON17",
            }  # fmt: skip
    return rows


def _row(official: Row, label: str, path: Path) -> Row:
    before = official["label"]
    same = not before or label == before or (before == "tumor" and label != "negative")
    same = same or (before == "normal" and label == "negative")
    return {
        "slide_id": official["slide_id"],
        "case_id": official["case_id"],
        "label": label,
        "split": official["split"],
        "path": str(path.absolute()),
        "origin": official["origin"],
        "notes": "" if same else f"corrected: {official['origin']} says {before}",
    }


def _told(table: LabelTable, rows: list[Row], removed: list[str]) -> list[str]:
    told = []
    if len(table.rows) != SLIDES:
        told.append(f"{table.path} has {len(table.rows)} slides; the release has {SLIDES}")
    if removed:
        told.append(f"{len(removed)} slides are left out, as CAMELYON+ removed them: {_named(removed)}")
    corrected = [row["slide_id"] for row in rows if row["notes"]]
    if corrected:
        told.append(f"{len(corrected)} labels are corrected by CAMELYON+: {_named(corrected)}")
    return told


def _named(slide_ids: list[str]) -> str:
    return ", ".join(sorted(slide_ids))
