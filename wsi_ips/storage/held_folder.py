"""A folder that only one run at a time writes into, and the ``run.json`` that describes the run.

:func:`held` holds the folder of a run and cleans up after a failure. It uses :func:`locked`, which works with two
files in the folder. ``.lock`` is locked by ``flock``, which ends with the process. Network file systems and other
mounts may not have ``flock``, so there is also ``.lock-holder``: whoever creates it holds the folder. It says
which process that is, so that the file of a process that died can be told from that of a running one.

:func:`describe` writes ``run.json``, :func:`read_description` reads it, and :func:`difference` compares it with
the settings of the present run.
"""

import errno
import json
import logging
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from wsi_ips.errors import ResultsError
from wsi_ips.storage.files import PARTIAL, no_empty_folder, remove, whole_file
from wsi_ips.storage.fingerprint import versions
from wsi_ips.storage.system import boot_id, lock_file, machine_id, open_flags, process_space, process_started

SYSTEM_LOCK = ".lock"
"""Name of the file that is locked by ``flock``."""

HOLDER = ".lock-holder"
"""Name of the file that says which process holds the folder."""

NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO})
"""The system errors of ``flock`` on a mount that has no locks."""

LARGEST_HOLDER_BYTES = 4096
"""The most bytes that are read of a holder file."""

TRIES = 20
"""How often taking the folder is tried."""

WAIT_S = 0.05
"""Seconds between two tries, in which another process may fill the file that it has created."""

_TOKEN = re.compile(r"[0-9a-f]{32}")
BUSY = "another run is writing into it"
"""The problem of a folder that another run holds."""

LARGEST_DESCRIPTION_BYTES = 10_000_000
"""The largest ``run.json`` that is read."""

logger = logging.getLogger(__name__)


@contextmanager
def held(root: Path, *, below: Iterable[Path], undo: Iterable[Path], results: str) -> Iterator[None]:
    """Hold the folder ``root`` for the length of the ``with`` block, and clean up if the block fails.

    Before the block, temporary files of killed writers are removed from ``root`` and from the folders ``below``.
    If the block fails, ``root`` was new or empty, and no file in it matches the glob pattern ``results``, then the
    run's own files ``undo`` are removed, and so is every folder that this function or the run has made, those
    above ``root`` too, if it is empty then.

    Args:
        root: Folder of the run, which is created if it is missing.
        below: Folders below it that the run writes into.
        undo: Files to remove after an early failure.
        results: Glob pattern of files that are worth keeping.

    Raises :class:`ResultsError` if another process holds the folder. A process that died holds nothing.
    """
    below = tuple(below)
    with no_empty_folder(root, *below):
        root.mkdir(parents=True, exist_ok=True)
        was_empty = not any(root.iterdir())
        with locked(root):
            try:
                for folder in (*below, root):
                    for path in folder.glob(PARTIAL):
                        remove(path)
                yield
            except BaseException:
                if was_empty and not any(root.glob(results)):
                    for path in (*undo, root / SYSTEM_LOCK):
                        with suppress(PermissionError):  # Windows removes no file that is open
                            path.unlink(missing_ok=True)
                raise


def describe(path: Path, command: str, **content: Any) -> None:
    """Write ``run.json``: the name of the command, ``content``, package versions, host, and the time in UTC."""
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
    """Read the ``run.json`` that :func:`describe` wrote. Raises ``ValueError`` if it is something else."""
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
    """The first setting in which an earlier run differs from the present one, in words.

    Args:
        description: The ``run.json`` of the earlier run.
        ours: Settings of the present run. Sections are compared setting by setting.
        theirs: Takes the content of ``run.json`` and returns the settings to compare.

    Returns an empty text if nothing differs, or if there is no ``run.json``.
    """
    if not description.is_file():
        return ""
    try:
        before = flat_settings(theirs(read_description(description)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its run.json cannot be read"
    return first_difference(before, ours)


def first_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The first setting that differs, in words; empty if none does. Both may be nested."""
    before, now = flat_settings(there), flat_settings(here)
    for name in [*now, *sorted(before.keys() - now.keys())]:
        if before.get(name) != now.get(name):
            return f"{name} {before.get(name)} there, {now.get(name)} here"
    return ""


def flat_settings(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings as one dictionary with dotted names: ``{"tiling.patch_px": 256, ...}``.

    Sections in a list are numbered: ``{"tasks.0.name": "grade", ...}``.
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, list | tuple) and value and all(isinstance(each, Mapping) for each in value):
            value = {str(number): each for number, each in enumerate(value)}
        flat |= (
            flat_settings(value, f"{above}{name}.") if isinstance(value, Mapping) else {above + name: value}
        )
    return flat


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an existing folder for the length of the ``with`` block.

    A process that died on this machine holds nothing.

    Raises :class:`ResultsError` if another process holds the folder. It is also raised if that cannot be known,
    because the process runs or ran on another machine and there are no locks: the message then names the file to
    delete if that run is over. Raises ``OSError`` if the folder cannot be written to.
    """
    with _system_lock(folder) as by_system:
        path = folder / HOLDER
        mine = Holder.here(by_system=by_system)
        _claim(path, mine)
        try:
            yield
        finally:
            if (held := _read(path)) is not None and held.token == mine.token:
                path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that holds a folder, with all that tells it from any other process.

    Fields:
        token: A random text that belongs to this holder alone.
        host, process, since: Name of the machine, number of the process, and time in UTC, for messages.
        machine: Which installation of the operating system it is.
        boot: Which start of the machine it is.
        process_space: Whose process numbers are meant, since a container has its own.
        process_started: When the process began, in ticks of the kernel since the boot. Empty if the system does
            not say.
        by_system: Whether the process also holds the lock by ``flock``.
    """

    token: str
    host: str
    machine: str
    boot: str
    process_space: str
    process: int
    process_started: str
    since: str
    by_system: bool

    @classmethod
    def here(cls, *, by_system: bool) -> Self:
        """The present process as a holder."""
        return cls(
            token=uuid4().hex,
            host=platform.node(),
            machine=machine_id(),
            boot=boot_id(),
            process_space=process_space(),
            process=os.getpid(),
            process_started=process_started(os.getpid()) or "",
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            by_system=by_system,
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a holder from the JSON that :func:`json.dumps` makes of its fields.

        Raises ``ValueError`` for anything else.
        """
        try:
            told = json.loads(text)
            holder = cls(**told)
        except (TypeError, RecursionError):
            raise ValueError("says no process") from None
        kinds = {"process": int, "by_system": bool}
        if not all(type(value) is kinds.get(name, str) for name, value in told.items()):
            raise ValueError("says no process")
        if holder.process < 1 or not _TOKEN.fullmatch(holder.token):
            raise ValueError("says no process")
        return holder

    def is_over(self, now: "Holder") -> bool:
        """Whether this process is certain to have ended, as far as the process ``now`` can tell."""
        if self.by_system and now.by_system:
            return True  # it would hold the system's lock
        if (self.host, self.machine) != (now.host, now.machine):
            return False
        if self.boot != now.boot:
            return True
        if self.process_space != now.process_space:
            return False
        started = process_started(self.process)
        if started is None:
            return True
        return bool(started and self.process_started) and started != self.process_started

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


@contextmanager
def _system_lock(folder: Path) -> Iterator[bool]:
    """Lock the folder by ``flock``, and yield whether the file system has such locks.

    Raises :class:`ResultsError` if another process has the lock.
    """
    # The file stays: who removes it may split those that open it before from those that open it after.
    descriptor = os.open(folder / SYSTEM_LOCK, open_flags(os.O_RDWR | os.O_CREAT), 0o666)
    try:
        try:
            lock_file(descriptor)
            has_locks = True
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES):
                who = _read(folder / HOLDER)
                told = f" ({who})" if who else ""
                raise ResultsError(folder, BUSY + told, "wait for it, or write elsewhere") from None
            if error.errno not in NO_LOCKS:
                raise OSError(error.errno, error.strerror, str(folder / SYSTEM_LOCK)) from error
            has_locks = False
            logger.warning(
                "%s lies on a file system without locks (%s): its file %s keeps other runs out",
                folder,
                (error.strerror or "").lower(),
                HOLDER,
            )
        yield has_locks
    finally:
        os.close(descriptor)  # which unlocks it


def _claim(path: Path, mine: Holder) -> None:
    """Create ``path`` so that it names ``mine``.

    Raises :class:`ResultsError` if it names a process that may be running.
    """
    for _ in range(TRIES):
        if _create(path, mine):
            return
        other = _read(path)
        if other is None:  # released meanwhile, or not filled yet
            time.sleep(WAIT_S)
            continue
        if not other.is_over(mine):
            raise _busy(path, other, mine)
        if _take_over(path, other, mine):
            return
    raise ResultsError(
        path.parent,
        "its lock file cannot be understood" if path.exists() else "its lock file comes and goes",
        f"if no run is writing into it, delete {path}",
    )


def _take_over(path: Path, over: Holder, mine: Holder) -> bool:
    """Replace a holder that is over by ``mine``. Returns False if another process did so first.

    A file named after the old holder can be created only once. Whoever created it looks again, because a process
    that came late may have read the old file before another one took it over, and then renames it to ``path``. At
    no time is ``path`` missing, so no third process can create it meanwhile.
    """
    right = path.with_name(f"{path.name}.{over.token}")
    if not _create(right, mine):
        time.sleep(WAIT_S)
        if (now := _read(path)) is None or now.token != over.token:
            return False
        raise ResultsError(
            path.parent,
            "another run is about to write into it",
            f"wait for it; if there is none, delete {right}",
        )
    found = _read(path)
    if found is None or found.token != over.token:
        right.unlink(missing_ok=True)
        return False
    right.replace(path)
    return True


def _busy(path: Path, other: Holder, mine: Holder) -> ResultsError:
    """The error for a folder that ``other`` holds."""
    here = (other.host, other.machine, other.process_space) == (mine.host, mine.machine, mine.process_space)
    fix = "wait for it, or write elsewhere"
    if not here:
        fix += f"; if that run is over, delete {path}"
    return ResultsError(path.parent, f"{BUSY} ({other})", fix)


def _create(path: Path, holder: Holder) -> bool:
    """Create the file and write ``holder`` into it.

    Only one process can. Returns False if the file exists already.
    """
    try:
        descriptor = os.open(path, open_flags(os.O_WRONLY | os.O_CREAT | os.O_EXCL), 0o666)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps(asdict(holder)).encode())
    except OSError as error:  # no room
        path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    return True


def _read(path: Path) -> Holder | None:
    """The holder that the file names.

    None if there is no file, or if it is not filled yet or is no holder file.
    """
    try:
        with path.open("rb") as file:
            return Holder.from_json(file.read(LARGEST_HOLDER_BYTES).decode())
    except (FileNotFoundError, ValueError):
        return None
