"""The label files that come with CAMELYON: ``reference.csv`` of 16, ``stages.csv`` of 17. Believed after checks.

Neither is documented to the last string, so a string that is not known is an error and never a guess.
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wsi_ips.errors import DatasetError

LARGEST_BYTES = 10_000_000
NODES_PER_PATIENT = 5
PATIENTS_PER_CENTER = 20
TRAINING_PATIENTS = 100

NODE_CLASSES = ("negative", "itc", "micro", "macro")
"""Of one slide, by its largest metastasis: none; below 0.2 mm and 200 cells; below 2 mm; above."""

STAGES = ("pN0", "pN0(i+)", "pN1mi", "pN1", "pN2")
"""In the challenge's order: the weights of its kappa are the squared distances in it."""

_SLIDE_CLASSES = {"normal": "normal", "negative": "normal"} | dict.fromkeys(
    ("tumor", "itc", "micro", "macro"), "tumor"
)


@dataclass(frozen=True, slots=True)
class Stages:
    """CAMELYON17's labels: pN stage by patient (``patient_000``), class by slide (``patient_000_node_0``)."""

    patients: Mapping[str, str]
    nodes: Mapping[str, str]


def read_reference(path: Path) -> dict[str, str]:
    """CAMELYON16's ``reference.csv`` as {slide id in lower case: ``normal`` or ``tumor``}.

    Two forms are told apart by the first line: without header, columns slide and ``Normal``/``Tumor`` (further
    ones are ignored), or with a header that has ``image`` (a file name) and ``class`` (``negative``, ``normal``,
    or anything of ``tumor``, ``macro``, ``micro``, ``itc``). Raises :class:`DatasetError` with the line for
    another string, a name that is no CAMELYON16 slide, a name that comes twice.
    """
    rows = _rows(path)
    header = [cell.strip().lower() for cell in rows[0][1]]
    name_at, class_at = 0, 1
    if "image" in header:
        if "class" not in header:
            raise DatasetError(path, "has a column image but no column class", "is it CAMELYON16's?")
        name_at, class_at = header.index("image"), header.index("class")
        rows = rows[1:]
    labels: dict[str, str] = {}
    for line, row in rows:
        if len(row) <= max(name_at, class_at):
            raise DatasetError(path, f"line {line}: lacks the class", "download it again")
        name = row[name_at].strip().lower().removesuffix(".tif")
        if not re.fullmatch(r"(normal|tumor|test)_\d{3}", name):
            raise DatasetError(path, f"line {line}: {row[name_at]!r} is no slide of CAMELYON16", "")
        label = _SLIDE_CLASSES.get(row[class_at].strip().lower())
        if label is None:
            known = ", ".join(_SLIDE_CLASSES)
            raise DatasetError(path, f"line {line}: unknown class {row[class_at]!r}", f"known: {known}")
        _add(path, line, labels, name, label)
    return labels


def read_stages(path: Path) -> Stages:
    """CAMELYON17's ``stage_labels.csv`` (GigaDB) or ``stages.csv`` (bucket): header ``patient,stage[,center]``.

    Rows are ``patient_000.zip,pN1`` and ``patient_000_node_0.tif,macro``. Raises :class:`DatasetError` with the
    line for an unknown stage, class, name or centre, and for a patient without a stage or all five nodes.
    """
    rows = _rows(path)
    header = [cell.strip().lower() for cell in rows[0][1]]
    if header not in (["patient", "stage"], ["patient", "stage", "center"]):
        raise DatasetError(path, f"begins with {','.join(header)!r}", "expected patient,stage[,center]")
    patients: dict[str, str] = {}
    nodes: dict[str, str] = {}
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise DatasetError(path, f"line {line}: has {len(row)} fields, not {len(header)}", "")
        name, value = row[0].strip().lower(), row[1].strip()
        fits = re.fullmatch(r"(patient_(\d{3}))(?:\.zip|(_node_[0-4])\.tif)", name)
        if fits is None:
            raise DatasetError(path, f"line {line}: {row[0]!r} is no patient or slide of CAMELYON17", "")
        known, table = (NODE_CLASSES, nodes) if fits[3] else (STAGES, patients)
        if value not in known:
            raise DatasetError(path, f"line {line}: unknown value {value!r}", f"known: {', '.join(known)}")
        training = int(fits[2]) < TRAINING_PATIENTS
        if len(row) == 3 and training and row[2].strip() != str(center_of(fits[1])):
            raise DatasetError(
                path,
                f"line {line}: {fits[1]} is not of centre {row[2]!r}",
                "a centre has 20 patients in turn",
            )
        _add(path, line, table, fits[1] + (fits[3] or ""), value)
    for patient in sorted({*patients, *(node[:11] for node in nodes)}):
        count = sum(f"{patient}_node_{node}" in nodes for node in range(NODES_PER_PATIENT))
        if patient not in patients or count != NODES_PER_PATIENT:
            raise DatasetError(
                path, f"{patient} lacks its stage or some of its five nodes", "download it again"
            )
    return Stages(patients, nodes)


def center_of(patient: str) -> int:
    """0 to 4, of a training patient (``patient_000`` to ``patient_099``): each centre has twenty, in turn."""
    return int(patient[-3:]) // PATIENTS_PER_CENTER


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, cells) of every line that is not empty; one at least."""
    if not path.is_file():
        raise DatasetError(path, "no such label file", "check the path")
    if path.stat().st_size > LARGEST_BYTES:
        raise DatasetError(path, f"is larger than {LARGEST_BYTES} bytes", "is it a label file?")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(path, f"is not a CSV in UTF-8 ({error})", "download it again") from None
    if not rows:
        raise DatasetError(path, "is empty", "download it again")
    return rows


def _add(path: Path, line: int, table: dict[str, str], name: str, value: str) -> None:
    if name in table:
        raise DatasetError(path, f"line {line}: {name} occurs twice", "download it again")
    table[name] = value
