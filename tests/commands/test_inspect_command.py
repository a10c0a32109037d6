"""``wsi-ips inspect``: what a run read of a slide, where the slide is there, has changed, or is gone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from tests.commands.console import Console
from tests.conftest import SmallData
from tests.slides.tiff_files import write_pyramid
from wsi_ips.heatmaps.debug_overlay import GRID, KEPT, PATCH, draw_debug_overlay
from wsi_ips.inference.results import PartOfCase, read_result, write_result
from wsi_ips.slides import open_slide
from wsi_ips.tiling.coords import read_coords

SMALL = ("--patch-px", "32", "--patch-mpp", "2.0")


@pytest.fixture
def slides(small_data: SmallData, tmp_path: Path) -> Path:
    """Copies of two slides, "a" and "b", which a test may change."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for name, path in zip("ab", sorted(small_data.slides.glob("*.tif")), strict=False):
        shutil.copy(path, folder / f"{name}.tif")
    return folder


@pytest.fixture
def run(console: Console, slides: Path, small_checkpoint: Path, tmp_path: Path) -> Path:
    said = console(
        "predict", slides, "--checkpoint", small_checkpoint, "--out", tmp_path / "run", "--no-overlays"
    )
    assert said.code == 0, said.err
    return tmp_path / "run"


def facts(console: Console, *arguments: str | Path) -> dict[str, Any]:
    said = console("inspect", *arguments, "--json")
    assert said.code == 0, said.err
    found: dict[str, Any] = json.loads(said.out)
    return found


def test_a_prediction_says_what_was_read_and_why(console: Console, run: Path, slides: Path) -> None:
    found = facts(console, run, "a", "--top", "3")
    result = read_result(run / "attention" / "a.h5")
    with open_slide(slides / "a.tif") as slide:
        info = slide.info
    assert found["status"] == "ok"
    assert found["slide"]["now_at"] == str(slides / "a.tif")
    assert found["slide"]["unchanged"] is True
    assert (found["slide"]["reader"], found["slide"]["container"]) == (info.reader, info.vendor)
    level = info.level_for(2.0 / float(info.known_mpp()))
    assert found["slide"]["level"] == level
    assert found["slide"]["level_downsample"] == info.levels[level].downsample
    patches = found["patches"]
    assert (patches["count"], patches["px"], patches["mpp"]) == (len(result.coords), 32, 2.0)
    assert patches["grid"] == list(result.coords.g_size)
    assert (patches["slide_mpp"], patches["slide_mpp_given"]) == (info.mpp, None)
    assert found["attention"]["heads"] == 2
    assert found["attention"]["sum"] == pytest.approx(1)
    assert found["probabilities"]["label"] == result.probabilities["label"]
    scores = [one["score"] for one in found["kept"]["top"]]
    assert scores == sorted(result.kept_scores_M.tolist(), reverse=True)[:3]
    for one in found["kept"]["top"]:
        row = int(np.flatnonzero(result.coords.ids_N == one["id"])[0])
        assert [one["l0_x"], one["l0_y"]] == result.coords.l0_xy_N2[row].tolist()
        assert one["id"] == one["row"] * result.coords.g_size[0] + one["column"]


def test_words_say_the_same(console: Console, run: Path) -> None:
    said = console("inspect", run, "a", "--top", "2")
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[0].startswith("a: ok in ")
    read = ("file:", "reader: tiff, container generic-tiff", "resolution: ", "patches: ", "read: level")
    made = ("unreadable tiles, read as white: none", "attention: ", "maps: ", "label: ", "kept: 4 of")
    for beginning in (*read, *made):
        assert sum(line.startswith(f"  {beginning}") for line in lines) == 1, beginning
    assert "the file's own: the TIFF resolution tags" in said.out
    assert len(lines) - next(i for i, line in enumerate(lines) if line.startswith("      id")) == 3


def test_the_file_itself_names_the_slide_wherever_it_is_now(
    console: Console, run: Path, slides: Path
) -> None:
    moved = slides.parent / "moved"
    slides.rename(moved)
    assert facts(console, run, "a")["slide"]["now_at"] is None
    for named in ((moved / "a.tif",), ("a", "--slides", moved)):
        found = facts(console, run, *named)
        assert (found["slide"]["now_at"], found["slide"]["unchanged"]) == (str(moved / "a.tif"), True)
    said = console("inspect", run, moved / "a.tif")
    assert f"(it was read at {slides / 'a.tif'})" in said.out
    assert "holds no slide called a" in console("inspect", run, "a", "--slides", moved / "b.tif").complaint


def test_without_the_slide_what_is_stored_is_said_and_no_picture_is_drawn(
    console: Console, run: Path, slides: Path, tmp_path: Path
) -> None:
    (slides / "a.tif").unlink()
    said = console("inspect", run, "a")
    assert said.code == 0
    assert f"the slide cannot be looked at: {slides / 'a.tif'}: no such file" in said.out
    assert "  kept: 4 of" in said.out
    assert "  read: level" not in said.out
    drawn = console("inspect", run, "a", "--debug-overlay", tmp_path / "o.png")
    assert drawn.code == 2
    assert "no such file" in drawn.complaint
    assert not (tmp_path / "o.png").exists()


def test_a_slide_that_has_changed_is_told_and_not_drawn(
    console: Console, run: Path, slides: Path, tmp_path: Path
) -> None:
    shutil.copy(slides / "b.tif", slides / "a.tif")
    assert facts(console, run, "a")["slide"]["unchanged"] is False
    assert "CHANGED SINCE IT WAS READ" in console("inspect", run, "a").out
    drawn = console("inspect", run, "a", "--debug-overlay", tmp_path / "o.png")
    assert drawn.code == 2
    assert "is not the file that predict read" in drawn.complaint
    assert not (tmp_path / "o.png").exists()


def test_given_resolutions_say_who_gave_them(
    console: Console, slides: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "mpp.csv").write_text("wsi,mpp\na.tif,0.4\n")
    common = ("predict", slides, "--checkpoint", small_checkpoint, "--no-overlays", "--out")
    assert console(*common, tmp_path / "all", "--slide-mpp", "0.4").code == 0
    assert console(*common, tmp_path / "table", "--mpp-csv", tmp_path / "mpp.csv").code == 0
    found = facts(console, tmp_path / "all", "a")["patches"]
    assert (found["slide_mpp"], found["slide_mpp_from"]) == (0.4, "given, --slide-mpp")
    found = facts(console, tmp_path / "table", "a")["patches"]
    assert (found["slide_mpp"], found["slide_mpp_from"]) == (0.4, f"given, --mpp-csv {tmp_path / 'mpp.csv'}")
    found = facts(console, tmp_path / "table", "b")["patches"]
    assert (found["slide_mpp"], found["slide_mpp_from"]) == (0.5, None), "the table has no row of it"
    assert "(the file states 0.5 µm" in console("inspect", tmp_path / "all", "a").out


def test_a_slide_that_failed_says_why(
    console: Console, slides: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    (slides / "a.tif").write_bytes((slides / "a.tif").read_bytes()[:3000])
    out = tmp_path / "run"
    assert (
        console("predict", slides, "--checkpoint", small_checkpoint, "--out", out, "--no-overlays").code == 3
    )
    found = facts(console, out, "a")
    assert (found["status"], found["patches"], found["kept"]) == ("failed", None, None)
    assert found["error"]
    said = console("inspect", out, "a", "--debug-overlay", tmp_path / "o.png")
    assert "holds nothing of this slide" in said.complaint


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.95])
def test_truncated_results_are_one_line(console: Console, run: Path, keep: float) -> None:
    path = run / "attention" / "a.h5"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    said = console("inspect", run, "a")
    assert said.code == 2
    assert str(path) in said.complaint


def test_a_broken_table_is_one_line(console: Console, run: Path) -> None:
    (run / "slides.csv").write_bytes(b"\xff\xfe\x00")
    said = console("inspect", run, "a")
    assert said.code == 2
    assert "slides.csv" in said.complaint


def test_what_is_no_run_and_no_slide_is_said(
    console: Console, run: Path, slides: Path, tmp_path: Path
) -> None:
    assert "no such folder" in console("inspect", tmp_path / "none", "a").complaint
    assert "is no run" in console("inspect", slides, "a").complaint
    assert "has no slide 'c'; it has a, b" in console("inspect", run, "c").complaint
    assert "ends in .png" in console("inspect", run, "a", "--debug-overlay", tmp_path / "o.jpg").complaint


@pytest.mark.parametrize("patches", [0, 4000])
def test_a_case_is_said_and_attention_counts_in_even_shares_of_it(
    console: Console, run: Path, patches: int
) -> None:
    """A result that does not say how many patches its case has counts in the slide's own share."""
    path = run / "attention" / "a.h5"
    result = read_result(path)
    part = PartOfCase("patient 1", ("a", "b"), 0.25, patches)
    write_result(path, replace(result, attention_NHT=result.attention_NHT * np.float32(0.25), case=part))
    found = facts(console, run, "a")
    assert found["case"] == {"case_id": "patient 1", "slides": ["a", "b"], "share": 0.25, "patches": patches}
    assert found["attention"]["sum"] == pytest.approx(0.25)
    whole = result.attention_NHT.mean((1, 2)).max() * (patches * 0.25 or len(result.coords))
    assert found["attention"]["highest_times_even"] == pytest.approx(float(whole), rel=1e-4)
    assert (
        "case patient 1: one bag of 2 slides; this one has 0.25 of the attention"
        in console("inspect", run, "a").out
    )


def test_unreadable_tiles_are_named(console: Console, run: Path) -> None:
    path = run / "attention" / "a.h5"
    write_result(path, replace(read_result(path), bad_tiles=tuple(f"tile {n}" for n in range(7))))
    assert facts(console, run, "a")["bad_tiles"] == [f"tile {n}" for n in range(7)]
    assert "read as white: 7 (tile 0, tile 1, tile 2, tile 3, tile 4, …)" in console("inspect", run, "a").out


def test_numbers_that_are_none_stay_json(console: Console, run: Path) -> None:
    with h5py.File(run / "attention" / "a.h5", "a") as file:
        file["kept_scores"][0] = np.nan
        file["attention"][0] = np.nan
    found = facts(console, run, "a")
    assert found["kept"]["top"][-1]["score"] is None
    assert found["attention"]["sum"] is None


def test_tiles_and_features_are_inspected_too(console: Console, slides: Path, tmp_path: Path) -> None:
    tiles, clam, trident = (tmp_path / name for name in ("tiles", "clam", "trident"))
    assert console("tile", slides, "--out", tiles, *SMALL).code == 0
    encoder = ("--encoder", "test_convnext", "--weights", "none")
    assert console("features", slides, "--out", clam, *encoder, *SMALL).code == 0
    assert console("features", slides, "--out", trident, "--layout", "trident", *encoder, *SMALL).code == 0
    coords = read_coords(tiles / "patches" / "a.h5")
    found = facts(console, tiles, "a")
    assert (found["run"]["command"], found["patches"]["count"]) == ("tile", len(coords))
    assert "does not say where the slide is" in found["slide"]["problem"]
    found = facts(console, tiles, slides / "a.tif")
    assert (found["slide"]["unchanged"], found["slide"]["level"]) == (True, 1)
    for folder in (clam, trident, trident / "features_test_convnext"):
        found = facts(console, folder, "a")
        assert (found["run"]["command"], found["features"]["width"]) == ("features", 64)
        assert found["slide"]["unchanged"] is True
        assert found["patches"]["count"] == len(coords), folder
    for folder in (tiles, clam, trident):
        out = tmp_path / f"{folder.name}.png"
        said = console("inspect", folder, slides / "a.tif", "--debug-overlay", out)
        assert said.code == 0, said.err
        with Image.open(out) as picture:
            assert picture.width >= 640
    (clam / "h5_files" / "a.h5").write_bytes(b"no HDF5")
    assert "is not an HDF5 file" in console("inspect", clam, "a").complaint


def test_the_overlay_has_everything_where_it_is_up_to_the_far_corner(tmp_path: Path) -> None:
    """A slide whose sides are no multiple of anything, with a black square where its last patch lies."""
    from wsi_ips.config import TilingConfig
    from wsi_ips.tiling.patches import tile_slide
    from wsi_ips.units import Mpp

    width, height, mpp = 5003, 4107, 0.243
    tiling = TilingConfig(patch_px=64, patch_mpp=1.0, min_tissue=0.2)
    image = np.full((height, width, 3), 240, np.uint8)
    image[200:, 150:] = (200, 120, 180)
    image[::16, ::16] = 90
    side = 64 / mpp
    column, row = int(width // side) - 1, int(height // side) - 1
    x, y = column * side, row * side
    image[round(y) : round(y + side), round(x) : round(x + side)] = 0
    write_pyramid(tmp_path / "far.tif", image, mpp=mpp, levels=3, compression="deflate")
    with open_slide(tmp_path / "far.tif") as slide:
        coords, _ = tile_slide(slide, tiling, slide_id="far", mpp=Mpp(mpp))
        last = row * coords.g_size[0] + column
        assert last in coords.ids_N
        picture = np.asarray(draw_debug_overlay(slide, coords, kept_ids=[last]).convert("RGB")).astype(int)
    scale = width / 2000
    shown = picture[: round(height / scale)]
    red = np.abs(shown - KEPT).sum(2) < 30
    edges_x, edges_y = (np.flatnonzero(red.sum(axis) > side / scale / 2) for axis in (0, 1))  # not the label
    assert (edges_x.min(), edges_y.min()) == pytest.approx((x / scale, y / scale), abs=1)
    assert (edges_x.max(), edges_y.max()) == pytest.approx(((x + side) / scale, (y + side) / scale), abs=1)
    inside = shown[
        round(y / scale) + 4 : round((y + side) / scale) - 4,
        round(x / scale) + 4 : round((x + side) / scale) - 4,
    ]
    half = len(inside) // 2
    assert inside[half:].max() < 20, "the black square lies within the red one"
    assert inside[:half, :half].max() > 200, "its id is written into its upper left corner"
    assert inside[:half, half:].max() < 20
    drawn = (np.abs(shown - GRID).sum(2) < 10) | (np.abs(shown - PATCH).sum(2) < 10)
    lines = np.flatnonzero(drawn.mean(0)[:1990] > 0.5)  # without the last patches' own right edge
    last_line = coords.g_size[0] - 1
    assert lines.max() == pytest.approx(last_line * side / scale, abs=1), "no drift over all columns"
