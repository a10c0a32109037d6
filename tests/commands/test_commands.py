"""Every command on good input: what it leaves, what it says, how it exits."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from tests.commands.console import Console
from tests.conftest import SMALL_MODEL, SmallData
from wsi_ips.commands.recipe import load_recipe, shipped_recipe
from wsi_ips.inference.results import read_result
from wsi_ips.models.checkpoint import load_checkpoint


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_help_answers_without_loading_torch() -> None:
    program = (
        "import sys\nfrom wsi_ips.cli import main\nsys.argv = ['wsi-ips', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'pydantic', 'h5py', 'PIL'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == "[]"
    assert all(
        name in said.stdout for name in ("info", "tile", "finetune", "predict", "overlay", "demo", "run")
    )


def test_a_command_s_help_loads_its_own_file_and_nothing_heavy() -> None:
    """All of them in one process, each after the last: what is new with a command is its own."""
    program = (
        "import sys\nfrom wsi_ips.commands import application\n"
        "def loaded():\n"
        "    return {m for m in sys.modules if m.startswith('wsi_ips.commands.') or m.endswith('.command')}\n"
        "shared = {'wsi_ips.commands.' + n for n in ('options', 'recipe', 'slides', 'stored_maps')}\n"
        "for table in (application._COMMANDS, application._DATA_COMMANDS):\n"
        "    for name, (where, line) in table.items():\n"
        "        before = loaded()\n"
        "        module, _, face = where.partition(':')\n"
        "        face = getattr(__import__(module, fromlist=[face]), face)\n"
        "        assert loaded() - before - shared <= {module}, (name, loaded() - before)\n"
        "        function = getattr(face, 'registered_commands', None)\n"
        "        function = function[0].callback if function else face\n"
        "        if name != 'data':\n"
        "            assert function.__doc__.splitlines()[0] == line, name\n"
        "print(sorted({'torch', 'numpy', 'h5py', 'PIL', 'scipy', 'shapely'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert said.stdout.strip() == "[]", said.stderr


def test_version(console: Console) -> None:
    from wsi_ips import __version__

    assert console("--version").out.strip() == __version__


def test_info_names_size_resolution_and_reader(console: Console, small_data: SmallData) -> None:
    said = console("info", small_data.slides, "--json")
    described = [json.loads(line) for line in said.out.splitlines()]
    assert said.code == 0
    assert len(described) == 6
    assert {slide["reader"] for slide in described} == {"tiff"}
    assert {slide["mpp"] for slide in described} == {0.5}


@pytest.mark.parametrize("layout", ["clam", "trident"])
def test_tile_writes_coordinates_and_contours(
    console: Console, small_data: SmallData, tmp_path: Path, layout: str
) -> None:
    said = console("tile", small_data.slides, "--out", tmp_path, "--patch-px", "64", "--mag", "10",
                   "--layout", layout)  # fmt: skip
    assert said.code == 0
    table = rows(tmp_path / "tiles.csv")
    assert [row["status"] for row in table] == ["ok"] * 6
    suffix = "_patches.h5" if layout == "trident" else ".h5"
    for row in table:
        with h5py.File(tmp_path / "patches" / f"{row['slide_id']}{suffix}") as file:
            assert len(file["coords"]) == int(row["n_patches"]) > 0
            assert file["coords"].attrs["patch_size"] == 64
        contours = json.loads((tmp_path / "contours_geojson" / f"{row['slide_id']}.geojson").read_text())
        assert contours["features"]


def test_tile_draws_what_it_took_for_tissue_and_names_what_left_out_everything(
    console: Console, small_data: SmallData, tmp_path: Path
) -> None:
    """Also of a slide that has no patches: there it is needed most."""
    (tmp_path / "slides").mkdir()
    good = min(small_data.slides.glob("*.tif"))
    (tmp_path / "slides" / "good.tif").symlink_to(good)
    ink = np.full((1024, 1024, 3), 243, np.uint8)
    ink[200:800, 200:800] = (30, 60, 190)
    tifffile.imwrite(tmp_path / "slides" / "ink.tif", ink, tile=(256, 256), photometric="rgb",
                     resolution=(20_000, 20_000), resolutionunit="CENTIMETER")  # fmt: skip
    said = console("tile", tmp_path / "slides", "--out", tmp_path / "out")
    assert said.code == 3
    errors = {row["slide_id"]: row["error"] for row in rows(tmp_path / "out" / "tiles.csv")}
    assert errors["good"] == ""
    assert "tiling.tissue.drop_pen=false" in errors["ink"]
    for slide_id in ("good", "ink"):
        with Image.open(tmp_path / "out" / "previews" / f"{slide_id}.jpg") as picture:
            assert picture.format == "JPEG"
            assert picture.width >= 640
    pen = ("--set", "tiling.tissue.drop_pen=false", "--no-mask-preview")
    assert console("tile", tmp_path / "slides", "--out", tmp_path / "out", *pen).code == 0
    assert not list((tmp_path / "out" / "previews").iterdir()), "no pictures of an earlier run's mask"


def test_finetune_predict_overlay_in_a_row(console: Console, small_data: SmallData, tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump({**SMALL_MODEL, "training": {"epochs": 2, "slides_per_step": 2}}))
    said = console("finetune", small_data.manifest, "--out", tmp_path / "model", "--recipe", recipe)
    assert said.code == 0, said.err
    history = rows(tmp_path / "model" / "history.csv")
    assert [row["epoch"] for row in history] == ["0", "1"]
    assert all(float(row["train_loss"]) > 0 and float(row["val_loss"]) > 0 for row in history)
    checkpoint = tmp_path / "model" / "model.safetensors"
    assert load_checkpoint(checkpoint)[1].selection.memory_size == 4

    run = tmp_path / "run"
    said = console("predict", small_data.slides, "--checkpoint", checkpoint, "--out", run)
    assert said.code == 0, said.err
    table = rows(run / "predictions.csv")
    assert list(table[0]) == ["slide_id", "prob_normal", "prob_tumor", "pred", "n_patches",
                              "status", "error"]  # fmt: skip
    for row in table:
        chances = {name: float(row[f"prob_{name}"]) for name in ("normal", "tumor")}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-6)
        assert row["pred"] == max(chances, key=lambda name: chances[name])
        result = read_result(run / "attention" / f"{row['slide_id']}.h5")
        assert len(result.coords) == int(row["n_patches"])
        assert result.attention_NHT.sum(axis=0) == pytest.approx(1, abs=1e-4)
        assert len(result.kept_ids_M) == min(4, len(result.coords))
        assert (run / "overlays" / f"{row['slide_id']}.png").exists()

    drawn = tmp_path / "drawn"
    said = console("overlay", run, "--out", drawn, "--side-px", "300", "--scale", "absolute")
    assert said.code == 0, said.err
    assert len(list(drawn.glob("*.png"))) == 6
    with Image.open(next(drawn.glob("*.png"))) as picture:
        assert max(picture.size) <= 700


def test_predicting_again_gives_the_same_numbers(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    slide = sorted(small_data.slides.glob("*.tif"))[0]
    for run in ("a", "b"):
        arguments = ["--out", tmp_path / run, "--no-overlays"]
        assert console("predict", slide, "--checkpoint", small_checkpoint, *arguments).code == 0
    first, second = (read_result(tmp_path / run / "attention" / f"{slide.stem}.h5") for run in ("a", "b"))
    assert np.array_equal(first.logits_NHT, second.logits_NHT)
    assert first.probabilities == second.probabilities


def test_run_executes_a_recipe(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    said = console("run", shipped_recipe("predict_folder"), "--set", f"slides={small_data.slides}",
                   "--set", f"checkpoint={small_checkpoint}", "--set", f"out={tmp_path / 'run'}",
                   "--set", "overlays=false")  # fmt: skip
    assert said.code == 0, said.err
    assert len(rows(tmp_path / "run" / "predictions.csv")) == 6
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert described["versions"]["torch"]
    assert len(described["checkpoint"]["sha256"]) == 64


def test_a_real_slide_is_labelled_and_one_without_a_resolution_reported(
    console: Console, real_data: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "slides").mkdir()
    for name in ("CMU-1-Small-Region.svs", "flat-kidney.tif"):
        (tmp_path / "slides" / name).symlink_to(real_data / "slides" / name)
    said = console("predict", tmp_path / "slides", "--checkpoint", small_checkpoint, "--out", tmp_path,
                   "--set", "streaming.batch=16")  # fmt: skip
    assert said.code == 3
    table = {row["slide_id"]: row for row in rows(tmp_path / "predictions.csv")}
    assert table["CMU-1-Small-Region"]["status"] == "ok"
    assert "--slide-mpp" in table["flat-kidney"]["error"]


@pytest.mark.slow
def test_real_slides_are_labelled_and_damaged_ones_reported(
    console: Console, real_data: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    said = console("predict", real_data / "slides", "--checkpoint", small_checkpoint, "--out", tmp_path,
                   "--set", "streaming.batch=16")  # fmt: skip
    assert said.code == 3
    table = {row["slide_id"]: row for row in rows(tmp_path / "predictions.csv")}
    for name in ("CMU-1-Small-Region", "cmu-1-small-region-dicom", "fluorescence-dapi"):
        assert table[name]["status"] == "ok", table[name]["error"]
        assert (tmp_path / "overlays" / f"{name}.png").exists()
    assert "--slide-mpp" in table["flat-kidney"]["error"]
    for name in ("flat-kidney",):
        assert table[name]["status"] == "failed"
        assert not (tmp_path / "attention" / f"{name}.h5").exists()


def test_recipes_and_manifests_of_the_package_are_found_from_any_folder(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = console("run", "pipelines/finetune_features.yaml")
    assert said.code == 2
    assert "data_manifests/camelyon16.csv: no such manifest; wsi_ips comes with one" in said.complaint
    assert Path(re.findall(r"this name, (.*): give", said.complaint)[0]).is_file()
    absent = console("finetune", "labels.csv", "--out", "run", "--recipe", "finetune_feature")
    assert "did you mean finetune_features?" in absent.complaint
    assert not list(tmp_path.iterdir())


def test_the_demo_recipe_is_the_demo_command_s_default() -> None:
    assert load_recipe(shipped_recipe("demo"))["command"] == "demo"


@pytest.mark.parametrize("name", ["nope", "transmil"])
def test_an_aggregator_that_cannot_be_is_told_before_tissue_is_searched(
    console: Console, small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def searched(*_: object, **__: object) -> None:
        raise AssertionError("tissue was searched first")

    monkeypatch.setattr("wsi_ips.training.fit.tile_bag", searched)
    said = console(
        "finetune", small_data.manifest, "--out", tmp_path / "out", "--set", f"model.aggregator={name}"
    )
    assert said.code == 2
    assert name in said.complaint
    assert not (tmp_path / "out").exists()
