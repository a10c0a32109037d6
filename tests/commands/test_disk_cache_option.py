"""``streaming.disk_cache`` through the command line: no result changes, and the folder is used by all commands."""

from pathlib import Path

import yaml

from tests.commands.console import Console
from tests.conftest import SMALL_MODEL, SmallData


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
