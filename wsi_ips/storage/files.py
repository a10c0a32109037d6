"""Writing files whole or not at all, and telling a broken file from a broken disk.

:func:`whole_file`, :func:`whole_table` and :func:`whole_folder` write under a temporary name and rename it when
all is written, so no reader ever sees half a file. :func:`sweep` removes what killed writers left behind.

:func:`system_cause` and :func:`outside_cause` find out whether a file could not be read for a reason that has
nothing to do with its content, such as a missing permission, so that no sound file is called damaged. Libraries
pass on errors of the system in several ways: as ``OSError``, or only in words (HDF5, OpenSlide, libjpeg).
"""

import csv
import errno
import gc
import hashlib
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from wsi_ips.errors import FileError, one_line
from wsi_ips.storage.location import LONGEST_NAME_BYTES
from wsi_ips.storage.system import process_lives

if TYPE_CHECKING:
    from _csv import Writer

LARGEST_TABLE_BYTES = 2**28
"""The largest CSV that is read."""

LONGEST_CELL = 10_000
"""Characters of an error or a note in a table that wsi_ips writes. Python's csv reads cells of up to 131,072."""

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The system errors of a full disk, an exhausted quota, and a file that may not grow any further."""

PROBE_BYTES = 2**20
"""How many bytes are written to find out whether a disk is full."""

PARTIAL = ".*.partial*"
"""Glob pattern of the temporary names that :func:`whole_file` and :func:`whole_folder` use."""

_WRITTEN_BY = re.compile(r"\.([0-9a-f]{6})-([0-9]+)-[0-9a-f]{8}\.(?:partial|old)")
"""The host and the process in a temporary name."""

_OS_ERROR = re.compile(r"\(os error ([0-9]+)\)|\berrno = ([0-9]+)\b")
"""The number of a system error, as libraries written in Rust and HDF5 word it."""

FIXES = {
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
"""What to do about each error of the system that says nothing about the content of a file."""

_NUMBERS = (
    re.compile(r"\[Errno ([0-9]+)\]"),
    re.compile(r"\berrno = ([0-9]+)\b"),  # HDF5
    re.compile(r"\(os error ([0-9]+)\)"),  # Rust
)
"""How libraries write the number of a system error into their messages."""

_NO_MEMORY = re.compile(r"insufficient memory|out of memory|bad[_ ]alloc", re.I)
_NOT_SUPPORTED = re.compile(
    r"unsupported|not supported|not configured|not available|not registered|not implemented|is not installed"
    r"|requires the '[\w-]+' package",
    re.I,
)
MEMORY = "does not fit into the memory that is free"
"""The problem of a file that needs more memory than there is."""

CONVERT = "convert it to another kind, or leave it out; copy it again if it may be damaged"
"""The fix for a file with a codec, or of a kind, that cannot be decoded here."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path`` to write to, which becomes ``path`` when the block succeeds.

    If the block fails, the temporary file is removed. The temporary name keeps the suffix, by which libraries
    choose a format. It starts with a dot, so that no scan of the folder takes it for a result, and it is unique,
    so that two writers never meet in one file.

    Raises ``OSError`` that names ``path`` if the disk is full, whatever error the library that wrote has raised.
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


@contextmanager
def no_empty_folder(*folders: Path) -> Iterator[None]:
    """Remove these folders after the block, and those above them, if they were not there before it and are empty.

    A command whose writers made a folder and then failed leaves nothing behind.
    """
    missing: list[Path] = []
    for folder in folders:
        while not folder.exists() and folder != folder.parent:
            missing.append(folder)
            folder = folder.parent
    try:
        yield
    finally:
        for path in sorted(missing, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # it is not there, or not empty
                path.rmdir()


@contextmanager
def whole_table(path: Path) -> Iterator["Writer"]:
    """Yield a CSV writer whose rows become the file ``path``, whole, when the block succeeds.

    Text that is not UTF-8, such as the name of a file, is escaped, so that it does not cost the rows of other
    slides.
    """
    with (
        whole_file(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        yield csv.writer(file, lineterminator="\n")


@contextmanager
def many_objects() -> Iterator[None]:
    """Context manager for reading a table into a great many objects, none of which refer to each other in circles.

    Python looks for circles among all objects again and again while they become more, which takes longer than
    reading 100,000 lines. Inside the block it does not.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to ``path`` to fill, which becomes ``path`` when the block succeeds.

    If the block fails, the temporary folder is removed. A folder that is already at ``path`` is replaced: for a
    moment there is no folder, but never half a one.

    Raises ``OSError`` that names ``path`` if the disk is full.
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
    """Remove the temporary files and folders in ``folder`` whose writers were killed on this machine.

    Those of running writers stay, and so do those of other machines, about which nothing is known.
    """
    if not folder.is_dir():
        return
    for path in folder.glob(".*"):
        found = _WRITTEN_BY.search(path.name)
        if found and found[1] == _host() and not process_lives(int(found[2])):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def no_room(error: Exception) -> bool:
    """Whether an error says that the disk is full, a quota is used up, or a file may not grow any further."""
    return isinstance(error, OSError) and error.errno in NO_ROOM


def check_table_size(path: Path, error: type[FileError]) -> None:
    """Raise ``error`` if the CSV at ``path`` is larger than any table of slides, before it is read."""
    check_size(path, error, most=LARGEST_TABLE_BYTES, fix="is it a table of slides?")


def check_header(
    path: Path, names: Sequence[str] | None, wanted: Sequence[str], error: type[FileError]
) -> None:
    """Raise ``error`` if the first line of a CSV names one of the ``wanted`` columns twice: nobody knows which of
    them is meant.
    """
    twice = next((name for name in wanted if (names or ()).count(name) > 1), None)
    if twice is not None:
        raise error(path, f"has the column {twice} twice", "rename or remove one of them")


def check_cells(path: Path, line: int, row: Mapping[Any, Any], error: type[FileError]) -> None:
    """Raise ``error`` if a row of ``csv.DictReader`` has more cells than the first line names: one of its values
    holds a comma, and those behind it stand in wrong columns.
    """
    if any(cell.strip() for cell in row.get(None) or ()):
        raise error(
            path,
            f"line {line}: has more cells than the first line names",
            "put values with a comma in quotes",
        )


def check_size(path: Path, error: type[FileError], *, most: int, fix: str) -> None:
    """Raise ``error`` if the file has more than ``most`` bytes, before it is read into memory.

    ``fix`` is what the message advises, such as ``"give a table of stages"``.
    """
    if path.stat().st_size > most:
        raise error(path, f"is larger than {most} bytes", fix)


def _no_room_error(error: Exception, partial: Path) -> int | None:
    """The number of the system error if a library's error means one of :data:`NO_ROOM`, else None.

    ``partial`` is the file or folder that was being written. Pillow, NumPy and HDF5 may only say that writing
    failed. In that case the disk is tested by writing to ``partial``.
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
    """Write to ``partial``.

    Returns the number of the system error if that fails for one of :data:`NO_ROOM`, else None.
    """
    try:
        with (partial / ".probe" if partial.is_dir() else partial).open("ab", buffering=0) as file:
            left = PROBE_BYTES
            while left > 0:
                left -= file.write(bytes(left)) or 0
    except OSError as error:
        return error.errno if error.errno in NO_ROOM else None
    return None


def _beside(path: Path, writer: str, kind: str) -> Path:
    """A temporary path next to ``path``. A long name is shortened to what the file system takes."""
    ending = f".{writer}.{kind}{path.suffix}"
    room = LONGEST_NAME_BYTES - len(os.fsencode(ending)) - 1
    return path.with_name("." + os.fsdecode(os.fsencode(path.stem)[:room]) + ending)


def _writer() -> str:
    """What identifies this writer in a temporary name: host, process, and a random part."""
    return f"{_host()}-{os.getpid()}-{uuid4().hex[:8]}"


def _host() -> str:
    # Kept short, because the name of a slide may leave little room.
    """A digest of the host's name. It is short because the name of a slide may leave little room."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


@dataclass(frozen=True, slots=True)
class OutsideCause:
    """Why a file could not be read, where its content is not to blame.

    ``problem`` and ``fix`` are the words for a :class:`wsi_ips.errors.FileError`. ``number`` is that of the
    system's error, 0 if there is none.
    """

    problem: str
    fix: str
    number: int = 0


def system_cause(error: BaseException) -> OutsideCause | None:
    """Find out whether the system kept a file from being read.

    Causes are a missing permission, too many open files, a disk or network drive that fails, and too little
    memory. The error itself and the errors that led to it are searched. Returns None if none of them is such a
    cause.
    """
    for each in _chain(error):
        if isinstance(each, MemoryError) or _NO_MEMORY.search(str(each)):
            return OutsideCause(MEMORY, FIXES[errno.ENOMEM])
        if (number := _system_error(each)) is not None:
            file = f" ({each.filename})" if isinstance(each, OSError) and each.filename else ""
            return OutsideCause(f"cannot be read: {os.strerror(number).lower()}{file}", FIXES[number], number)
    return None


def outside_cause(error: BaseException) -> OutsideCause | None:
    """Find out whether something other than the content of a file kept it from being read.

    Causes are those of the system (:func:`system_cause`) and a codec or a kind of file that is not supported in
    this installation. The latter are recognised by the words of the library's message. Some libraries use the same
    words for damaged files, so this is less certain. Returns None if no such cause is found.
    """
    if (cause := system_cause(error)) is not None:
        return cause
    for each in _chain(error):
        if isinstance(each, ImportError | NotImplementedError) or _NOT_SUPPORTED.search(str(each)):
            return OutsideCause(f"cannot be decoded here: {one_line(str(each), most=200)}", CONVERT)
    return None


def _system_error(error: BaseException) -> int | None:
    """The number of the system error, one of :data:`FIXES`, that this exception stands for."""
    if isinstance(error, OSError) and error.errno:
        return error.errno if error.errno in FIXES else None
    text = str(error)
    for pattern in _NUMBERS:
        if (told := pattern.search(text)) and int(told[1]) in FIXES:
            return int(told[1])
    # OpenSlide ends its errors in the system's words.
    return next((number for number in FIXES if text.endswith(os.strerror(number))), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and those that caused it, or were being handled when it was raised."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
