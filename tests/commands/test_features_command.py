"""``finetune --features``: the same heads from stored features, in CLAM's and TRIDENT's layout."""

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from tests.commands.console import Console
from tests.datasets.feature_folders import features_of, write_features
from wsi_ips.config import ModelConfig, PipelineConfig
from wsi_ips.inference.results import read_result
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import load_checkpoint, save_checkpoint

WIDTH = 12
RECIPE = {
    "selection": {"m": 16, "i": 16},
    "model": {
        "encoder": {"name": "features", "features": WIDTH, "project": 8},
        "attention": {"heads": 2, "key_dim": 4},
    },
    "training": {"epochs": 8, "warmup_epochs": 1, "slides_per_step": 4, "lr": 0.01},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "features.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def data(folder: Path, *, clam: bool) -> Path:
    """20 slides of 60 to 79 patches; in a tumour half of them differ in one direction. No slide exists."""
    lines = ["slide_id,case_id,label,split,path"]
    for number in range(20):
        features = features_of(60 + number, WIDTH, seed=number)
        if number % 2:
            features[:40, :2] += 6
        name = f"s{number}"
        path = folder / "features" / ("h5_files" if clam else "") / f"{name}.h5"
        write_features(path, features, trident=not clam)
        label, split = ("normal", "tumor")[number % 2], "train" if number < 14 else "val"
        lines.append(f"{name},c{number},{label},{split},{name}.svs")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


@pytest.mark.parametrize("clam", [True, False])
def test_stored_features_teach_the_heads(console: Console, recipe: Path, tmp_path: Path, clam: bool) -> None:
    manifest = data(tmp_path, clam=clam)
    said = console("finetune", manifest, "--features", tmp_path / "features", "--recipe", recipe,
                   "--out", tmp_path / "model")  # fmt: skip
    assert said.code == 0, said.err
    with (tmp_path / "model" / "history.csv").open(newline="") as file:
        epochs = list(csv.DictReader(file))
    losses = [float(row["val_loss"]) for row in epochs]
    best = losses.index(min(losses))
    named = f"best epoch {best + 1} of {len(losses)} (epoch {epochs[best]['epoch']} in history.csv): "
    assert named in said.out
    assert min(losses) < 0.5 * losses[0]
    net, pipeline = load_checkpoint(tmp_path / "model" / "model.safetensors")
    assert pipeline.model.encoder.features == WIDTH
    assert net.encode(torch.zeros(2, WIDTH)).shape == (2, 8)

    checkpoint, run = tmp_path / "model" / "model.safetensors", tmp_path / "run"
    said = console("predict", "--features", tmp_path / "features", "--checkpoint", checkpoint, "--out", run)
    assert said.code == 0, said.err
    assert ("20 files do not say how large their patches are" in said.out) == clam
    with (run / "predictions.csv").open(newline="") as file:
        rows = {row["slide_id"]: row for row in csv.DictReader(file)}
    assert len(rows) == 20
    assert sum(rows[f"s{n}"]["pred"] == ("normal", "tumor")[n % 2] for n in range(20)) >= 18
    if clam:
        with h5py.File(run / "attention" / "s3.h5") as stored:
            assert stored["attention"][:].sum(axis=0) == pytest.approx(1, abs=1e-4)
            assert stored["coords"].shape == (63, 2)
    else:
        result = read_result(run / "attention" / "s3.h5")
        assert (len(result.coords), result.coords.slide_id, result.coords.patch_mpp) == (63, "s3", 0.5)
        assert result.probabilities["label"]["tumor"] == float(rows["s3"]["prob_tumor"])
        for command in (("overlay", run), ("export", run, "--format", "geojson")):
            told = console(*command)
            assert told.code == 2
            assert told.complaint == f"wsi-ips: {run}: its features name no slides; give --slides FOLDER"


def test_what_is_missing_or_does_not_fit_is_one_line_before_training(
    console: Console, recipe: Path, tmp_path: Path
) -> None:
    manifest, features, out = data(tmp_path, clam=False), tmp_path / "features", tmp_path / "model"
    (features / "s3.h5").unlink()
    said = console("finetune", manifest, "--features", features, "--recipe", recipe, "--out", out)
    assert said.code == 2
    assert "no features of 1 of 20 slides (s3)" in said.complaint
    write_features(features / "s3.h5", np.zeros((4, WIDTH + 1), np.float32))
    said = console("finetune", manifest, "--features", features, "--recipe", recipe, "--out", out,
                   "--set", "training.max_bad_slides=0")  # fmt: skip
    assert "s3.h5: holds features of width 13, not 12" in said.complaint
    said = console("finetune", manifest, "--recipe", recipe, "--out", out)
    assert "go together" in said.complaint
    assert not out.exists()


def test_folds_cross_validate_and_are_not_done_twice(console: Console, recipe: Path, tmp_path: Path) -> None:
    manifest, out = data(tmp_path, clam=True), tmp_path / "cv"
    arguments = ["finetune", manifest, "--features", tmp_path / "features", "--recipe", recipe, "--out", out,
                 "--folds", "2", "--set", "training.epochs=2"]  # fmt: skip
    said = console(*arguments)
    assert said.code == 0, said.err
    assert "held_out_auc" in said.out
    assert "val_" not in said.out, "figures of the cases that chose the epoch flatter"
    assert all((out / f"fold_{n}" / "model.safetensors").is_file() for n in (0, 1))
    with (out / "cv.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["fold"] for row in table] == ["0", "1", "mean", "sd"]
    assert 0 <= float(table[2]["held_out_auc"]) <= 1
    assert [row["epoch_chosen_on"] for row in table] == ["inner validation cases"] * 2 + [""] * 2
    assert "epoch_chosen_on" in (out / "held_out" / "run.json").read_text()
    predictions = (out / "held_out" / "predictions.csv").read_bytes()
    assert len(predictions.splitlines()) == 21  # every slide once, by the fold that has not seen it
    scored = console("evaluate", out / "held_out", manifest, "--split", "train+val", "--no-plots")
    assert scored.code == 0, scored.err
    figures = json.loads((out / "held_out" / "evaluation" / "metrics.json").read_text())
    assert figures["slides"]["scored"] == 20
    written = (out / "fold_0" / "model.safetensors").stat().st_mtime_ns
    again = console(*arguments)
    assert (out / "held_out" / "predictions.csv").read_bytes() == predictions
    assert "fold 1 was complete already" in again.out
    assert (out / "fold_0" / "model.safetensors").stat().st_mtime_ns == written
    assert console(*arguments[:-4], "--folds", "1").code == 2
    assert "take 10 folds or fewer" in console(*arguments[:-4], "--folds", "11").complaint


def test_features_and_slides_are_not_taken_for_each_other(
    console: Console, small_checkpoint: Path, tmp_path: Path
) -> None:
    model = ModelConfig.model_validate(RECIPE["model"])
    checkpoint = tmp_path / "features.safetensors"
    save_checkpoint(checkpoint, build_net(model), PipelineConfig(model=model))
    write_features(tmp_path / "f" / "good.h5", features_of(9, WIDTH))
    write_features(tmp_path / "f" / "wide.h5", features_of(9, WIDTH + 1))
    out = tmp_path / "run"
    (tmp_path / "none").mkdir()
    for arguments, complaint in (
        (["--features", tmp_path / "f", "--checkpoint", small_checkpoint], "reads the pixels of slides"),
        ([tmp_path, "--checkpoint", checkpoint], "reads stored features, not slides"),
        (["--checkpoint", checkpoint], "give slides, or a folder of features"),
        ([tmp_path, "--features", tmp_path / "f", "--checkpoint", checkpoint], "no slide in this folder"),
        (["--features", tmp_path / "none", "--checkpoint", checkpoint], "holds no features"),
    ):
        said = console("predict", *arguments, "--out", out)
        assert said.code == 2
        assert complaint in said.complaint
    said = console("predict", "--features", tmp_path / "f", "--checkpoint", checkpoint, "--out", out)
    assert said.code == 3
    assert "wide.h5: holds features of width 13, the checkpoint reads 12" in said.out
    assert "1 of 2 slides labelled" in said.out


@pytest.mark.slow
def test_pure_noise_is_told_from_noise_by_chance(console: Console, recipe: Path, tmp_path: Path) -> None:
    """Of the cases that it is measured on, the best of some epochs finds a difference (here an AUC of 0.59)."""
    rng = np.random.default_rng(100)
    lines = ["slide_id,case_id,label,split,path"]
    for number, label in enumerate(rng.permutation(["normal", "tumor"] * 40)):
        write_features(
            tmp_path / "features" / f"s{number}.h5", rng.normal(size=(4, WIDTH)).astype(np.float32)
        )
        lines.append(f"s{number},c{number},{label},train,s{number}.svs")
    (tmp_path / "noise.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "cv"
    said = console("finetune", tmp_path / "noise.csv", "--features", tmp_path / "features", "--recipe", recipe,
                   "--out", out, "--folds", "4", "--set", "training.monitor=auc", "--set", "selection.m=4",
                   "--set", "selection.i=4", "--set", "training.epochs=6")  # fmt: skip
    assert said.code == 0, said.err
    with (out / "cv.csv").open(newline="") as file:
        folds = list(csv.DictReader(file))[:4]
    result = next(name for name in folds[0] if name.endswith("auc"))
    assert abs(np.mean([float(row[result]) for row in folds]) - 0.5) < 0.08
    scored = console(
        "evaluate", out / "held_out", tmp_path / "noise.csv", "--split", "train+val", "--no-plots"
    )
    assert scored.code == 0, scored.err
    metrics = json.loads((out / "held_out" / "evaluation" / "metrics.json").read_text())
    auc = metrics["tasks"]["label"]["metrics"]["auc"]
    assert auc["low"] < 0.5 < auc["high"]


def test_a_slide_may_lack_the_label_of_one_of_several_tasks(
    console: Console, recipe: Path, tmp_path: Path
) -> None:
    manifest = data(tmp_path, clam=False)
    lines = manifest.read_text().splitlines()
    with_grade = [lines[0] + ",grade"] + [
        line + ("," if number % 5 == 0 else f",{('low', 'high')[number % 2]}")
        for number, line in enumerate(lines[1:])
    ]
    manifest.write_text("\n".join(with_grade) + "\n")
    tasks = "model.tasks=[{name: label}, {name: grade, classes: [low, high]}]"
    start = ("finetune", manifest, "--features", tmp_path / "features", "--recipe", recipe,
             "--set", tasks, "--set", "training.epochs=2", "--set", "training.class_weights=balanced")  # fmt: skip
    said = console(*start, "--out", tmp_path / "model")
    assert said.code == 0, said.err
    with (tmp_path / "model" / "history.csv").open(newline="") as file:
        assert all(0 <= float(row["val_grade_auc"]) <= 1 for row in csv.DictReader(file))
    manifest.write_text("\n".join([*with_grade, "s20,c20,,train,s20.svs,"]) + "\n")
    said = console(*start, "--out", tmp_path / "none")
    assert said.code == 2
    assert "line 22: label, grade are all empty; fill in a label" in said.complaint


@pytest.mark.parametrize("name", ["transmil", "clam_mb"])
def test_another_aggregator_learns_and_predicts(
    console: Console, recipe: Path, tmp_path: Path, name: str
) -> None:
    manifest, features, out, run = (
        data(tmp_path, clam=False),
        tmp_path / "features",
        tmp_path / "m",
        tmp_path / "run",
    )
    settings = yaml.safe_load(recipe.read_text())
    settings["model"] = {**settings["model"], "aggregator": name}
    del settings["model"]["attention"]
    settings["training"] = {**settings["training"], "epochs": 2}
    recipe.write_text(yaml.safe_dump(settings))
    arguments = ["finetune", manifest, "--features", features, "--recipe", recipe, "--out", out]
    if name == "transmil":
        said = console(*arguments)
        assert said.code == 2
        assert "selection.selector=all" in said.complaint
        arguments += ["--set", "selection.selector=all"]
    said = console(*arguments)
    assert said.code == 0, said.err
    said = console("predict", "--features", features, "--checkpoint", out / "model.safetensors", "--out", run)
    assert said.code == 0, said.err
    result = read_result(run / "attention" / "s3.h5")
    assert result.attention_NHT.shape == (63, *{"transmil": (8, 1), "clam_mb": (1, 2)}[name])
    assert (result.kept_contributions_MK is not None) == (name == "clam_mb")


def test_one_without_a_score_reads_what_another_checkpoint_keeps(
    console: Console, recipe: Path, tmp_path: Path
) -> None:
    """``selection.scorer``: ABMIL's scores fill the memory, and TransMIL reads the 16 patches."""
    manifest, features = data(tmp_path, clam=False), tmp_path / "features"
    settings = yaml.safe_load(recipe.read_text())
    del settings["model"]["attention"]
    settings["training"] = {**settings["training"], "epochs": 2}
    recipe.write_text(yaml.safe_dump(settings))
    learn = ("finetune", manifest, "--features", features, "--recipe", recipe)
    said = console(*learn, "--out", tmp_path / "abmil", "--set", "model.aggregator=abmil")
    assert said.code == 0, said.err
    scorer = tmp_path / "abmil" / "model.safetensors"
    transmil = (*learn, "--out", tmp_path / "transmil", "--set", "model.aggregator=transmil")
    said = console(*transmil)
    assert said.code == 2
    assert "selection.scorer=CHECKPOINT" in said.complaint
    said = console(*transmil, "--set", f"selection.scorer={tmp_path / 'none.safetensors'}")
    assert said.code == 2
    assert "none.safetensors" in said.complaint
    said = console(*transmil, "--set", f"selection.scorer={scorer}")
    assert said.code == 0, said.err
    results = []
    for model in ("abmil", "transmil"):
        checkpoint, run = tmp_path / model / "model.safetensors", tmp_path / f"{model}_run"
        said = console("predict", "--features", features, "--checkpoint", checkpoint, "--out", run)
        assert said.code == 0, said.err
        results.append(read_result(run / "attention" / "s3.h5"))
    kept, read = results
    assert read.kept_ids_M.tolist() == kept.kept_ids_M.tolist()
    np.testing.assert_array_equal(read.attention_NHT, kept.attention_NHT)
    assert read.probabilities != kept.probabilities
