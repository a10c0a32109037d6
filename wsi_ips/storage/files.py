"""Why a file could not be read where its content is not to blame, so that no sound file is called damaged.

Libraries pass the system's errors on in several ways: as ``OSError``, or only in words (HDF5, OpenSlide, libjpeg).

Whole files only: written under a temporary name, renamed into place when complete.
"""

import csv
import errno
import hashlib
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from wsi_ips.errors import FileError, one_line
from wsi_ips.storage.location import LONGEST_NAME_BYTES

if TYPE_CHECKING:
    from _csv import Writer


MENDS = {
    errno.EACCES: "ask for permission to read it",
    errno.EPERM: "ask for permission to read it",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or use fewer threads and workers",
    errno.ENFILE: "raise the system's limit of open files, or use fewer threads and workers",
    errno.ENOMEM: "free memory, or use fewer threads and workers",
    errno.EIO: "check the disk or the network drive, then start again",
    errno.ESTALE: "the network drive has changed meanwhile: start again",
    errno.ETIMEDOUT: "check the network drive, then start again",
    errno.ENOTCONN: "check the network drive, then start again",
    errno.EHOSTDOWN: "check the network drive, then start again",
    errno.EREMOTEIO: "check the network drive, then start again",
    errno.ENOLCK: "the file system has no locks: copy the file elsewhere",
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.ENOENT: "check that it is still there",
}  # fmt: skip
"""What to do about the system's errors that say nothing of a file's content."""
_NUMBERS = (
    re.compile(r"\[Errno ([0-9]+)\]"),
    re.compile(r"\berrno = ([0-9]+)\b"),  # HDF5
    re.compile(r"\(os error ([0-9]+)\)"),  # Rust
)
_NO_MEMORY = re.compile(r"insufficient memory|out of memory|bad[_ ]alloc", re.I)
_NOT_SUPPORTED = re.compile(
    r"unsupported|not supported|not configured|not available|not registered|not implemented|is not installed"
    r"|requires the '[\w-]+' package",
    re.I,
)
MEMORY = "does not fit into the memory that is free"
CONVERT = "convert it to another kind, or leave it out; copy it again if it may be damaged"


@dataclass(frozen=True, slots=True)
class OutsideCause:
    """problem: as of :class:`wsi_ips.errors.FileError`; mend: what to do about it; number: the system's."""

    problem: str
    mend: str
    number: int = 0


def system_cause(error: BaseException) -> OutsideCause | None:
    """What of the system kept a file from being read, by an error and what it came of.

    No permission, too many open files, a disk or network drive that fails, too little memory. None: none of these.
    """
    for each in _chain(error):
        if isinstance(each, MemoryError) or _NO_MEMORY.search(str(each)):
            return OutsideCause(MEMORY, MENDS[errno.ENOMEM])
        if (number := _system_error(each)) is not None:
            file = f" ({each.filename})" if isinstance(each, OSError) and each.filename else ""
            return OutsideCause(f"cannot be read: {os.strerror(number).lower()}{file}", MENDS[number], number)
    return None


def outside_cause(error: BaseException) -> OutsideCause | None:
    """As :func:`system_cause`, and a codec or a kind of file that is not supported here.

    The latter goes by a library's words, which some have for damage, too.
    """
    if (cause := system_cause(error)) is not None:
        return cause
    for each in _chain(error):
        if isinstance(each, ImportError | NotImplementedError) or _NOT_SUPPORTED.search(str(each)):
            return OutsideCause(f"cannot be decoded here: {one_line(str(each), most=200)}", CONVERT)
    return None


def _system_error(error: BaseException) -> int | None:
    """The number of the system's error, one of :data:`MENDS`."""
    if isinstance(error, OSError) and error.errno:
        return error.errno if error.errno in MENDS else None
    text = str(error)
    for pattern in _NUMBERS:
        if (told := pattern.search(text)) and int(told[1]) in MENDS:
            return int(told[1])
    # OpenSlide ends its errors in the system's words.
    return next((number for number in MENDS if text.endswith(os.strerror(number))), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


LARGEST_TABLE_BYTES = 2**28
LONGEST_CELL = 10_000
"""Characters of an error or a note in a table of ours: csv reads no cell of more than 131,072."""
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_OS_ERROR = re.compile(r"\(os error ([0-9]+)\)|\berrno = ([0-9]+)\b")
"""As Rust's libraries word it, and HDF5."""
PROBE_BYTES = 2**20
PARTIAL = ".*.partial*"
"""What :func:`whole_file` and :func:`whole_folder` call what is being written."""
_WRITTEN_BY = re.compile(r"\.([0-9a-f]{6})-([0-9]+)-[0-9a-f]{8}\.(?:partial|old)")
"""Host and process."""


def check_table_size(path: Path, error: type[FileError]) -> None:
    """Raise ``error`` for a CSV larger than any table of slides is, before it is read."""
    check_size(path, error, most=LARGEST_TABLE_BYTES, mend="is it a table of slides?")


def check_size(path: Path, error: type[FileError], *, most: int, mend: str) -> None:
    """Raise ``error`` for a file of more than ``most`` bytes, before it is read into memory.

    mend: what the message asks or advises, e.g. ``"is it a table of stages?"``.
    """
    if path.stat().st_size > most:
        raise error(path, f"is larger than {most} bytes", mend)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to; on success it becomes ``path``, else it goes.

    The temporary name keeps the suffix (libraries choose a format by it), starts with a dot (no folder
    scan takes it for a result) and is unique, so that two writers never meet in one file. Where there is no room,
    the :class:`OSError` names ``path``, whatever the library that wrote has raised.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path, _writer(), "partial")
    try:
        yield partial
        partial.replace(path)
    except Exception as error:
        failure = _no_room_error(error, partial)
        if failure is None:
            raise
        raise OSError(failure, os.strerror(failure), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def no_room(error: Exception) -> bool:
    """Whether the disk is full, or the user's share of it, or a file may not grow any further."""
    return isinstance(error, OSError) and error.errno in NO_ROOM


def _no_room_error(error: Exception, partial: Path) -> int | None:
    """The number of the system's error, where a library's error stands for one of :data:`NO_ROOM`.

    partial: what was being written. Pillow, NumPy and HDF5 may say no more than that writing failed: then it is
    tried whether more can be written to it.
    """
    each: BaseException | None = error
    unexplained = False
    while each is not None:
        if isinstance(each, OSError) and each.errno in NO_ROOM:
            return each.errno
        told = _OS_ERROR.search(str(each))
        if told and (number := int(told[1] or told[2])) in NO_ROOM:
            return number
        unexplained |= isinstance(each, RuntimeError) or (isinstance(each, OSError) and each.errno is None)
        each = each.__cause__ or each.__context__
    return _probed(partial) if unexplained else None


def _probed(partial: Path) -> int | None:
    """The number of the system's error, of :data:`NO_ROOM`, if no more can be written to what failed."""
    try:
        with (partial / ".probe" if partial.is_dir() else partial).open("ab", buffering=0) as file:
            left = PROBE_BYTES
            while left > 0:
                left -= file.write(bytes(left)) or 0
    except OSError as error:
        return error.errno if error.errno in NO_ROOM else None
    return None


@contextmanager
def whole_table(path: Path) -> Iterator["Writer"]:
    """Yield a writer of rows of CSV; on success they become ``path``, whole.

    A file name that is not UTF-8 is escaped: it must not cost the other slides' rows.
    """
    with (
        whole_file(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        yield csv.writer(file, lineterminator="\n")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` to fill; on success it becomes ``path``, else it goes.

    Where there is no room, the :class:`OSError` names ``path``, as of :func:`whole_file`.

    A folder that is there is replaced: for a moment there is none, never a half one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = _writer()
    partial, old = _beside(path, writer, "partial"), _beside(path, writer, "old")
    try:
        partial.mkdir()
        yield partial
        if path.exists():
            path.replace(old)
        try:
            partial.replace(path)
        except OSError:
            if old.exists():
                old.replace(path)
            raise
    except Exception as error:
        failure = _no_room_error(error, partial)
        if failure is None:
            raise
        raise OSError(failure, os.strerror(failure), str(path)) from error
    finally:
        for gone in (partial, old):
            shutil.rmtree(gone, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what writers left unfinished in ``folder`` that were killed on this machine.

    Those at work keep theirs; of other machines nothing is known."""
    if not folder.is_dir():
        return
    for path in folder.glob(".*"):
        found = _WRITTEN_BY.search(path.name)
        if found and found[1] == _host() and not _lives(int(found[2])):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _beside(path: Path, writer: str, kind: str) -> Path:
    """A temporary name beside ``path``; of a long name only as much as the file system takes."""
    ending = f".{writer}.{kind}{path.suffix}"
    room = LONGEST_NAME_BYTES - len(os.fsencode(ending)) - 1
    return path.with_name("." + os.fsdecode(os.fsencode(path.stem)[:room]) + ending)


def _writer() -> str:
    return f"{_host()}-{os.getpid()}-{uuid4().hex[:8]}"


def _host() -> str:
    # Short: a slide's name may leave little room.
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
