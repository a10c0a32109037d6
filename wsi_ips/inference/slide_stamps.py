"""Stamps of files: what the file system says of them, which tells whether they may have changed without opening
one.

A stamp of a file is its size, the times of its last changes and its number on the disk. A slide of several files
has the stamps of all files of a folder: those beside a DICOM file (any of them may join its series), those
directly in a DICOM folder, those in the data folder of a MIRAX slide, those that the index of a Hamamatsu slide
(.vms, .vmu) names, and those in a Zarr folder and the folders below it. Each is asked of the file system once, and
of at most :data:`wsi_ips.storage.fingerprint.MOST_FILES` files, as many as a fingerprint reads: to look at the
100,000 files of a Zarr store that holds a file for every chunk would take longer than its fingerprint, so such a
slide has no stamp. The time of a folder is no substitute, because it does not change when a file in it is written
to. Nor has a slide at a URL a stamp, nor a folder with links to other folders.
"""

import hashlib
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from wsi_ips.slides.dicom.series import starts_as_dicom
from wsi_ips.slides.folder import is_zarr
from wsi_ips.storage.fingerprint import HAMAMATSU_SUFFIXES, MIRAX_SUFFIX, MOST_FILES, hamamatsu_files
from wsi_ips.storage.location import Location

SETTLED_NS = 2_000_000_000
"""A file that was changed less than this ago may change again without a new stamp: some disks tell time in steps
of two seconds."""

FILE, SERIES, FOLDER, ZARR, MIRAX, HAMAMATSU = "", "series", "folder", "zarr", "mirax", "hamamatsu"
"""What a stamp is of: the file itself; the files beside a DICOM file; those directly in a DICOM folder; those in a
Zarr folder and below it; a MIRAX file and those in its data folder; a Hamamatsu index and those that it names."""


@dataclass(frozen=True, slots=True)
class Stamps:
    """The stamps of what a result is made from: the slide, and the files of its coordinates, if it has any.

    They have to be taken before the fingerprints that they stand for.

    Attributes:
        slide: The stamp of the slide. Empty if there is none of the slide or of one of the other files.
        patches: The stamps of the files of its coordinates.
        settled: Whether none of the files was changed just now. The stamp of one that was says nothing later.
    """

    slide: str
    patches: str = ""
    settled: bool = True

    @classmethod
    def of(cls, slide: Location, patches: Sequence[Path] | None) -> Self:
        """The stamps now; empty if ``patches`` is None."""
        if patches is None or not isinstance(slide, Path):
            return cls("")
        try:
            its = _stamped(*_asked_of(str(slide), _kind(slide)))
        except (OSError, ValueError):
            return cls("")
        beside = [_of_file(path) for path in patches]
        known = [stamp for stamp in (its, *beside) if stamp is not None]
        if its is None or len(known) < 1 + len(beside):
            return cls("")
        settled = time.time_ns() - max(stamp.changed_ns for stamp in known) >= SETTLED_NS
        return cls(its.text, " ".join(stamp.text for stamp in known[1:]), settled)


def stamp(path: Path | str) -> str:
    """The stamp of a file, as text. Empty if it is not there or no plain file."""
    its = _of_file(path)
    return "" if its is None else its.text


def stamp_of_slide(slide: Path) -> str:
    """The stamp of all files of a slide, as text. Empty if there is none: the files are gone, or too many."""
    try:
        its = _stamped(*_asked_of(str(slide), _kind(slide)))
    except (OSError, ValueError):
        return ""
    return "" if its is None else its.text


Asked = tuple[str, str]
"""What is asked of the file system: the kind of a stamp, and the file or folder."""


def asked_again(path: str, told: str) -> Asked:
    """What has to be asked to know whether the slide at ``path`` still has the stamp ``told``.

    Slides of one folder ask for the same, so that it can be asked once for all of them.
    """
    kind, known, _ = told.partition(":")
    return _asked_of(path, kind if known else FILE)


def answer(asked: Asked) -> str:
    """The stamp now; empty if there is none."""
    its = _stamped(*asked)
    return "" if its is None else its.text


@dataclass(frozen=True, slots=True)
class _Stamp:
    text: str
    changed_ns: int


def _kind(slide: Path) -> str:
    if slide.suffix.lower() == MIRAX_SUFFIX:
        return MIRAX
    if slide.suffix.lower() in HAMAMATSU_SUFFIXES:
        return HAMAMATSU
    if slide.is_dir():
        return ZARR if is_zarr(slide) else FOLDER
    return SERIES if starts_as_dicom(slide) else FILE


def _asked_of(path: str, kind: str) -> Asked:
    return kind, os.path.dirname(path) or os.curdir if kind == SERIES else path  # noqa: PTH120 - 100,000 of them


def _stamped(kind: str, place: str) -> _Stamp | None:
    if kind == FILE:
        # Earlier versions noted the stamp of a Hamamatsu index alone.
        return None if place.lower().endswith(tuple(HAMAMATSU_SUFFIXES)) else _of_file(place)
    try:
        if kind == HAMAMATSU:
            named = [Path(place), *hamamatsu_files(Path(place))]
            return _of_files(kind, [(path.name, path.stat()) for path in named])
        if kind == MIRAX:
            first, folder = [("", os.stat(place))], os.path.splitext(place)[0]  # noqa: PTH116, PTH122
        elif kind in (SERIES, FOLDER, ZARR):
            first, folder = [], place
        else:  # a line of a later version, or a broken one
            return None
        return _of_files(kind, [*first, *_files_in(folder, below=kind == ZARR)])
    except (OSError, ValueError, _Unknowable):
        return None


class _Unknowable(Exception):
    """The files of a folder are too many, or somewhere else."""


def _files_in(folder: str, *, below: bool) -> Iterator[tuple[str, os.stat_result]]:
    """The name of each file in a folder that is not hidden, in ``below`` also in the folders below it, and what
    the file system says of it.
    """
    left, seen = [""], 0
    while left:
        inner = left.pop()
        with os.scandir(os.path.join(folder, inner) if inner else folder) as entries:  # noqa: PTH118
            for entry in entries:
                seen += 1
                if seen > MOST_FILES:
                    raise _Unknowable
                name = f"{inner}/{entry.name}" if inner else entry.name
                if entry.is_dir():
                    if below and entry.is_symlink():
                        raise _Unknowable
                    left += [name] if below else []
                elif below or not entry.name.startswith("."):  # Zarr's metadata are hidden files
                    yield name, entry.stat()


def _of_files(kind: str, files: Sequence[tuple[str, os.stat_result]]) -> _Stamp | None:
    if not files:
        return None
    digest = hashlib.sha256()
    for name, about in sorted(files, key=lambda file: file[0]):
        digest.update(f"{name}\0{_text(about)}\n".encode("utf-8", "surrogateescape"))
    text = f"{kind}:{len(files)}:{digest.hexdigest()}"
    return _Stamp(text, max(_changed_ns(about) for _, about in files))


def _of_file(path: Path | str) -> _Stamp | None:
    try:
        about = os.stat(path)  # noqa: PTH116 - a Path for each of 200,000 files takes a second
    except (OSError, ValueError):
        return None
    return _Stamp(_text(about), _changed_ns(about)) if stat.S_ISREG(about.st_mode) else None


def _text(about: os.stat_result) -> str:
    return f"{about.st_size}-{about.st_mtime_ns}-{about.st_ctime_ns}-{about.st_ino}"


def _changed_ns(about: os.stat_result) -> int:
    return max(about.st_mtime_ns, about.st_ctime_ns)
