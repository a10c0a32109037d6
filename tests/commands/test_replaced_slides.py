"""A slide that was replaced since it was predicted: no command draws the old map over the new pixels."""

import shutil
from pathlib import Path

import pytest

from tests.commands.console import Console
from tests.conftest import SmallData
from tests.slides.tiff_files import tissue_like, write_pyramid
from wsi_ips.slides import open_slide

CHANGED = "is not the file that was predicted: it has changed since"


@pytest.fixture
def run(small_data: SmallData, small_checkpoint: Path, tmp_path: Path, console: Console) -> Path:
    """A run of one slide, which has been replaced by another one of its size since."""
    slides = tmp_path / "slides"
    slides.mkdir()
    slide = slides / "a.tif"
    shutil.copy(min(small_data.slides.glob("*.tif")), slide)
    assert console("predict", slides, "--checkpoint", small_checkpoint, "--out", tmp_path / "run").code == 0
    with open_slide(slide) as opened:
        (width, height), mpp = opened.info.l0_size, opened.info.mpp
    slide.rename(tmp_path / "as_predicted.tif")
    assert mpp is not None
    write_pyramid(slide, tissue_like(width, height), mpp=mpp)
    return tmp_path / "run"


@pytest.mark.parametrize(
    "words", [("overlay",), ("export", "--format", "geojson"), ("export", "--format", "sheet")]
)
def test_no_map_is_drawn_over_it(console: Console, run: Path, words: tuple[str, ...]) -> None:
    said = console(words[0], run, *words[1:], "--out", run.parent / "out")
    assert said.code == 3
    assert CHANGED in said.out
    assert not [path for path in (run.parent / "out").rglob("*") if path.is_file()]


def test_the_report_says_so(console: Console, run: Path) -> None:
    said = console("report", run)
    assert said.code != 0
    assert CHANGED in said.out + said.err


def test_a_copy_elsewhere_is_taken(console: Console, run: Path) -> None:
    elsewhere = run.parent / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(run.parent / "as_predicted.tif", elsewhere / "a.tif")
    said = console("overlay", run, "--slides", elsewhere, "--out", run.parent / "out")
    assert said.code == 0, said.err
    assert (run.parent / "out" / "a.png").is_file()
