"""Whether a downloaded data set is complete, by its lists of checksums: :func:`verify_folder`.

Lists are ``checksums.md5`` (MD5) and ``checksums.txt`` (SHA-256, CAMELYON16's first release) in the format of
md5sum and sha256sum: ``<digest>  <path>``, with ``*`` before the path for binary mode. Paths are relative to the
list's folder. ``gdc_manifest*.txt`` is what gdc-client downloads from (docs.gdc.cancer.gov, "Manifest File"): tabs
between ``id, filename, md5, size, state``, and each file lies in a folder that is called like its id.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from wsi_ips.errors import DatasetError
from wsi_ips.progress import Advance, Progress, silent
from wsi_ips.storage.files import check_size
from wsi_ips.storage.location import is_there

LIST_NAMES = ("checksums.md5", "checksums.txt")
"""Names of the lists."""
LARGEST_LIST_BYTES = 10_000_000
"""The largest list that is read."""
STEP_BYTES = 64 << 20
"""Bytes per step of the progress bar."""

_READ_BYTES = 1 << 20
_GDC_LIST = re.compile(r"gdc_manifest[\w.-]*\.txt")
_GDC_COLUMNS = ["id", "filename", "md5"]
_LINE = re.compile(r"([0-9a-fA-F]{32}|[0-9a-fA-F]{64})[ \t]+\*?(\S.*)")
_ALGORITHMS = {32: "md5", 64: "sha256"}


@dataclass(frozen=True, slots=True)
class Checksum:
    """A line of a list: what the file ``path`` (absolute) should hash to."""

    path: Path
    algorithm: str
    digest: str


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of :func:`verify_folder`.

    ``bad`` has a line for each file that is missing, altered or unreadable; ``unlisted`` are files in no list.
    """

    lists: Sequence[Path]
    checked: int
    bad: Sequence[str]
    unlisted: Sequence[Path]


def read_checksums(path: Path) -> list[Checksum]:
    """Read the lines of a list.

    Raises :class:`DatasetError` with the line for one that is no checksum and path, and for a path that is
    absolute or leads out of the list's folder.
    """
    check_size(path, DatasetError, most=LARGEST_LIST_BYTES, fix="download the list again")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(path, f"is not text in UTF-8 ({error})", "download it again") from None
    if is_gdc := bool(lines) and lines[0].split("\t")[:3] == _GDC_COLUMNS:
        lines[0] = ""
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fits = _LINE.fullmatch(_as_checksum(line) if is_gdc else line.strip())
        if fits is None:
            raise DatasetError(path, f"line {number}: is no checksum and path", "download it again")
        name = PurePosixPath(fits[2])
        if (
            name.is_absolute()
            or ".." in name.parts
            or "\\" in fits[2]
            or "\0" in fits[2]
            or ":" in name.parts[0]
        ):
            raise DatasetError(
                path, f"line {number}: {fits[2]!r} leads out of the folder", "do not trust this list"
            )
        found.append(Checksum(path.parent / name, _ALGORITHMS[len(fits[1])], fits[1].lower()))
    return found


def _as_checksum(line: str) -> str:
    """A line of the GDC's list as one of md5sum's."""
    file_id, name, digest, *_ = [*line.split("\t"), "", "", ""]
    return f"{digest.strip()}  {file_id.strip()}/{name.strip()}"


def verify_folder(folder: Path, *, progress: Progress = silent) -> Verification:
    """Hash every file that is named in a list in ``folder`` or below; each is read once, a megabyte at a time.

    Without a list, nothing is checked. Raises :class:`DatasetError` for a list that cannot be used.
    """
    present = list(_walk(folder, set()))
    lists = [path for path in present if path.name in LIST_NAMES or _GDC_LIST.fullmatch(path.name)]
    wanted: dict[Path, list[Checksum]] = {}
    for path in lists:
        for checksum in read_checksums(path):
            wanted.setdefault(checksum.path, []).append(checksum)
    bad: list[str] = []
    sizes = {path: _size(path) for path in wanted}
    steps = sum(_steps(size) for size in sizes.values() if size is not None)
    with progress(f"Checking, {STEP_BYTES >> 20} MiB a step", total=steps) as advance:
        for path, checksums in sorted(wanted.items()):
            size = sizes[path]
            if size is None:
                bad.append(f"missing: {path}" if not is_there(path) else f"not a file: {path}")
                continue
            bad += _check(path, checksums, _steps(size), advance)
    listed = {*wanted, *lists}
    return Verification(lists, len(wanted), bad, [path for path in present if path not in listed])


def _check(path: Path, checksums: Sequence[Checksum], steps: int, advance: Advance) -> list[str]:
    """One line if the file is bad, however many lists say so."""
    try:
        digests = _hashes(path, {checksum.algorithm for checksum in checksums}, steps, advance)
    except OSError as error:
        return [f"cannot be read: {path} ({error.strerror})"]
    wrong = [
        f"{checksum.algorithm} {digests[checksum.algorithm]}, the list says {checksum.digest}"
        for checksum in checksums
        if digests[checksum.algorithm] != checksum.digest
    ]
    return [f"altered: {path} ({'; '.join(wrong)})"] if wrong else []


def _hashes(path: Path, algorithms: set[str], steps: int, advance: Advance) -> Mapping[str, str]:
    """Digests by algorithm. Advances ``steps`` times, even if the file grows or shrinks meanwhile."""
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    buffer = memoryview(bytearray(_READ_BYTES))
    taken, told = 0, 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            for each in hashes.values():
                each.update(buffer[:count])
            taken += count
            while told < min(taken // STEP_BYTES, steps - 1):
                advance(path.name)
                told += 1
    for _ in range(steps - told):
        advance(path.name)
    return {name: each.hexdigest() for name, each in hashes.items()}


def _size(path: Path) -> int | None:
    """Size in bytes of a regular file (or of what a link leads to); None for anything else."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _steps(size: int) -> int:
    return size // STEP_BYTES + 1


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Every file below the folder.

    Links are followed, for folders are often on other disks; each folder is visited once.
    """
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        try:
            is_dir, is_file = entry.is_dir(), entry.is_file()
        except OSError:  # a link that leads nowhere but to itself
            continue
        if is_dir:
            yield from _walk(Path(entry.path), seen)
        elif is_file:
            yield Path(entry.path)
