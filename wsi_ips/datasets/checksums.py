"""Data sets on disk: whether a download is complete, and a folder for those that are made.

Whether a downloaded data set is complete, by its lists of checksums: :func:`verify_folder`.

Lists are ``checksums.md5`` (MD5) and ``checksums.txt`` (SHA-256, CAMELYON16's first release), also under the names
of the challenge's page (``camelyon16_checksums.md5``), in the format of md5sum and sha256sum: ``<digest>  <path>``
with ``*`` before the path for binary mode. Paths are relative to the list's folder. ``gdc_manifest*.txt`` is what
gdc-client downloads from (docs.gdc.cancer.gov, "Manifest File"): tabs between ``id, filename, md5, size, state``,
and each file lies in a folder that is called like its id.

Making data sets: a folder for one config (:func:`claim`), slides in parallel (:func:`make_all`).
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from wsi_ips.config import Section, settings_fingerprint
from wsi_ips.errors import ConfigError, DatasetError
from wsi_ips.progress import Advance, Progress, silent
from wsi_ips.storage.files import check_size, whole_file
from wsi_ips.storage.location import is_there

LIST_NAMES = ("checksums.md5", "checksums.txt")
"""Names of the lists."""
LARGEST_LIST_BYTES = 10_000_000
"""The largest list that is read."""
STEP_BYTES = 64 << 20
"""Bytes per step of the progress bar."""

_READ_BYTES = 1 << 20
_LIST = re.compile(r"(camelyon1[67]_)?checksums\.(md5|txt)", re.IGNORECASE)
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
    lists = [path for path in present if _LIST.fullmatch(path.name) or _GDC_LIST.fullmatch(path.name)]
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


Order = TypeVar("Order")


def claim(mark: Path, config: Section, *, holds: str, content: Mapping[str, Any]) -> None:
    """Mark a folder as made from this config, with ``content`` for people beside the config's fingerprint.

    ``mark`` is the file to write, ``holds`` says what is in the folder. Raises :class:`ConfigError` if the folder
    was made from another config.
    """
    if mark.exists() and json.loads(mark.read_text(encoding="utf-8")).get(
        "fingerprint"
    ) != settings_fingerprint(config):
        raise ConfigError(f"{mark.parent} holds {holds}; remove it or choose another folder")
    with whole_file(mark) as partial:
        partial.write_text(
            json.dumps({"fingerprint": settings_fingerprint(config), **content}, indent=2) + "\n"
        )


def make_all(
    orders: Sequence[Order],
    make: Callable[[Order], str],
    *,
    processes: int,
    what: str,
    progress: Progress,
) -> None:
    """Call ``make`` for every order, in ``processes`` processes.

    ``what`` is the progress bar's title; what ``make`` returns is shown beside it. Raises what ``make`` raises.
    """
    with progress(what, total=len(orders)) as advance:
        if processes == 1:
            for order in orders:
                advance(make(order))
        elif orders:
            # Spawned, not forked: the caller may have threads running.
            with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
                for done in as_completed([pool.submit(make, order) for order in orders]):
                    advance(done.result())
