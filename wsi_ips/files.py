"""Whole files only: written under a temporary name, renamed into place when complete."""

import os
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
