"""``wsi-ips data nodes``: what it says, and that a bad option or folder is one line."""

from pathlib import Path

import pytest

from tests.commands.console import Console
from tests.drawn.drawn_nodes import draw_nodes
from tests.drawn.drawn_textures import draw_outlines
from wsi_ips.config import TaskConfig
from wsi_ips.datasets.manifest import read_manifest


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    (tmp_path / "patches").mkdir()
    return draw_nodes(tmp_path / "patches")


@pytest.fixture
def outlines(tmp_path: Path) -> Path:
    (tmp_path / "outlines").mkdir()
    return draw_outlines(tmp_path / "outlines")


SMALL = ("--slide-patches", "120", "--patch-px", "32", "--mpp", "2.9", "--processes", "1")


def test_slides_are_composed_and_a_manifest_of_them_reads(
    console: Console, patches: Path, outlines: Path, tmp_path: Path
) -> None:
    out = tmp_path / "nodes"
    counts = ("--train", "4", "--val", "2", "--test", "2")
    said = console("data", "nodes", patches, "--outlines", outlines, "-o", out, *counts, *SMALL)
    assert said.code == 0
    first, second = said.out.splitlines()
    assert first == f"8 slides in {out / 'manifest.csv'} (train 4, val 2, test 2)"
    assert "--set tiling.patch_px=32 --set tiling.patch_mpp=2.9" in second
    assert len(read_manifest(out / "manifest.csv", tasks=[TaskConfig()]).records) == 8


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--slide-patches", "20"), "patches: Input should be greater than or equal to 120"),
        (("--lesion-share", "0.1", "0.05"), "lesion_share"),
        (("--family", "9"), "no patch has the stain family '9'"),
        (("--slide-patches", "5000"), "too few patches for train slides"),
        (("--processes", "0"), "--processes 0: one at least"),
        (("--patch-px", "48"), "is 32x32 px"),
    ],
)
def test_a_bad_option_is_one_line(
    console: Console, patches: Path, outlines: Path, tmp_path: Path, options: tuple[str, ...], complaint: str
) -> None:
    out = tmp_path / "nodes"
    said = console("data", "nodes", patches, "--outlines", outlines, "-o", out, *SMALL, *options)
    assert said.code == 2
    assert complaint in said.complaint
    assert not out.exists() or not list(out.rglob("*.tif"))


def test_a_folder_that_is_not_there_is_one_line(console: Console, outlines: Path, tmp_path: Path) -> None:
    said = console("data", "nodes", tmp_path / "none", "--outlines", outlines, "-o", tmp_path / "nodes")
    assert said.code == 2
    assert "no such folder" in said.complaint
