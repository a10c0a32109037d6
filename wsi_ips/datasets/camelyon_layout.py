"""What lies in a downloaded folder of CAMELYON16 or 17, and what is not as the release has it.

Start with :func:`look_16` and :func:`look_17`. Where files lie and what they are called is in
:mod:`wsi_ips.datasets.camelyon`; slides with a fault are in :mod:`wsi_ips.datasets.irregular`.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from wsi_ips.datasets.camelyon import (
    FIRST_NAMES,
    CamelyonFiles,
    Row,
    SlideFinder,
    read_reference,
    read_stages,
    shipped_rows,
)
from wsi_ips.datasets.known_sets import Listed
from wsi_ips.errors import DatasetError

MOST_LOOKED_AT = 50_000
"""Files and folders that are looked at for slides in the wrong place."""
DEEPEST = 5
"""Folders below the root that are looked into for them."""
GONE = {
    "normal_086": "normal_086 is tumor_111 now (it was mislabelled)",
    "test_049": "test_049 was removed (a duplicate)",
}
"""Slides of CAMELYON16's first release that the present one does not have."""

_NAMES = {"camelyon16": r"(normal|tumor|test)_\d{3}", "camelyon17": r"patient_\d{3}_node_\d"}
_FOLDERS = {
    "normal": "training/normal/", "tumor": "training/tumor/", "test": "testing/images/",
    "patient": "training/center_N/",
}  # fmt: skip
_WITHOUT_OUTLINES = {"tumor_111"}
"""Tumour slides that the release may have no outlines of: 209 files of outlines are 110 + 49 + 50 (giy065)."""


def look_16(root: Path, labels: Path | None, splits: Path | None) -> Listed | None:
    """List CAMELYON16's slides. It has labels and splits of its own, so the others are None."""
    return look_at("camelyon16", root)


def look_17(root: Path, labels: Path | None, splits: Path | None) -> Listed | None:
    """List CAMELYON17's training slides. It has labels and splits of its own, so the others are None."""
    return look_at("camelyon17", root)


def look_at(name: str, root: Path) -> Listed | None:
    """List the slides of a manifest that comes with the package; None where none is there.

    Raises :class:`DatasetError` where there are none, but some lie in a folder that no layout has.
    """
    all_rows, finder = shipped_rows(name), SlideFinder(root)
    rows = present(all_rows, finder)
    strays = [
        f"{path.relative_to(root)}: expected in {expected}" for path, expected in _strays(name, root, finder)
    ]
    if not rows:
        if strays:
            raise DatasetError(
                root, f"has slides in a folder that no layout has: {strays[0]}", "rename the folder"
            )
        return None
    files = finder.files
    outlines = [
        (row["slide_id"], path) for row in rows if (path := files.annotation(row["slide_id"])) is not None
    ]
    return Listed(
        rows,
        len(all_rows),
        told=[*_old_names(name, files), *_other_labels(rows, name, files)],
        wrong=[*_some(strays), *_no_more_there(name, files), *_without_outlines(name, rows, dict(outlines))],
        outlines=outlines,
    )


def present(rows: Sequence[Row], finder: SlideFinder) -> list[Row]:
    """The rows whose slides are there, with absolute paths."""
    there: list[Row] = []
    for row in rows:
        path = finder(row["slide_id"], row["path"])
        if path is not None:
            there.append({**row, "path": str(path.absolute())})
    return there


def first_release(rows: Sequence[Row]) -> list[str]:
    """A line for each slide of a manifest that only CAMELYON16's first release had."""
    listed = {row["slide_id"].lower() for row in rows}
    return [
        f"the manifest is of CAMELYON16's first release: {now}; expected that of the present one, camelyon16"
        for slide_id, now in GONE.items()
        if slide_id in listed
    ]


def _old_names(name: str, files: CamelyonFiles) -> Iterator[str]:
    if name != "camelyon16":
        return
    for now, first in FIRST_NAMES.items():
        if first in files.slides and now not in files.slides:
            yield f"{files.slides[first]} is read as {now}: it was mislabelled in the first release"
    capital = [path.name for path in files.slides.values() if path.stem != path.stem.lower()]
    if capital:
        yield f"{len(capital)} slides have names of the first release, such as {min(capital)}, and are found"


def _no_more_there(name: str, files: CamelyonFiles) -> Iterator[str]:
    if name != "camelyon16":
        return
    if "test_049" in files.slides:
        yield f"{files.slides['test_049']}: {GONE['test_049']}; no manifest has it: delete it, or leave it unused"
    for now, first in FIRST_NAMES.items():
        if first in files.slides and now in files.slides:
            yield f"{files.slides[first]} and {files.slides[now]} are one slide: {GONE[first]}; delete the former"


def _without_outlines(name: str, rows: Sequence[Row], outlines: Mapping[str, Path]) -> Iterator[str]:
    """CAMELYON17's outlines are of 50 slides that no public list names, so that none can be missed."""
    if name != "camelyon16":
        return
    tumour = [
        row["slide_id"]
        for row in rows
        if row["label"] == "tumor" and row["slide_id"] not in _WITHOUT_OUTLINES
    ]
    without = [slide_id for slide_id in tumour if slide_id not in outlines]
    if without:
        yield (
            f"{len(without)} of {len(tumour)} tumour slides have no outlines, the first {without[0]}: expected "
            f"annotations/{without[0]}.xml, or lesion_annotations/{without[0]}.xml in training/ or testing/ "
            "(lesion_annotations.zip unpacked); FROC cannot judge them"
        )


def _strays(name: str, root: Path, finder: SlideFinder) -> Iterator[tuple[Path, str]]:
    """Slides by their names in folders that no layout has, and where they were expected."""
    fits = re.compile(_NAMES[name] + r"\.tiff?", re.IGNORECASE)
    found = {path.absolute() for path in finder.files.slides.values()}
    looked_at = 0
    for folder, inner, files in os.walk(root):
        inner.sort()
        if len(Path(folder).relative_to(root).parts) >= DEEPEST:
            inner.clear()
        for file in sorted(files):
            path = Path(folder, file)
            if (
                fits.fullmatch(file)
                and path.absolute() not in found
                and path.stem.lower() not in finder.files.slides
                and path.exists()  # what else is a link to nowhere, which known_sets tells
            ):
                yield path, f"{_FOLDERS[file.lower().partition('_')[0]]} or images/"
        looked_at += len(files) + len(inner)
        if looked_at > MOST_LOOKED_AT:
            return


def _some(lines: Sequence[str], *, most: int = 3) -> list[str]:
    more = [f"and {len(lines) - most} more slides in such folders"] if len(lines) > most else []
    return [*lines[:most], *more]


def _other_labels(rows: Sequence[Row], name: str, files: CamelyonFiles) -> list[str]:
    """A line for each label that the official file has otherwise."""
    path = files.labels.get(name)
    if path is None:
        return []
    try:
        official = read_reference(path) if name == "camelyon16" else read_stages(path).nodes
    except DatasetError as error:
        return [f"labels were not compared: {error}"]
    return [
        f"{row['slide_id']} is {row['label']} in the manifest, {official[row['slide_id']]} in {path}"
        for row in rows
        if official.get(row["slide_id"], row["label"]) != row["label"]
    ]
