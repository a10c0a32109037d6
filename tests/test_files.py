"""Whole files and folders only, or nothing."""

from pathlib import Path

import pytest

from wsi_ips.files import whole_folder


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
