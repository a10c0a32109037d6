"""A training is not taken for the same when the files that it learned from are others now."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.commands.console import Console
from tests.conftest import SMALL_MODEL, SmallData
from tests.datasets.feature_folders import write_features
from wsi_ips.commands.finetune import FinetuneJob
from wsi_ips.commands.recipe import make_job
from wsi_ips.config import FinetuneConfig
from wsi_ips.datasets.manifest import SlideRecord
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import load_checkpoint, save_checkpoint
from wsi_ips.models.encoders.registry import ALLOWED_CODE
from wsi_ips.training.learned_from import LearnedFrom
from wsi_ips.training.run_state import STATE_NAME
from wsi_ips.units import Mpp

WIDTH, SLIDES = 4, 8


def store(path: Path, seed: int) -> None:
    features = np.random.default_rng(seed).normal(size=(5, WIDTH)).astype(np.float32)
    write_features(path, features, trident=True)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A training on the features of eight slides, which takes a moment."""
    lines = ["slide_id,case_id,label,split,path"]
    for number in range(SLIDES):
        store(tmp_path / "features" / f"s{number}.h5", number)
        split = "val" if number >= 6 else "train"
        lines.append(f"s{number},p{number},{('normal', 'tumor')[number % 2]},{split},s{number}.tif")
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    settings: dict[str, Any] = {
        "command": "finetune",
        "model": {"encoder": {"name": "features", "features": WIDTH, "project": 4}},
        "selection": {"m": 4, "i": 4},
        "training": {"epochs": 1, "slides_per_step": 4},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "recipe.yaml"


def finetune(console: Console, recipe: Path, *more: object, features: str = "features") -> Any:
    folder = recipe.parent
    return console(
        "finetune", folder / "m.csv", "--features", folder / features, "--out", folder / "out", "--recipe", recipe,
        "--device", "cpu", *more,
    )  # fmt: skip


def test_features_that_were_stored_again_are_another_training(console: Console, recipe: Path) -> None:
    assert finetune(console, recipe).code == 0
    model = recipe.parent / "out" / "model.safetensors"
    trained = model.read_bytes()
    shutil.copytree(recipe.parent / "features", recipe.parent / "moved")
    assert finetune(console, recipe, features="moved").code == 0, "the same features elsewhere are the same"
    store(recipe.parent / "features" / "s3.h5", 99)
    said = finetune(console, recipe)
    assert said.code == 2
    assert "learned from other files (the file of 's3' has changed since)" in said.complaint
    assert "--restart" in said.complaint
    assert model.read_bytes() == trained
    assert finetune(console, recipe, "--restart").code == 0
    assert model.read_bytes() != trained
    assert finetune(console, recipe).code == 0


def test_a_fold_of_other_features_is_refused(console: Console, recipe: Path) -> None:
    assert finetune(console, recipe, "--folds", 2, "--set", "inner_val=0").code == 0
    again = finetune(console, recipe, "--folds", 2, "--set", "inner_val=0")
    assert "fold 1 was complete already" in again.out
    for number in (2, 5):
        store(recipe.parent / "features" / f"s{number}.h5", 90 + number)
    said = finetune(console, recipe, "--folds", 2, "--set", "inner_val=0")
    assert said.code == 2
    assert "holds a fold that learned from other files" in said.complaint
    assert finetune(console, recipe, "--folds", 2, "--set", "inner_val=0", "--restart").code == 0


def test_a_training_of_an_earlier_version_is_gone_on_with(console: Console, recipe: Path) -> None:
    """It does not say what it learned from."""
    assert finetune(console, recipe).code == 0
    state = recipe.parent / "out" / STATE_NAME
    held = torch.load(state, weights_only=True)
    del held["learned_from"]
    torch.save(held, state)
    store(recipe.parent / "features" / "s3.h5", 99)
    assert finetune(console, recipe).code == 0


def test_what_is_compared(tmp_path: Path) -> None:
    slides = [SlideRecord(name, name, {}, "train", tmp_path / f"{name}.tif") for name in "ab"]
    for slide in slides:
        slide.file.write_bytes(slide.slide_id.encode() * 9)
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"weights")
    config = FinetuneConfig.model_validate(
        {"model": {"encoder": {"weights": str(weights)}}, "training": {"start": weights}}
    )

    def now(given: Mpp | None = None, config: FinetuneConfig = config) -> LearnedFrom:
        return LearnedFrom.now(slides, config, slide_mpp=lambda name: given if name == "a" else None)

    before = LearnedFrom.from_json(json.loads(json.dumps(now().to_json())))
    assert before == now()
    assert before.difference(now()) == ""
    assert before.difference(now(Mpp(0.5))) == (
        "the resolution of slide 'a' was the file's own, now it is given as 0.5 µm"
    )
    assert "bag was slide, now it is case" in before.difference(replace(now(), bag="case"))
    slides[0].file.write_bytes(b"other")
    assert before.difference(now()) == "the file of 'a' has changed since"
    assert before.only("b").difference(now().only("b")) == ""
    slides[1].file.write_bytes(b"other")
    assert before.difference(now()) == "the files of 2 slides ('a', 'b') have changed since"
    assert now().digest != before.digest
    for slide in slides:
        slide.file.unlink()
    assert before.difference(now()) == "", "what cannot be read is not known to have changed"
    assert before.updated(now()).slides == before.slides, "and it stays known"
    weights.write_bytes(b"others!")
    assert before.difference(now()) == "the file of training.start has changed since"


def test_a_folder_that_is_called_as_timm_is_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever works beside a clone of timm changes no training by updating it."""
    task = {"name": "label", "classes": ["a", "b"], "activation": "softmax"}
    encoder = {"name": "resnet18", "weights": "timm"}
    config = FinetuneConfig.model_validate({"model": {"encoder": encoder, "tasks": [task]}})
    monkeypatch.chdir(tmp_path)
    before = LearnedFrom.now([], config)
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "setup.py").write_text("1")
    assert LearnedFrom.now([], config) == before


def test_of_a_folder_of_weights_the_file_that_is_read_counts(tmp_path: Path) -> None:
    folder = tmp_path / "uni"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"weights")
    config = FinetuneConfig.model_validate({"model": {"encoder": {"name": "uni", "weights": str(folder)}}})
    before = LearnedFrom.now([], config, slide_mpp=lambda name: None)
    assert list(before.weights.values()) != [""]
    (folder / "README.md").write_text("how to use it")
    (folder / ".cache").mkdir()
    (folder / "another.bin").write_bytes(b"of something else")
    assert before.difference(LearnedFrom.now([], config, slide_mpp=lambda name: None)) == ""
    (folder / "pytorch_model.bin").write_bytes(b"others!")
    now = LearnedFrom.now([], config, slide_mpp=lambda name: None)
    assert before.difference(now) == "the file of model.encoder.weights, a folder, has changed since"


MEAN_COLOUR = """
from torch import nn

class Mine(nn.Module):
    dim = 3

    def forward(self, pixels):
        return FACTOR * pixels.mean(dim=(2, 3))

def build():
    return Mine()
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the code of an encoder, which the user allows to be run, and a checkpoint of it beside it."""
    code = tmp_path / "mine.py"
    code.write_text(MEAN_COLOUR.replace("FACTOR", "1"))
    monkeypatch.setenv(ALLOWED_CODE, f"{code}:build")
    encoder = {"name": f"{code}:build", "weights": "none"}
    model = {**SMALL_MODEL, "model": {**SMALL_MODEL["model"], "encoder": encoder}}
    job = make_job({"command": "finetune", "manifest": "m", "out": "o", **model}, source="test")
    assert isinstance(job, FinetuneJob)
    save_checkpoint(tmp_path / "model.safetensors", build_net(job.model), job.pipeline)
    return code


@pytest.mark.parametrize("features", [False, True])
def test_results_of_other_code_are_not_gone_on_with(
    console: Console, own_code: Path, small_data: SmallData, tmp_path: Path, features: bool
) -> None:
    (tmp_path / "slides").mkdir()
    slide = sorted(small_data.slides.glob("*.tif"))[0]
    (tmp_path / "slides" / "a.tif").write_bytes(slide.read_bytes())
    words = ["--checkpoint", tmp_path / "model.safetensors", "--device", "cpu", "--out", tmp_path / "out"]
    command = ["features" if features else "predict", tmp_path / "slides", *words]
    stored = tmp_path / "out" / ("pt_files/a.pt" if features else "predictions.csv")
    assert console(*command).code == 0
    first = stored.read_bytes()
    said = console(*command)
    assert said.code == 0
    assert (
        "1 of 1 slide was encoded already" if features else "1 of 1 slide was labelled already"
    ) in said.out
    own_code.write_text(MEAN_COLOUR.replace("FACTOR", "-7"))
    said = console(*command)
    assert said.code == 2, "the results are of other code"
    assert "code_sha256" in said.complaint if features else f"code of encoder {own_code}" in said.complaint
    assert stored.read_bytes() == first
    if not features:
        assert console(*command, "--force").code == 0
        assert stored.read_bytes() != first


def test_a_checkpoint_says_that_its_code_is_another_one(
    own_code: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_checkpoint(tmp_path / "model.safetensors")
    assert not caplog.messages
    own_code.write_text(MEAN_COLOUR.replace("FACTOR", "-7"))
    load_checkpoint(tmp_path / "model.safetensors")
    assert any("had the SHA-256" in message and "may differ" in message for message in caplog.messages)
