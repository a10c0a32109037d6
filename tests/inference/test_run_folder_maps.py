"""Overlays of other maps go with the result that they were drawn from."""

from pathlib import Path

import pytest

from wsi_ips.errors import ConfigError
from wsi_ips.inference.run_folder import RunFolder, claimed

OF_A = (
    "overlays/a.png",
    "overlays/attention/a.png",
    "overlays/contribution-label-tumor/a.png",
    "attention/a.h5",
)
OTHERS = ("overlays/b.png", "overlays/attention/b.png", "overlays/mine/a.png", "overlays/attention/a.txt")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    for name in (*OF_A, *OTHERS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return RunFolder(tmp_path)


def test_a_slide_that_fails_leaves_no_picture_of_any_map(folder: RunFolder) -> None:
    folder.forget("a")
    assert not [name for name in OF_A if (folder.root / name).exists()]
    assert [name for name in OTHERS if (folder.root / name).exists()] == list(OTHERS)
    RunFolder(folder.root / "nowhere").forget("a")


def test_another_run_in_the_folder_leaves_none_either(folder: RunFolder) -> None:
    """And no file that is not the run's."""
    checkpoint = Path("model.safetensors")
    with claimed(folder, config={}, checkpoint=checkpoint, sha256="1"):
        pass
    with (
        pytest.raises(ConfigError, match="holds a run with other settings"),
        claimed(folder, config={}, checkpoint=checkpoint, sha256="2"),
    ):
        pass
    assert all((folder.root / name).exists() for name in OF_A)
    with claimed(folder, config={}, checkpoint=checkpoint, sha256="2", force=True):
        pass
    left = {name for name in (*OF_A, *OTHERS) if (folder.root / name).exists()}
    assert left == {"overlays/mine/a.png", "overlays/attention/a.txt"}
