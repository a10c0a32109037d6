"""Whole files and folders only, or nothing."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from wsi_ips.storage.files import sweep, whole_file, whole_folder


def fill(folder: Path, *names: str) -> None:
    with whole_folder(folder) as partial:
        for name in names:
            (partial / name).write_text(name)


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "new" / "a.zarr") as partial:
        assert partial.suffix == ".zarr"
        assert partial.name.startswith(".")
        (partial / "x").write_text("1")
        assert not (tmp_path / "new" / "a.zarr").exists()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.zarr"]
    assert (tmp_path / "new" / "a.zarr" / "x").read_text() == "1"


def test_an_earlier_folder_is_replaced_not_mixed(tmp_path: Path) -> None:
    fill(tmp_path / "a", "x", "y")
    fill(tmp_path / "a", "z")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["z"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failure_leaves_the_earlier_folder(tmp_path: Path) -> None:
    fill(tmp_path / "a", "x")

    def fail() -> None:
        with whole_folder(tmp_path / "a") as partial:
            (partial / "y").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_cannot_be_put_in_place_keeps_the_earlier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "a", "x")
    replace = Path.replace

    def fails(path: Path, target: Path) -> Path:
        if ".partial" in path.name:
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="No space"):
        fill(tmp_path / "a", "y")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def _killed_while_writing(folder: str) -> None:
    with whole_file(Path(folder) / "a.csv") as file, whole_folder(Path(folder) / "b.zarr") as below:
        file.touch()
        (below / "c").touch()
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_killed_writers_left_goes_and_those_at_work_keep_theirs(tmp_path: Path) -> None:
    killed = multiprocessing.get_context("fork").Process(target=_killed_while_writing, args=(str(tmp_path),))
    killed.start()
    killed.join()
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / ".notes").touch()
    elsewhere = tmp_path / ".d.abcdef-1-12345678.partial.csv"  # another machine's
    elsewhere.touch()
    with whole_file(tmp_path / "e.csv") as mine:
        mine.touch()
        sweep(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {mine.name, ".notes", elsewhere.name}
    sweep(tmp_path / "not there")


def test_the_longest_names_are_written_and_read(tmp_path: Path) -> None:
    for name in ("x" * 251 + ".csv", "ä" * 125 + ".csv", os.fsdecode(b"caf\xe9" * 60 + b".csv")):
        with whole_file(tmp_path / name) as partial:
            partial.write_text("1")
        assert (tmp_path / name).read_text() == "1"
    with whole_folder(tmp_path / ("y" * 255)) as partial:
        assert partial.is_dir()
    assert len(list(tmp_path.iterdir())) == 4
