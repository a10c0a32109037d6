"""TCGA-BRCA subtypes, as an example of a data set of one's own: slides by barcode, labels of patients.

Files. gdc-client puts every file into a folder of its own: ``<file id>/TCGA-A2-A0CM-01Z-00-DX1.<UUID>.svs``, with
``logs/`` beside it, ``annotations.txt`` where the GDC has something to say of the file, and ``*.partial`` where
the download was interrupted. Slides side by side are found too. The list that was downloaded from,
``gdc_manifest*.txt``, has MD5 sums, which ``wsi-ips data verify`` checks.

Barcodes. ``TCGA-A2-A0CM`` (12 letters) is the patient, the next two digits the sample: 01 primary tumour, 06
metastasis, 11 normal tissue (GDC's code tables). ``DX`` is a diagnostic slide of fixed tissue; ``TS``, ``MS`` and
``BS`` are frozen sections. Diagnostic slides of primary tumours are taken, the others are counted and told.

Labels. A table with a line for each patient: cBioPortal's clinical data (``Patient ID``, ``Oncotree Code``), GDC's
``clinical.tsv`` (``case_submitter_id``, ``primary_diagnosis``), or any with ``case_id`` and ``label``. IDC is
infiltrating duct carcinoma, ILC lobular carcinoma; other types are left out and counted.

Splits. None is official: 70 / 15 / 15 of the patients of each subtype by a fixed seed, or tables of patients.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wsi_ips.datasets.camelyon import Row
from wsi_ips.datasets.known_sets import Listed, held
from wsi_ips.datasets.label_table import LabelTable, read_label_table, read_split_tables
from wsi_ips.datasets.manifest import SlideRecord, split_by_case
from wsi_ips.errors import DatasetError

SUBTYPES = ("IDC", "ILC")
"""The labels."""
FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
"""Shares of the splits where there are no tables of splits."""
DEEPEST = 3
"""Folders below the root in which slides are looked for."""

_BARCODE = re.compile(
    r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})-(\d{2})[A-Z]?-\d{2}-(DX|TS|MS|BS)[A-Z0-9]{1,2}(\.[0-9A-Za-z-]+)?\.svs"
)
_LABEL_FILES = re.compile(
    r"labels\.(csv|tsv)|clinical\.tsv|.*clinical_data\.tsv|data_clinical_patient\.txt", re.IGNORECASE
)
_PATIENT = ("case_id", "patient id", "patient_id", "case_submitter_id", "cases.submitter_id", "patient")
_SUBTYPE = (
    "label",
    "subtype",
    "oncotree code",
    "oncotree_code",
    "primary_diagnosis",
    "diagnoses.primary_diagnosis",
)
_NAMES = {
    "idc": "IDC",
    "ilc": "ILC",
    "infiltrating duct carcinoma, nos": "IDC",
    "lobular carcinoma, nos": "ILC",
    "breast invasive ductal carcinoma": "IDC",
    "breast invasive lobular carcinoma": "ILC",
}
_PRIMARY, _DIAGNOSTIC = "01", "DX"


@dataclass(frozen=True, slots=True)
class Barcode:
    """What a slide's name says.

    Attributes:
        patient: ``TCGA-A2-A0CM``.
        sample: Two digits, 01 for the primary tumour.
        kind: ``DX`` for fixed tissue; ``TS``, ``MS``, ``BS`` for frozen sections.
    """

    patient: str
    sample: str
    kind: str

    @classmethod
    def of(cls, name: str) -> "Barcode | None":
        """The barcode of a file's name, None for the name of something else."""
        fits = _BARCODE.fullmatch(name)
        return cls(fits[1], fits[2], fits[3]) if fits else None

    @property
    def is_taken(self) -> bool:
        """Whether it is a diagnostic slide of a primary tumour."""
        return self.sample == _PRIMARY and self.kind == _DIAGNOSTIC


def look(root: Path, labels: Path | None, splits: Path | None) -> Listed | None:
    """List the diagnostic slides of primary tumours; None where there is no slide with a TCGA barcode.

    Raises :class:`DatasetError` where slides are there and no table of labels is, or it cannot be used.
    """
    found = list(_slides(root))
    if not found:
        return None
    table = read_label_table(labels or _find_labels(root))
    subtypes, others = read_subtypes(table)
    taken = [(code, path) for code, path in found if code.is_taken]
    labelled = [(code, path) for code, path in taken if code.patient in subtypes]
    if not labelled:
        raise DatasetError(
            table.path, f"has IDC or ILC for none of the {len(taken)} diagnostic slides' patients",
            f"expected lines such as {(taken or found)[0][0].patient},IDC",
        )  # fmt: skip
    split_of = _splits({code.patient: subtypes[code.patient] for code, _ in labelled}, splits)
    rows = [_row(code, path, subtypes, split_of) for code, path in labelled if code.patient in split_of]
    told = [*_left_out(found, taken, subtypes, others)]
    if away := len(labelled) - len(rows):
        told.append(f"{away} slides are left out, as the tables of splits do not have their patients")
    return Listed(rows, len(labelled), told=[*told, *_said_by_gdc(root)])


def read_subtypes(table: LabelTable) -> tuple[dict[str, str], dict[str, str]]:
    """``{patient: IDC or ILC}``, and ``{patient: what it is}`` of the patients with another type.

    Raises :class:`DatasetError` with the line for a patient with two subtypes.
    """
    patient_column, label_column = table.column(*_PATIENT), table.column(*_SUBTYPE)
    subtypes: dict[str, str] = {}
    others: dict[str, str] = {}
    for line, row in table.rows:
        patient = row[patient_column].upper()[:12]
        subtype = _NAMES.get(row[label_column].lower())
        if subtype is None:
            others[patient] = row[label_column] or "no type"
        elif subtypes.setdefault(patient, subtype) != subtype:
            raise DatasetError(
                table.path,
                f"line {line}: {patient} is {subtype} and {subtypes[patient]} before",
                "keep one of them",
            )
    return subtypes, {patient: kind for patient, kind in others.items() if patient not in subtypes}


def _walk(root: Path) -> Iterator[Path]:
    for folder, inner, files in os.walk(root):
        inner.sort()
        if len(Path(folder).relative_to(root).parts) >= DEEPEST:
            inner.clear()
        yield from (Path(folder, file) for file in sorted(files))


def _slides(root: Path) -> Iterator[tuple[Barcode, Path]]:
    seen: dict[str, Path] = {}
    for path in _walk(root):
        code = Barcode.of(path.name)
        if code is None:
            continue
        if path.name in seen:
            raise DatasetError(path, f"is there twice, {seen[path.name]} too", "delete one of them")
        seen[path.name] = path
        yield code, path


def _find_labels(root: Path) -> Path:
    for path in sorted(root.iterdir()):
        if path.is_file() and _LABEL_FILES.fullmatch(path.name):
            return path
    raise DatasetError(
        root, "has slides of TCGA and no table of labels",
        "expected clinical.tsv (GDC), *clinical_data.tsv (cBioPortal) or labels.csv with case_id,label in it, or "
        f"--labels FILE; it holds {held(root)}",
    )  # fmt: skip


def _splits(patients: dict[str, str], folder: Path | None) -> dict[str, str]:
    if folder is not None:
        tables = read_split_tables(folder, "case_id", "patient", "patient_id", "patient id")
        return {patient: tables[patient] for patient in patients if patient in tables}
    records = [
        SlideRecord(patient, patient, {"label": subtype}, "train", Path())
        for patient, subtype in patients.items()
    ]
    return {one.case_id: one.split for one in split_by_case(records, fractions=FRACTIONS, seed=0)}


def _row(code: Barcode, path: Path, subtypes: dict[str, str], split_of: dict[str, str]) -> Row:
    return {
        "slide_id": path.stem,
        "case_id": code.patient,
        "label": subtypes[code.patient],
        "split": split_of[code.patient],
        "path": str(path.absolute()),
        "notes": "",
    }


def _left_out(
    found: list[tuple[Barcode, Path]],
    taken: list[tuple[Barcode, Path]],
    subtypes: dict[str, str],
    others: dict[str, str],
) -> Iterator[str]:
    frozen = sum(code.kind != _DIAGNOSTIC for code, _ in found)
    if frozen:
        yield f"{frozen} frozen sections (TS, MS, BS) are left out"
    elsewhere = sum(code.kind == _DIAGNOSTIC and code.sample != _PRIMARY for code, _ in found)
    if elsewhere:
        yield f"{elsewhere} diagnostic slides that are not of a primary tumour (01) are left out"
    kinds = Counter(
        others.get(code.patient, "no line in the table") for code, _ in taken if code.patient not in subtypes
    )
    if kinds:
        of = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common(5))
        yield f"{kinds.total()} slides of other types than IDC and ILC are left out: {of}"


def _said_by_gdc(root: Path) -> Iterator[str]:
    noted = [path for path in _walk(root) if path.name == "annotations.txt"]
    if noted:
        yield f"the GDC has annotations of {len(noted)} files, the first {noted[0]}: read them"
