"""Whole files only: written under a temporary name, renamed into place when complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

PARTIAL = ".*.partial*"
"""What :func:`whole_file` calls a file that is being written."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to; on success it becomes ``path``, else it goes.

    The temporary name keeps the suffix (libraries choose a format by it), starts with a dot (no folder
    scan takes it for a result) and is unique, so that two writers never meet in one file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}-{uuid4().hex[:8]}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` to fill; on success it becomes ``path``, else it goes.

    A folder that is there is replaced: for a moment there is none, never a half one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = f"{os.getpid()}-{uuid4().hex[:8]}"
    partial = path.with_name(f".{path.stem}.{unique}.partial{path.suffix}")
    old = path.with_name(f".{path.stem}.{unique}.old{path.suffix}")
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            path.replace(old)
        try:
            partial.replace(path)
        except OSError:
            if old.exists():
                old.replace(path)
            raise
    finally:
        for gone in (partial, old):
            shutil.rmtree(gone, ignore_errors=True)
