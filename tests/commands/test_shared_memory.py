"""Several workers where the system has no shared memory for their locks: one line, and no process is started."""

import multiprocessing.synchronize
from pathlib import Path

import pytest

from tests.commands.console import Console
from tests.conftest import SmallData


@pytest.mark.parametrize("command", ["tile", "predict"])
def test_without_shared_memory_it_is_said_in_one_line(
    command: str,
    console: Console,
    small_data: SmallData,
    small_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(multiprocessing.synchronize, "Semaphore", refused)
    options = ("--checkpoint", small_checkpoint) if command == "predict" else ("--set", "tiling.patch_px=32")
    said = console(command, small_data.slides, *options, "--out", tmp_path / "out", "--workers", 2)
    assert said.code == 2
    (line,) = [line for line in said.err.splitlines() if line.startswith("wsi-ips: ")]
    assert "Traceback" not in said.err
    assert "no shared memory for several processes" in line
    assert not list(tmp_path.rglob("*.h5"))
