"""``streaming.disk_cache`` through the command line: no result changes, and the folder is used by all commands."""

from pathlib import Path

import pytest
import yaml

from tests.commands.console import Console
from tests.conftest import SMALL_MODEL, SmallData
from wsi_ips.commands import features, predict
from wsi_ips.commands.features import FeaturesJob
from wsi_ips.commands.predict import PredictJob
from wsi_ips.commands.recipe import make_job


def test_training_through_a_cache_ends_with_the_same_weights(
    console: Console, small_data: SmallData, tmp_path: Path
) -> None:
    recipe, cache = tmp_path / "small.yaml", tmp_path / "cache"
    recipe.write_text(yaml.safe_dump({**SMALL_MODEL, "training": {"epochs": 1, "slides_per_step": 2}}))
    wanted = ("--set", f"streaming.disk_cache.folder={cache}", "--set", "streaming.disk_cache.gb=0.1")
    for name, options in (("plain", ()), ("cached", wanted)):
        said = console(
            "finetune", small_data.manifest, "--recipe", recipe, "--out", tmp_path / name, *options
        )
        assert said.code == 0, said.complaint
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "cached")]
    assert weights[0] == weights[1]
    assert list(cache.glob("*.tiles"))


def test_a_cache_without_a_size_is_refused(console: Console, small_data: SmallData, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--set", f"streaming.disk_cache.folder={tmp_path}", "--out", out)
    said = console("finetune", small_data.manifest, *options)
    assert said.code == 2
    assert "disk_cache.gb" in said.complaint
    said = console("finetune", small_data.manifest, *options, "--set", "streaming.disk_cache.gb=1e300")
    assert said.code == 2
    assert "disk_cache.gb" in said.complaint
    assert not out.exists()


def test_workers_in_other_folders_use_the_same_cache(
    small_data: SmallData, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = {"slides": str(small_data.slides), "checkpoint": str(small_checkpoint), "out": "out",
              "streaming": {"disk_cache": {"folder": "cache", "gb": 0.1}}}  # fmt: skip
    predicting = make_job({"command": "predict", **wanted}, source="test")
    storing = make_job({"command": "features", **wanted}, source="test")
    assert isinstance(predicting, PredictJob)
    assert isinstance(storing, FeaturesJob)
    pipeline, raster = predict._pipeline(predicting)
    there = (
        predict._setup(predicting, pipeline, raster=raster).streaming,
        features._Storing.of(storing, here=False).for_workers().streaming,
    )
    for streaming in there:
        assert streaming.disk_cache is not None
        assert streaming.disk_cache.folder == tmp_path / "cache"
        assert streaming.disk_cache.gb == 0.1
