"""The public data sets that this package knows by name: where their files lie, and which slides have which labels.

Start with :func:`look`, which lists the slides of a downloaded folder, or :data:`KNOWN_SETS`, which says what each
data set is. The rules of each are in a module of its own: :mod:`~wsi_ips.datasets.camelyon`,
:mod:`~wsi_ips.datasets.camelyon_plus`, :mod:`~wsi_ips.datasets.panda`, :mod:`~wsi_ips.datasets.tcga`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wsi_ips.datasets.camelyon import Row, find_camelyon
from wsi_ips.datasets.download_faults import dead_links, unfinished
from wsi_ips.errors import ConfigError, DatasetError
from wsi_ips.registry import Registry


@dataclass(frozen=True, slots=True)
class Listed:
    """The slides of a data set that lie in a folder.

    Attributes:
        rows: Lines of a manifest. ``path`` is absolute.
        total: How many slides the release has with a label.
        told: What a reader of the manifest should know: what was left out and why, labels that were corrected.
        wrong: What is missing, or not as the release has it; each line says what was expected.
        outlines: ``{slide_id: ASAP XML}``, where lesions are outlined.
    """

    rows: Sequence[Row]
    total: int
    told: Sequence[str] = ()
    wrong: Sequence[str] = ()
    outlines: Sequence[tuple[str, Path]] = ()


@dataclass(frozen=True, slots=True)
class KnownSet:
    """What a data set is.

    Attributes:
        title: Its name for people.
        labels: What the column ``label`` holds, and where that is from.
        splits: Where the splits are from.
        layout: The folders and files that are expected, in a line.
        source: Where it is published.
    """

    title: str
    labels: str
    splits: str
    layout: str
    source: str


KNOWN_SETS: dict[str, KnownSet] = {
    "camelyon16": KnownSet(
        "CAMELYON16",
        "normal or tumor, by file name (training) and reference.csv (test)",
        "the official test slides; validation: the 54 training slides that PatchCamelyon set aside",
        "images/ (bucket), or training/normal/, training/tumor/ and testing/images/ (GigaDB)",
        "camelyon17.grand-challenge.org/Data; CC0",
    ),
    "camelyon17": KnownSet(
        "CAMELYON17",
        "negative, itc, micro or macro for a node, and the patient's pN stage (column stage), by stages.csv",
        "the 100 training patients; validation: four patients of each centre, spread over the stages",
        "images/ (bucket), or training/center_0/ to center_4/ (GigaDB), with stages.csv or stage_labels.csv",
        "camelyon17.grand-challenge.org/Data; CC0",
    ),
    "camelyon_plus": KnownSet(
        "CAMELYON+",
        "negative, itc, micro or macro for each slide of CAMELYON16 and 17, by Camelyon+(4-classes).xlsx",
        "test: CAMELYON16's test slides and CAMELYON17's patients 100 to 199; the rest as in their own manifests",
        "CAMELYON16/ and CAMELYON17/ side by side, with Camelyon+(4-classes).xlsx beside them (or --labels)",
        "doi.org/10.57760/sciencedb.16442; Ling et al., Sci Data 2025, doi 10.1038/s41597-025-05586-5",
    ),
    "panda": KnownSet(
        "PANDA",
        "ISUP grade 0 to 5, by train.csv",
        "train.csv has none: 70 / 15 / 15 of each provider and grade, or the tables of --splits",
        "train_images/<image_id>.tiff and train_label_masks/<image_id>_mask.tiff beside train.csv",
        "kaggle.com/c/prostate-cancer-grade-assessment; Bulten et al., Nat Med 2022",
    ),
    "tcga_brca": KnownSet(
        "TCGA-BRCA subtypes",
        "IDC or ILC of the patient, by a table of your own, GDC's clinical.tsv or cBioPortal's clinical data",
        "none is official: 70 / 15 / 15 of the patients of each subtype, or the tables of --splits",
        "<file id>/TCGA-XX-XXXX-01Z-00-DX1.<UUID>.svs as gdc-client downloads them, with gdc_manifest*.txt",
        "portal.gdc.cancer.gov/projects/TCGA-BRCA",
    ),
}
"""The data sets by the names that ``--manifest`` and ``--name`` take."""

Looker = Callable[[Path, Path | None, Path | None], Listed | None]
"""A function of (root, labels, splits) that lists a data set, or gives None where none of its slides are there."""

_LOOKERS: Registry[Looker] = Registry(
    "data set",
    {
        "camelyon16": "wsi_ips.datasets.camelyon_layout:look_16",
        "camelyon17": "wsi_ips.datasets.camelyon_layout:look_17",
        "camelyon_plus": "wsi_ips.datasets.camelyon_plus:look",
        "panda": "wsi_ips.datasets.panda:look",
        "tcga_brca": "wsi_ips.datasets.tcga:look",
    },
)


def look(name: str, root: Path, *, labels: Path | None = None, splits: Path | None = None) -> Listed:
    """List the slides of a data set below ``root``, with their labels and splits.

    Args:
        name: One of :data:`KNOWN_SETS`.
        root: The downloaded folder, or the one above it.
        labels: The table of labels, where it does not lie in the folder under its own name.
        splits: A folder of train.csv, val.csv and test.csv, for data sets without official splits.

    Raises:
        ConfigError: The name is not known, or the data set has labels or splits of its own.
        DatasetError: ``root`` is no folder, holds no slide of the data set, or a table cannot be read. The message
            says what was expected and what is there.
    """
    if name not in KNOWN_SETS:
        raise ConfigError(f"{name!r} is no data set that is known: {', '.join(KNOWN_SETS)}")
    if labels is not None and name in ("camelyon16", "camelyon17"):
        raise ConfigError(
            f"{name} has its labels in its manifest: leave --labels away, or take camelyon_plus"
        )
    if splits is not None and name not in ("panda", "tcga_brca"):
        raise ConfigError(f"{name} has splits of its own: leave --splits away")
    if not root.is_dir():
        raise DatasetError(root, "no such folder", "check the path")
    listed = _LOOKERS.load(name)(root, labels, splits)
    if listed is None or not listed.rows:
        raise nothing_there(root, [name])
    return replace(listed, wrong=[*listed.wrong, *unfinished(root), *dead_links(root)])


def held_sets(root: Path) -> list[str]:
    """The data sets of which ``root`` holds slides or folders, without CAMELYON+, which has slides of others."""
    found = find_camelyon(root).slides
    kinds = {"camelyon17" if slide_id.startswith("patient") else "camelyon16" for slide_id in found}
    names = sorted(kinds)
    for name in ("panda", "tcga_brca"):
        try:
            there = _LOOKERS.load(name)(root, None, None) is not None
        except DatasetError:  # something of it is there, and look says what is wrong
            there = True
        names += [name] if there else []
    return names


def nothing_there(root: Path, names: Sequence[str]) -> DatasetError:
    """The error for a folder without a slide of these data sets: what was expected, and what is there."""
    expected = f"expected {KNOWN_SETS[names[0]].layout}" if len(names) == 1 else (
        "name the folder that holds images/ or training/, or the one above it; archives have to be unpacked"
    )  # fmt: skip
    told = "; ".join([f"it holds {held(root)}", *unfinished(root), *dead_links(root)])
    return DatasetError(root, f"holds no slide of {' or '.join(names)}", f"{expected}; {told}")


def held(root: Path, *, most: int = 8) -> str:
    """The first names in a folder, for an error message."""
    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in root.iterdir())
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "nothing"
