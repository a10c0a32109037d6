"""A SpineNet as patch encoder through the commands: learn, predict, draw."""

from pathlib import Path

import pytest

from tests.commands.console import Console
from tests.conftest import SmallData
from wsi_ips.commands.recipe import shipped_recipe
from wsi_ips.inference.results import read_result
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.models.spinenet import SpineNet

SMALL = [
    "tiling={patch_px: 32, patch_mpp: 2.0, min_tissue: 0.2}",
    "selection={m: 4, i: 8}",
    "model.encoder.project=16",
    "model.attention={heads: 2, key_dim: 8, value_dim: 8, inner_dim: 16}",
    "training={epochs: 1, slides_per_step: 2, micro_batch: null}",
]


@pytest.mark.slow
def test_spinenet_learns_predicts_and_draws(console: Console, small_data: SmallData, tmp_path: Path) -> None:
    options = [part for setting in SMALL for part in ("--set", setting)]
    recipe = shipped_recipe("finetune_spinenet")
    said = console("finetune", small_data.manifest, "--out", tmp_path / "model", "--recipe", recipe, *options)
    assert said.code == 0, said.err
    checkpoint = tmp_path / "model" / "model.safetensors"
    net, pipeline = load_checkpoint(checkpoint)
    assert isinstance(net.encoder.backbone, SpineNet)
    # Five outputs of 128 channels stand side by side.
    assert (pipeline.model.encoder.pooling, net.encoder.dim) == ("levels", 640)
    slide = sorted(small_data.slides.glob("*.tif"))[0]
    said = console("predict", slide, "--checkpoint", checkpoint, "--out", tmp_path / "run")
    assert said.code == 0, said.err
    result = read_result(tmp_path / "run" / "attention" / f"{slide.stem}.h5")
    assert result.attention_NHT.sum(axis=0) == pytest.approx(1, abs=1e-4)
    assert (tmp_path / "run" / "overlays" / f"{slide.stem}.png").exists()
