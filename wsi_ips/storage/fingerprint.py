"""Whether a file is still the one that was read, by its length and samples of it: its date says little, files
are copied about.

The versions that a result was made with.
"""

import hashlib
import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from wsi_ips.storage.location import Location

SAMPLES = 16
SAMPLE_BYTES = 4096
MIRAX_SUFFIX = ".mrxs"
MOST_FILES = 1000
"""Of a folder that are looked at: a Zarr folder may hold a file for every chunk."""


def files_fingerprint(where: Iterable[Location]) -> str:
    """64 hexadecimal digits for these files, the same wherever they lie; empty where that is not known.

    Of a file count its length and 16 samples spread over it, which takes milliseconds; of a folder the names and
    the contents of the files directly in it, by name the first 1000; a MIRAX slide's data folder counts with it.
    Nothing is known of a URL, nor of a file that is not there or cannot be read.
    """
    digest = hashlib.sha256()
    for each in where:
        if not isinstance(each, Path):
            return ""
        try:
            for path in _files(each):
                digest.update(
                    path.name.encode("utf-8", "surrogateescape") + b"\0" if each.is_dir() else b"\0"
                )
                for sample in _samples(path):
                    digest.update(sample)
        except OSError:
            return ""
    return digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
    folder = path.with_suffix("") if path.suffix.lower() == MIRAX_SUFFIX else path
    if folder.is_dir():
        yield from sorted(file for file in folder.iterdir() if file.is_file())[:MOST_FILES]


def _samples(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    yield str(size).encode()
    with path.open("rb") as file:
        for number in range(SAMPLES):
            file.seek(number * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
            yield file.read(SAMPLE_BYTES)
            if size <= SAMPLE_BYTES:
                return


RECORDED = ("wsi_ips", "torch", "torchvision", "timm", "lightning", "openslide-python", "openslide-bin",
            "tifffile", "imagecodecs", "simplejpeg", "numpy", "scikit-image", "h5py")  # fmt: skip


def versions() -> dict[str, str]:
    """Package name to version, for the packages that can change a result, and Python's own."""
    found = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
