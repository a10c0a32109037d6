"""One run at a time in a folder, on file systems with locks and without."""

import errno
import fcntl
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from wsi_ips.errors import ResultsError
from wsi_ips.storage.held_folder import HOLDER, SYSTEM_LOCK, Holder, _take_over, locked

NO_LOCKS = [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO]


def without_locks(monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOLCK) -> None:
    def flock(*_: Any) -> None:
        raise OSError(number, "as the mount says")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch)


def leave(folder: Path, **changed: Any) -> Holder:
    """A lock file as a run leaves it that was killed; of this process but for what is ``changed``."""
    holder = replace(Holder.here(by_system=False), **changed)
    (folder / HOLDER).write_text(json.dumps(asdict(holder)))
    return holder


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_mount_without_locks_is_named_and_held_by_a_file(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_locks(monkeypatch, number)
    with locked(tmp_path):
        assert f"{tmp_path} lies on a file system without locks" in caplog.text
        with pytest.raises(ResultsError, match=r"another run is writing into it \(process \d+ on .*since 20"):
            locked(tmp_path).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == [SYSTEM_LOCK]
    with locked(tmp_path):
        pass


def test_another_failure_of_the_lock_is_no_missing_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch, errno.EBADF)
    with pytest.raises(OSError, match=SYSTEM_LOCK), locked(tmp_path):
        pass


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("other", [
    {"process": dead_process}, {"process_started": lambda: "1"}, {"boot": lambda: "an earlier one"},
    {"boot": lambda: "an earlier one", "process_space": lambda: "pid:[1]"},
])  # fmt: skip
def test_the_lock_of_a_dead_process_of_this_machine_is_taken_over_silently(
    other: dict[str, Callable[[], Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave(tmp_path, **{name: make() for name, make in other.items()})
    with caplog.at_level(logging.DEBUG), locked(tmp_path):
        assert len(caplog.records) == 1, "that of the missing locks"
    assert [path.name for path in tmp_path.iterdir()] == [SYSTEM_LOCK]


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize(
    "other",
    [{"host": "node7"}, {"machine": "cloned"}, {"process_space": "pid:[1]"}, {"host": "node7", "boot": "x"}],
)
def test_a_lock_of_another_machine_says_whose_it_is_and_how_to_remove_it(
    other: dict[str, str], tmp_path: Path
) -> None:
    left = leave(tmp_path, process=dead_process(), **other)
    with pytest.raises(ResultsError) as caught, locked(tmp_path):
        pass
    said = str(caught.value)
    assert f"process {left.process} on {left.host}, since {left.since}" in said
    assert f"if that run is over, delete {tmp_path / HOLDER}" in said
    (tmp_path / HOLDER).unlink()
    with locked(tmp_path):
        pass


@pytest.mark.usefixtures("no_locks")
def test_a_process_that_lives_keeps_its_folder(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        started = Path(f"/proc/{other.pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
        for known in (started, ""):
            leave(tmp_path, process=other.pid, process_started=known)
            with pytest.raises(ResultsError, match=f"process {other.pid}") as caught, locked(tmp_path):
                pass
            assert "delete" not in str(caught.value)


def test_a_killed_process_that_nobody_waited_for_is_over(tmp_path: Path, no_locks: None) -> None:
    program = "print(open('/proc/self/stat').read(), flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    started = process.stdout.readline().rpartition(")")[2].split()[19]
    leave(tmp_path, process=process.pid, process_started=started)
    process.kill()
    process.stdout.read()  # it ends with the process, which is a zombie until somebody waits
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        pass
    with locked(tmp_path):
        pass
    process.stdin.close()
    process.stdout.close()
    process.wait()


def test_with_locks_a_file_that_a_killed_run_left_keeps_nobody_out(tmp_path: Path) -> None:
    """It held the system's lock, which ended with it, on whatever machine."""
    leave(tmp_path, host="node7", by_system=True)
    with locked(tmp_path):
        pass
    left = leave(tmp_path, host="node7", by_system=False)
    with pytest.raises(ResultsError, match=left.host), locked(tmp_path):
        pass


def test_a_machine_without_locks_sees_one_that_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locked(tmp_path):
        with pytest.raises(ResultsError, match=r"writing into it \(process"), locked(tmp_path):
            pass
        without_locks(monkeypatch)
        with pytest.raises(ResultsError, match=r"writing into it \(process"), locked(tmp_path):
            pass


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"[" * 100_000, b"{}", b"\xff", b'{"token": "../../x"}', b"null", b'"a"' + b" " * 10_000_000,
])  # fmt: skip
def test_a_lock_file_that_says_nothing_names_itself(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi_ips.storage.held_folder.WAIT_S", 0)
    (tmp_path / HOLDER).write_bytes(content)
    with pytest.raises(ResultsError, match="cannot be understood") as caught, locked(tmp_path):
        pass
    assert f"delete {tmp_path / HOLDER}" in str(caught.value)


@pytest.mark.parametrize("token", ["", "../../../etc/x", "0" * 31])
def test_a_token_that_leads_elsewhere_is_none(token: str) -> None:
    told = asdict(Holder.here(by_system=False))
    assert Holder.from_json(json.dumps(told)).process == told["process"]
    with pytest.raises(ValueError, match="says no process"):
        Holder.from_json(json.dumps({**told, "token": token}))


def test_who_read_a_stale_lock_before_another_took_it_over_comes_too_late(tmp_path: Path) -> None:
    path, over = tmp_path / HOLDER, leave(tmp_path, process=dead_process())
    first, second = (Holder.here(by_system=False) for _ in range(2))
    assert _take_over(path, over, first)
    assert not _take_over(path, over, second)
    assert json.loads(path.read_text())["token"] == first.token
    assert [path.name for path in tmp_path.iterdir()] == [HOLDER]


def test_while_one_takes_a_stale_lock_over_no_other_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, over = tmp_path / HOLDER, leave(tmp_path, process=dead_process())
    first, second = (Holder.here(by_system=False) for _ in range(2))
    replaced = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        with pytest.raises(ResultsError, match="about to write into it") as caught:
            _take_over(path, over, second)
        assert f"delete {self}" in str(caught.value)
        return replaced(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    assert _take_over(path, over, first)
    assert json.loads(path.read_text())["token"] == first.token


@pytest.mark.usefixtures("no_locks")
def test_of_many_that_take_over_one_stale_lock_at_once_one_succeeds(tmp_path: Path) -> None:
    dead, many = dead_process(), 6
    for number in range(40):
        folder = tmp_path / str(number)
        folder.mkdir()
        leave(folder, process=dead)
        together, ended = threading.Barrier(many), threading.Barrier(many)
        held: list[int] = []

        def run(place: int, *, folder: Path = folder, held: list[int] = held,
                together: threading.Barrier = together, ended: threading.Barrier = ended) -> None:  # fmt: skip
            together.wait()
            with ExitStack() as stack:
                try:
                    stack.enter_context(locked(folder))
                    held.append(place)
                except ResultsError:
                    pass
                ended.wait()

        threads = [threading.Thread(target=run, args=(place,)) for place in range(many)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(held) == 1
        assert [path.name for path in folder.iterdir()] == [SYSTEM_LOCK]
