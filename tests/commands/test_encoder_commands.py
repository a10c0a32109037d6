"""Encoders by name on the command line: the list, features, fine-tuning, code of the user's own."""

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.commands.console import Console
from tests.conftest import SMALL_MODEL, SmallData
from tests.models.encoders.look_alikes import PX, as_file, lay_into_cache, plain_network, tiny_entry
from tests.tiling.foreign_files import write_trident
from wsi_ips.config import EncoderConfig, TilingConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.models.encoders import registry
from wsi_ips.models.encoders.fitting import fitting_tiling
from wsi_ips.models.encoders.registry import ENCODERS
from wsi_ips.slides.registry import open_slide
from wsi_ips.streaming.region_source import PatchRegion
from wsi_ips.units import Mpp

NAME = "kaiko-vits16"


@pytest.fixture
def look_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny network in the place of an encoder, its weights in a hub cache that may not be asked for others."""
    import huggingface_hub.constants
    import huggingface_hub.file_download

    for module in (huggingface_hub.constants, huggingface_hub.file_download):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True, raising=False)
    entry = tiny_entry(NAME)
    network = plain_network(entry)
    lay_into_cache(tmp_path / "hub", entry.sources[0], {"model.safetensors": as_file(network.state_dict())})
    monkeypatch.setattr(registry, "ENCODERS", {**ENCODERS, NAME: entry})
    return network


def test_the_list_says_whose_weights_are_here(console: Console, look_alike: Any) -> None:
    said = console("encoders")
    assert said.code == 0
    lines = {line.split()[0]: line for line in said.out.splitlines()}
    assert lines[NAME].endswith(" here")
    assert not lines[NAME].endswith("not here")
    assert lines["uni2-h"].endswith("not here")
    assert "1536" in lines["uni2-h"]
    assert lines["uni2-h"].count("CC-BY-NC-ND-4.0, gated") == 1


def test_the_list_as_json(console: Console, look_alike: Any) -> None:
    said = console("encoders", "--json")
    listed = {entry["name"]: entry for entry in map(json.loads, said.out.splitlines())}
    assert len(listed) >= 20
    assert listed["virchow2"]["architecture"]["arguments"]["reg_tokens"] == 4
    assert listed["virchow2"]["weights"] is None
    assert Path(listed[NAME]["weights"]).is_file()


def test_one_encoder_and_how_to_get_its_weights(console: Console, look_alike: Any) -> None:
    said = console("encoders", "gigapath")
    assert said.code == 0
    for wanted in ("resized to 256 px (bicubic), centre of 224 px", "https://huggingface.co/prov-gigapath/",
                   "pytorch_model.bin", "1,134,953,984"):  # fmt: skip
        assert wanted in said.out
    assert "weights: not here" in said.out
    assert "snapshots" in console("encoders", NAME).out
    assert "listed are uni, uni2-h" in console("encoders", "unix").complaint


def test_an_encoder_of_another_package_that_does_not_load_hides_no_other(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [EntryPoint("theirs", "no_such_module_of_enc:it", "wsi_ips.encoders")]
    monkeypatch.setattr("wsi_ips.registry.entry_points", lambda group: points)
    said = console("encoders")
    assert said.code == 0
    assert "encoder theirs of the package no_such_module_of_enc does not load" in said.out
    assert "uni2-h" in said.out


def test_a_plain_module_of_another_package_is_described_by_what_is_known(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [EntryPoint("theirs", "torch.nn:Identity", "wsi_ips.encoders")]
    monkeypatch.setattr("wsi_ips.registry.entry_points", lambda group: points)
    said = console("encoders", "theirs")
    assert said.code == 0
    assert said.out.startswith(
        "theirs: a torch module of the package torch.nn, which says nothing of its patches"
    )
    assert json.loads(console("encoders", "theirs", "--json").out)["package"] == "torch.nn"
    listed = console("encoders").out
    assert "theirs: of the package torch.nn" in listed
    assert f"{len(ENCODERS) + 1} encoders; more of one" in listed


def test_the_hub_s_own_environment_says_where_weights_are(tmp_path: Path) -> None:
    """In a new interpreter: ``HF_HUB_CACHE`` is read when the hub's client is imported."""
    entry = ENCODERS[NAME]
    lay_into_cache(tmp_path, entry.sources[0], {"model.safetensors": as_file({"a": torch.zeros(1)})})
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "wsi_ips.cli", "encoders", NAME]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"weights: {tmp_path}" in said.stdout


def stored(folder: Path, slide_id: str) -> Any:
    with h5py.File(folder / "h5_files" / f"{slide_id}.h5", "r") as file:
        return file["features"][:], file["coords"][:]


def by_the_published_rule(network: Any, path: Path, corners: Any, *, px: int, mpp: float) -> Any:
    """The patch, Pillow's bilinear resize, 0.5 and 0.5, the class token."""
    with open_slide(path) as slide:
        region = PatchRegion.of(slide.info, patch_px=px, patch_mpp=Mpp(mpp), slide_mpp=slide.info.known_mpp())
        patches = [region.read(slide, tuple(corner)) for corner in corners.tolist()]
    pictures = [
        np.asarray(Image.fromarray(each).resize((PX, PX), Image.Resampling.BILINEAR)) for each in patches
    ]
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        return network((pixels - 0.5) / 0.5).numpy()


def test_features_by_name_are_the_published_rule_s(
    console: Console,
    small_data: SmallData,
    look_alike: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    slide = sorted(small_data.slides.iterdir())[0]
    said = console("features", slide, "--encoder", NAME, "--patch-px", "70", "--patch-mpp", "2",
                   "--out", tmp_path / "f")  # fmt: skip
    assert said.code == 0, said.err
    assert "meant for patches of 224 px at 0.5 µm per pixel; these have 70 px at 2" in caplog.text
    features, corners = stored(tmp_path / "f", slide.stem)
    assert len(features) > 3
    expected = by_the_published_rule(look_alike, slide, corners, px=70, mpp=2.0)
    # The stream may use a JPEG decoder's own reduction, a quarter of a grey level away.
    assert np.abs(features - expected).mean() < 0.02 * np.abs(expected).mean()


def test_patches_that_trident_laid_out_keep_their_own_size(
    console: Console,
    small_data: SmallData,
    look_alike: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its 131 level-0 pixels, not the 224 px at 0.5 µm that the encoder is meant for, and no warning for it."""
    slide = sorted(small_data.slides.iterdir())[0]
    with open_slide(slide) as opened:
        size = opened.info.l0_size
    corners = np.array([[301, 402], [455, 333], [600, 700]])
    write_trident(tmp_path / "c" / "patches" / f"{slide.stem}_patches.h5", corners, patch_size=131, target=20.0,
                  level0=20.0, size=size)  # fmt: skip
    said = console("features", slide, "--encoder", NAME, "--from-coords", tmp_path / "c",
                   "--out", tmp_path / "f")  # fmt: skip
    assert said.code == 0, said.err
    assert "meant for" not in caplog.text
    features, given = stored(tmp_path / "f", slide.stem)
    assert np.array_equal(given, corners)
    with open_slide(slide) as opened:
        mpp = opened.info.known_mpp()
    expected = by_the_published_rule(look_alike, slide, corners, px=131, mpp=mpp)
    assert np.abs(features - expected).max() <= 1e-4


def test_the_encoder_s_own_patches_are_the_default() -> None:
    fitted = fitting_tiling(TilingConfig(), EncoderConfig(name="ctranspath"))
    assert (fitted.patch_px, fitted.patch_mpp) == (224, 1.0)
    assert fitting_tiling(TilingConfig(patch_px=256), EncoderConfig(name="gigapath")).patch_mpp == 0.5
    assert fitting_tiling(TilingConfig(patch_mpp=0.25), EncoderConfig(name="virchow2")).patch_px == 224
    plain = TilingConfig()
    assert fitting_tiling(plain, EncoderConfig(name="resnet18")) is plain
    without = fitting_tiling(plain, EncoderConfig(name="gigapath", transform="none"))
    assert without.patch_px == 224
    with pytest.raises(ConfigError, match="overlap_px 230 must be smaller than the 224 px"):
        fitting_tiling(TilingConfig(overlap_px=230), EncoderConfig(name="uni"))


def test_patches_that_do_not_fit_are_a_warning_with_both_numbers(caplog: pytest.LogCaptureFixture) -> None:
    fitting_tiling(TilingConfig(patch_px=256, patch_mpp=0.5), EncoderConfig(name="uni"))
    assert "224 px at 0.5 µm per pixel; these have 256 px at 0.5, which it sees at 0.571 µm" in caplog.text
    caplog.clear()
    fitting_tiling(TilingConfig(patch_px=224, patch_mpp=0.25), EncoderConfig(name="virchow2"))
    fitting_tiling(TilingConfig(patch_px=224, patch_mpp=3.0), EncoderConfig(name="openmidnight"))
    assert caplog.text == ""


def test_patches_far_smaller_than_the_pictures_of_the_pretraining_are_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    small = TilingConfig(patch_px=96)
    assert fitting_tiling(small, EncoderConfig(name="tf_efficientnet_lite0")) is small
    assert "learned from pictures of 224 px and is given patches of 96 px" in caplog.text
    assert "encoder.transform: {resize: 144}" in caplog.text
    caplog.clear()
    said: set[str] = set()
    for _ in range(3):
        fitting_tiling(small, EncoderConfig(name="tf_efficientnet_lite0"), said=said)
    assert len(caplog.records) == 1
    caplog.clear()
    for tiling, encoder in (
        (small, {"transform": {"resize": 192}}),
        (small, {"weights": "none"}),
        (small, {"name": "spinenet49"}),
        (small, {"name": "features", "features": 512}),
        (TilingConfig(patch_px=192), {}),
        (TilingConfig(patch_px=256), {}),
    ):
        fitting_tiling(tiling, EncoderConfig.model_validate({"name": "resnet18", **encoder}))
    assert caplog.text == ""


RECIPE = {
    **SMALL_MODEL,
    "model": {**SMALL_MODEL["model"], "encoder": {"name": "resnet10t", "weights": "none", "stage": 1}},
    "training": {"epochs": 1, "warmup_epochs": 0, "head_start": {"epochs": 0}},
}


@pytest.mark.parametrize("trainable", [True, False])
def test_fine_tuning_by_name_and_prediction(
    console: Console, small_data: SmallData, look_alike: Any, tmp_path: Path, trainable: bool
) -> None:
    """The flag takes the place of the recipe's encoder with all that belongs to that."""
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    learns = f"model.encoder.trainable={str(trainable).lower()}"
    said = console("finetune", small_data.manifest, "--recipe", tmp_path / "r.yaml", "--encoder", NAME,
                   "--set", learns, "--out", tmp_path / "m")  # fmt: skip
    assert said.code == 0, said.err
    net, pipeline = load_checkpoint(tmp_path / "m" / "model.safetensors")
    encoder = pipeline.model.encoder
    assert (encoder.name, encoder.weights, encoder.stage) == (NAME, "timm", None)
    assert pipeline.tiling.patch_px == 32, "what the recipe sets stays"
    for name, tensor in net.encoder.backbone.state_dict().items():
        assert torch.equal(tensor, look_alike.state_dict()[name]) != trainable, name
        assert torch.allclose(tensor, look_alike.state_dict()[name], atol=0.01), name
    slide = sorted(small_data.slides.iterdir())[0]
    said = console("predict", slide, "--checkpoint", tmp_path / "m" / "model.safetensors", "--no-overlays",
                   "--out", tmp_path / "p")  # fmt: skip
    assert said.code == 0, said.err


MINE = """
from pathlib import Path

from torch import nn

class Mine(nn.Module):
    dim = 3
    def forward(self, pixels):
        return pixels.mean(dim=(2, 3))

def build():
    Path({mark!r}).touch()
    return Mine()
"""


def test_code_of_the_user_s_own_runs_where_he_names_it_and_not_for_a_checkpoint(
    console: Console, small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(registry.ALLOWED_CODE, "")
    code, mark = tmp_path / "mine.py", tmp_path / "mark"
    code.write_text(MINE.format(mark=str(mark)))
    slide = sorted(small_data.slides.iterdir())[0]
    said = console("features", slide, "--encoder", f"{code}:build", "--patch-px", "32", "--patch-mpp", "2",
                   "--layout", "trident", "--out", tmp_path / "f")  # fmt: skip
    assert said.code == 0, said.err
    with h5py.File(tmp_path / "f" / "features_mine_build" / f"{slide.stem}.h5") as file:
        features = file["features"][:]
    assert features.shape[1] == 3
    assert (features >= 0).all()
    assert (features <= 1).all()
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    said = console("finetune", small_data.manifest, "--recipe", tmp_path / "r.yaml", "--encoder",
                   f"{code}:build", "--out", tmp_path / "m")  # fmt: skip
    assert said.code == 0, said.err
    mark.unlink()
    monkeypatch.setenv(registry.ALLOWED_CODE, "")
    predict = ("predict", slide, "--checkpoint", tmp_path / "m" / "model.safetensors", "--no-overlays")
    said = console(*predict, "--out", tmp_path / "p")
    assert said.code == 2
    assert registry.ALLOWED_CODE in said.complaint
    assert not mark.exists(), "nothing was run"
    monkeypatch.setenv(registry.ALLOWED_CODE, f"{code}:build")
    said = console(*predict, "--out", tmp_path / "p")
    assert said.code == 0, said.err
