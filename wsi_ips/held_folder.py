"""A folder that one run at a time writes into, and the ``run.json`` that says which."""

import json
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wsi_ips.files import PARTIAL, whole_file
from wsi_ips.lock_file import SYSTEM_LOCK, locked
from wsi_ips.versions import versions

LARGEST_DESCRIPTION_BYTES = 10_000_000


@contextmanager
def held(root: Path, *, below: Iterable[Path], undo: Iterable[Path], results: str) -> Iterator[None]:
    """Hold ``root`` (made where it is not there) for the time of the ``with`` block.

    What killed writers left unfinished in it and in the folders ``below`` is removed first. A block that fails
    in a folder that was new, before any file matches the glob ``results``, takes ``undo`` (files of the run's
    own) and every empty folder along. Raises :class:`ResultsError` while another process holds the folder; a
    process that died holds nothing (see :func:`wsi_ips.lock_file.locked`).
    """
    there = root.exists()
    root.mkdir(parents=True, exist_ok=True)
    folders = [*below, root]
    failed_new = False
    try:
        with locked(root):
            try:
                for folder in folders:
                    for path in folder.glob(PARTIAL):
                        path.unlink(missing_ok=True)
                yield
            except BaseException:
                failed_new = not there and not any(root.glob(results))
                if failed_new:
                    for path in (*undo, root / SYSTEM_LOCK):
                        path.unlink(missing_ok=True)
                raise
    finally:
        if failed_new:
            for folder in folders:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()


def describe(path: Path, command: str, **content: Any) -> None:
    """Write ``run.json``: ``content``, with the versions, where and since when."""
    description = {
        "command": command,
        **content,
        "versions": versions(),
        "host": platform.node(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with whole_file(path) as partial:
        partial.write_text(json.dumps(description, indent=2) + "\n")


def read_description(path: Path) -> Mapping[str, Any]:
    """What :func:`describe` wrote. Raises ``ValueError`` for anything else."""
    if path.stat().st_size > LARGEST_DESCRIPTION_BYTES:
        raise ValueError("too large")
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("too deep") from None
    if not isinstance(held, dict):
        raise ValueError("no description of a run")
    return held


def difference(
    description: Path, ours: Mapping[str, Any], *, theirs: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> str:
    """What sets the run that a ``run.json`` describes apart from ``ours``, in words; empty if nothing does, or if
    none is there. theirs: of the description, what is compared; sections are compared setting by setting."""
    if not description.is_file():
        return ""
    try:
        before, here = _flat(theirs(read_description(description))), _flat(ours)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its run.json cannot be read"
    for name in [*here, *sorted(before.keys() - here.keys())]:
        if before.get(name) != here.get(name):
            return f"{name} {before.get(name)} there, {here.get(name)} here"
    return ""


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """``{"tiling.patch_px": 256, ...}``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {above + name: value}
    return flat
