"""``compare``: entries and seeds on the same slides in one table. What is complete stays; faults come first."""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.commands.console import Console
from tests.conftest import SMALL_MODEL, SmallData
from tests.datasets.feature_folders import write_features
from wsi_ips.commands.compare import CompareJob, entry_job
from wsi_ips.commands.recipe import make_job
from wsi_ips.evaluation.run.compare import counted_passes
from wsi_ips.evaluation.run.compare_table import Line, Table
from wsi_ips.evaluation.slide_level import roc_auc
from wsi_ips.inference.predictions import read_predictions
from wsi_ips.inference.run_folder import RunFolder, tasks_of_run
from wsi_ips.models.build import check_aggregator

WIDTH, PATCHES = 6, 20
SPLITS = ("train", "train", "val", "test")
ENTRIES: dict[str, Any] = {
    "abmil": {"model.aggregator": "abmil"},
    "mean": {"model.aggregator": "mean", "selection.selector": "all"},
    "random": {"model.aggregator": "abmil", "selection.selector": "random", "selection.m": 3},
}


def data(folder: Path, *, slides: int = 40) -> Path:
    """Every second slide has one patch with a feature that no other patch has."""
    rng = np.random.default_rng(0)
    lines = ["slide_id,case_id,label,split,path"]
    for number in range(slides):
        features = rng.normal(size=(PATCHES, WIDTH)).astype(np.float32)
        if number % 2:
            features[rng.integers(PATCHES), 0] += 12
        write_features(folder / "features" / f"s{number:02}.h5", features, trident=True)
        label, split = ("normal", "tumor")[number % 2], SPLITS[number // 2 % 4]
        lines.append(f"s{number:02},p{number:02},{label},{split},s{number:02}.tif")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def recipe(folder: Path, entries: dict[str, Any] | None = None, **more: Any) -> Path:
    settings = {
        "command": "compare",
        "manifest": str(folder / "manifest.csv"),
        "features": str(folder / "features"),
        "out": str(folder / "out"),
        "entries": ENTRIES if entries is None else entries,
        "seeds": [0, 1],
        "bootstrap": 50,
        "isolate": False,
        "model": {"encoder": {"name": "features", "features": WIDTH, "project": 8}},
        "selection": {"m": 8, "i": 8},
        "training": {"epochs": 3, "lr": 0.01, "slides_per_step": 4},
        **more,
    }
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def table(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (folder / "out" / "compare.csv").open(newline="") as file:
        return {(row["entry"], row["figure"]): row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_one_table_of_all_entries_and_seeds(console: Console, tmp_path: Path) -> None:
    data(tmp_path)
    said = console("compare", recipe(tmp_path))
    assert said.code == 0, said.err
    found = table(tmp_path)
    assert [entry for entry, figure in found if figure == "auc"] == list(ENTRIES)
    for entry in ENTRIES:
        aucs = []
        for seed in (0, 1):
            run = RunFolder(tmp_path / "out" / entry / f"seed_{seed}" / "predictions")
            rows = read_predictions(run.predictions, tasks=tasks_of_run(run))
            assert len(rows) == 10
            scores = np.array([row.probabilities["label"]["tumor"] for row in rows])
            aucs.append(roc_auc(scores, np.array([int(row.slide_id[1:]) % 2 == 1 for row in rows])))
        row = found[entry, "auc"]
        assert [float(value) for value in row["per_seed"].split(";")] == pytest.approx(aucs)
        assert float(row["mean"]) == pytest.approx(np.mean(aucs))
        assert float(row["sd"]) == pytest.approx(np.std(aucs, ddof=1))
        assert float(row["worst"]) == pytest.approx(min(aucs))
        brier = found[entry, "brier"]
        assert float(brier["worst"]) == max(map(float, brier["per_seed"].split(";")))
    first, random = found["abmil", "auc"], found["random", "auc"]
    assert (first["difference"], first["delong_p"]) == ("", "")
    assert float(random["difference"]) == pytest.approx(float(random["mean"]) - float(first["mean"]))
    assert float(random["difference_low"]) <= float(random["difference"]) <= float(random["difference_high"])
    assert len(random["delong_p"].split(";")) == 2
    # Of 10 test slides, all 20 patches are read once for selection, or 3 of them.
    assert float(first["predict_passes"]) == 200
    assert float(random["predict_passes"]) == 30
    assert float(random["train_passes"]) < float(first["train_passes"]) / 2
    assert float(first["train_seconds"]) > 0
    assert float(first["bytes_written"]) > 1000
    assert first["peak_memory"] == "", "one process for all of them cannot tell"
    words = (tmp_path / "out" / "compare.md").read_text()
    assert "10 slides of split test, 2 seeds" in words
    assert f"| random | {float(random['mean']):.3f} |" in words
    with Image.open(tmp_path / "out" / "compare.png") as drawn:
        assert np.asarray(drawn.convert("L")).std() > 5
    assert "random: label, 10 slides: AUC" in said.out


@pytest.mark.slow
def test_what_is_complete_is_not_trained_again(console: Console, tmp_path: Path) -> None:
    data(tmp_path, slides=24)
    some = {name: ENTRIES[name] for name in ("abmil", "random")}
    assert console("compare", recipe(tmp_path, some, seeds=[3])).code == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
    figures = table(tmp_path)
    said = console("compare", recipe(tmp_path, ENTRIES, seeds=[3]))
    assert said.code == 0, said.err
    assert "2 of 3 trainings were complete already" in said.out
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert figures["random", "auc"] == table(tmp_path)["random", "auc"]
    assert ("mean", "auc") in table(tmp_path)
    assert console("compare", recipe(tmp_path, some, seeds=[3]), "--restart").code == 0
    assert all(path.stat().st_mtime_ns > time for path, time in before.items())


def test_other_settings_are_not_taken_for_the_same(console: Console, tmp_path: Path) -> None:
    data(tmp_path, slides=24)
    some = {"abmil": {"model.aggregator": "abmil"}}
    assert console("compare", recipe(tmp_path, some, seeds=[0])).code == 0
    changed = recipe(tmp_path, {"abmil": {"model.aggregator": "abmil", "training.lr": 0.5}}, seeds=[0])
    said = console("compare", changed)
    assert said.code == 2
    assert "holds a training with other settings" in said.err
    assert "--restart" in said.err
    held_out = next(number for number in range(24) if SPLITS[number // 2 % 4] == "test")
    other = np.zeros((PATCHES, WIDTH), np.float32)
    write_features(tmp_path / "features" / f"s{held_out:02}.h5", other, trident=True)
    said = console("compare", recipe(tmp_path, some, seeds=[0]))
    assert said.code == 2
    assert f"learned from other files (the file of 's{held_out:02}' has changed since)" in said.complaint
    assert "give --restart" in said.complaint
    assert "delete" not in said.complaint
    again = console("compare", recipe(tmp_path, some, seeds=[0]), "--restart")
    assert again.code == 0, again.err


def test_the_predictions_of_an_entry_know_their_checkpoint(console: Console, tmp_path: Path) -> None:
    data(tmp_path, slides=24)
    assert console("compare", recipe(tmp_path, {"abmil": {"model.aggregator": "abmil"}}, seeds=[0])).code == 0
    run = tmp_path / "out" / "abmil" / "seed_0" / "predictions"
    said = console(
        "evaluate", run, tmp_path / "manifest.csv", "--faithfulness", "--no-plots", "--bootstrap", "0"
    )
    assert said.code == 0, said.err
    assert "faithfulness of attention" in said.out


def test_too_few_cases_have_no_interval_and_no_p(console: Console, tmp_path: Path) -> None:
    """Twelve slides to test, of which three have a tumor: enough cases, too few of a class."""
    path = data(tmp_path)
    lines = path.read_text().splitlines()
    tumors = [number for number, line in enumerate(lines) if ",tumor,test," in line]
    for number in tumors[3:]:
        lines[number] = lines[number].replace(",test,", ",train,")
    normals = [number for number, line in enumerate(lines) if ",normal,train," in line]
    for number in normals[:6]:
        lines[number] = lines[number].replace(",train,", ",test,")
    path.write_text("\n".join(lines) + "\n")
    some = {name: ENTRIES[name] for name in ("abmil", "mean")}
    said = console("compare", recipe(tmp_path, some, training={"epochs": 1, "slides_per_step": 4}))
    assert said.code == 0, said.err
    why = "3 cases of a class, and 5 are needed"
    row = table(tmp_path)["mean", "auc"]
    assert math.isfinite(float(row["difference"]))
    assert (row["difference_low"], row["delong_p"], row["why_none"]) == ("nan", "", why)
    note = f"label, slides: too few for an interval or a p value ({why})"
    written = (tmp_path / "out" / "compare.md").read_text()
    assert note in written
    assert note in said.out
    assert "(too few for an interval) | too few |" in written


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"model.aggregator": "transformer"}, "entry bad: .*transformer"),
        ({"model.aggregator": "mean"}, "entry bad: model.aggregator: mean has no score for a single patch"),
        ({"selection.selector": "lucky"}, "entry bad: selection.selector: there is no selector 'lucky'"),
        ({"selection.memory": 3}, "entry bad: unknown key 'selection.memory'; did you mean"),
        ({"training.seed": 3}, "training.seed is the same for all entries: set it beside entries, as seeds"),
        ({"manifest": "other.csv"}, "'manifest' is no setting of an entry"),
        ({"selection.selector": "cascade"}, "entry bad: .*needs slides for its coarse scorer"),
    ],
)
def test_an_entry_that_cannot_be_is_told_before_anything_trains(
    console: Console, tmp_path: Path, entry: dict[str, Any], words: str
) -> None:
    data(tmp_path, slides=24)
    said = console("compare", recipe(tmp_path, {"good": {"model.aggregator": "abmil"}, "bad": entry}))
    assert said.code == 2
    assert re.search(words, " ".join(said.err.split())), said.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("names", [["a/b"], ["..", "a"], ["a", "A"], [""]])
def test_names_that_are_no_folders_are_refused(console: Console, tmp_path: Path, names: list[str]) -> None:
    data(tmp_path, slides=24)
    assert console("compare", recipe(tmp_path, {name: {} for name in names})).code == 2
    assert not (tmp_path / "out").exists()


def test_a_split_that_tells_nothing_is_refused(console: Console, tmp_path: Path) -> None:
    manifest = data(tmp_path, slides=24)
    manifest.write_text(manifest.read_text().replace(",tumor,test", ",normal,test"))
    said = console("compare", recipe(tmp_path))
    assert said.code == 2
    assert "nothing can be told apart" in said.err


def test_missing_features_are_told_before_anything_trains(console: Console, tmp_path: Path) -> None:
    data(tmp_path, slides=24)
    (tmp_path / "features" / "s06.h5").unlink()  # of the test split, which training does not read
    said = console("compare", recipe(tmp_path))
    assert said.code == 2
    assert "s06" in said.err
    assert not (tmp_path / "out").exists()


def test_a_slide_that_cannot_be_predicted_is_left_out_of_all(console: Console, tmp_path: Path) -> None:
    data(tmp_path, slides=24)
    (tmp_path / "features" / "s06.h5").write_bytes(b"not HDF5")
    said = console("compare", recipe(tmp_path, {"abmil": ENTRIES["abmil"]}, seeds=[0]))
    assert said.code == 3
    assert "failed: abmil, seed 0:" in said.out
    assert "s06.h5" in said.out
    assert table(tmp_path)["abmil", "auc"]["count"] == "5"


def test_passes_are_counted_only_within_the_block() -> None:
    import torch

    from wsi_ips.models.encoders.timm_encoder import FeatureEncoder

    encoder = FeatureEncoder(WIDTH)
    with counted_passes() as passes:
        encoder(torch.zeros(5, WIDTH))
        torch.nn.Linear(WIDTH, 2)(torch.zeros(3, WIDTH))
    encoder(torch.zeros(7, WIDTH))
    assert passes.patches == 5


@pytest.mark.slow
def test_slides_end_to_end_in_processes_of_their_own(
    console: Console, small_data: SmallData, tmp_path: Path
) -> None:
    """IPS scores every patch of a slide; random reads 4. Peak memory is that of each training."""
    settings = {
        **SMALL_MODEL,
        "manifest": str(small_data.manifest),
        "out": str(tmp_path / "out"),
        "entries": {"ips": {}, "random": {"selection.selector": "random"}},
        "seeds": [0],
        "bootstrap": 20,
        "training": {"epochs": 1},
    }
    settings["model"] = {**SMALL_MODEL["model"]}  # type: ignore[dict-item]
    settings["model"]["encoder"] = {**SMALL_MODEL["model"]["encoder"], "batch_norm": "batch"}  # type: ignore[index]
    settings["training"]["micro_batch"] = None  # type: ignore[index]
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump(settings))
    said = console("compare", path, "--no-plots")
    assert said.code == 0, said.err
    found = table(tmp_path)
    assert float(found["random", "auc"]["predict_passes"]) == 2 * 4
    assert float(found["ips", "auc"]["predict_passes"]) > 2 * 4
    assert float(found["random", "auc"]["train_passes"]) < float(found["ips", "auc"]["train_passes"])
    for entry in ("ips", "random"):
        held = json.loads((tmp_path / "out" / entry / "seed_0" / "done.json").read_text())
        assert 50 * 2**20 < held["costs"]["peak_memory"] < 8 * 2**30
    assert not (tmp_path / "out" / "compare.png").exists()


@pytest.mark.slow
def test_the_shipped_recipe_is_one(console: Console, tmp_path: Path) -> None:
    """With the settings of a test, its entries train."""
    manifest = data(tmp_path, slides=24)
    shipped = Path(__file__).parents[2] / "pipelines" / "compare_features.yaml"
    said = console(
        "compare", shipped, "--manifest", manifest, "--features", tmp_path / "features", "--out",
        tmp_path / "out", "--one-process", "--bootstrap", "20", "--no-plots",
        "--set", f"model.encoder.features={WIDTH}", "--set", "training.epochs=1", "--set", "seeds=[0]",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert {entry for entry, _ in table(tmp_path)} >= {"ips", "abmil", "transmil", "random abmil"}


def test_the_recipe_of_the_documentation_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "compare.md").read_text()
    job = make_job(yaml.safe_load(page.split("```yaml\n")[1].split("```")[0]), source="compare.md")
    assert isinstance(job, CompareJob)
    for name, settings in job.entries.items():
        its = entry_job(job, name, settings, seed=4)
        check_aggregator(its.model, its.selection)
        assert its.training.seed == 4


def test_a_figure_that_the_slides_do_not_give_is_no_headline() -> None:
    def line(figure: str, value: float) -> Line:
        return Line("a", "label", "patients", 4, figure, (value, value), None, ())

    lines = (line("accuracy", 0.5), line("auc", math.nan), line("balanced_accuracy", 0.25))
    assert [each.figure for each in Table(lines, {}, 4, ()).headlines] == ["balanced_accuracy"]
