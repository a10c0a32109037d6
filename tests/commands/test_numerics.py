"""A run says how the device calculated, and ``deterministic: true`` reaches every command that runs a network."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from tests.commands.console import Console
from tests.conftest import SMALL_MODEL, SmallData
from wsi_ips.commands.predict import PredictJob, predict
from wsi_ips.commands.recipe import shipped_recipe
from wsi_ips.errors import ConfigError
from wsi_ips.images.learning import BagScores, score_bags
from wsi_ips.images.traffic_signs import make_signs
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.progress import silent


def job(data: SmallData, checkpoint: Path, out: Path, *, deterministic: bool) -> PredictJob:
    return PredictJob.model_validate(
        {
            "slides": sorted(data.slides.iterdir())[0],
            "checkpoint": checkpoint,
            "out": out,
            "overlays": False,
            "deterministic": deterministic,
        }
    )


def test_run_json_says_how_the_device_calculated(
    small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    for deterministic in (False, True):
        out = tmp_path / str(deterministic)
        predict(job(small_data, small_checkpoint, out, deterministic=deterministic), silent)
        told = json.loads((out / "run.json").read_text())["numerics"]
        assert told["deterministic"] is deterministic
        assert told["tf32_convolutions"] is not deterministic
    with pytest.raises(ConfigError, match="deterministic"):
        predict(job(small_data, small_checkpoint, tmp_path / "False", deterministic=True), silent)


@pytest.fixture
def while_encoding(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether only deterministic algorithms were allowed, each time that an encoder ran."""
    held: list[bool] = []
    forward = TimmEncoder.forward

    def watched(self: TimmEncoder, pixels_n3PP: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            held.append(torch.are_deterministic_algorithms_enabled())
        return forward(self, pixels_n3PP)

    monkeypatch.setattr(TimmEncoder, "forward", watched)
    return held


@pytest.mark.parametrize("deterministic", [False, True])
def test_features(
    console: Console, small_data: SmallData, tmp_path: Path, while_encoding: list[bool], deterministic: bool
) -> None:
    slide = sorted(small_data.slides.iterdir())[0]
    words = ("features", slide, "--encoder", "resnet10t", "--weights", "none",
             "--out", tmp_path / "f", "--set", "tiling.patch_px=32",
             "--set", "tiling.patch_mpp=2.0")  # fmt: skip
    said = console(*words, "--set", f"deterministic={deterministic}")
    assert said.code == 0, said.err
    assert set(while_encoding) == {deterministic}
    told = json.loads((tmp_path / "f" / "run.json").read_text())
    assert told["numerics"]["deterministic"] is deterministic
    assert not torch.are_deterministic_algorithms_enabled()
    other = console(*words, "--set", f"deterministic={not deterministic}")
    assert other.code == 2
    assert "features made with other settings (deterministic" in other.complaint


def test_predictions_of_held_out_slides(
    console: Console, small_data: SmallData, tmp_path: Path, while_encoding: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({**SMALL_MODEL, "training": {"epochs": 1, "deterministic": True}}))
    read = "wsi_ips.inference.held_out.predict_in_turn"
    held: list[bool] = []
    monkeypatch.setattr(read, lambda *_, **__: held.append(torch.are_deterministic_algorithms_enabled()))
    console("finetune", small_data.manifest, "--recipe", recipe, "--out", tmp_path / "cv", "--folds", "2",
            "--set", "inner_val=0")  # fmt: skip
    assert held == [True, True]
    assert json.loads((tmp_path / "cv" / "held_out" / "run.json").read_text())["numerics"]["deterministic"]


@pytest.mark.parametrize("deterministic", [False, True])
def test_test_images(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    make_signs(tmp_path / "sts", train=6, test=4)
    data = f"data={{kind: traffic_signs, root: {tmp_path / 'sts'}, verify: false, height_px: 120, width_px: 160}}"
    held: list[bool] = []

    def watched(*arguments: Any, **named: Any) -> BagScores:
        held.append(torch.are_deterministic_algorithms_enabled())
        return score_bags(*arguments, **named)

    monkeypatch.setattr("wsi_ips.images.learning.score_bags", watched)
    words = [data, f"out={tmp_path / 'run'}", "tiling.patch_px=40", "selection.m=3", "device=cpu",
             "model.encoder={name: resnet10t, weights: none, stage: 0, batch_norm: batch}",
             "model.attention={heads: 2, key_dim: 4, value_dim: 4, inner_dim: 8, positions: raster}",
             "training.epochs=1", "training.warmup_epochs=0", "training.slides_per_step=4",
             f"training.deterministic={deterministic}"]  # fmt: skip
    said = console("run", shipped_recipe("traffic_signs"), *(w for each in words for w in ("--set", each)))
    assert said.code == 0, said.err
    assert held == [deterministic]
