"""PANDA: prostate biopsies with ISUP grades 0 to 5 from two providers, as Kaggle distributes them.

Files. ``train_images/<image_id>.tiff`` has three levels (downsamples 1, 4, 16), ``train_label_masks/
<image_id>_mask.tiff`` the same, and ``train.csv`` the columns ``image_id, data_provider, isup_grade,
gleason_score``. Image ids are 32 hexadecimal digits. The mask's values are in its first channel: of Radboud
0 background, 1 stroma, 2 benign epithelium, 3 to 5 Gleason patterns; of Karolinska 0 background, 1 benign,
2 cancer (the competition's page). Masks are not needed to learn.

Labels. ISUP follows from Gleason: 0+0 or negative 0; 3+3 1; 3+4 2; 4+3 3; 4+4, 3+5 and 5+3 4; 4+5, 5+4 and 5+5 5.
The label is that of ``train.csv``; a contradiction to the Gleason score is told. The training labels are noisy by
the organisers' own words; a table with the column ``noise_ratio_10``, such as the ``train.csv`` of
github.com/analokmaus/kaggle-panda-challenge-public (0: thought wrong, 1: kept), leaves out a tenth of the slides,
as UNI and eva do.

Masks. 100 slides have none, all of Radboud and known by id; any other slide without a mask is a broken download.

Splits. The competition's test set is not public, and ``train.csv`` has no splits: 70 / 15 / 15 of each provider
and grade by a fixed seed, or tables such as those of github.com/mahmoodlab/PANTHER. Patients were not published,
so each slide is a case of its own, although some slides are of one biopsy.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from wsi_ips.datasets.camelyon import Row
from wsi_ips.datasets.irregular import WITHOUT_MASK_IDS, notes_of
from wsi_ips.datasets.known_sets import Listed, held
from wsi_ips.datasets.label_table import LabelTable, read_label_table, read_split_tables
from wsi_ips.datasets.manifest import SlideRecord, split_by_case
from wsi_ips.errors import DatasetError

SLIDES = 10_616
"""Slides of train.csv."""
WITHOUT_MASK = 100
"""Slides of the release that have no mask, all of Radboud."""
PROVIDERS = ("radboud", "karolinska")
"""The providers."""
GRADES = ("0", "1", "2", "3", "4", "5")
"""ISUP grades in order."""
GRADE_OF_GLEASON: Mapping[str, str] = {
    "negative": "0", "0+0": "0", "3+3": "1", "3+4": "2", "4+3": "3", "4+4": "4", "3+5": "4", "5+3": "4",
    "4+5": "5", "5+4": "5", "5+5": "5",
}  # fmt: skip
"""The ISUP grade of each Gleason score of train.csv."""
FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
"""Shares of the splits where there are no tables of splits."""
BLANK = "3790f55cad63053e956fb73027179707"
"""The slide without any tissue."""

_BELOW = ("", "panda", "PANDA", "prostate-cancer-grade-assessment", "PANDA/prostate-cancer-grade-assessment")
_IMAGES, _MASKS, _TABLE = "train_images", "train_label_masks", "train.csv"
_IMAGE_ID = re.compile(r"[0-9a-f]{32}")
_NOISE = "noise_ratio_10"


@dataclass(frozen=True, slots=True)
class _Biopsy:
    image_id: str
    provider: str
    grade: str
    gleason: str
    noisy: bool


def look(root: Path, labels: Path | None, splits: Path | None) -> Listed | None:
    """List the slides whose images are there; None where no folder of PANDA is below ``root``.

    ``labels``: a table with the columns of train.csv, such as one with ``noise_ratio_10``.

    Raises :class:`DatasetError` where train.csv is there and its images are not, or the other way round, and for a
    table that cannot be used.
    """
    folder = next((root / name for name in _BELOW if (root / name / _IMAGES).is_dir()), None)
    if folder is None:
        tables = [root / name / _TABLE for name in _BELOW if _is_of_panda(root / name / _TABLE)]
        if tables:
            raise DatasetError(
                tables[0].parent, f"has {_TABLE} and no folder {_IMAGES}/",
                f"expected {_IMAGES}/<image_id>.tiff; it holds {held(tables[0].parent)}",
            )  # fmt: skip
        return None
    path = labels or folder / _TABLE
    if not path.is_file():
        raise DatasetError(
            folder, f"has {_IMAGES}/ and no {_TABLE}",
            f"expected {_TABLE} with image_id,data_provider,isup_grade,gleason_score; it holds {held(folder)}",
        )  # fmt: skip
    table = read_label_table(path)
    biopsies = read_biopsies(table)
    images = {one.stem for one in (folder / _IMAGES).glob("*.tiff")}
    there = [one for one in biopsies if one.image_id in images]
    kept = [one for one in there if not one.noisy and one.image_id != BLANK]
    if not kept:
        raise DatasetError(
            folder, f"has no image of {table.path.name} in {_IMAGES}/",
            f"expected {_IMAGES}/{biopsies[0].image_id}.tiff and so on; it holds {held(folder / _IMAGES)}",
        )  # fmt: skip
    split_of = _splits(kept, splits)
    rows = [_row(one, folder, split_of[one.image_id]) for one in kept if one.image_id in split_of]
    unlisted = sorted(images - {one.image_id for one in biopsies})
    return Listed(
        rows,
        len(biopsies),
        told=[*_told(table, there, kept, rows), *_contradictions(there)],
        wrong=[
            *_absent(biopsies, images, table.path),
            *_masks(folder, there, release=len(biopsies) == SLIDES),
            *_unlisted(unlisted, table.path),
        ],
    )


def read_biopsies(table: LabelTable) -> list[_Biopsy]:
    """The lines of train.csv.

    Raises :class:`DatasetError` with the line for an image id, provider, grade, Gleason score or noise flag that
    is not known, and an image that occurs twice.
    """
    columns = [table.column(name) for name in ("image_id", "data_provider", "isup_grade", "gleason_score")]
    seen: set[str] = set()
    biopsies = []
    for line, row in table.rows:
        image_id, provider, grade, gleason = (row[column] for column in columns)
        flag = row.get(_NOISE, "1")
        for value, fits, what in (
            (image_id, _IMAGE_ID.fullmatch(image_id), "an image_id is 32 hexadecimal digits"),
            (provider, provider in PROVIDERS, f"known providers: {', '.join(PROVIDERS)}"),
            (grade, grade in GRADES, "an ISUP grade is 0 to 5"),
            (gleason, gleason in GRADE_OF_GLEASON, f"known Gleason scores: {', '.join(GRADE_OF_GLEASON)}"),
            (flag, flag in ("0", "1"), f"{_NOISE} is 0 (left out) or 1 (kept)"),
        ):
            if not fits:
                raise DatasetError(table.path, f"line {line}: {value[:80]!r} is not known", what)
        if image_id in seen:
            raise DatasetError(table.path, f"line {line}: {image_id} occurs twice", "download it again")
        seen.add(image_id)
        biopsies.append(_Biopsy(image_id, provider, grade, gleason, noisy=flag == "0"))
    return biopsies


def _is_of_panda(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return "isup_grade" in file.readline(10_000)


def _splits(kept: list[_Biopsy], folder: Path | None) -> dict[str, str]:
    if folder is not None:
        return read_split_tables(folder, "image_id", "slide_id", "filename")
    records = [
        SlideRecord(one.image_id, one.image_id, {"stratum": f"{one.provider}/{one.grade}"}, "train", Path())
        for one in kept
    ]
    divided = split_by_case(records, column="stratum", fractions=FRACTIONS, seed=0)
    return {record.slide_id: record.split for record in divided}


def _row(one: _Biopsy, folder: Path, split: str) -> Row:
    return {
        "slide_id": one.image_id,
        "case_id": one.image_id,
        "label": one.grade,
        "split": split,
        "path": str((folder / _IMAGES / f"{one.image_id}.tiff").absolute()),
        "provider": one.provider,
        "gleason": one.gleason,
        "notes": notes_of("panda").get(one.image_id, ""),
    }


def _told(table: LabelTable, there: list[_Biopsy], kept: list[_Biopsy], rows: list[Row]) -> Iterator[str]:
    if len(table.rows) != SLIDES:
        yield f"{table.path} has {len(table.rows)} slides; the release has {SLIDES}"
    if noisy := sum(one.noisy for one in there):
        yield f"{noisy} slides are left out, as {_NOISE} of {table.path.name} says that their labels are wrong"
    elif _NOISE not in table.columns:
        yield "labels are noisy, and no table says which: give --labels one with noise_ratio_10"
    if any(one.image_id == BLANK for one in there):
        yield f"{BLANK} is left out: it is blank"
    if away := len(kept) - len(rows):
        yield f"{away} slides are left out, as the tables of splits do not have them"


def _contradictions(there: list[_Biopsy]) -> Iterator[str]:
    for one in there:
        if GRADE_OF_GLEASON[one.gleason] != one.grade:
            yield (
                f"{one.image_id}: Gleason {one.gleason} is grade {GRADE_OF_GLEASON[one.gleason]}, the table says "
                f"{one.grade}, which is kept"
            )


def _absent(biopsies: list[_Biopsy], images: set[str], table: Path) -> Iterator[str]:
    absent = [one.image_id for one in biopsies if one.image_id not in images]
    if absent:
        yield f"{len(absent)} images of {table} are not there, the first: expected {_IMAGES}/{absent[0]}.tiff"


def _masks(folder: Path, there: list[_Biopsy], *, release: bool) -> Iterator[str]:
    if not (folder / _MASKS).is_dir():
        yield f"no folder of masks: expected {folder / _MASKS}; it holds {held(folder)}"
        return
    masks = {path.name.removesuffix("_mask.tiff") for path in (folder / _MASKS).glob("*_mask.tiff")}
    without = {name: [one.image_id for one in there if one.provider == name and one.image_id not in masks]
               for name in PROVIDERS}  # fmt: skip
    if lost := without["karolinska"]:
        yield (
            f"{len(lost)} slides of Karolinska have no mask, the first {lost[0]}: expected "
            f"{_MASKS}/{lost[0]}_mask.tiff; the release has one for each"
        )
    lost = without["radboud"]
    unexpected = [image_id for image_id in lost if image_id not in WITHOUT_MASK_IDS] if release else []
    if unexpected:
        yield (
            f"{len(unexpected)} slides of Radboud have no mask, the first {unexpected[0]}: expected "
            f"{_MASKS}/{unexpected[0]}_mask.tiff; the {WITHOUT_MASK} slides of the release without one are others"
        )
    elif len(lost) > WITHOUT_MASK:
        yield (
            f"{len(lost)} slides of Radboud have no mask, the first {lost[0]}: expected "
            f"{_MASKS}/{lost[0]}_mask.tiff; {WITHOUT_MASK} slides of the release have none"
        )


def _unlisted(image_ids: list[str], table: Path) -> Iterator[str]:
    if image_ids:
        yield (
            f"{len(image_ids)} images are not in {table}, the first {image_ids[0]}: expected the train.csv of the "
            "same release"
        )
