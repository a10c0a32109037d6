"""What only some operating systems have is used in one module, and each part of it may be missing."""

import ast
import errno
import os
import platform
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from wsi_ips.errors import ResultsError
from wsi_ips.slides.tile_layout import TileFile
from wsi_ips.storage import system
from wsi_ips.storage.held_folder import HOLDER, SYSTEM_LOCK, held, locked

PACKAGE = Path(system.__file__).parents[1]
ROOT = PACKAGE.parent

# Modules and names that Linux has and macOS or Windows has not. os.kill is among them: with signal 0 it is a
# question on Linux, and Ctrl-C on Windows.
MODULES = {
    "fcntl",
    "resource",
    "pwd",
    "grp",
    "termios",
    "tty",
    "pty",
    "posix",
    "syslog",
    "msvcrt",
    "winreg",
    "psutil",
}
NAMES = {
    "os": {
        "pread", "preadv", "pwrite", "fork", "forkpty", "wait", "waitpid", "killpg", "setsid", "getuid", "geteuid",
        "getgid", "getpgid", "sched_getaffinity", "sched_setaffinity", "posix_fadvise", "statvfs", "sysconf",
        "mkfifo", "getloadavg", "nice", "chown", "fchown", "fchmod", "uname", "register_at_fork", "memfd_create",
        "sendfile",         "O_CLOEXEC", "O_DIRECT", "O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "O_TMPFILE",
    },
    "signal": {"SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "alarm", "setitimer"},
    "socket": {"AF_UNIX", "SO_REUSEPORT"},
    "time": {"clock_gettime", "tzset"},
}  # fmt: skip


def only_some_systems_have(source: str) -> set[str]:
    """What a module uses of the above: imports, attributes of ``os`` and others, ``/proc``, kinds of processes."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names} & MODULES
            case ast.ImportFrom(module=str(module), names=names):
                found |= {module} & MODULES
                found |= {f"{module}.{alias.name}" for alias in names if alias.name in NAMES.get(module, ())}
            case ast.Attribute(value=ast.Name(id=module), attr=name) if name in NAMES.get(module, ()):
                found.add(f"{module}.{name}")
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="os"), attr="kill"), args=[_, ast.Constant(value=0)]
            ):
                found.add("os.kill(process, 0)")
            case ast.Constant(value=str(text)) if text.startswith(("/proc", "/sys/", "/dev/")):
                found.add(text)
            case ast.Constant(value="fork" | "forkserver" as kind):
                found.add(kind)
    return found


def test_parts_of_python_that_some_systems_lack_are_used_in_one_module() -> None:
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in sorted(PACKAGE.rglob("*.py"))
        if (names := only_some_systems_have(path.read_text(encoding="utf-8")))
    }
    # Ctrl-C and its kin: commands/application.py and inference/in_hand.py ask with hasattr first.
    assert found.pop("inference/in_hand.py") == {"signal.SIGHUP"}
    assert set(found) == {"storage/system.py"}


@pytest.mark.parametrize(
    "source", [
        "import fcntl", "from resource import getrusage", "import os\nos.pread(1, 2, 3)", "from os import fork",
        "import os\nos.kill(7, 0)", "open('/proc/self/stat')", "get_context('fork')",
        "import signal\nsignal.SIGKILL",
    ],
)  # fmt: skip
def test_each_kind_is_found(source: str) -> None:
    assert only_some_systems_have(source)


@pytest.fixture
def no_pread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pread")


@pytest.fixture
def no_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither ``fcntl`` nor ``resource`` can be imported, as on Windows."""
    for name in ("fcntl", "resource"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def no_proc(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No ``/proc`` and no machine id, as on macOS."""
    nowhere = tmp_path_factory.mktemp("system") / "nowhere"
    monkeypatch.setattr(system, "PROC", nowhere)
    monkeypatch.setattr(system, "MACHINE_ID", nowhere)


@pytest.mark.usefixtures("no_pread")
def test_without_pread_threads_read_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "tiles"
    data = np.random.default_rng(3).integers(0, 256, 200_000, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    file = TileFile(path)
    places = [(offset, 997) for offset in range(0, len(data), 311)] * 4
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(lambda place: file.read(*place), places))
    assert all(got == data[at : at + count] for got, (at, count) in zip(read, places, strict=True))
    assert file.read(len(data) - 3, 10) == data[-3:]
    assert file.read(len(data) + 5, 10) == b""


def test_what_windows_opens_is_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_CLOEXEC")
    monkeypatch.setattr(os, "O_BINARY", 0x8000, raising=False)
    monkeypatch.setattr(os, "O_NOINHERIT", 0x80, raising=False)
    assert system.open_flags(os.O_RDONLY) == os.O_RDONLY | 0x8080


@pytest.mark.usefixtures("no_modules")
def test_without_fcntl_a_folder_is_held_by_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with locked(tmp_path):
        assert "without locks" in caplog.text
        assert (tmp_path / HOLDER).is_file()
        with pytest.raises(ResultsError, match="another run is writing into it"):
            locked(tmp_path).__enter__()
    with locked(tmp_path):
        pass


def test_windows_locks_a_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its ``msvcrt`` is played by a lock of ``fcntl``."""
    import fcntl

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert (mode, count, os.lseek(descriptor, 0, os.SEEK_CUR)) == (2, 1, 0)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    windows = SimpleNamespace(LK_NBLCK=2, locking=locking)
    monkeypatch.setitem(sys.modules, "msvcrt", windows)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with locked(tmp_path):
        assert not caplog.text
        with pytest.raises(ResultsError, match="another run is writing into it"):
            locked(tmp_path).__enter__()
    with locked(tmp_path):
        pass


def test_a_file_that_windows_does_not_remove_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def refuses(path: Path, *, missing_ok: bool = False) -> None:
        if path.name == SYSTEM_LOCK:
            raise PermissionError(errno.EACCES, "another process has it open", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuses)
    with (
        pytest.raises(ValueError, match="the cause"),
        held(tmp_path / "run", below=[], undo=[], results="*.csv"),
    ):
        raise ValueError("the cause")


def finished() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("kind", ["posix", "nt"])
def test_a_process_lives_or_not(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows nothing may be sent to it: there signal 0 is Ctrl-C."""
    over = finished()
    if kind == "nt":
        monkeypatch.setattr(system, "os", SimpleNamespace(name="nt"))  # it has no kill
    assert system.process_lives(os.getpid())
    assert not system.process_lives(over)


@pytest.mark.usefixtures("no_proc")
def test_without_proc_a_folder_is_held_and_a_dead_holder_is_known(tmp_path: Path) -> None:
    assert (system.process_started(os.getpid()), system.process_started(finished())) == ("", None)
    assert (system.boot_id(), system.machine_id(), system.process_space()) == ("", "", "")
    system.go_first_when_memory_runs_out()
    with (
        locked(tmp_path),
        pytest.raises(ResultsError, match=f"another run is writing into it \\(process {os.getpid()} "),
    ):
        locked(tmp_path).__enter__()


def test_memory_is_measured_in_bytes_with_resource_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = system.peak_memory_bytes()
    assert 2**24 < measured < 2**40
    monkeypatch.setattr(system.sys, "platform", "darwin")  # which counts in bytes, not in KiB
    assert system.peak_memory_bytes() * 1000 < measured * 2
    monkeypatch.undo()
    import psutil

    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(
        psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=5 * 2**20))
    )
    assert system.peak_memory_bytes() == 5 * 2**20
    monkeypatch.setattr(
        psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=1))
    )
    assert system.peak_memory_bytes() == 0


@pytest.mark.usefixtures("no_modules")
def test_without_resource_the_viewer_takes_its_usual_number_of_connections() -> None:
    from wsi_ips.viewer.guard import MOST_CONNECTIONS, most_connections

    assert system.most_open_files() is None
    assert most_connections() == MOST_CONNECTIONS


def test_only_an_outright_kill_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert system.killed_outright(-9)
    assert not system.killed_outright(-11)
    assert not system.killed_outright(1)
    monkeypatch.delattr(signal, "SIGKILL")
    assert not system.killed_outright(-9)


@pytest.mark.parametrize(
    ("platform", "method"), [("linux", "forkserver"), ("darwin", "spawn"), ("win32", "spawn")]
)
def test_processes_fork_on_linux_alone(platform: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system.sys, "platform", platform)
    assert system.forking_context([]).get_start_method() == method


# Libraries are imported first, since on Windows they have code of their own. Then the program runs without
# anything that Windows lacks, from the first import of wsi_ips on.
WITHOUT = """
import asyncio, distributed, h5py, lightning, openslide, subprocess, timm, torch, torchmetrics, os, signal, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for module, names in ((os, ("pread", "preadv", "O_CLOEXEC", "fork", "getuid")), (signal, ("SIGKILL", "SIGHUP"))):
    for name in names:
        delattr(module, name)
from wsi_ips.storage import system
system.PROC = system.MACHINE_ID = system.Path("nowhere")
from wsi_ips.cli import main
sys.argv[0] = "wsi-ips"
main()
"""


@pytest.mark.slow
def test_a_slide_is_predicted_to_the_same_bytes_without_what_windows_lacks(
    small_data: Any, small_checkpoint: Path, tmp_path: Path
) -> None:
    slide = sorted(small_data.slides.glob("*.tif"))[0]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name, program in (("linux", ["-m", "wsi_ips.cli"]), ("without", ["-c", WITHOUT])):
        words = ["predict", slide, "--checkpoint", small_checkpoint, "--out", tmp_path / name]
        subprocess.run(
            [sys.executable, *program, *map(str, words)], env=environment, check=True, cwd=tmp_path
        )
    left, right = ((tmp_path / name / "predictions.csv").read_bytes() for name in ("linux", "without"))
    assert left == right
    assert slide.stem.encode() in left


def last_line_of(program: str, environment: dict[str, str]) -> str:
    """The last line that a Python program prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "then"),
    [
        ({}, system.SPINS),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ],
)
def test_the_program_lets_waiting_threads_sleep_unless_the_user_has_said_how(
    given: dict[str, str], then: str | None
) -> None:
    unset = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    program = (
        "import os, sys; sys.argv = ['wsi-ips', '--version']\n"
        "from wsi_ips.commands.application import main\n"
        "try: main()\n"
        "finally: print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    )
    assert last_line_of(program, {**environment, **given}) == f"{then} False"


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc", reason="it is glibc's memory"
)
@pytest.mark.parametrize("given", [{}, {"MALLOC_MMAP_MAX_": "65536"}])
def test_freed_memory_is_used_again_unless_the_user_has_said_how(given: dict[str, str]) -> None:
    """Pages that the system has to clear for the second array of two, the first having been freed."""
    names = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    program = (
        "import resource, numpy as np\n"
        "from wsi_ips.storage.system import keep_freed_memory\n"
        "keep_freed_memory()\n"
        "pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "np.ones(2**28, np.uint8)\n"
        "before = pages()\n"
        "np.ones(2**28, np.uint8)\n"
        "print(pages() - before)"
    )
    cleared = int(last_line_of(program, {**environment, **given}))
    assert cleared > 100 if given else cleared < 20
