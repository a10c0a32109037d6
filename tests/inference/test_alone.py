"""Work in a process of its own: what comes back, what becomes of it when it dies, and when its parent does."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest

from wsi_ips.errors import ConfigError, SlideReadError
from wsi_ips.inference.in_hand import Died, alone


def doubled(words: bytes) -> tuple[bytes, int]:
    sys.stdout.write("a library says something on stdout\n")
    os.write(1, b"and native code does\n")
    return 2 * words, os.getpid()


def unreadable(path: Path) -> NoReturn:
    raise SlideReadError(path, "is torn", "copy it again")


class Unpickled(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def odd(_: object) -> NoReturn:
    raise Unpickled(1, 2)


def die(how: str) -> None:
    if how == "SIGSEGV":
        ctypes.string_at(0)
    elif how.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[how])
    else:
        os._exit(int(how))


def sleep_in(folder: Path) -> None:
    """Long, and with a file that has to be put away."""
    try:
        (folder / "begun").write_text(str(os.getpid()))
        time.sleep(60)
    finally:
        (folder / "put_away").touch()


@pytest.mark.slow
def test_answers_and_errors_come_back() -> None:
    words = bytes(3_000_000)
    answer, process = alone(doubled, words)
    assert answer == 2 * words
    assert process != os.getpid()
    with pytest.raises(SlideReadError, match=r"s\.tif: is torn; copy it again"):
        alone(unreadable, Path("s.tif"))
    with pytest.raises(RuntimeError, match="Unpickled: 1 and 2"):
        alone(odd, None)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("SIGSEGV", "was killed by SIGSEGV"),
        ("SIGKILL", "was killed by SIGKILL"),
        ("0", "ended with exit code 0"),
    ],
)
def test_how_it_died_is_said(how: str, said: str) -> None:
    with pytest.raises(Died) as death:
        alone(die, how)
    assert str(death.value) == said
    assert death.value.by_kill == (how == "SIGKILL")


def test_a_process_that_cannot_start_is_not_the_slide_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ConfigError, match="does not start: it ended with exit code 1"):
        alone(doubled, b"")


PARENT = """
import sys
from pathlib import Path
from tests.inference.test_alone import sleep_in
from wsi_ips.inference.in_hand import alone
alone(sleep_in, Path(sys.argv[1]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_it_ends_with_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    """Cleanly where the parent can ask for it."""
    root = str(Path(__file__).resolve().parents[2])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])},
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not ((tmp_path / "begun").exists() and (tmp_path / "begun").read_text()):
        assert parent.poll() is None
        time.sleep(0.02)
    child = int((tmp_path / "begun").read_text())
    parent.send_signal(number)
    parent.wait(timeout=120)
    give_up = time.monotonic() + 50
    while runs(child):
        assert time.monotonic() < give_up, "nobody waits for it any more"
        time.sleep(0.02)
    assert (tmp_path / "put_away").exists() == (number == signal.SIGINT)


def runs(pid: int) -> bool:
    """A process that ended may be listed for a while: nobody has asked for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
