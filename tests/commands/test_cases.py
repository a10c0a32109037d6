"""The shared cases as a user meets them: each is given to the command, which says or writes the right value."""

import csv
import shutil
from pathlib import Path
from time import process_time

import h5py
import numpy as np
import pytest
import tifffile
import torch

from tests.commands.console import Console
from tests.slides.tiff_files import tissue_like
from wsi_ips.tiling.coords import read_coords

FEATURES_MODEL = """
model:
  encoder: {name: features, features: 16}
  attention: {heads: 2, key_dim: 8, value_dim: 8, inner_dim: 16}
selection: {m: 4, i: 8}
training: {epochs: 1, warmup_epochs: 0}
"""


def on_glass(side: int = 1024) -> np.ndarray:
    """Tissue on glass: the inner square of 0.2 to 0.8 of the side."""
    slide = np.full((side, side, 3), 245, np.uint8)
    inner = slice(side // 5, side * 4 // 5)
    size = inner.stop - inner.start
    slide[inner, inner] = tissue_like(size, size) // 4 + np.array([150, 60, 140], np.uint8)
    return slide


def test_patches_lie_on_the_slide_and_not_on_a_macro(
    console: Console, cases_folder: Path, tmp_path: Path
) -> None:
    path = cases_folder / "levels" / "macro_as_level.tif"
    said = console("tile", path, "--out", tmp_path, "--patch-px", 256, "--mag", 20)
    assert said.code == 0
    coords = read_coords(tmp_path / "patches" / "macro_as_level.h5")
    assert (len(coords), coords.slide_mpp) == (16, 0.25)
    slide = tifffile.imread(path, key=0)
    for x, y in coords.l0_xy_N2:
        assert slide[y : y + 512, x : x + 512].std() > 10  # what is on it, and not glass


@pytest.mark.parametrize("case", ["null_geometry", "with_point_and_line", "bom"])
def test_contours_with_what_is_no_area(
    console: Console, cases_folder: Path, tmp_path: Path, case: str
) -> None:
    tifffile.imwrite(tmp_path / "he.tif", np.full((2048, 2048, 3), 240, np.uint8), tile=(256, 256))
    folder = cases_folder / "geojson" / case
    given = ("--contours", folder, "--slide-mpp", 0.5, "--patch-px", 128, "--min-tissue", 1.0)
    said = console("tile", tmp_path / "he.tif", "--out", tmp_path / "o", *given)
    assert said.code == 0, said.err
    coords = read_coords(tmp_path / "o" / "patches" / "he.h5")
    assert len(coords) == 8 * 8 - 4  # a square of 1024 px with a hole of 256


def test_a_mirax_slide_without_its_folder(console: Console, cases_folder: Path, tmp_path: Path) -> None:
    slide = cases_folder / "mirax" / "without_its_folder" / "S1.mrxs"
    for command in (("info",), ("tile", "--out", tmp_path)):
        said = console(command[0], slide, *command[1:])
        assert said.code == 2
        assert said.complaint.endswith("S1.mrxs: its data folder S1/ is missing; copy the folder of the same "
                                       "name beside it")  # fmt: skip


@pytest.mark.parametrize(
    ("file", "held", "prefix"),
    [
        ("dino.pth", "teacher", "backbone."),
        ("lightning.ckpt", "state_dict", "model."),
        ("dino_args.pth", "teacher", "backbone."),
    ],
)
def test_weights_under_a_prefix(
    console: Console, cases_folder: Path, tmp_path: Path, file: str, held: str, prefix: str
) -> None:
    """They give the features of the same weights without wrapper and prefix."""
    weights, slide = cases_folder / "weights" / file, cases_folder / "names" / "cm_025.tif"
    state = torch.load(weights, weights_only=False)[held]
    bare = {key.split(prefix, 1)[1]: tensor for key, tensor in state.items() if prefix in key}
    torch.save(bare, tmp_path / "bare.pth")
    for number, given in enumerate((weights, tmp_path / "bare.pth")):
        said = console("features", slide, "--encoder", "test_vit", "--weights", given, "--device", "cpu",
                       "--out", tmp_path / str(number))  # fmt: skip
        assert said.code == 0, said.err
    stored = []
    for number in range(2):
        (path,) = (tmp_path / str(number)).rglob("cm_025.h5")
        with h5py.File(path) as features:
            stored.append(features["features"][:])
    assert len(stored[0]) > 0
    np.testing.assert_array_equal(stored[0], stored[1])


@pytest.mark.parametrize(
    ("manifest", "classes"), [("ok.csv", "[normal, tumor]"), ("label_int.csv", "[0, 1]")]
)
def test_a_damaged_file_of_features_and_numbers_as_classes(
    console: Console, cases_folder: Path, tmp_path: Path, manifest: str, classes: str
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(FEATURES_MODEL.replace("  encoder:", f"  tasks: [{{classes: {classes}}}]\n  encoder:"))
    folder = cases_folder / "features"
    said = console("finetune", folder / "manifests" / manifest, "--features", folder / "one_nan", "--out",
                   tmp_path / "o", "--recipe", recipe, "--set", "training.max_bad_slides=0.5")  # fmt: skip
    assert said.code in (0, 3), said.err
    assert "not finite" in said.out + said.err
    assert (tmp_path / "o" / "model.safetensors").is_file()
    assert "003" in said.out + said.err  # the one file, by name


def test_two_slides_of_one_dicom_folder(console: Console, cases_folder: Path) -> None:
    said = console("info", cases_folder / "dicom" / "two_slides_in_one_folder")
    assert said.code == 0
    assert ["2220x2967 px" in said.out, "1110x1483 px" in said.out] == [True, True]


def test_what_cannot_be_shown_rightly_costs_itself_only(
    console: Console, cases_folder: Path, tmp_path: Path, small_checkpoint: Path
) -> None:
    for name in ("names/cm_025.tif", "tiff/bremen_sea_ice_conc_2022_9_9.tif"):
        shutil.copy(cases_folder / name, tmp_path)
    said = console("predict", tmp_path, "--checkpoint", small_checkpoint, "--out", tmp_path / "o",
                   "--slide-mpp", 0.5)  # fmt: skip
    assert said.code == 3
    with (tmp_path / "o" / "predictions.csv").open(newline="") as file:
        table = {row["slide_id"]: row for row in csv.DictReader(file)}
    assert table["cm_025"]["status"] == "ok"
    assert "samples are floating-point numbers of 32 bits" in table["bremen_sea_ice_conc_2022_9_9"]["error"]


def test_a_chunk_cut_short_costs_its_slide_only(
    console: Console, cases_folder: Path, tmp_path: Path, small_checkpoint: Path
) -> None:
    """It killed the process. ``tile`` fails the slide too: nothing of it can be read."""
    folder = tmp_path / "slides"
    shutil.copytree(cases_folder / "hostile" / "cut_blosc_chunk.zarr", folder / "a.zarr")
    (folder / "a.zarr").chmod(0o755)
    shutil.copy(cases_folder / "names" / "cm_025.tif", folder / "b.tif")
    said = console("predict", folder, "--checkpoint", small_checkpoint, "--out", tmp_path / "p")
    assert (said.code, "1 of 2 slides labelled" in said.out) == (3, True)
    assert "its chunk 0/0.0.0: " in said.out
    said = console("tile", folder, "--out", tmp_path / "t")
    assert said.code == 3
    assert "its chunk 0/0.0.0: " in said.out
    assert [path.name for path in (tmp_path / "t" / "patches").iterdir()] == ["b.h5"]


def test_a_chunk_cut_by_one_byte(console: Console, cases_folder: Path, tmp_path: Path) -> None:
    slide = tmp_path / "a.zarr"
    shutil.copytree(cases_folder / "hostile" / "cut_blosc_chunk.zarr", slide)
    chunk = slide / "0" / "0.0.0"
    header = chunk.read_bytes()[:16]
    length = int.from_bytes(header[12:16], "little")
    chunk.chmod(0o644)
    chunk.write_bytes(chunk.read_bytes().ljust(length - 1, b"\1"))
    said = console("tile", slide, "--out", tmp_path / "t")
    assert said.code == 2
    assert f"its chunk 0/0.0.0: BadChunk: it is cut short: {length - 1} bytes" in said.complaint


@pytest.mark.parametrize("dpi", [None, 300, 200, 1200])
def test_a_large_slide_of_a_print_resolution_has_none(
    console: Console, cases_folder: Path, tmp_path: Path, dpi: int | None
) -> None:
    """It was believed: 3 GB, and no end."""
    path = cases_folder / "hostile" / "dpi300_30000px.tif"
    if dpi is not None:
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, on_glass(), tile=(256, 256), resolution=(dpi / 2.54,) * 2, metadata=None,
                         resolutionunit="CENTIMETER")  # fmt: skip
    began = process_time()
    said = console("tile", path, "--out", tmp_path / "o")
    assert said.code == 2
    assert "does not say how many µm a pixel covers" in said.complaint
    assert process_time() - began < 5


def test_what_is_no_resolution_along_one_axis_is_none_along_both(console: Console, tmp_path: Path) -> None:
    """0.25 µm by 300 dpi is a contradiction, not square pixels of 0.25 µm."""
    for name, per_cm in (("x", (40_000, 118.11)), ("y", (118.11, 40_000))):
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, on_glass(), tile=(256, 256), resolution=per_cm, metadata=None,
                         resolutionunit="CENTIMETER")  # fmt: skip
        assert "resolution unknown" in console("info", path).out
        assert console("tile", path, "--out", tmp_path / "o").code == 2


@pytest.mark.parametrize("name", ["recipe_d", "recipe_deep", "recipe_bomb"])
def test_a_hostile_recipe_is_one_line_within_a_second(
    console: Console, cases_folder: Path, name: str
) -> None:
    console("--help")  # imports are no part of it
    began = process_time()
    said = console("run", cases_folder / "hostile" / f"{name}.yaml")
    assert process_time() - began < 1
    assert said.code == 2
    assert 0 < len(said.complaint) < 500


def test_stains_that_look_like_ink_have_patches(console: Console, cases_folder: Path, tmp_path: Path) -> None:
    said = console("tile", cases_folder / "tissue" / "stains_gms_green.tif", "--out", tmp_path)
    assert said.code == 0, said.err
    assert len(read_coords(tmp_path / "patches" / "stains_gms_green.h5")) > 0
