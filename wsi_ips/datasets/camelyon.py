"""Where CAMELYON16 and 17 keep slides, masks and outlines, in either of the two layouts they are given out in.

A, GigaDB and the challenge's own drive: ``training/normal/normal_001.tif``, ``testing/images/test_001.tif``,
``training/center_0/patient_000_node_0.tif``, ``training/lesion_annotations/tumor_001.xml``.
B, the open-data bucket ``camelyon-dataset``: ``images/``, ``masks/``, ``annotations/``. The data set's folder may
itself lie in ``CAMELYON16/`` or ``CAMELYON17/`` below the root. Names are compared without regard to case: older
releases have ``Tumor_001.tif``.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from wsi_ips.location import is_there

# Each part of a path is a pattern of a folder's name in lower case; an earlier folder wins.
_SLIDE_FOLDERS = (
    "images",
    "training/normal",
    "training/tumor",
    "testing/images",
    r"training/center_\d",
    r"training/center_\d/patient_\d{3}",  # where each archive was unpacked into a folder of its own
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
"""Slides that had another name in the first release (README of CAMELYON16): same pixels, corrected label."""


@dataclass(frozen=True, slots=True)
class CamelyonFiles:
    """What was found below ``root``, by slide id in lower case, as :func:`find_camelyon` saw it."""

    root: Path
    slides: Mapping[str, Path]
    masks: Mapping[str, Path]
    annotations: Mapping[str, Path]
    labels: Mapping[str, Path]
    """The official label files, by ``camelyon16`` and ``camelyon17``; :mod:`.camelyon_labels` reads them."""

    def slide(self, slide_id: str) -> Path | None:
        """The slide, under its name of today or of the first release."""
        return _under_either_name(self.slides, slide_id)

    def mask(self, slide_id: str) -> Path | None:
        """The mask (0 none, 1 tumour, 2 excluded), where there is one: see :mod:`wsi_ips.datasets.lesion_mask`."""
        return _under_either_name(self.masks, slide_id)

    def annotation(self, slide_id: str) -> Path | None:
        """The outlines as ASAP XML, where there are some. A tumour slide without them is no negative."""
        return _under_either_name(self.annotations, slide_id)


def find_camelyon(root: Path) -> CamelyonFiles:
    """Look through the folders of both layouts below ``root``; what lies elsewhere is not searched for.

    Finding nothing is no error: the answer is empty. Raises ``OSError`` for a folder that cannot be listed.
    """
    labels = {name: _files(root, folders, re.compile(file)) for name, (folders, file) in _LABEL_FILES.items()}
    return CamelyonFiles(
        root,
        slides=_files(root, _SLIDE_FOLDERS, re.compile(_SLIDE_NAME + r"\.tif")),
        masks=_files(root, _MASK_FOLDERS, re.compile(_SLIDE_NAME + r"_mask\.tif")),
        annotations=_files(root, _ANNOTATION_FOLDERS, re.compile(_SLIDE_NAME + r"\.xml")),
        labels={name: next(iter(found.values())) for name, found in labels.items() if found},
    )


class SlideFinder:
    """Resolves the paths of a manifest below a root; the folders are listed once, when the first is amiss."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @cached_property
    def files(self) -> CamelyonFiles:
        return find_camelyon(self._root)

    def __call__(self, slide_id: str, relative: str | Path) -> Path | None:
        """``root / relative`` if it is there, else the slide of that id in CAMELYON's layouts, else None."""
        plain = self._root / relative
        return plain if is_there(plain) else self.files.slide(slide_id)


def resolve_slide(root: Path, slide_id: str, relative: str | Path) -> Path | None:
    """One slide of a manifest below ``root``: see :class:`SlideFinder`, which is for many."""
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
