"""Whole files only: written under a temporary name, renamed into place when complete."""

import csv
import errno
import hashlib
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from wsi_ips.errors import FileError
from wsi_ips.location import LONGEST_NAME_BYTES

if TYPE_CHECKING:
    from _csv import Writer  # csv's own, under no public name

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
    """Raises ``error`` for a CSV larger than any of slides is, before it is read."""
    if path.stat().st_size > LARGEST_TABLE_BYTES:
        raise error(path, f"is larger than {LARGEST_TABLE_BYTES} bytes", "is it a table of slides?")


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
