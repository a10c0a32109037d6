"""A target of the harness's own tests, which does what its input says."""

import ctypes
import logging
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from wsi_ips.errors import FileError


def misbehave(given: Path, out: Path) -> None:
    acts: dict[bytes, Callable[[], object]] = {
        b"nothing": lambda: None,
        b"refuse": lambda: refuse(given, "is no such thing"),
        b"escape": lambda: raise_(_Unclear("\x1b[2J")),
        b"bug": lambda: [][1],
        b"die": lambda: os.kill(os.getpid(), 11),
        b"hang": lambda: time.sleep(100),
        b"swell": lambda: bytearray(600 << 20),
        b"warn": lambda: warnings.warn("look", RuntimeWarning, stacklevel=1),
        b"log": lambda: logging.getLogger("elsewhere").warning("look"),
        b"trace": lambda: logging.getLogger("wsi_ips.x").error("failed", exc_info=ValueError("x")),
        b"told": lambda: logging.getLogger("wsi_ips.x").warning("two rows are passed over"),
        b"print": lambda: ctypes.CDLL(None).dprintf(2, b"lib: bad marker\n"),
        b"half": lambda: (out / ".s.abc.partial.h5").touch(),
    }
    acts[given.read_bytes()]()


class _Unclear(FileError):
    """An error whose words were not made harmless."""

    def __init__(self, words: str) -> None:
        super().__init__(words, "")

    def __str__(self) -> str:
        return str(self.args[0])


def refuse(given: Path, problem: str) -> None:
    raise FileError(given, problem)


def raise_(error: Exception) -> None:
    raise error
