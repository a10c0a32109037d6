"""A folder in which coordinates are kept, and which several processes fill; they start soon without PyTorch."""

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wsi_ips.tiling.patches as patches
from wsi_ips.config import TilingConfig
from wsi_ips.errors import NoTissue, SlideReadError
from wsi_ips.slides.registry import open_slide
from wsi_ips.tiling.kept_coords import KeptPatches
from wsi_ips.tiling.patches import PatchesInTissue, SlideToTile, TilingFolder, tile_one

TILING = TilingConfig(patch_px=32, patch_mpp=2.0, min_tissue=0.2)


@pytest.fixture
def slide_path(small_data: Any) -> Path:
    return Path(min(small_data.slides.glob("*.tif")))


def test_a_given_resolution_is_one_of_the_settings(
    slide_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, searches, search = KeptPatches(tmp_path, TILING), [], patches.find_tissue
    monkeypatch.setattr(patches, "find_tissue", lambda *a, **n: (searches.append(a), search(*a, **n))[1])
    with open_slide(slide_path) as slide:
        for mpp in (None, 0.7, 0.7, None, None):
            found = find(slide, slide_id="s", mpp=mpp)  # type: ignore[arg-type]
            fresh = PatchesInTissue(TILING)(slide, slide_id="s", mpp=mpp)  # type: ignore[arg-type]
            for name in ("slide_mpp", "patch_mpp", "l0_patch", "g_size", "slide_id"):
                assert getattr(found, name) == getattr(fresh, name)
            for name in ("l0_xy_N2", "ids_N", "tissue_N"):
                assert np.array_equal(getattr(found, name), getattr(fresh, name))
    assert len(searches) == 3 + 5


def test_coordinates_that_cannot_be_kept_cost_no_slide(
    slide_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "patches").write_text("a file where the folder should be")
    with open_slide(slide_path) as slide:
        assert len(KeptPatches(tmp_path, TILING)(slide, slide_id="s", mpp=None)) > 0
    assert "the coordinates of s are not kept" in caplog.text


@pytest.mark.parametrize("corrected", [False, True])
def test_contours_that_somebody_corrected_stay(slide_path: Path, tmp_path: Path, corrected: bool) -> None:
    """``tile`` writes them before the coordinates."""
    contours = tmp_path / "contours_geojson" / "s.geojson"
    contours.parent.mkdir()
    with open_slide(slide_path) as slide:
        contours.write_text("found by tile")
        KeptPatches(tmp_path, TILING)(slide, slide_id="s", mpp=None)
        if corrected:
            later = (tmp_path / "patches" / "s.h5").stat().st_mtime_ns + 1_000_000_000
            os.utime(contours, ns=(later, later))
        KeptPatches(tmp_path, TILING)(slide, slide_id="s", mpp=0.7)  # type: ignore[arg-type]
    assert contours.exists() == corrected


def test_stale_coordinates_that_cannot_be_removed_do_not_hide_why_a_slide_failed(
    slide_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unlink(path: Path, *, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with open_slide(slide_path) as slide:
        KeptPatches(tmp_path, TILING)(slide, slide_id="s", mpp=None)
        monkeypatch.setattr(Path, "unlink", unlink)
        full = TILING.model_copy(update={"min_tissue": 1.0, "patch_px": 4096})
        with pytest.raises(NoTissue):
            KeptPatches(tmp_path, full)(slide, slide_id="s", mpp=None)
    assert "the stale coordinates of s are not removed" in caplog.text


@pytest.mark.parametrize("header", ["slide_id,n_patches,status,error,note", "slide_id,somebody"])
def test_the_table_of_tile_tells_of_the_coordinates_that_are_there(
    slide_path: Path, tmp_path: Path, header: str
) -> None:
    """Of other slides it tells what it told, and a table of somebody else's is left alone."""
    before = f"{header}\ns,7,ok,,\nt,8,ok,,a note\n"
    (tmp_path / "tiles.csv").write_text(before)
    ours = "status" in header
    full = TILING.model_copy(update={"min_tissue": 1.0, "patch_px": 4096})
    with open_slide(slide_path) as slide:
        n = len(KeptPatches(tmp_path, TILING)(slide, slide_id="s", mpp=None))
        assert (tmp_path / "tiles.csv").read_text() == (before.replace("s,7", f"s,{n}") if ours else before)
        with pytest.raises(NoTissue):
            KeptPatches(tmp_path, full)(slide, slide_id="s", mpp=None)
    table = (tmp_path / "tiles.csv").read_text()
    assert table.startswith(f"{header}\ns,0,failed," if ours else before)
    assert table.endswith("t,8,ok,,a note\n")


@pytest.mark.parametrize("way", ["kept", "tile"])
def test_a_slide_that_is_replaced_while_its_tissue_is_searched_fails(
    way: str, slide_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its coordinates would be told to be those of the slide that was there before."""
    path, search = tmp_path / "s.tif", patches.find_tissue
    shutil.copy(slide_path, path)

    def find_tissue(*arguments: Any, **named: Any) -> Any:
        found = search(*arguments, **named)
        path.write_bytes(slide_path.read_bytes() + b"scanned again")
        return found

    monkeypatch.setattr(patches, "find_tissue", find_tissue)
    if way == "tile":
        done = tile_one(TilingFolder(tmp_path / "out", TILING), SlideToTile("s", path, None))
        assert "was replaced while it was read" in done.error
    else:
        with open_slide(path) as slide, pytest.raises(SlideReadError, match="was replaced while it was read"):
            KeptPatches(tmp_path / "out", TILING)(slide, slide_id="s", mpp=None)
    assert not list((tmp_path / "out").rglob("*.h5"))


def _search_slowly(task: tuple[Path, Path, Path]) -> bytes:
    """In a process of its own: the patches of a slide; each search adds a line to a file, and takes its time."""
    slide_path, kept, log = task
    search: Callable[..., Any] = patches.find_tissue

    def find_tissue(*arguments: Any, **named: Any) -> Any:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.5)
        return search(*arguments, **named)

    patches.find_tissue = find_tissue
    try:
        with open_slide(slide_path) as slide:
            return KeptPatches(kept, TILING)(slide, slide_id="s", mpp=None).l0_xy_N2.tobytes()
    finally:
        patches.find_tissue = search


def test_processes_that_want_one_slide_search_it_once(slide_path: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(_search_slowly, [(slide_path, tmp_path / "kept", log)] * 6))
    assert len(set(found)) == 1
    assert len(log.read_text().split()) == 1
