"""What the front door gives is what the commands write."""

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import wsi_ips as wi
from tests.commands.console import Console, make_console
from tests.conftest import SMALL_MODEL, SmallData
from wsi_ips.errors import ConfigError
from wsi_ips.tiling.coords import read_coords


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Console:
    return make_console(monkeypatch, capsys)


def test_tile_finds_what_the_command_writes(here: Path, console: Console) -> None:
    console("tile", "slide.svs", "--out", "tiled", "--patch-px", "64", "--mag", "10", "--overlap-px", "8")
    stored = read_coords(Path("tiled/patches/slide.h5"))
    patches = wi.tile("slide.svs", px=64, mag=10, overlap=8)
    for name in (
        "slide_id",
        "l0_size",
        "slide_mpp",
        "patch_px",
        "patch_mpp",
        "overlap_px",
        "l0_patch",
        "g_size",
    ):
        assert getattr(patches.coords, name) == getattr(stored, name)
    assert np.array_equal(patches.xy, stored.l0_xy_N2)
    assert np.array_equal(patches.ids, stored.ids_N)
    assert np.array_equal(patches.tissue, stored.tissue_N)
    assert patches.xy.dtype == np.int64


def test_a_stream_of_stored_coordinates_is_that_of_the_search(here: Path, console: Console) -> None:
    console("tile", "slide.svs", "--out", "tiled", "--patch-px", "64", "--mag", "10", "--overlap-px", "8")
    searched = list(wi.stream("slide.svs", px=64, mag=10, overlap=8, batch=32))
    patches = wi.tile("slide.svs", px=64, mag=10, overlap=8)
    for given in (
        wi.stream("slide.svs", patches="tiled", batch=32),
        wi.stream("slide.svs", patches=patches, batch=32),
    ):
        for ours, theirs in zip(given, searched, strict=True):
            assert torch.equal(ours.pixels, theirs.pixels)
            assert torch.equal(ours.xy, theirs.xy)
            assert torch.equal(ours.ids, theirs.ids)


def test_an_encoder_over_a_stream_gives_the_features_that_the_command_stores(
    here: Path, console: Console
) -> None:
    words = (
        "--encoder",
        "test_convnext",
        "--weights",
        "none",
        "--patch-px",
        "64",
        "--mag",
        "10",
        "--device",
        "cpu",
    )
    assert console("features", "slide.svs", "--out", "features", *words).code == 0
    encoder = wi.Encoder("test_convnext", weights=None, device="cpu")
    batches = list(wi.stream("slide.svs", px=64, mag=10))
    with h5py.File("features/h5_files/slide.h5") as file:
        assert np.array_equal(
            torch.cat([encoder(batch.pixels) for batch in batches]).numpy(), file["features"][()]
        )
        assert np.array_equal(torch.cat([batch.xy for batch in batches]).numpy(), file["coords"][()])


def test_predict_is_the_command_s_result_bit_for_bit(here: Path, console: Console) -> None:
    words = ("--checkpoint", "model.safetensors", "--out", "commanded", "--device", "cpu")
    assert console("predict", "slides", *words).code == 0
    commanded = wi.Run("commanded")
    run = wi.predict("slides", "model.safetensors", "run", device="cpu")
    table = Path("commanded/predictions.csv").read_bytes()
    assert Path("run/predictions.csv").read_bytes() == table
    assert Path("run/overlays/a.png").read_bytes() == Path("commanded/overlays/a.png").read_bytes()
    with Path("commanded/predictions.csv").open(newline="") as file:
        rows = {row["slide_id"]: row for row in csv.DictReader(file)}
    for name in "ab":
        alone = wi.predict(f"slides/{name}.tif", "model.safetensors", device="cpu")
        for result in (alone, run[name], commanded[name]):
            assert result.probabilities == commanded[name].probabilities
            assert float(rows[name]["prob_tumor"]) == result.probabilities["label"]["tumor"]
            assert np.array_equal(result.stored.attention_NHT, commanded[name].stored.attention_NHT)
            assert np.array_equal(result.stored.kept_ids_M, commanded[name].stored.kept_ids_M)
            assert result.stored.checkpoint == commanded[name].stored.checkpoint
        assert alone.stored.slide_path == commanded[name].stored.slide_path


def test_coordinates_are_kept_for_predict_and_train(
    here: Path, small_data: SmallData, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = wi.predict(small_data.slides, small_checkpoint, "run", coords="kept", overlays=False)
    assert {path.stem for path in Path("kept/patches").iterdir()} == set(run)
    monkeypatch.setattr("wsi_ips.tiling.patches.find_tissue", None)  # nothing is left to search
    config = {**SMALL_MODEL, "training": {"slides_per_step": 2}}
    kept = wi.train(small_data.manifest, "a", config=config, epochs=1, coords="kept", device="cpu")
    given = wi.train(small_data.manifest, "b", config=config, epochs=1, patches="kept", device="cpu")
    assert kept.history == given.history
    with pytest.raises(ConfigError, match="coords"):
        wi.predict("slide.svs", small_checkpoint, coords="kept")


def test_an_overlay_is_the_command_s(here: Path, console: Console) -> None:
    run = wi.predict("slides", "model.safetensors", "run", device="cpu", overlays=False)
    assert not Path("run/overlays").exists()
    assert console("overlay", "run", "--side-px", "300", "--head", "1").code == 0
    image = wi.overlay(run["a"], side_px=300, head=1, out="mine.png")
    assert Path("mine.png").read_bytes() == Path("run/overlays/attention-head1/a.png").read_bytes()
    with Image.open("run/overlays/attention-head1/a.png") as drawn:
        assert np.array_equal(np.asarray(drawn.convert("RGB")), np.asarray(image))
        assert drawn.info["shown"] == image.info["shown"]


def test_several_models_are_averaged(here: Path, small_checkpoint: Path) -> None:
    both = ["model.safetensors", small_checkpoint]
    result = wi.predict("slide.svs", both, device="cpu")
    each = [wi.predict("slide.svs", one, device="cpu").probabilities["label"]["tumor"] for one in both]
    assert result.probabilities["label"]["tumor"] == pytest.approx(np.mean(each))
    assert result.spread["label"]["tumor"] == pytest.approx(np.std(each, ddof=1))
    run = wi.predict("slide.svs", wi.load(both, device="cpu"), "run")
    assert run["slide"].probabilities == result.probabilities
