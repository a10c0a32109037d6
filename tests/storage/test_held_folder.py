"""A folder that one run at a time writes into: what a killed writer left there goes."""

from pathlib import Path

from wsi_ips.storage.files import whole_folder
from wsi_ips.storage.held_folder import held


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
