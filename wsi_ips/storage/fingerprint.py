"""Fingerprints of files and versions of packages, which tell whether a result can still be reproduced.

:func:`fingerprint` tells whether a slide is still the file that was read. It compares lengths and samples of the
content rather than dates, because copying a file changes its date. :func:`versions` lists the packages that can
change a result.
"""

import hashlib
import os
import platform
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path

from wsi_ips.storage.location import Location, is_file_name

SAMPLES = 16
"""How many samples of a file are read."""

SAMPLE_BYTES = 4096
"""Bytes of each sample."""

MIRAX_SUFFIX = ".mrxs"
"""Suffix of the MIRAX slides, whose data lie in a folder of the same name."""

HAMAMATSU_SUFFIXES = frozenset({".vms", ".vmu"})
"""Suffixes of the Hamamatsu slides that are an index, which names the files with the images beside it."""

LARGEST_INDEX_BYTES = 2**20
"""How much of such an index is read."""

MOST_FILES = 1000
"""How many files of a folder are read at most. A Zarr folder may hold a file for every chunk."""

RECORDED = ("wsi_ips", "torch", "torchvision", "timm", "lightning", "openslide-python", "openslide-bin",
            "tifffile", "imagecodecs", "simplejpeg", "numpy", "scikit-image", "h5py")  # fmt: skip
"""Packages that can change a result."""


def files_fingerprint(where: Iterable[Location]) -> str:
    """A digest of these files: 64 hexadecimal digits that do not depend on where the files lie.

    Of a file, its length and 16 samples spread over it are used, which takes milliseconds. Of a folder, all files
    are used, each with its place in the folder, if there are at most 1000. Of a larger one, such as a Zarr store
    with a file for every chunk, these are 1000: those directly in it, in order of their names, then 16 spread over
    each of the folders below it. The data folder of a MIRAX slide belongs to the slide, and so do the files that
    the index of a Hamamatsu slide (.vms, .vmu) names.

    Returns an empty text if one of the files is a URL, is missing, or cannot be read.
    """
    digest = hashlib.sha256()
    for each in where:
        if not isinstance(each, Path):
            return ""
        try:
            for path in _files(each):
                place = path.relative_to(each).as_posix() if each.is_dir() else ""
                digest.update(place.encode("utf-8", "surrogateescape") + b"\0")
                for sample in _samples(path):
                    digest.update(sample)
        except OSError:
            return ""
    return digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
    if path.suffix.lower() in HAMAMATSU_SUFFIXES and path.is_file():
        yield from hamamatsu_files(path)
        return
    folder = path.with_suffix("") if path.suffix.lower() == MIRAX_SUFFIX else path
    if folder.is_dir():
        directly = sorted(file for file in folder.iterdir() if file.is_file())[:MOST_FILES]
        yield from directly
        if path.is_dir():
            left = MOST_FILES - len(directly)
            every = list(islice(_below(path, spread=False), left + 1))
            yield from every if len(every) <= left else islice(_below(path, spread=True), left)


def _below(folder: Path, *, spread: bool) -> Iterator[Path]:
    """Files of the folders below this one; with ``spread``, 16 spread over the names in each. Links to folders are
    not followed, since they may lead back."""
    for name in _names(folder, folders=True, spread=spread):
        yield from (folder / name / file for file in _names(folder / name, folders=False, spread=spread))
        yield from _below(folder / name, spread=spread)


def hamamatsu_files(index: Path) -> Iterator[Path]:
    """The files that the index of a Hamamatsu slide names and that are there: the images, in order, their map, and
    where their tiles begin. The index may come from anybody: only names of files beside it count. Raises
    ``OSError`` if the index cannot be read.
    """
    with index.open("rb") as file:
        text = os.fsdecode(file.read(LARGEST_INDEX_BYTES))
    for line in text.splitlines():
        key, _, name = (part.strip() for part in line.partition("="))
        named = key.startswith(("ImageFile", "MapFile", "OptimisationFile")) and is_file_name(name)
        if named and (path := index.with_name(name)).is_file():
            yield path


def _names(folder: Path, *, folders: bool, spread: bool) -> list[str]:
    """Sorted names in a folder; with ``spread`` at most 16, the first and the last among them."""
    with os.scandir(folder) as entries:
        if folders:
            names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        else:
            names = sorted(entry.name for entry in entries if entry.is_file())
    if not spread or len(names) <= SAMPLES:
        return names
    return [names[number * (len(names) - 1) // (SAMPLES - 1)] for number in range(SAMPLES)]


def sample_places(size: int) -> list[tuple[int, int]]:
    """Where the samples of a file of ``size`` bytes lie: (start, end) of each, in bytes."""
    if size <= SAMPLE_BYTES:
        return [(0, size)]
    starts = [number * (size - SAMPLE_BYTES) // (SAMPLES - 1) for number in range(SAMPLES)]
    return [(start, start + SAMPLE_BYTES) for start in starts]


def fingerprint_of_samples(size: int, samples: Iterable[bytes]) -> str:
    """The digest that :func:`files_fingerprint` makes of one file, for a file that is read by other means.

    ``size`` is its length in bytes, ``samples`` the bytes at its :func:`sample_places`.
    """
    digest = hashlib.sha256(b"\0" + str(size).encode())
    for sample in samples:
        digest.update(sample)
    return digest.hexdigest()


def _samples(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    yield str(size).encode()
    with path.open("rb") as file:
        for start, end in sample_places(size):
            file.seek(start)
            yield file.read(end - start)


def versions() -> dict[str, str]:
    """The versions of Python and of the packages in :data:`RECORDED`, by name.

    A package that is missing has the version ``"not installed"``.
    """
    return {"python": platform.python_version(), **{name: _version(name) for name in RECORDED}}


@cache
def _version(package: str) -> str:
    """What is imported stays the same while the program runs, so the files of a package are read once."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
