"""Slides that kill the process which opens them, as a user would meet them: by another package's reader.

The reader is installed as packages are (an entry point), so that every process of a command has it, whoever
started it. A deadly slide is a text: how it kills, and the slide that it is where it does not.
"""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

READER = """
import ctypes, os, signal, time
from pathlib import Path
from wsi_ips.errors import UnsupportedSlide
from wsi_ips.slides.registry import open_slide

def opened(path):
    words = Path(path).read_bytes()[:1000].decode("latin-1").split("\\n")
    if words[0] != "deadly":
        raise UnsupportedSlide(path, "is not deadly")
    how, real = words[1:]
    been, parent = Path(path).with_suffix(".been"), os.getppid()
    with been.open("a") as file:
        file.write(f"{os.getpid()}\\n")
    first = len(been.read_text().split()) == 1
    if how == "SIGSEGV":
        ctypes.string_at(0)
    if how == "SIGKILL" or (how == "once" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        os._exit(7)
    if how == "whole start" and not first:  # as a memory limit of all processes together does
        os.kill(parent, signal.SIGKILL)
        time.sleep(30)
    if how == "whole start":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "slow" and first:
        time.sleep(60)
    return open_slide(real)
"""


def install(folder: Path) -> None:
    """Make ``folder`` one from which Python imports the reader, and finds its entry point."""
    about = folder / "deadly_reader-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / "deadly_reader.py").write_text(READER)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: deadly-reader\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[wsi_ips.readers]\ndeadly = deadly_reader:opened\n")


def write_deadly(path: Path, how: str, real: Path) -> None:
    """how: SIGSEGV, SIGKILL, exit; once: the first process that opens it alone is killed; whole start: a process
    that opens it as a child takes its parent along; slow: the first one waits for a minute."""
    path.write_text(f"deadly\n{how}\n{real.absolute()}")


def begin(installed: Path, *arguments: str | Path) -> "subprocess.Popen[str]":
    """``wsi-ips`` in a process that may die."""
    root = Path(__file__).resolve().parents[2]
    paths = [str(installed), str(root), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", "wsi_ips.cli", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has them ignore SIGINT, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def ended(process: "subprocess.Popen[str]", *, within_s: float = 120) -> tuple[int, str]:
    """The exit code, and all that was said."""
    try:
        out, err = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, out + err


def start(installed: Path, *arguments: str | Path) -> tuple[int, str]:
    return ended(begin(installed, *arguments))


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


Command = Callable[[Path, Path, Path], tuple[str | Path, ...]]


def predict(slides: Path, checkpoint: Path, detector: Path) -> tuple[str | Path, ...]:
    return ("predict", slides, "--checkpoint", checkpoint, "--no-overlays", "--device", "cpu")


def features(slides: Path, checkpoint: Path, detector: Path) -> tuple[str | Path, ...]:
    return ("features", slides, "--checkpoint", checkpoint, "--slide-mpp", "0.6", "--half", "--device", "cpu")


def detect(slides: Path, checkpoint: Path, detector: Path) -> tuple[str | Path, ...]:
    return ("detect", slides, "--detector", detector, "--patch-px", "64", "--score-threshold", "0.01",
            "--shape", "point", "--device", "cpu")  # fmt: skip
