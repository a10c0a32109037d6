"""One run at a time in a folder: by the file system's locks, or by a file that can be told stale.

Two files lie in the folder. ``.lock`` is locked by ``flock``, which ends with the process. Network file systems
and other mounts may not have it; ``.lock-holder`` works there too: whoever creates it holds the folder, and it
says who that is, so that the file of a process that died is told from that of one at work.

A folder that one run at a time writes into, and the ``run.json`` that says which.
"""

import errno
import fcntl
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
from wsi_ips.storage.files import PARTIAL, whole_file
from wsi_ips.storage.fingerprint import versions

SYSTEM_LOCK = ".lock"
HOLDER = ".lock-holder"
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO})
"""What ``flock`` answers on a mount that has no locks."""
LARGEST_HOLDER_BYTES = 4096
TRIES = 20
WAIT_S = 0.05
"""Between two tries: another process may be between creating the file and filling it."""
_TOKEN = re.compile(r"[0-9a-f]{32}")
BUSY = "another run is writing into it"

logger = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder``, which is there, for the time of the ``with`` block.

    A process that died on this machine holds nothing. Raises :class:`ResultsError` while another one holds the
    folder, or where that cannot be known because it runs, or ran, on another machine without locks; the message
    names the file to delete if that run is over. ``OSError`` where the folder cannot be written to.
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
    """A process that holds a folder, told from every other one.

    machine, boot, process_space: which installation, which start of it, and whose process numbers (a container
    has its own). process_started: in the kernel's ticks since the boot; empty where the system does not say.
    by_system: whether the process holds ``flock`` too.
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
        """This process."""
        return cls(
            token=uuid4().hex,
            host=platform.node(),
            machine=_text(Path("/etc/machine-id")),
            boot=_text(Path("/proc/sys/kernel/random/boot_id")),
            process_space=_process_space(),
            process=os.getpid(),
            process_started=_started(os.getpid()) or "",
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            by_system=by_system,
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ``ValueError`` for anything but what :func:`json.dumps` makes of :func:`dataclasses.asdict`."""
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
        """Whether this process, seen from that of ``now``, is certain to have ended."""
        if self.by_system and now.by_system:
            return True  # it would hold the system's lock
        if (self.host, self.machine) != (now.host, now.machine):
            return False
        if self.boot != now.boot:
            return True
        if self.process_space != now.process_space:
            return False
        started = _started(self.process)
        if started is None:
            return True
        return bool(started and self.process_started) and started != self.process_started

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


@contextmanager
def _system_lock(folder: Path) -> Iterator[bool]:
    """Lock the folder by the system, and give whether that has locks. Raises :class:`ResultsError` if another has
    it."""
    # The file stays: who removes it may split those that open it before from those that open it after.
    descriptor = os.open(folder / SYSTEM_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    """Make ``path`` say that it is ``mine``. Raises :class:`ResultsError` where it is somebody else's."""
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
    """Put ``mine`` in the place of one that is over; False where another process did so first.

    A file named after the one that is over can be created once only. Whoever created it looks again, since one
    that came late may have read the old file before another took it over, and then renames it: at no time is the
    place empty, for others to create the file.
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
    """The error of a folder that ``other`` holds."""
    here = (other.host, other.machine, other.process_space) == (mine.host, mine.machine, mine.process_space)
    fix = "wait for it, or write elsewhere"
    if not here:
        fix += f"; if that run is over, delete {path}"
    return ResultsError(path.parent, f"{BUSY} ({other})", fix)


def _create(path: Path, holder: Holder) -> bool:
    """Create the file, which only one process can; False where it is there."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
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
    """Who wrote the file; None where there is none, or it is not filled or not ours."""
    try:
        with path.open("rb") as file:
            return Holder.from_json(file.read(LARGEST_HOLDER_BYTES).decode())
    except (FileNotFoundError, ValueError):
        return None


def _started(process: int) -> str | None:
    """When a process of this machine began: None if it has ended, empty where that cannot be known."""
    with suppress(OSError, IndexError):
        # The name in brackets may hold anything; the state and 18 numbers lie between it and the start.
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else fields[19].decode()
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except OSError:  # another user's, which /proc may hide
        return ""
    return ""


def _process_space() -> str:
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - a name, not a path
    return ""


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip()[:100]
    return ""


LARGEST_DESCRIPTION_BYTES = 10_000_000


@contextmanager
def held(root: Path, *, below: Iterable[Path], undo: Iterable[Path], results: str) -> Iterator[None]:
    """Hold ``root`` (made where it is not there) for the time of the ``with`` block.

    What killed writers left unfinished in it and in the folders ``below`` is removed first. A block that fails
    in a folder that was new, before any file matches the glob ``results``, takes ``undo`` (files of the run's
    own) and every empty folder along. Raises :class:`ResultsError` while another process holds the folder; a
    process that died holds nothing (see :func:`wsi_ips.storage.held_folder.locked`).
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
