"""A folder that one run at a time writes into: what a killed writer left there goes, and so does what a run
left that failed before it had a result."""

from pathlib import Path

import pytest

from wsi_ips.storage.files import whole_folder
from wsi_ips.storage.held_folder import first_difference, held


def test_files_and_folders_of_killed_writers_are_removed(tmp_path: Path) -> None:
    below = tmp_path / "overlays"
    below.mkdir()
    left = [below / ".a.somewhere-1-2.partial.zarr", below / ".b.somewhere-1-2.partial.png"]
    left[0].mkdir()
    (left[0] / "c").write_text("half")
    left[1].write_text("half")
    whole = below / "a.zarr"
    whole.mkdir()
    with held(tmp_path, below=[below], undo=[], results="*.csv"):
        assert not any(path.exists() for path in left)
        with whole_folder(below / "b.zarr") as partial:
            (partial / "c").write_text("all")
    assert whole.is_dir()
    assert (below / "b.zarr" / "c").read_text() == "all"


def fail(root: Path, *written: str) -> None:
    """A run that writes these files below ``root`` and fails."""
    tables = [root / "run.json"]
    with held(root, below=[root / "files"], undo=tables, results="files/*.h5"):
        for name in ("run.json", *written):
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).touch()
        raise ValueError("as told")


def test_a_run_that_fails_at_once_leaves_none_of_the_folders_that_it_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="as told"):
        fail(tmp_path / "above" / "out")
    assert not any(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="as told"):
        fail(tmp_path / "mine" / "above" / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_an_empty_folder_of_the_users_is_empty_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="as told"):
        fail(tmp_path)
    assert tmp_path.is_dir()
    assert not any(tmp_path.iterdir())


def test_results_and_what_was_there_before_stay(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="as told"):
        fail(tmp_path / "out", "files/a.h5")
    assert (tmp_path / "out" / "run.json").exists()
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "notes.txt").touch()
    with pytest.raises(ValueError, match="as told"):
        fail(tmp_path / "earlier")
    assert (tmp_path / "earlier" / "run.json").exists()


def test_of_lists_of_sections_only_what_differs_is_told() -> None:
    there = {"model": {"tasks": [{"name": "grade", "classes": ["1", "2"]}, {"name": "stage"}], "heads": 4}}
    here = {"model": {"tasks": [{"name": "grade", "classes": ["1", "3"]}, {"name": "stage"}], "heads": 8}}
    assert first_difference(there, there) == ""
    assert first_difference(there, here) == "model.tasks.0.classes ['1', '2'] there, ['1', '3'] here"
    fewer = {"model": {"tasks": there["model"]["tasks"][:1], "heads": 4}}  # type: ignore[index]
    assert first_difference(there, fewer) == "model.tasks.1.name stage there, None here"
    assert first_difference(fewer, there) == "model.tasks.1.name None there, stage here"
