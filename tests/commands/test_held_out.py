"""``finetune --folds``: every slide labelled by the model that has not seen it."""

import csv
import json
from pathlib import Path

import yaml

from tests.commands.console import Console
from tests.conftest import SMALL_MODEL, SmallData
from wsi_ips.inference.results import read_result
from wsi_ips.models.checkpoint import checkpoint_sha256


def test_each_slide_s_result_names_its_fold_s_checkpoint(
    console: Console, small_data: SmallData, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "r.yaml", tmp_path / "cv"
    model = {**SMALL_MODEL["model"], "attention": {"heads": 2, "key_dim": 4}}  # type: ignore[dict-item]
    recipe.write_text(yaml.safe_dump({**SMALL_MODEL, "model": model, "training": {"epochs": 1}}))
    start = ("finetune", small_data.manifest, "--recipe", recipe, "--out", out, "--folds", "2",
             "--set", "inner_val=0")  # fmt: skip
    said = console(*start)
    assert said.code == 0, said.err
    with (out / "folds.csv").open(newline="") as file:
        fold_of = {row["slide_id"]: row["fold"] for row in csv.DictReader(file)}
    held_out = out / "held_out"
    stored = {slide_id: held_out / "attention" / f"{slide_id}.h5" for slide_id in fold_of}
    for slide_id, path in stored.items():
        model = out / f"fold_{fold_of[slide_id]}" / "model.safetensors"
        assert read_result(path).checkpoint == checkpoint_sha256(model)
    described = json.loads((held_out / "run.json").read_text())["config"]["model"]
    assert described["attention"]["layer_norm"] is True  # as the folds' trainings decided
    with (held_out / "predictions.csv").open(newline="") as file:
        assert [row["slide_id"] for row in csv.DictReader(file)] == [
            slide_id for number in "01" for slide_id, fold in fold_of.items() if fold == number
        ]
    said = console("evaluate", held_out, small_data.manifest, "--split", "train+val", "--faithfulness")
    assert said.code == 2
    assert "the models of several folds predicted" in said.complaint
    # What a second start finds is not done again; what is missing is.
    times = {slide_id: path.stat().st_mtime_ns for slide_id, path in stored.items()}
    gone = next(iter(stored))
    stored[gone].unlink()
    assert console(*start).code == 0
    assert {s for s, path in stored.items() if path.stat().st_mtime_ns != times[s]} == {gone}
