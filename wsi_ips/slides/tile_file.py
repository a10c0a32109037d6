"""Bytes of an open file, from any thread."""

import os
from pathlib import Path


class TileFile:
    """An open file that is read by position. It closes when nobody holds it any more.

    Not ``with``: a thread may still read while another closes the reader, and a file descriptor that was
    closed under it could by then be another file's.
    """

    def __init__(self, path: Path) -> None:
        self._close = os.close  # kept: at the interpreter's end the module may be gone first
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes from ``offset``, or fewer where the file ends."""
        data = os.pread(self._fd, count, offset)
        while len(data) < count:  # a single read stops at 2 GiB, and may be interrupted
            more = os.pread(self._fd, count - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self._close(self._fd)
