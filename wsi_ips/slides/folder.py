"""Which slides lie in a folder, and what they are called.

:func:`find_slides` lists them, :func:`left_out_of` says what it passed over, and :func:`slide_id` and
:func:`unique_slide_ids` give them the ids that labels and results use.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from wsi_ips.errors import ConfigError, SlideNotFound, UnsupportedSlide
from wsi_ips.slides.base import LeftOut
from wsi_ips.slides.dicom.series import dicom_slides, may_be_dicom, series_of, starts_as_dicom
from wsi_ips.storage.files import many_objects
from wsi_ips.storage.location import Location, Url, locate

SLIDE_SUFFIXES = frozenset(
    {".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".svslide", ".bif", ".vms", ".vmu", ".czi"}
)
"""Suffixes of files that are slides, besides DICOM and Zarr."""

DICOM_SUFFIX = ".dcm"
"""Suffix of DICOM files, which need none."""

ZARR_SUFFIX = ".zarr"
"""Suffix of Zarr folders."""

ZARR_FILES = ("zarr.json", ".zgroup", ".zattrs")
"""Files by which a Zarr folder without that suffix is known."""

MASK_ENDING = "_mask"
"""End of the names of masks, without the suffix."""

PLAIN_IMAGES = frozenset({".png", ".jpg", ".jpeg"})
"""Suffixes of plain images, which are no slides unless they are named one by one."""

BROKEN_LINK = "a link that leads nowhere"
"""Why a link without a target is left out."""

MASK = "a mask, by its name"
"""Why a mask is left out."""


def find_slides(folder: Location | str) -> list[Location]:
    """List every slide in ``folder`` and the folders below it, sorted by path.

    A Zarr folder is one slide and stands for itself, and so does a folder whose DICOM files are one series. If a
    folder holds several series, each is a slide and is addressed by the first of its files, by name, that holds a
    level (``ImageType`` says VOLUME); any other file of the series opens the same slide. DICOM files need no
    suffix, see :mod:`wsi_ips.slides.dicom.series`.

    Hidden files and folders, masks (``*_mask.tif``) and the data folder of a MIRAX slide are left out. If
    ``folder`` is a file, it is returned as it is, whatever its suffix, and so is a URL.

    Files and folders with a suffix that the reader of another package declares are slides too, and so is
    ``folder`` itself if such a reader opens it. A reader that does not load is named in a warning.

    Raises :class:`SlideNotFound` if there is no such folder, or no slide in it.
    """
    root = locate(folder)
    if isinstance(root, Url) or root.is_file():
        return [root]
    return [slide for slide, _ in _sorted_slides(root)]


def find_slides_by_id(folder: Location | str) -> dict[str, Location]:
    """The slides of :func:`find_slides` by the ids of :func:`unique_slide_ids`.

    It does not ask the disk again which of the slides are folders, which takes a while of 100,000 on a network
    drive. Raises the errors of both.
    """
    root = locate(folder)
    if isinstance(root, Url) or root.is_file():
        return unique_slide_ids([root])
    with many_objects():
        return _unique(
            (slide_id(slide) if is_folder else _id_of_file(slide), slide)
            for slide, is_folder in _sorted_slides(root)
        )


def _as_paths_are_sorted(found: tuple[Path, bool]) -> tuple[str, ...]:
    parts = found[0].parts
    return parts if os.name == "posix" else tuple(map(os.path.normcase, parts))


def _sorted_slides(root: Path) -> list[tuple[Path, bool]]:
    """The slides in a folder, sorted by path, and whether each is a folder itself."""
    if not root.exists():
        raise SlideNotFound(root, "no such file or folder", "check the path")
    from wsi_ips.slides.other_readers import is_slide_of_others, others_suffixes

    others = others_suffixes()
    others.warn()
    # Others are asked first, because usually there are none, and DICOM files would be looked into twice.
    if is_slide_of_others(root) and not (is_zarr(root) or is_dicom_folder(root)):
        return [(root, True)]
    slides = sorted(_slides_below(root, frozenset(), others.known), key=_as_paths_are_sorted)
    if not slides:
        known = " ".join(sorted(SLIDE_SUFFIXES | {DICOM_SUFFIX, ZARR_SUFFIX} | others.known))
        raise SlideNotFound(root, "no slide in this folder or below it", f"known suffixes: {known}")
    return slides


def left_out_of(folder: Path) -> list[LeftOut]:
    """What in ``folder`` and the folders below it :func:`find_slides` does not take for a slide, and why.

    Broken links and masks are named one by one, other files are counted by kind. Hidden files are ignored.
    """
    from wsi_ips.slides.other_readers import others_suffixes

    named: list[LeftOut] = []
    kinds: Counter[tuple[str, str]] = Counter()
    for path, why in _left_out_below(folder, frozenset(), others_suffixes().known):
        if why in (BROKEN_LINK, MASK):
            named.append(LeftOut(str(path), why))
        else:
            kinds[(path.suffix.lower() or "without a suffix", why)] += 1
    counted = [
        LeftOut(f"{count} {'file' if count == 1 else 'files'} {kind}", why)
        for (kind, why), count in sorted(kinds.items())
    ]
    return [*counted, *sorted(named, key=lambda part: part.what)]


def slide_id(path: Location | str) -> str:
    """The id of a slide: the name of its file without the last suffix.

    ``.ome.tif`` and ``.ome.zarr`` count as one suffix. An ending of digits only is no suffix, since it is the end
    of the UID in the name of a DICOM file. A folder keeps its whole name, except for ``.zarr`` and the suffixes
    that readers of other packages declare. Of a URL the last name counts, without ``?query``.

    Raises :class:`ConfigError` if a URL ends in no name, or in one that no file can have.
    """
    path = locate(path)
    if isinstance(path, Url):
        if not path.name:
            raise ConfigError(f"{path} names no slide: give the URL of a file or a Zarr folder")
        if any(letter < " " or letter == "\x7f" for letter in path.name):
            raise ConfigError(f"{str(path)!a} names no slide: its name holds a control character")
        path = Path(path.name)
    elif path.is_dir():
        path = path.resolve()
        if path.suffix.lower() != ZARR_SUFFIX and not _is_of_others(path):
            return path.name
    return _id_of_file(path)


def _is_of_others(folder: Path) -> bool:
    """Whether a folder has a suffix that the reader of another package declares."""
    if not folder.suffix:
        return False
    from wsi_ips.slides.other_readers import others_suffixes

    return folder.suffix.lower() in others_suffixes().known


def _id_of_file(path: Path) -> str:
    suffix = path.suffix
    stem = path.name if suffix[1:].isdecimal() else path.stem
    if suffix.lower() in {".tif", ".tiff", ZARR_SUFFIX} and stem.lower().endswith(".ome"):
        stem = stem[: -len(".ome")]
    return stem


def unique_slide_ids(paths: Iterable[Location]) -> dict[str, Location]:
    """Map the ids of these slides to their paths, in the given order.

    Raises :class:`ConfigError` that names both files if two slides have the same id. They are not told apart by
    the names of their folders: labels belong to ids, and an id that depends on what else lies in the folder would
    silently miss its label.
    """
    return _unique((slide_id(path), path) for path in paths)


def _unique(found: Iterable[tuple[str, Location]]) -> dict[str, Location]:
    named: dict[str, Location] = {}
    for its_id, path in found:
        first = named.setdefault(its_id, path)
        if first is not path and first != path:
            raise ConfigError(
                f"two slides share the id {its_id}: {first} and {path}; rename one, "
                "or run their folders one after the other"
            )
    return named


def files_of(slide: Location) -> list[Location]:
    """The files that make up a slide.

    For DICOM these are all files of its series, but not those of another series beside it. For other slides, or if
    the files cannot be told, it is the file or folder itself.
    """
    if isinstance(slide, Url) or is_zarr(slide):
        return [slide]
    try:
        is_dicom = is_dicom_folder(slide) if slide.is_dir() else starts_as_dicom(slide)
        return [*series_of(slide).files] if is_dicom else [slide]
    except (UnsupportedSlide, OSError):
        return [slide]


def is_dicom_folder(folder: Path) -> bool:
    """Whether DICOM slides lie directly in ``folder``."""
    return bool(dicom_slides(folder, _dicom_names(folder)))


def is_zarr(path: Location) -> bool:
    """Whether ``path`` is a Zarr folder, by the files in it or by its name.

    Of a URL every name in the path counts.
    """
    if isinstance(path, Url):
        return any(name.lower().endswith(ZARR_SUFFIX) for name in path.parts)
    return path.is_dir() and (
        path.suffix.lower() == ZARR_SUFFIX or any((path / name).is_file() for name in ZARR_FILES)
    )


def _slides_below(
    folder: Path, above: frozenset[Path], others: frozenset[str]
) -> Iterator[tuple[Path, bool]]:
    """Each slide, and whether it is a folder. ``others`` are the suffixes of other packages' readers."""
    # Links to folders are followed (data sets are often linked), so a link to a folder above must end.
    here = folder.resolve()
    if here in above:
        return
    if is_zarr(folder) or folder.suffix.lower() in others:
        yield folder, True
        return
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    names = [entry.name for entry in visible if entry.is_file()]
    for slide in dicom_slides(folder, filter(may_be_dicom, names)):
        yield slide, slide == folder
    yield from ((folder / name, False) for name in names if _is_slide(name, others))
    mirax_data = {Path(name).stem for name in names if name.lower().endswith(".mrxs")}
    for entry in visible:
        if entry.is_dir() and entry.name not in mirax_data:
            yield from _slides_below(folder / entry.name, above | {here}, others)


def _left_out_below(
    folder: Path, above: frozenset[Path], others: frozenset[str]
) -> Iterator[tuple[Path, str]]:
    here = folder.resolve()
    if here in above or is_zarr(folder) or folder.suffix.lower() in others:
        return
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    names = [entry.name for entry in visible if entry.is_file()]
    has_dicom = bool(dicom_slides(folder, filter(may_be_dicom, names)))
    mirax_data = {Path(name).stem for name in names if name.lower().endswith(".mrxs")}
    for entry in visible:
        path = folder / entry.name
        if entry.is_dir():
            if entry.name not in mirax_data:
                yield from _left_out_below(path, above | {here}, others)
        elif not path.exists():
            yield path, BROKEN_LINK
        elif not _is_slide(path.name, others) and not (has_dicom and may_be_dicom(entry.name)):
            yield path, _why_no_slide(path, others)


def _why_no_slide(file: Path, others: frozenset[str]) -> str:
    suffix = file.suffix.lower()
    if suffix in SLIDE_SUFFIXES or suffix in others:
        return MASK
    if suffix in PLAIN_IMAGES:
        return "plain images are read where they are named one by one, or in a manifest"
    return "no suffix of a slide's" if suffix else "not a DICOM slide"


def _is_slide(name: str, others: frozenset[str]) -> bool:
    stem, suffix = os.path.splitext(name.lower())  # noqa: PTH122 - a Path for each name takes a second of 100,000
    return (suffix in SLIDE_SUFFIXES or suffix in others) and not stem.endswith(MASK_ENDING)


def _dicom_names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if may_be_dicom(entry.name) and entry.is_file()]
