"""Why a file could not be read where its content is not to blame, so that no sound file is called damaged.

Libraries pass the system's errors on in several ways: as ``OSError``, or only in words (HDF5, OpenSlide, libjpeg).
"""

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from wsi_ips.errors import one_line

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
