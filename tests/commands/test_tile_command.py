"""``tile`` over a folder: what it keeps, what it makes again, and what a bad slide costs."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from tests.commands.console import Console
from tests.conftest import SmallData
from wsi_ips.errors import CoordsError
from wsi_ips.slides.base import SlideReader
from wsi_ips.slides.registry import open_slide
from wsi_ips.storage.fingerprint import files_fingerprint
from wsi_ips.storage.hdf5 import fixed_text
from wsi_ips.storage.location import Location
from wsi_ips.tiling import patches as tile_slide
from wsi_ips.tiling.coords import MADE_FROM, read_coords, stored_tiled_from

PATCH = ("--patch-px", "64", "--mag", "10")


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


@pytest.fixture
def three_slides(small_data: SmallData, tmp_path: Path) -> Path:
    """Copies, which a test may change."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for number, path in enumerate(sorted(small_data.slides.glob("*.tif"))[:3]):
        shutil.copy(path, folder / f"s{number}.tif")
    return folder


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, *, at: str) -> None:
    """The slide called ``at`` cannot be opened any more."""

    def opened(path: Location) -> SlideReader:
        if path.name == at:
            raise error
        return open_slide(path)

    monkeypatch.setattr(tile_slide, "open_slide", opened)


def contents(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()
    }


def written(out: Path, slide_id: str) -> tuple[int, int]:
    """It is another one once the file has been written again."""
    known = (out / "patches" / f"{slide_id}.h5").stat()
    return known.st_ino, known.st_mtime_ns


def test_whatever_a_slide_raises_is_a_row_and_the_others_are_tiled(
    console: Console, three_slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, LookupError("no such luck"), at="s1.tif")
    said = console("tile", three_slides, "--out", tmp_path / "out", *PATCH)
    assert said.code == 3
    table = rows(tmp_path / "out" / "tiles.csv")
    assert [row["status"] for row in table.values()] == ["ok", "failed", "ok"]
    assert table["s1"]["error"] == "s1: LookupError: no such luck"


def test_a_slide_for_which_memory_does_not_suffice_says_so(
    console: Console, three_slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, MemoryError(), at="s1.tif")
    assert console("tile", three_slides, "--out", tmp_path / "out", *PATCH).code == 3
    error = rows(tmp_path / "out" / "tiles.csv")["s1"]["error"]
    assert error.startswith("s1: does not fit into the memory that is free; free memory")


def test_a_second_start_leaves_alone_what_is_there(
    console: Console, three_slides: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert console("tile", three_slides, "--out", out, *PATCH).code == 0
    before, first = contents(out), {name: written(out, name) for name in ("s0", "s1", "s2")}
    (out / "patches" / "s1.h5").unlink()
    (out / "contours_geojson" / "s2.geojson").unlink()
    said = console("tile", three_slides, "--out", out, *PATCH)
    assert said.code == 0
    assert "1 slide was tiled already" in said.out
    assert contents(out) == before, "the same bytes, made again or not"
    assert written(out, "s0") == first["s0"]
    assert written(out, "s2") != first["s2"]


def changed_slide(slides: Path, out: Path) -> tuple[str, ...]:
    shutil.copy(slides / "s1.tif", slides / "s0.tif")
    return ()


def given_resolution(slides: Path, out: Path) -> tuple[str, ...]:
    (slides / "mpp.csv").write_text("wsi,mpp\ns0,0.4\n")
    return ("--mpp-csv", str(slides / "mpp.csv"))


def another_setting(slides: Path, out: Path) -> tuple[str, ...]:
    return ("--set", "tiling.tissue.min_object_um2=30000")


def broken_file(slides: Path, out: Path) -> tuple[str, ...]:
    path = out / "patches" / "s0.h5"
    path.write_bytes(path.read_bytes()[:-3000])
    return ()


@pytest.mark.parametrize("change", [changed_slide, given_resolution, another_setting, broken_file])
def test_another_slide_resolution_or_setting_is_tiled_again(
    console: Console, three_slides: Path, tmp_path: Path, change: Callable[[Path, Path], tuple[str, ...]]
) -> None:
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    assert console("tile", three_slides, "--out", out, *PATCH).code == 0
    before = written(out, "s0"), written(out, "s2")
    options = change(three_slides, out)
    assert console("tile", three_slides, "--out", out, *PATCH, *options).code == 0
    assert written(out, "s0") != before[0]
    assert (written(out, "s2") == before[1]) == (change is not another_setting)
    assert console("tile", three_slides, "--out", fresh, *PATCH, *options).code == 0
    assert contents(out) == contents(fresh)


def test_slides_that_are_not_named_keep_their_rows_and_refuse_other_settings(
    console: Console, three_slides: Path, tmp_path: Path
) -> None:
    """Patches of two sizes in one folder would be taken for alike."""
    out = tmp_path / "out"
    for name in ("s0", "s1"):
        assert console("tile", three_slides / f"{name}.tif", "--out", out, *PATCH).code == 0
    assert list(rows(out / "tiles.csv")) == ["s1", "s0"]
    assert all(row["status"] == "ok" for row in rows(out / "tiles.csv").values())
    before = contents(out)
    refused = console("tile", three_slides / "s1.tif", "--out", out, *PATCH, "--patch-px", "96", "--profile")
    assert refused.code == 2
    assert "slide 's0' was tiled with other settings (tiling.patch_px 64 there, 96 here)" in refused.complaint
    assert contents(out) == before
    other_layout = ("--layout", "trident", "--patch-px", "96")
    trident = tmp_path / "trident"
    assert console("tile", three_slides / "s0.tif", "--out", trident, *PATCH, *other_layout).code == 0
    refused = console("tile", three_slides / "s1.tif", "--out", trident, *PATCH)
    assert refused.code == 2
    assert "slide 's0' was tiled with other settings" in refused.complaint
    # How tissue is found is a matter of each slide, and what a failed slide's message advises.
    easier = ("--set", "tiling.tissue.min_object_um2=0", "--set", "tiling.min_tissue=0.1")
    assert console("tile", three_slides / "s1.tif", "--out", out, *PATCH, *easier).code == 0
    assert contents(out)["patches/s0.h5"] == before["patches/s0.h5"]
    (out / "patches" / "s0.h5").unlink()
    assert console("tile", three_slides / "s1.tif", "--out", out, *PATCH, "--patch-px", "96").code == 0
    assert list(rows(out / "tiles.csv")) == ["s1"]
    with h5py.File(out / "patches" / "s1.h5", "r+") as file:
        file.attrs[MADE_FROM] = fixed_text(json.dumps({**json.loads(file.attrs[MADE_FROM]), "tiling": "{"}))
    assert console("tile", three_slides / "s0.tif", "--out", out, *PATCH).code == 0


def test_a_resolution_given_against_the_file_is_noted(
    console: Console, three_slides: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One number for a folder silently rescales the slides that state their own."""
    with open_slide(three_slides / "s0.tif") as slide:
        stated = slide.info.known_mpp()
    out = tmp_path / "out"
    said = console("tile", three_slides, "--out", out, *PATCH, "--slide-mpp", "0.4")
    assert said.code == 0
    assert "--slide-mpp 0.4 is taken for all 3 slides, whatever their files state" in caplog.text
    caplog.clear()
    note = f"0.4 µm per pixel were given, the file states {stated:.4g} µm"
    for again in range(2):  # made, and found
        assert {row["note"] for row in rows(out / "tiles.csv").values()} == {note}, again
        assert console("tile", three_slides, "--out", out, *PATCH, "--slide-mpp", "0.4").code == 0
    caplog.clear()
    one = tmp_path / "one"
    said = console("tile", three_slides / "s0.tif", "--out", one, *PATCH, "--slide-mpp", stated)
    assert said.code == 0
    assert "is taken for all" not in caplog.text
    assert rows(one / "tiles.csv")["s0"]["note"] == ""


def test_outlines_that_were_drawn_anew_count_and_are_never_removed(
    console: Console, three_slides: Path, tmp_path: Path
) -> None:
    """They may even lie in the folder that is written to: contours that were corrected there."""
    out = tmp_path / "out"
    assert console("tile", three_slides, "--out", out, *PATCH).code == 0
    assert console("tile", three_slides, "--out", out, *PATCH, "--contours", out).code == 0
    drawn = out / "contours_geojson" / "s0.geojson"
    square = {"type": "Polygon", "coordinates": [[[0, 0], [600, 0], [600, 600], [0, 600], [0, 0]]]}
    drawn.write_text(json.dumps({"type": "FeatureCollection", "features": [
        {"type": "Feature", "properties": {}, "geometry": square}]}))  # fmt: skip
    assert console("tile", three_slides, "--out", out, *PATCH, "--contours", out).code == 0
    assert read_coords(out / "patches" / "s0.h5").l0_xy_N2.max() < 600
    assert drawn.is_file()


def test_good_coordinates_stay_until_others_are_written(
    console: Console, three_slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert console("tile", three_slides, "--out", out, *PATCH).code == 0
    before = contents(out)
    failing(monkeypatch, KeyboardInterrupt(), at="s0.tif")
    assert console("tile", three_slides, "--out", out, *PATCH, "--min-tissue", "0.5").code not in (0, 3)
    assert contents(out) == before


def test_a_slide_that_fails_leaves_no_coordinates_of_other_settings(
    console: Console, three_slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert console("tile", three_slides, "--out", out, *PATCH).code == 0
    failing(monkeypatch, OSError("torn"), at="s0.tif")
    assert console("tile", three_slides, "--out", out, *PATCH, "--min-tissue", "0.5").code == 3
    assert sorted(path.name for path in (out / "patches").iterdir()) == ["s1.h5", "s2.h5"]
    assert sorted(path.name for path in (out / "contours_geojson").iterdir()) == ["s1.geojson", "s2.geojson"]


def test_a_slide_out_of_reach_keeps_what_is_known_of_it(
    console: Console, three_slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert console("tile", three_slides, "--out", out, *PATCH).code == 0
    failing(monkeypatch, OSError("the disk is gone"), at="s0.tif")
    monkeypatch.setattr("wsi_ips.tiling.coords.files_fingerprint", lambda where: "")
    assert console("tile", three_slides, "--out", out, *PATCH).code == 3
    assert (out / "patches" / "s0.h5").is_file()


def test_two_processes_write_the_same_bytes_and_a_bad_slide_is_a_row(
    console: Console, three_slides: Path, tmp_path: Path
) -> None:
    (three_slides / "bad.tif").write_bytes(b"II*\0" + b"\xff" * 100)
    one, two = tmp_path / "one", tmp_path / "two"
    assert console("tile", three_slides, "--out", one, *PATCH).code == 3
    assert console("tile", three_slides, "--out", two, *PATCH, "--workers", "2").code == 3
    assert contents(one) == contents(two)
    assert list(rows(two / "tiles.csv")) == ["bad", "s0", "s1", "s2"]


def test_coordinates_say_what_they_were_made_from(
    console: Console, three_slides: Path, tmp_path: Path
) -> None:
    out, slide = tmp_path / "out", three_slides / "s0.tif"
    assert console("tile", slide, "--out", out, *PATCH, "--slide-mpp", "0.4").code == 0
    made_from = stored_tiled_from(out / "patches" / "s0.h5")
    assert made_from is not None
    assert (made_from.slide, made_from.mpp_given) == (files_fingerprint([slide]), 0.4)
    assert str(tmp_path) not in made_from.to_json()
    assert stored_tiled_from(slide) is None
    with pytest.raises(CoordsError):
        read_coords(slide)
