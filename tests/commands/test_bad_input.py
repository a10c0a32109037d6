"""Bad input: one clear line that names the file and the mend, exit code 2, nothing half-written."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tifffile import TiffFile

from tests.commands.console import Console
from tests.conftest import SmallData
from tests.slides.tiff_files import write_pyramid
from wsi_ips.config import PipelineConfig
from wsi_ips.errors import SlideReadError, WsiIpsError, count
from wsi_ips.heatmaps.overlay import write_overlay
from wsi_ips.inference.results import read_result
from wsi_ips.models.checkpoint import load_checkpoint, save_checkpoint
from wsi_ips.tiling.coords import read_coords


@pytest.fixture
def slide(small_data: SmallData) -> Path:
    return sorted(small_data.slides.glob("*.tif"))[0]


FEATURES = ("--encoder", "resnet10t", "--weights", "none", "--set", "encoder.stage=2", "--patch-px", "32")


def nothing_written(folder: Path) -> bool:
    """Nor a folder above it that was not there."""
    return not folder.parent.exists() if folder.parent.name == "new" else not folder.exists()


def broken_slides(folder: Path, good: Path) -> dict[str, Path]:
    """One slide per way of being wrong, and a part of the complaint about it."""
    white = np.full((900, 1100, 3), 250, np.uint8)
    text, cut, blank = folder / "text.svs", folder / "cut.tif", folder / "blank.tif"
    no_mpp, empty = folder / "nompp.tif", folder / "zero.svs"
    text.write_text("not a slide")
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    write_pyramid(blank, white, mpp=0.5)
    write_pyramid(no_mpp, white, mpp=None)
    empty.touch()
    return {"no reader": text, "truncated": cut, "no tissue": blank, "--slide-mpp": no_mpp, "zero.svs": empty}


@pytest.mark.parametrize("problem", ["no reader", "truncated", "no tissue", "--slide-mpp", "zero.svs"])
def test_a_bad_slide_given_by_itself(
    console: Console, slide: Path, small_checkpoint: Path, tmp_path: Path, problem: str
) -> None:
    bad, out = broken_slides(tmp_path, slide)[problem], tmp_path / "new" / "out"
    said = console("predict", bad, "--checkpoint", small_checkpoint, "--out", out)
    assert said.code == 2
    assert problem in said.complaint
    assert str(bad) in said.complaint
    assert nothing_written(out)
    for layout in ("clam", "trident", "stamp"):
        said = console("features", bad, *FEATURES, "--layout", layout, "--out", out)
        assert said.code == 2
        assert problem in said.complaint
        assert nothing_written(out)
    said = console("tile", bad, "--out", out)
    assert said.code == 2
    assert problem in said.complaint
    if problem == "no tissue":  # its picture says why, and the complaint names it
        assert [path for path in out.rglob("*") if path.is_file()] == [out / "previews" / f"{bad.stem}.jpg"]
    else:
        assert nothing_written(out)


def test_pictures_that_cannot_be_drawn_leave_no_folder(
    console: Console, slide: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    """The pixels of a slide are damaged after it was labelled: what is half-drawn goes, with its folder."""
    moved, run, out = tmp_path / "a.tif", tmp_path / "run", tmp_path / "new" / "out"
    moved.write_bytes(slide.read_bytes())
    assert console("predict", moved, "--checkpoint", small_checkpoint, "--out", run).code == 0
    with TiffFile(moved) as tiff:
        places = [(page.dataoffsets, page.databytecounts) for page in tiff.pages]
    content = bytearray(moved.read_bytes())
    for starts, lengths in places:
        for start, length in zip(starts, lengths, strict=True):
            content[start : start + length] = bytes(length)
    moved.write_bytes(content)
    for words in (("overlay",), ("export", "--format", "deepzoom"), ("export", "--format", "sheet")):
        said = console(words[0], run, *words[1:], "--out", out)
        assert said.code == 3
        assert "a.tif" in said.out
        assert nothing_written(out)


def test_bad_slides_in_a_folder_become_rows_and_the_others_finish(
    console: Console, slide: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "slides", tmp_path / "out"
    folder.mkdir()
    broken = broken_slides(folder, slide)
    (folder / "good.tif").write_bytes(slide.read_bytes())
    said = console("predict", folder, "--checkpoint", small_checkpoint, "--out", out)
    assert said.code == 3
    with (out / "predictions.csv").open(newline="") as file:
        table = {row["slide_id"]: row for row in csv.DictReader(file)}
    assert table.pop("good")["status"] == "ok"
    assert len(table) == len(broken)
    for problem, path in broken.items():
        row = table[path.stem]
        assert row["status"] == "failed"
        assert problem in row["error"]
        assert row["pred"] == ""
        assert row["error"] in said.out
    assert [path.stem for path in (out / "attention").iterdir()] == ["good"]


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("error", [SlideReadError("s.tif", "cannot be decoded"), ValueError("a bug")])
def test_an_overlay_that_cannot_be_drawn_costs_no_label(
    console: Console,
    slide: Path,
    small_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    alone: bool,
    error: Exception,
) -> None:
    """In a folder of two, only ``a``'s picture fails; the label and the attention of both stand."""
    folder, out = tmp_path / "slides", tmp_path / "out"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.tif").write_bytes(slide.read_bytes())

    def draw_or_fail(path: Path, *rest: Any, **named: Any) -> None:
        if path.stem == "a":
            raise error
        write_overlay(path, *rest, **named)

    monkeypatch.setattr("wsi_ips.heatmaps.overlay.write_overlay", draw_or_fail)
    slides = folder / "a.tif" if alone else folder
    said = console("predict", slides, "--checkpoint", small_checkpoint, "--out", out)
    assert said.code == 3
    assert f"failed: overlay of a not drawn: {why(error)}" in said.out
    with (out / "predictions.csv").open(newline="") as file:
        table = {row["slide_id"]: row for row in csv.DictReader(file)}
    assert f"{len(table)} of {count(len(table), 'slide')} labelled" in said.out
    assert table["a"]["status"] == "ok"
    assert table["a"]["pred"] in ("normal", "tumor")
    assert table["a"]["error"] == f"overlay of a not drawn: {why(error)}"
    assert len(read_result(out / "attention" / "a.h5").coords) == int(table["a"]["n_patches"])
    assert not (out / "overlays" / "a.png").exists()
    assert (out / "run.json").exists()
    if not alone:
        assert (table["b"]["status"], table["b"]["error"]) == ("ok", "")
        assert (out / "overlays" / "b.png").exists()


def why(error: Exception) -> str:
    return str(error) if isinstance(error, WsiIpsError) else f"{type(error).__name__}: {error}"


def test_a_slide_without_resolution_is_helped_by_a_flag_or_a_table(
    console: Console, slide: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    image = np.asarray(np.random.default_rng(0).integers(60, 200, (700, 900, 3)), np.uint8)
    image[..., 1] //= 3
    write_pyramid(tmp_path / "a.tif", image, mpp=None)
    (tmp_path / "mpp.csv").write_text("wsi,mpp\na.tif,0.5\n")
    for number, flags in enumerate((["--slide-mpp", "0.5"], ["--mpp-csv", tmp_path / "mpp.csv"])):
        out = tmp_path / str(number)
        said = console("predict", tmp_path / "a.tif", "--checkpoint", small_checkpoint, "--out", out, *flags)
        assert said.code == 0, said.err
    both = ["--slide-mpp", "0.5", "--mpp-csv", tmp_path / "mpp.csv"]
    said = console("tile", tmp_path / "a.tif", "--out", tmp_path / "o", *both)
    assert said.code == 2
    assert "give one of them" in said.complaint


def test_a_row_for_no_slide_is_warned_about(
    console: Console, cases_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = cases_folder / "names"
    said = console("tile", names / "cm_025.tif", "--out", tmp_path / "o", "--mpp-csv", names / "mpp_typo.csv")
    assert said.code == 0
    assert "1 of its rows name no slide of this run: cm_25.tif" in said.err + caplog.text


def test_a_table_for_ids_with_dots(console: Console, cases_folder: Path, tmp_path: Path) -> None:
    names = cases_folder / "names"
    said = console("tile", names / "dots", "--out", tmp_path / "o", "--mpp-csv", names / "dots_ids.csv")
    assert said.code == 0, said.err
    for slide_id, mpp in (("S23", 0.5), ("S23.1", 0.25), ("S23.2", 0.2)):
        assert read_coords(tmp_path / "o" / "patches" / f"{slide_id}.h5").slide_mpp == mpp


def test_missing_path_and_empty_folder(console: Console, small_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for where in ("absent", "empty"):
        said = console("predict", tmp_path / where, "--checkpoint", small_checkpoint, "--out", tmp_path / "o")
        assert said.code == 2
        assert str(tmp_path / where) in said.complaint
        assert nothing_written(tmp_path / "o")


def test_checkpoints_that_are_not_ours(
    console: Console, slide: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    net, config = load_checkpoint(small_checkpoint)
    other = tmp_path / "other.safetensors"
    wider = config.model.attention.model_copy(update={"inner_dim": 99})
    wrong = PipelineConfig(model=config.model.model_copy(update={"attention": wider}), tiling=config.tiling)
    save_checkpoint(other, net, wrong)
    foreign = tmp_path / "foreign.safetensors"
    save_file(load_file(small_checkpoint), foreign)
    pickled = tmp_path / "model.pth"
    torch.save(net.state_dict(), pickled)
    problems = {
        other: "another architecture",
        foreign: "not a checkpoint of wsi_ips",
        pickled: "not a safetensors file",
        tmp_path / "absent": "no such checkpoint",
    }
    for path, problem in problems.items():
        said = console("predict", slide, "--checkpoint", path, "--out", tmp_path / "out")
        assert said.code == 2
        assert problem in said.complaint
        assert str(path) in said.complaint
        assert nothing_written(tmp_path / "out")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("test_001_tumor,", "test_000_normal,", "occurs twice"),
        (",tumor,train,", ",tumour,train,", "unknown label 'tumour'"),
        ("images/test_001_tumor.tif", "images/gone.tif", "no slide at"),
        (",test,", ",held-out,", "unknown split"),
        ("case_val_000", "case_train_000", "lies in"),
        ("case_id", "patient", "lacks the column case_id"),
    ],
)
def test_wrong_manifests(
    console: Console, small_data: SmallData, tmp_path: Path, old: str, new: str, problem: str
) -> None:
    text = small_data.manifest.read_text()
    assert old in text
    manifest = small_data.manifest.with_name(f"wrong_{abs(hash(problem))}.csv")
    manifest.write_text(text.replace(old, new))
    try:
        said = console("finetune", manifest, "--out", tmp_path / "out")
    finally:
        manifest.unlink()
    assert said.code == 2
    assert problem in said.complaint
    assert manifest.name in said.complaint
    assert nothing_written(tmp_path / "out")


def test_overlay_of_a_folder_without_results(console: Console, tmp_path: Path) -> None:
    said = console("overlay", tmp_path)
    assert said.code == 2
    assert "attention" in said.complaint


def test_an_unknown_encoder_is_named_with_close_ones(
    console: Console, small_data: SmallData, tmp_path: Path
) -> None:
    said = console("finetune", small_data.manifest, "--out", tmp_path / "out",
                   "--set", "model.encoder.name=resnet19")  # fmt: skip
    assert said.code == 2
    assert "resnet18" in said.complaint


def test_a_place_that_cannot_be_written_to(console: Console, slide: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said = console("tile", slide, "--out", tmp_path / "file")
    assert said.code == 2
    assert str(tmp_path / "file") in said.complaint


def test_a_recipe_s_settings_hold_unless_a_flag_says_otherwise(
    console: Console, slide: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("layout: trident\ntiling: {patch_px: 64, patch_mpp: 1.0}\n")
    said = console("tile", slide, "--out", tmp_path / "a", "--recipe", recipe)
    assert said.code == 0, said.err
    assert (tmp_path / "a" / "patches" / f"{slide.stem}_patches.h5").exists()
    assert console("tile", slide, "--out", tmp_path / "b", "--recipe", recipe, "--layout", "clam").code == 0
    assert (tmp_path / "b" / "patches" / f"{slide.stem}.h5").exists()
