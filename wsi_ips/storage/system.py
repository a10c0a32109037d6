"""What operating systems do differently: reading by position, locks, processes, memory and limits.

Linux has all of it. macOS has no ``/proc``; Windows also has no ``os.pread``, no ``fcntl`` and no ``resource``.
Each function here takes what there is and says what it does without. No other module of wsi_ips uses a part of
Python that only some systems have (``tests/storage/test_system.py`` looks for them).

Parts of Python are looked up when a function is called, since they are missing on some systems.
"""

import errno
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

PROC = Path("/proc")
"""Where Linux tells about processes."""

MACHINE_ID = Path("/etc/machine-id")
"""The file that tells one Linux installation from another."""

CONTAINER_CPU, CONTAINER_MEMORY = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/memory.max")
"""What a container on Linux may use (control groups, version 2)."""

NVIDIA = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidia0"))
"""What Linux has where there is an NVIDIA GPU with a driver."""

GPU_DRIVERS = (
    *NVIDIA,
    *(Path("/dev") / name for name in ("nvidiactl", "kfd", "dxg", "nvgpu", "nvhost-ctrl", "nvmap")),
)
"""What Linux has where PyTorch may find a device: of NVIDIA's, AMD's and Windows' drivers, and on Jetsons."""

FIRST_TO_GO = "1000"
"""The out-of-memory killer of Linux takes the process with the highest of these numbers, which ends at 1000."""

SPINS = "10000"
"""How many times a waiting thread of GNU's OpenMP turns in place, some hundredths of a millisecond."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of glibc's settings in ``malloc.h``: from how much free memory on the end of the heap is given back (-1:
never), and how many blocks may be had from the system one by one."""

LONGEST_TEXT = 100
"""Characters that are read of a small file of the system."""


def open_flags(flags: int) -> int:
    """The flags for :func:`os.open` with which a file is opened as bytes, and not passed on to other programs.

    Without ``O_BINARY``, Windows changes line ends in what is read and written.
    """
    for name in ("O_CLOEXEC", "O_BINARY", "O_NOINHERIT"):
        flags |= getattr(os, name, 0)
    return flags


def reader_by_position(descriptor: int) -> Callable[[int, int], bytes]:
    """A function of (count, offset) that reads from an open file, and may be called from several threads.

    It reads at most ``count`` bytes, as :func:`os.pread` does, and fewer where the system gives fewer. Where there
    is no ``os.pread``, it sets the position and reads, one thread at a time.
    """
    pread = getattr(os, "pread", None)
    if pread is not None:

        def by_position(count: int, offset: int) -> bytes:
            return pread(descriptor, count, offset)  # type: ignore[no-any-return]

        return by_position
    lock = threading.Lock()

    def in_turn(count: int, offset: int) -> bytes:
        with lock:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.read(descriptor, count)

    return in_turn


def reader_and_writer_by_position(
    descriptor: int,
) -> tuple[Callable[[int, int], bytes], Callable[[bytes | memoryview, int], int]]:
    """Functions that read from and write to an open file, and may be called from several threads.

    The first is that of :func:`reader_by_position`. The second takes (data, offset) and returns how many bytes it
    wrote, as :func:`os.pwrite` does. Where there is no ``os.pwrite``, both set the position first, one thread at a
    time.
    """
    pread, pwrite = getattr(os, "pread", None), getattr(os, "pwrite", None)
    if pread is not None and pwrite is not None:
        return (
            lambda count, offset: pread(descriptor, count, offset),
            lambda data, offset: pwrite(descriptor, data, offset),
        )
    lock = threading.Lock()

    def read(count: int, offset: int) -> bytes:
        with lock:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.read(descriptor, count)

    def write(data: bytes | memoryview, offset: int) -> int:
        with lock:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.write(descriptor, data)

    return read, write


def lock_file(descriptor: int) -> None:
    """Lock an open file for this process until it is closed, by ``flock``, or as Windows locks files.

    Raises:
        OSError: Another process holds the lock (``EAGAIN`` or ``EACCES``), or there are no locks here (``ENOSYS``
            where neither kind is known, ``ENOLCK`` and others where the file system has none).
    """
    if (fcntl := _module("fcntl")) is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif (msvcrt := _module("msvcrt")) is not None:
        os.lseek(descriptor, 0, os.SEEK_SET)  # the lock covers one byte from the position on
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def process_lives(process: int) -> bool:
    """Whether there is a process of this number on this machine."""
    if os.name != "posix":  # there, os.kill with signal 0 is Ctrl-C for the whole group of the process
        import psutil

        return bool(psutil.pid_exists(process))
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def process_started(process: int) -> str | None:
    """When a process of this machine began, in ticks of the kernel since the boot.

    Returns None if the process has ended, and an empty text if it may live and its start cannot be known: on
    systems without ``/proc``, and where ``/proc`` hides the processes of other users.
    """
    with suppress(OSError, IndexError):
        # The name in brackets may hold anything; the state and 18 numbers lie between it and the start.
        fields = (PROC / str(process) / "stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else fields[19].decode()
    return "" if process_lives(process) else None


def process_space() -> str:
    """What identifies the space of process numbers, since a container has its own.

    Empty if the system does not say.
    """
    with suppress(OSError):
        return os.readlink(PROC / "self" / "ns" / "pid")  # noqa: PTH115 - a name, not a path
    return ""


def boot_id() -> str:
    """Which start of the machine this is. Empty if the system does not say."""
    return _text(PROC / "sys" / "kernel" / "random" / "boot_id")


def machine_id() -> str:
    """Which installation of the operating system this is. Empty if the system does not say."""
    return _text(MACHINE_ID)


def go_first_when_memory_runs_out() -> None:
    """Have Linux end this process before others when memory runs out. Other systems are not asked."""
    with suppress(OSError):
        (PROC / "self" / "oom_score_adj").write_text(FIRST_TO_GO, encoding="ascii")


def killed_outright(code: int) -> bool:
    """Whether an exit code, as :mod:`subprocess` has it, is that of a process killed as when memory runs out.

    Windows has no such signal: False there.
    """
    kill = getattr(signal, "SIGKILL", None)
    return kill is not None and code == -kill


def peak_memory_bytes() -> int:
    """The most bytes of memory that this process has held, 0 if the system does not say."""
    if (resource := _module("resource")) is not None:
        peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return peak if sys.platform == "darwin" else peak * 1024
    import psutil

    return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))


def peak_memory_since_start() -> int:
    """The most bytes that this process has held. On Linux a new process begins at 0, which it does not in
    :func:`peak_memory_bytes`: that begins at the size of its parent."""
    with suppress(OSError, ValueError, IndexError):
        for line in (PROC / "self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return peak_memory_bytes()


def memory_bytes() -> tuple[int, int]:
    """The main memory of this machine or container, and how much of it a new program can have, in bytes."""
    import psutil

    held = psutil.virtual_memory()
    try:
        limit = int(CONTAINER_MEMORY.read_text())
    except (OSError, ValueError):
        return int(held.total), int(held.available)  # no container, or no limit
    return min(limit, held.total), min(limit, held.available)


def usable_processors() -> int:
    """How many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def let_waiting_threads_sleep() -> None:
    """Make PyTorch's threads wait for each other without holding a processor for long.

    GNU's OpenMP, which PyTorch brings on Linux, has a thread that waits turn in place 300,000 times before it
    sleeps. Where decoding threads or other programs need the processors as well, each turn is time that the thread
    waited for does not get, many times over. With 10,000 turns short waits stay as short. Call it before PyTorch
    is imported; processes that are started later inherit it. What the user has set stays, and no result changes.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def keep_freed_memory() -> None:
    """Have memory that is freed used again by this process, instead of asking Linux for new memory each time.

    What the layers of a network return is large, and glibc gives blocks of 32 MB and more back to the system as
    soon as they are freed. The system has to clear the memory that the next layer gets, 4 kB at a time: 5 GB for a
    batch of 64 patches through a ResNet-50, up to a third of the time that the batch takes on a CPU. Afterwards
    a process stays as large as it has been. Other systems and other C libraries are left alone, and what the user
    has set stays. No result changes.
    """
    set_by_user = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    if not sys.platform.startswith("linux") or any(name in os.environ for name in set_by_user):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def container_processors() -> float | None:
    """How many processors' time the container may use; None without a limit."""
    try:
        quota, period = CONTAINER_CPU.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def load_average() -> float:
    """How many processes wanted to run in the last minute, 0 where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def has_nvidia_driver() -> bool:
    """Whether Linux has an NVIDIA GPU, whatever PyTorch thinks. Other systems are not asked."""
    return any(path.exists() for path in NVIDIA)


def may_have_cuda() -> bool:
    """Whether PyTorch may find a CUDA or ROCm device here, as far as can be told without importing it.

    False is certain on macOS, and on Linux where there is no device file of such a driver.
    """
    if sys.platform == "darwin":
        return False
    return not sys.platform.startswith("linux") or any(path.exists() for path in GPU_DRIVERS)


def forget_cached(descriptor: int) -> bool:
    """Ask the system to forget what it remembers of an open file. Returns whether it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def most_open_files() -> int | None:
    """How many files this process may have open, None if there is no limit or none that is known."""
    if (resource := _module("resource")) is None:
        return None
    files = int(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return None if files == resource.RLIM_INFINITY else files


def forking_context(preload: list[str]) -> BaseContext:
    """How to start processes that need the modules ``preload`` without waiting for their import each time.

    On Linux a server imports them once and forks. Elsewhere each process is a new interpreter, which takes
    seconds: macOS's own libraries do not survive a fork, and Windows has none.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(preload)
    return context


def _module(name: str) -> Any:
    """A module of Python's standard library, None on systems that do not have it."""
    try:
        return import_module(name)
    except ImportError:
        return None


def _text(path: Path) -> str:
    """The first characters of a small file of the system, empty if it cannot be read."""
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip()[:LONGEST_TEXT]
    return ""
