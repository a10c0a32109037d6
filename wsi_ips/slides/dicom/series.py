"""Which files of a folder are one slide: the DICOM files of one series, as in OpenSlide.

:func:`dicom_slides` lists the slides of a folder, :func:`series_of` the files of one slide.

A file is looked into only if its name ends in .dcm or .dicom, has no suffix, or has one of digits only, as files
named by their UID have. Other files are never opened, so that a folder of 100,000 features is listed as fast as it
would be without DICOM. What decides is the content: ``DICM`` at byte 128, the class of whole-slide images, and the
UID of the series.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from wsi_ips.errors import DamagedSlide, SeveralSlides, UnsupportedSlide, count, first_of
from wsi_ips.slides.base import LeftOut
from wsi_ips.slides.dicom import elements as tags
from wsi_ips.slides.dicom.elements import START, BrokenHeader, is_dicom, read_header
from wsi_ips.slides.tile_layout import TRUNCATED, TileFile

DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})
"""Suffixes of DICOM files."""

SHOWN = 3
"""How many names a message lists."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the start of one file says."""

    path: Path
    series: str = ""
    """UID of the series, empty if it is not known."""
    is_slide: bool = False
    """Whether the file is of the class of whole-slide images."""
    is_level: bool = False
    """Whether it holds a level (VOLUME), and not the label or the like."""
    problem: str = ""
    """Why the series is not known, although the file should belong to a slide."""
    error: OSError | None = None
    """The system's error that kept the file from being looked at, if there was one."""


@dataclass(frozen=True, slots=True)
class Series:
    """The files of one slide, sorted by name, and what beside them was ignored although it is named .dcm."""

    files: tuple[Path, ...]
    left_out: tuple[LeftOut, ...] = ()


@dataclass(slots=True)
class Folder:
    """The DICOM files of a folder: whole-slide images by series, and files that should be some and are not."""

    series: dict[str, list[Seen]] = field(default_factory=dict)
    """The files of each series, by its UID."""
    unknown: list[Seen] = field(default_factory=list)
    """Files whose series cannot be read, because they are cut short or damaged."""
    foreign: list[Path] = field(default_factory=list)
    """Files named .dcm that are no DICOM files."""

    @property
    def slides(self) -> list[list[Seen]]:
        """The series that have a level, in the order of the names of their first files."""
        return sorted(
            (seen for seen in self.series.values() if any(file.is_level for file in seen)), key=first_level
        )


def may_be_dicom(name: str, *, suffix: str = "") -> bool:
    """Whether a file of this name is looked into.

    ``suffix`` is a further suffix, in lower case, that counts as DICOM's.
    """
    if name.startswith("."):
        return False
    own = Path(name).suffix.lower()
    return own in {"", suffix, *DICOM_SUFFIXES} or own[1:].isdecimal()


def dicom_slides(folder: Path, names: Iterable[str]) -> list[Path]:
    """How the DICOM slides directly in ``folder`` are addressed. ``names`` are those of its files.

    If the files are one series, the slide is ``folder`` itself. If there are several series, each is addressed by
    the first of its files, by name, that holds a level. A folder whose .dcm files are damaged is a slide too, so
    that opening it reports what is wrong. A folder of other DICOM files (CT, annotations) holds no slide.
    """
    found = _look_through(folder / name for name in sorted(names))
    slides = found.slides
    if len(slides) > 1:
        return [first_level(seen) for seen in slides]
    return [folder] if slides or found.series or found.unknown or found.foreign else []


def series_of(path: Path) -> Series:
    """The files of the slide at ``path``, which is a file, or a folder of one series.

    Raises :class:`UnsupportedSlide` if there is no DICOM slide, :class:`DamagedSlide` for a file whose series
    cannot be read, :class:`SeveralSlides` for a folder that holds several slides, and ``OSError``.
    """
    found = _look_through(_beside(path))
    if path.is_dir():
        seen = _the_only_series(path, found)
    else:
        seen = next((seen for seen in found.series.values() if any(file.path == path for file in seen)), [])
    if found.unknown:
        first = found.unknown[0]
        if first.error is not None:
            raise first.error
        raise DamagedSlide(
            path,
            f"{first.path.name} lies in its folder and cannot be read as DICOM: {first.problem}",
            f"{TRUNCATED}; or take it out of the folder",
        )
    if not seen:
        raise UnsupportedSlide(path, "no whole-slide image of DICOM")
    foreign = tuple(LeftOut(file.name, "is named as a DICOM file and is none") for file in found.foreign)
    return Series(tuple(file.path for file in seen), foreign)


def starts_as_dicom(path: Path) -> bool:
    """Whether this file is to be read as DICOM.

    A file that is named as TIFF and starts as both is not, since OpenSlide reads it as TIFF (PS3.10, 7.1 allows
    both in one file).
    """
    start = TileFile(path).read(0, START)
    is_tiff = path.suffix.lower() in {".tif", ".tiff"} and start[:2] in (b"II", b"MM")
    return is_dicom(start) and not is_tiff


def first_level(seen: Iterable[Seen]) -> Path:
    """The file by which a series is addressed: the first by name that holds a level."""
    return min(file.path for file in seen if file.is_level)


def _beside(path: Path) -> list[Path]:
    """The files in which the series of the slide is looked for, sorted by name."""
    folder = path if path.is_dir() else path.parent
    suffix = "" if path.is_dir() else path.suffix.lower()
    files = {file for file in folder.iterdir() if may_be_dicom(file.name, suffix=suffix) and file.is_file()}
    return sorted(files if path.is_dir() else files | {path})


def _look_through(files: Iterable[Path]) -> Folder:
    found = Folder()
    for path in files:
        seen = _look(path)
        if seen is None:
            if path.suffix.lower() in DICOM_SUFFIXES:
                found.foreign.append(path)
        elif seen.problem:
            found.unknown.append(seen)
        elif seen.is_slide:
            found.series.setdefault(seen.series, []).append(seen)
    return found


def _look(path: Path) -> Seen | None:
    """What a file is, by its start. None if it is no DICOM file."""
    named_so = path.suffix.lower() in DICOM_SUFFIXES
    try:
        header = read_header(path, until=tags.SERIES_INSTANCE)
    except BrokenHeader as error:
        return Seen(path) if _is_of_another_class(path) else Seen(path, problem=str(error))
    except OSError as error:
        return Seen(path, problem=error.strerror or str(error), error=error) if named_so else None
    if header is None:
        return _cut(path) if named_so else None
    if header.sop_class != tags.WHOLE_SLIDE_IMAGE:
        return Seen(path)
    series = header.body.text(tags.SERIES_INSTANCE)
    return Seen(
        path,
        series=series,
        is_slide=True,
        is_level=image_kind(header.body.texts(tags.IMAGE_TYPE)) == "VOLUME",
        problem="" if series else "it names no series",
    )


def image_kind(image_type: list[str]) -> str:
    """The third value of ImageType: VOLUME for a level; LABEL, OVERVIEW or THUMBNAIL for another image."""
    return image_type[2] if len(image_type) > 2 else ""


def _is_of_another_class(path: Path) -> bool:
    """Whether the file is no whole-slide image, by the part of its header that is written alike in every file."""
    try:
        header = read_header(path, until=tags.END_OF_META)
    except (BrokenHeader, OSError):
        return False
    return header is not None and header.sop_class not in ("", tags.WHOLE_SLIDE_IMAGE)


def _cut(path: Path) -> Seen | None:
    """What to say of a file named .dcm that does not start as DICOM.

    A broken download leaves an empty file, or zeros.
    """
    start = TileFile(path).read(0, START)
    return Seen(path, problem=f"it is {len(start)} bytes of nothing") if not any(start) else None


def _the_only_series(path: Path, found: Folder) -> list[Seen]:
    slides = found.slides
    if len(slides) > 1:
        names = [first_level(seen).name for seen in slides]
        shown = first_of(names, SHOWN)
        raise SeveralSlides(
            path, f"holds {count(len(slides), 'slide')} of DICOM files", f"name one of them: {shown}"
        )
    return slides[0] if slides else next(iter(found.series.values()), [])
