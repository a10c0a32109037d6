"""CAMELYON16 and CAMELYON17: where their files are, what their label files say, and their manifests.

Start with :func:`find_camelyon` for the files, :func:`read_reference` and :func:`read_stages` for the labels, and
:func:`shipped_rows` for the manifests that come with the package.

Files. Both data sets are distributed in two layouts:

- GigaDB and the challenge's own drive: ``training/normal/normal_001.tif``, ``testing/images/test_001.tif``,
  ``training/center_0/patient_000_node_0.tif``, ``training/lesion_annotations/tumor_001.xml``.
- the open-data bucket ``camelyon-dataset``: ``images/``, ``masks/``, ``annotations/``.

The data set's folder may itself lie in ``CAMELYON16/`` or ``CAMELYON17/`` below the root. Names are compared
without regard to case, for older releases have ``Tumor_001.tif``.

Labels. ``reference.csv`` of CAMELYON16 and ``stages.csv`` of CAMELYON17 are not documented to the last string, so
a string that is not known is an error and never a guess.

Manifests. Facts are from the data sets' README files and challenge pages; ``data_manifests/make_manifests.py``
writes the tables. Paths are those of the open-data bucket below ``CAMELYON16/`` or ``CAMELYON17/``, which
:func:`resolve_slide` also finds in the other layout.

- CAMELYON16: 159 normal and 111 tumour slides for training, 129 for testing. ``normal_086`` is now ``tumor_111``,
  and ``test_049``, a duplicate, has been removed. Patients were not published, so each slide is a case of its own.
  Validation: the 54 training slides that PatchCamelyon set aside.
- CAMELYON17: the 100 training patients with five slides each. Labels of the 100 test patients were never
  published, so they are in no table and no split is called test. Validation: four of each centre's twenty
  patients, spread over the pN stages: a centre's patients are sorted by stage, then number, and of every five the
  first is taken in centre 0, the second in centre 1, and so on (always taking the same place would leave out the
  rarest stage). Patients are mixtures of real ones, so that a split by patient is the best there is, but no proof
  that no person is on both sides.
"""

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from wsi_ips.datasets.irregular import notes_of
from wsi_ips.errors import DatasetError, ManifestError
from wsi_ips.storage.files import check_size, check_table_size, whole_file
from wsi_ips.storage.location import is_there, shipped

# Each part of a path is a pattern of a folder's name in lower case; an earlier folder wins.
_SLIDE_FOLDERS = (
    "images",
    "training/normal",
    "training/tumor",
    "testing/images",
    r"training/center_\d",
    r"training/center_\d/patient_\d{3}",  # where each archive was unpacked into a folder of its own
    "testing/patients",  # CAMELYON17's
    r"testing/patients/patient_\d{3}",
    "",  # a handful of slides, copied side by side
)
_MASK_FOLDERS = ("masks", "testing/evaluation", "testing/evaluation/.*mask.*")
_ANNOTATION_FOLDERS = ("annotations", "training/lesion_annotations", "testing/lesion_annotations")
_LABEL_FILES = {
    "camelyon16": (("evaluation", "testing"), r"(reference)\.csv"),
    "camelyon17": (("", "training"), r"(stage)(?:s|_labels)\.csv"),
}
_SETS = ("", "camelyon16", "camelyon17")
_SLIDE_NAME = r"((?:normal|tumor|test)_\d{3}|patient_\d{3}_node_\d)"

FIRST_NAMES = {"tumor_111": "normal_086"}
"""Slides that had another name in the first release (README of CAMELYON16): the same pixels with a corrected
label.
"""

LARGEST_BYTES = 10_000_000
"""The largest label file that is read."""

NODES_PER_PATIENT = 5
"""Slides per patient of CAMELYON17."""

PATIENTS_PER_CENTER = 20
"""Training patients per centre of CAMELYON17."""

TRAINING_PATIENTS = 100
"""Training patients of CAMELYON17; patients are numbered from 0."""

NODE_CLASSES = ("negative", "itc", "micro", "macro")
"""Classes of a slide by its largest metastasis: none; below 0.2 mm and 200 cells; below 2 mm; larger."""

STAGES = ("pN0", "pN0(i+)", "pN1mi", "pN1", "pN2")
"""pN stages in the challenge's order: the weights of its kappa are squared distances in this order."""

_SLIDE_CLASSES = {"normal": "normal", "negative": "normal"} | dict.fromkeys(
    ("tumor", "itc", "micro", "macro"), "tumor"
)

Row = Mapping[str, str]
"""A line of a manifest: its cells by column."""

NAMES = ("camelyon16", "camelyon17")
"""The manifests that come with the package."""

# fmt: off
_TEST_TUMOR = (
    1, 2, 4, 8, 10, 11, 13, 16, 21, 26, 27, 29, 30, 33, 38, 40, 46, 48, 51, 52, 61, 64, 65, 66, 68, 69, 71,
    73, 74, 75, 79, 82, 84, 90, 92, 94, 97, 99, 102, 104, 105, 108, 110, 113, 114, 116, 117, 121, 122,
)
_VAL_NORMAL = (
    10, 13, 16, 17, 19, 20, 25, 30, 31, 32, 52, 56, 57, 67, 76, 79, 85, 95, 98, 99, 101, 102, 105, 106, 109, 129,
    132, 137, 142, 143, 148, 152,
)
_VAL_TUMOR = (1, 5, 11, 12, 13, 19, 31, 37, 43, 46, 57, 65, 69, 71, 73, 79, 80, 81, 82, 85, 97, 109)
# fmt: on
_ITC = "isolated tumour cells: where there are outlines, not all cells are in them"


@dataclass(frozen=True, slots=True)
class CamelyonFiles:
    """The files that :func:`find_camelyon` found below ``root``, by slide id in lower case."""

    root: Path
    slides: Mapping[str, Path]
    masks: Mapping[str, Path]
    annotations: Mapping[str, Path]
    labels: Mapping[str, Path]
    """The official label files, by ``camelyon16`` and ``camelyon17``."""

    def slide(self, slide_id: str) -> Path | None:
        """The slide's file, under its present name or that of the first release; None if there is none."""
        return _under_either_name(self.slides, slide_id)

    def mask(self, slide_id: str) -> Path | None:
        """The slide's mask (0 nothing, 1 tumour, 2 excluded); None if there is none.

        :mod:`wsi_ips.datasets.annotations` reads it.
        """
        return _under_either_name(self.masks, slide_id)

    def annotation(self, slide_id: str) -> Path | None:
        """The slide's outlines as ASAP XML; None if there are none.

        A tumour slide without outlines is no negative.
        """
        return _under_either_name(self.annotations, slide_id)


def find_camelyon(root: Path) -> CamelyonFiles:
    """Find the files of both layouts below ``root``. Other folders are not searched.

    If there are none, the result is empty. Raises ``OSError`` for a folder that cannot be listed.
    """
    labels = {name: _files(root, folders, re.compile(file)) for name, (folders, file) in _LABEL_FILES.items()}
    return CamelyonFiles(
        root,
        slides=_files(root, _SLIDE_FOLDERS, re.compile(_SLIDE_NAME + r"\.tiff?")),
        masks=_files(root, _MASK_FOLDERS, re.compile(_SLIDE_NAME + r"(?:_evaluation)?_mask\.tiff?")),
        annotations=_files(root, _ANNOTATION_FOLDERS, re.compile(_SLIDE_NAME + r"\.xml")),
        labels={name: next(iter(found.values())) for name, found in labels.items() if found},
    )


class SlideFinder:
    """Finds the slides of a manifest below a root.

    Folders are listed once, when the first slide is not where it should be.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @cached_property
    def files(self) -> CamelyonFiles:
        """All files below the root."""
        return find_camelyon(self._root)

    def __call__(self, slide_id: str, relative: str | Path) -> Path | None:
        """``root / relative`` if it exists, else the slide with this id in CAMELYON's layouts, else None."""
        plain = self._root / relative
        return plain if is_there(plain) else self.files.slide(slide_id)


def resolve_slide(root: Path, slide_id: str, relative: str | Path) -> Path | None:
    """Find one slide of a manifest below ``root``, as :class:`SlideFinder` does for many."""
    return SlideFinder(root)(slide_id, relative)


def _under_either_name(found: Mapping[str, Path], slide_id: str) -> Path | None:
    name = slide_id.lower()
    return found.get(name) or found.get(FIRST_NAMES.get(name, name))


def _files(root: Path, folders: tuple[str, ...], name: re.Pattern[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for data_set in _SETS:
        for pattern in folders:
            parts = [part for part in (data_set, *pattern.split("/")) if part]
            for folder in _folders(root, parts):
                for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                    fits = name.fullmatch(entry.name.lower())
                    if fits and entry.is_file():
                        found.setdefault(fits[1], Path(entry.path))
    return found


def _folders(below: Path, parts: list[str]) -> Iterator[Path]:
    if not parts:
        if below.is_dir():
            yield below
        return
    if below.is_dir():
        for entry in sorted(os.scandir(below), key=lambda entry: entry.name):
            if re.fullmatch(parts[0], entry.name.lower()) and entry.is_dir():
                yield from _folders(Path(entry.path), parts[1:])


@dataclass(frozen=True, slots=True)
class Stages:
    """CAMELYON17's labels: pN stage by patient (``patient_000``), class by slide (``patient_000_node_0``)."""

    patients: Mapping[str, str]
    nodes: Mapping[str, str]

    def nodes_of(self, patient: str) -> list[str]:
        """The classes of a patient's nodes, by the names of the slides."""
        return [self.nodes[slide] for slide in sorted(self.nodes) if slide.startswith(f"{patient}_node_")]


def read_reference(path: Path) -> dict[str, str]:
    """Read CAMELYON16's ``reference.csv``: {slide id in lower case: ``normal`` or ``tumor``}.

    There are two forms. Without a header, the columns are slide and ``Normal`` or ``Tumor``, and further ones are
    ignored. With a header, the columns are ``image`` (a file name) and ``class`` (``negative`` or ``normal``;
    ``tumor``, ``macro``, ``micro`` or ``itc``).

    Raises :class:`DatasetError` with the line for any other class, a name that is no slide of CAMELYON16, or a
    name that occurs twice.
    """
    rows = _rows(path)
    header = [cell.strip().lower() for cell in rows[0][1]]
    name_at, class_at = 0, 1
    if "image" in header:
        if "class" not in header:
            raise DatasetError(
                path, "has a column image but no column class", "give reference.csv of CAMELYON16"
            )
        name_at, class_at = header.index("image"), header.index("class")
        rows = rows[1:]
    labels: dict[str, str] = {}
    for line, row in rows:
        if len(row) <= max(name_at, class_at):
            raise DatasetError(path, f"line {line}: lacks the class", "download it again")
        name = row[name_at].strip().lower().removesuffix(".tif")
        if not re.fullmatch(r"(normal|tumor|test)_\d{3}", name):
            raise DatasetError(
                path, f"line {line}: {row[name_at]!r} is no slide of CAMELYON16", "give its reference.csv"
            )
        label = _SLIDE_CLASSES.get(row[class_at].strip().lower())
        if label is None:
            known = ", ".join(_SLIDE_CLASSES)
            raise DatasetError(path, f"line {line}: unknown class {row[class_at]!r}", f"known: {known}")
        _add(path, line, labels, name, label)
    return labels


def read_stages(path: Path) -> Stages:
    """Read CAMELYON17's ``stage_labels.csv`` (GigaDB) or ``stages.csv`` (bucket).

    The header is ``patient,stage[,center]``.

    Rows are ``patient_000.zip,pN1`` and ``patient_000_node_0.tif,macro``. Raises :class:`DatasetError` with the
    line for an unknown stage, class, name or centre, and for a patient without its stage or all five slides.
    """
    rows = _rows(path)
    header = [cell.strip().lower() for cell in rows[0][1]]
    if header not in (["patient", "stage"], ["patient", "stage", "center"]):
        raise DatasetError(path, f"begins with {','.join(header)!r}", "expected patient,stage[,center]")
    patients: dict[str, str] = {}
    nodes: dict[str, str] = {}
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise DatasetError(
                path, f"line {line}: has {len(row)} fields, not {len(header)}", "download it again"
            )
        name, value = row[0].strip().lower(), row[1].strip()
        fits = re.fullmatch(r"(patient_(\d{3}))(?:\.zip|(_node_[0-4])\.tif)", name)
        if fits is None:
            raise DatasetError(
                path, f"line {line}: {row[0]!r} is no patient or slide of CAMELYON17", "give its stages.csv"
            )
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
    """The centre, 0 to 4, of a training patient (``patient_000`` to ``patient_099``).

    Each centre has twenty patients, in turn.
    """
    return int(patient[-3:]) // PATIENTS_PER_CENTER


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, cells) of every line that is not empty. Raises :class:`DatasetError` if there is none."""
    if not path.is_file():
        raise DatasetError(path, "no such label file", "check the path")
    check_size(path, DatasetError, most=LARGEST_BYTES, fix="give a label file of CAMELYON")
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


def camelyon16_rows() -> list[Row]:
    """The manifest of CAMELYON16: its 399 slides in the order normal, tumor, test."""
    numbers = {
        "normal": [number for number in range(1, 161) if number != 86],
        "tumor": list(range(1, 112)),
        "test": [number for number in range(1, 131) if number != 49],
    }
    val = {"normal": _VAL_NORMAL, "tumor": _VAL_TUMOR, "test": ()}
    notes = notes_of("camelyon16")
    rows: list[Row] = []
    for kind, of_kind in numbers.items():
        for number in of_kind:
            slide_id = f"{kind}_{number:03d}"
            tumor = kind == "tumor" or (kind == "test" and number in _TEST_TUMOR)
            split = "test" if kind == "test" else "val" if number in val[kind] else "train"
            rows.append(
                {
                    "slide_id": slide_id,
                    "case_id": slide_id,
                    "label": "tumor" if tumor else "normal",
                    "split": split,
                    "path": f"images/{slide_id}.tif",
                    "notes": notes.get(slide_id, ""),
                }
            )
    return rows


def camelyon17_rows(stages: Stages) -> list[Row]:
    """The manifest of CAMELYON17: its 500 training slides by patient and node.

    ``label`` is the slide's class, ``stage`` the patient's pN stage.
    """
    val = _validation_patients(stages)
    return [
        {
            "slide_id": node,
            "case_id": patient,
            "label": stages.nodes[node],
            "split": "val" if patient in val else "train",
            "path": f"images/{node}.tif",
            "center": str(center_of(patient)),
            "stage": stages.patients[patient],
            "notes": _ITC if stages.nodes[node] == "itc" else "",
        }
        for node in sorted(stages.nodes)
        for patient in [node.partition("_node_")[0]]
    ]


def _validation_patients(stages: Stages) -> set[str]:
    by_center: dict[int, list[str]] = {}
    for patient in sorted(stages.patients, key=lambda one: (STAGES.index(stages.patients[one]), one)):
        by_center.setdefault(center_of(patient), []).append(patient)
    return {patient for center, patients in by_center.items() for patient in patients[center::5]}


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as a manifest. All of them have the columns of the first one."""
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[Row]:
    """Read the lines of any manifest as text.

    Raises :class:`ManifestError` for a file that is missing or no CSV, and for a line without slide_id or path.
    """
    if not path.is_file():
        raise ManifestError(path, "no such manifest", f"check the path; known by name: {', '.join(NAMES)}")
    check_table_size(path, ManifestError)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [column for column in ("slide_id", "path") if column not in (rows.fieldnames or ())]
            if missing:
                raise ManifestError(
                    path, f"lacks the column {missing[0]}", "its first line names the columns"
                )
            found: list[Row] = []
            for row in rows:
                if not row["slide_id"] or not row["path"]:
                    raise ManifestError(
                        path, f"line {rows.line_num}: slide_id or path is empty", "fill it in"
                    )
                found.append({column: cell or "" for column, cell in row.items() if column})
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(path, f"is not a CSV in UTF-8 ({error})", "save it as CSV") from None
    return found


def shipped_rows(name: str) -> list[Row]:
    """The lines of ``data_manifests/<name>.csv``, which comes with the package, installed or in a checkout.

    Raises :class:`DatasetError` for a manifest that is not there.
    """
    path = shipped("data_manifests") / f"{name}.csv"
    if path.is_file():
        return read_rows(path)
    raise DatasetError(
        f"{name}.csv", "does not lie beside the package", f"known manifests: {', '.join(NAMES)}"
    )
