"""A large encoder fine-tuned from slide labels, as a user does it: trained, killed, resumed, used, merged."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.commands.console import Console
from tests.conftest import SmallData
from tests.models.encoders.look_alikes import as_file, lay_into_cache, plain_network, tiny_entry
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.models.encoders import registry
from wsi_ips.models.encoders.lora import BASE_WEIGHTS
from wsi_ips.models.encoders.registry import ENCODERS

NAME = "uni2-h"
SETTINGS = {
    "model.encoder.lora.rank": 8,
    "model.encoder.drop_path": 0.2,
    "model.attention": "direct",
    "tiling.patch_px": 64,
    "tiling.patch_mpp": 2.0,
    "tiling.min_tissue": 0.2,
    "selection.m": 4,
    "selection.i": 8,
    "training.epochs": 2,
    "training.save_minutes": 0,
    "training.layer_decay": 0.8,
    "training.encoder_checkpointing": "true",
    "training.ema": 0.9,
    "training.head_start.epochs": 2,
    "training.head_start.views": 1,
}
KILLED = """
import os, signal, sys
from tests.models.encoders.look_alikes import tiny_entry
from wsi_ips import cli
from wsi_ips.models.encoders import registry
from wsi_ips.training.learning import Learner
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
registry.ENCODERS = {**registry.ENCODERS, "uni2-h": tiny_entry("uni2-h")}
learn, steps = Learner.learn, []
def dies(self, *arguments, **options):
    if isinstance(self.net.encoder, TimmEncoder):
        steps.append(1)
        if len(steps) > 3:
            os.kill(os.getpid(), signal.SIGKILL)
    return learn(self, *arguments, **options)
Learner.learn = dies
cli.main()
"""
"""``wsi-ips`` in a process of its own, which is killed in the second epoch with everything that learns."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with the weights of a look-alike of UNI2-h, and a hub that may not be asked."""
    import huggingface_hub.constants
    import huggingface_hub.file_download

    for module in (huggingface_hub.constants, huggingface_hub.file_download):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True, raising=False)
    entry = tiny_entry(NAME)
    weights = plain_network(entry).state_dict()
    lay_into_cache(tmp_path / "hub", entry.sources[0], {entry.files[0]: as_file(weights)})
    monkeypatch.setattr(registry, "ENCODERS", {**ENCODERS, NAME: entry})
    return tmp_path / "hub"


def arguments(small_data: SmallData, out: Path) -> list[str | Path]:
    settings = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    return ["finetune", small_data.manifest, "--encoder", NAME, "--out", out, *settings]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def predictions(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "predictions.csv").read_text().splitlines()))


@pytest.mark.slow
def test_a_large_encoder_learns_from_slide_labels(
    console: Console,
    small_data: SmallData,
    hub: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = console(*arguments(small_data, tmp_path / "whole"))
    assert said.code == 0, said.err
    environment = {**os.environ, "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", KILLED, *map(str, arguments(small_data, tmp_path / "run"))]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "run" / "training_state.pt").exists()
    said = console(*arguments(small_data, tmp_path / "run"))
    assert said.code == 0, said.err
    for name in ("model.safetensors", "last.safetensors", "history.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name

    checkpoint = tmp_path / "run" / "model.safetensors"
    held = [name for name in tensors(checkpoint) if name.startswith("encoder.")]
    assert len(held) == 8
    assert all(name.endswith(("lora_a", "lora_b")) for name in held)
    assert any(tensor.any() for name, tensor in tensors(checkpoint).items() if name.endswith("lora_b"))
    predict = ["predict", small_data.slides, "--checkpoint", checkpoint]
    said = console(*predict, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    rows = predictions(tmp_path / "out")
    assert {row["status"] for row in rows} == {"ok"}
    assert list((tmp_path / "out").rglob("*.png"))
    said = console("overlay", tmp_path / "out", "--map", "attention")
    assert said.code == 0, said.err

    merged = tmp_path / "merged.safetensors"
    said = console("merge", checkpoint, "--out", merged)
    assert said.code == 0, said.err
    card = (tmp_path / "merged.MODEL_CARD.md").read_text()
    assert "merged with the encoder's own weights" in card
    assert "adapters of rank" in card
    before, after = load_checkpoint(checkpoint)[0], load_checkpoint(merged)[0]
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert (before.encode(pixels) - after.encode(pixels)).abs().max() <= 1e-5
    assert not [name for name in tensors(merged) if "lora" in name]
    said = console("predict", small_data.slides, "--checkpoint", merged, "--out", tmp_path / "out2")
    assert said.code == 0, said.err
    again = predictions(tmp_path / "out2")
    probabilities = [column for column in rows[0] if column.startswith("prob_")]
    assert probabilities
    for row, other in zip(rows, again, strict=True):
        for column in probabilities:
            assert float(row[column]) == pytest.approx(float(other[column]), abs=1e-5)

    said = console("merge", merged, "--out", tmp_path / "twice.safetensors")
    assert said.code == 2
    assert said.complaint == f"wsi-ips: {merged}: holds no adapters; it is a whole checkpoint as it is"
    hub.rename(tmp_path / "elsewhere")
    said = console(*predict, "--out", tmp_path / "out3")
    assert said.code == 2
    assert (
        "holds adapters alone, and the weights of uni2-h that they belong to are not here" in said.complaint
    )
    assert "hf download MahmoodLab/UNI2-h" in said.complaint
    assert BASE_WEIGHTS in said.complaint
    assert not (tmp_path / "out3").exists()
    (found,) = (tmp_path / "elsewhere").rglob("pytorch_model.bin")
    said = console("merge", checkpoint, "--out", tmp_path / "again.safetensors", "--weights", found)
    assert said.code == 0, said.err
    assert (tmp_path / "again.safetensors").read_bytes() == merged.read_bytes()
    monkeypatch.setenv(BASE_WEIGHTS, str(found))
    assert console(*predict, "--out", tmp_path / "out3").code == 0


def test_merge_says_what_it_cannot_do(console: Console, small_checkpoint: Path, tmp_path: Path) -> None:
    assert (
        "holds no adapters"
        in console("merge", small_checkpoint, "--out", tmp_path / "m.safetensors").complaint
    )
    assert "ends in .safetensors" in console("merge", small_checkpoint, "--out", tmp_path / "m.pt").complaint
    assert "name another file" in console("merge", small_checkpoint, "--out", small_checkpoint).complaint
    missing = tmp_path / "none.safetensors"
    assert str(missing) in console("merge", missing, "--out", tmp_path / "m.safetensors").complaint
    assert not list(tmp_path.iterdir())
