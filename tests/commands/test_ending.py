"""SIGTERM and SIGHUP: no partial files, no lock that holds, no worker that lives on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SmallData
from tests.viewer.made_run import make_run

WRITES = """
import sys, time
from pathlib import Path
from wsi_ips import cli
from wsi_ips.commands import application
from wsi_ips.storage.files import whole_file

@application.app.command()
def slow(path: Path) -> None:
    with whole_file(path) as partial:
        partial.write_text("half")
        print("begun", flush=True)
        time.sleep(30)

cli.main()
"""


def obeying() -> None:
    """In the child, before it starts: no signal is ignored, as it would be where tests run behind a shell."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def ended(process: "subprocess.Popen[str]", number: int) -> int:
    process.send_signal(number)
    return process.wait(timeout=120)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_no_partial_file_and_is_told_by_the_exit_code(tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-c", WRITES, "slow", str(tmp_path / "out.csv")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=obeying
    )
    assert process.stdout
    assert process.stdout.readline() == "begun\n"
    assert len(list(tmp_path.iterdir())) == 1
    assert ended(process, number) == 128 + number
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in process.communicate()[1]


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        WRITES.replace("sleep(30)", "sleep(0.3)"),
        "slow",
        str(tmp_path / "out.csv"),
    ]
    ignored: Callable[[], object] = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=ignored)
    assert process.stdout
    process.stdout.readline()
    assert ended(process, signal.SIGHUP) == 0
    assert (tmp_path / "out.csv").read_text() == "half"
    process.communicate()


@pytest.mark.slow
def test_the_viewer_s_end_is_no_failure(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for number in (signal.SIGTERM, signal.SIGHUP):
        process = subprocess.Popen(
            [sys.executable, "-m", "wsi_ips.cli", "view", str(run.root), "--port", "0"],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}, preexec_fn=obeying,
        )  # fmt: skip
        assert process.stdout
        while "Ctrl-C" not in process.stdout.readline():
            pass
        time.sleep(0.3)
        assert ended(process, number) == 0
        process.communicate()


def runs(pid: int) -> bool:
    """A process that ended may be listed for a while: nobody has asked for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_workers_end_with_the_command_and_the_folder_is_free(
    small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "wsi_ips.cli", "predict", str(small_data.slides), "--checkpoint",
               str(small_checkpoint), "--out", str(out), "--no-overlays", "--device", "cpu"]  # fmt: skip
    process = subprocess.Popen(
        [*command, "--workers", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=obeying,
    )  # fmt: skip
    give_up = time.monotonic() + 60
    while not ((out / "slides.csv").is_file() and ",running," in (out / "slides.csv").read_text()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < give_up
        time.sleep(0.05)
    children = children_of(process.pid)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, said
    give_up = time.monotonic() + 30
    while any(map(runs, children)):
        assert time.monotonic() < give_up
        time.sleep(0.05)
    assert [path for path in out.rglob("*") if ".partial" in path.name] == []
    assert "Traceback" not in said
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0


def children_of(pid: int) -> list[int]:
    """And theirs."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            child = int(stat.parent.name)
            children += [child, *children_of(child)]
    return children
