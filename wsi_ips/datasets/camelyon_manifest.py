"""The manifests of CAMELYON16 and 17: which slides there are, their labels, splits and oddities.

Facts from the data sets' README files and challenge pages; ``data_manifests/make_manifests.py`` writes the tables.
Paths are those of the open-data bucket below ``CAMELYON16/`` or ``CAMELYON17/``, which
:func:`wsi_ips.datasets.camelyon.resolve_slide` also finds in the other layout.

CAMELYON16: 159 normal and 111 tumour slides for training, 129 for testing. ``normal_086`` is ``tumor_111`` now
and ``test_049``, a duplicate, is gone. Patients were not published, so a slide is its own case. Validation: the 54
training slides that PatchCamelyon set aside.

CAMELYON17: the 100 training patients, five slides each; labels of the 100 test patients were never published, so
they are in no table and no split is called test. Validation: four of each centre's twenty patients, spread over
the pN stages: a centre's patients are sorted by stage, then number, and of every five the first is taken in centre
0, the second in centre 1, and so on (always the same place would leave out the rarest stage). Patients are
mixtures of real ones, so a split by patient is the best there is and no proof that no person is on both sides.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from wsi_ips.datasets.camelyon_labels import STAGES, Stages, center_of
from wsi_ips.errors import DatasetError, ManifestError
from wsi_ips.files import check_table_size, whole_file

Row = Mapping[str, str]
"""A line of a manifest: its cells by column."""

NAMES = ("camelyon16", "camelyon17")

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
_PARTLY_ANNOTATED = (10, 15, 18, 20, 25, 29, 33, 34, 44, 46, 51, 54, 55, 56, 67, 79, 85, 92, 95, 110)
# fmt: on
_NOTES = {
    "normal_027": "little tissue: a tissue threshold can lose it",
    "normal_045": "little tissue: a tissue threshold can lose it",
    "normal_144": "black (0) background in places: some pipelines skip it or turn black to white first",
    "test_114": (
        "not exhaustively annotated: out of FROC but in the slide AUC; one of the challenge's 49 tumour test "
        "slides, though some label tables say normal"
    ),
    "tumor_111": "was normal_086 in the first release, mislabelled",
    **{
        f"tumor_{number:03d}": "not exhaustively annotated: take no negatives from it"
        for number in _PARTLY_ANNOTATED
    },
}
PARTLY_ANNOTATED = frozenset({"test_114", *(f"tumor_{number:03d}" for number in _PARTLY_ANNOTATED)})
"""CAMELYON16's slides with tumour beside their outlines (its README): a detection there is no false positive. The
organisers keep them in the slide-level AUC and leave them out of the FROC."""
_ITC = "isolated tumour cells: where there are outlines, not all cells are in them"
_ALSO = {"tumor_079": "; blurred tumour region", "tumor_092": "; blurred region on adjacent tissue"}


def camelyon16_rows() -> list[Row]:
    """The 399 slides in the order normal, tumor, test."""
    numbers = {
        "normal": [number for number in range(1, 161) if number != 86],
        "tumor": list(range(1, 112)),
        "test": [number for number in range(1, 131) if number != 49],
    }
    val = {"normal": _VAL_NORMAL, "tumor": _VAL_TUMOR, "test": ()}
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
                    "notes": _NOTES.get(slide_id, "") + _ALSO.get(slide_id, ""),
                }
            )
    return rows


def camelyon17_rows(stages: Stages) -> list[Row]:
    """The 500 training slides, by patient and node. ``label`` is the slide's class, ``stage`` the patient's pN."""
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


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows, which all have the first one's columns, as a manifest."""
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[Row]:
    """Any manifest's lines as text. Raises :class:`ManifestError` unless each has a slide_id and a path."""
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
    """The lines of ``data_manifests/<name>.csv``, which comes with the package (installed, or in a checkout)."""
    package = Path(__file__).parents[1]
    for folder in (package / "data_manifests", package.parent / "data_manifests"):
        path = folder / f"{name}.csv"
        if path.is_file():
            return read_rows(path)
    raise DatasetError(
        f"{name}.csv", "does not lie beside the package", f"known manifests: {', '.join(NAMES)}"
    )


def _validation_patients(stages: Stages) -> set[str]:
    by_center: dict[int, list[str]] = {}
    for patient in sorted(stages.patients, key=lambda one: (STAGES.index(stages.patients[one]), one)):
        by_center.setdefault(center_of(patient), []).append(patient)
    return {patient for center, patients in by_center.items() for patient in patients[center::5]}
