"""Survival and grades from the command line, on stored features whose risk is known."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from safetensors import safe_open

from tests.commands.console import Console
from tests.datasets.feature_folders import write_features
from wsi_ips.evaluation.run.survival import _why_own_edges
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.survival.follow_up import FollowUp
from wsi_ips.survival.scores import harrell

WIDTH, PATCHES = 4, 4
SURVIVAL = {"time": "months", "event": "died", "at": [2, 5, 10, 15], "unit": "months"}
COX = {"name": "death", "kind": "survival", "survival": SURVIVAL}
HAZARDS = {"name": "death", "kind": "survival", "survival": {**SURVIVAL, "loss": "hazards", "bins": 5}}
GRADES = {"name": "grade", "kind": "ordinal", "classes": ["G1", "G2", "G3"]}
SPLITS = ("train", "train", "val", "test", "test")


def draw(folder: Path, patients: int, *, seed: int = 0) -> tuple[Path, dict[str, float]]:
    """A manifest with features, and each patient's true risk, which one feature of every patch tells with noise.

    Times are exponential in it with a mean of 8 months, about 40 % of them censored. Every tenth patient has two
    slides. Grades are thirds of the risk.
    """
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=patients)
    true, until = 8 * rng.exponential(np.exp(-1.2 * risk)), rng.exponential(16, size=patients)
    lines, risks = ["slide_id,case_id,split,path,months,died,grade"], {}
    for number in range(patients):
        case, split = f"p{number:03}", SPLITS[number % len(SPLITS)]
        risks[case] = float(risk[number])
        time, event = max(0.01, min(true[number], until[number])), int(true[number] <= until[number])
        grade = 1 + int(np.searchsorted([-0.43, 0.43], risk[number]))
        for slide in [f"{case}_{n}" for n in range(2 if number % 10 == 0 else 1)]:
            features = 0.5 * rng.normal(size=(PATCHES, WIDTH)).astype(np.float32)
            features[:, 0] = risk[number] + 0.2 * features[:, 0]
            write_features(folder / "features" / f"{slide}.h5", features, trident=True)
            lines.append(f"{slide},{case},{split},{slide}.tif,{time:.4f},{event},G{grade}")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest, risks


def recipe(folder: Path, *tasks: object, **training: object) -> Path:
    path = folder / "recipe.yaml"
    settings = {
        "model": {"encoder": {"name": "features", "features": WIDTH, "project": 0}, "tasks": list(tasks),
                  "attention": {"heads": 1, "key_dim": 4, "dropout": 0}},
        "selection": {"m": 4, "i": 4},
        "training": {"epochs": 4, "lr": 0.05, "weight_decay": 0, "slides_per_step": 4, **training},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(settings))
    return path


def run(
    console: Console, folder: Path, manifest: Path, *tasks: object, **training: object
) -> dict[str, object]:
    """Train, predict and evaluate; the metrics."""
    features = ("--features", folder / "features")
    said = console(
        "finetune", manifest, *features, "--recipe", recipe(folder, *tasks, **training), "--out", folder / "m"
    )
    assert said.code == 0, said.err
    said = console(
        "predict", *features, "--checkpoint", folder / "m" / "model.safetensors", "--out", folder / "run"
    )
    assert said.code == 0, said.err
    said = console("evaluate", folder / "run", manifest, "--bootstrap", "100")
    assert said.code == 0, said.err
    return json.loads((folder / "run" / "evaluation" / "metrics.json").read_text())


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("task", [COX, HAZARDS], ids=["cox", "hazards"])
@pytest.mark.slow
def test_a_known_risk_is_learned_predicted_and_judged(console: Console, tmp_path: Path, task: object) -> None:
    manifest, true = draw(tmp_path, 100)
    metrics = run(console, tmp_path, manifest, task, monitor="c_index", epochs=6)["survival"]["death"]
    patients = table(tmp_path / "run" / "evaluation" / "survival.csv")
    test = {row["case_id"] for row in table(manifest) if row["split"] == "test"}
    assert {row["case_id"] for row in patients} == test
    follow_up = FollowUp.of(*([float(row[name]) for row in patients] for name in ("time", "event")))
    best = harrell(follow_up, [true[row["case_id"]] for row in patients]).index
    assert best > 0.7
    found = metrics["metrics"]["c_index"]
    assert found["value"] == pytest.approx(harrell(follow_up, [float(row["risk"]) for row in patients]).index)
    assert found["value"] > best - 0.03
    assert found["low"] < found["value"] < found["high"]
    assert metrics["metrics"]["c_index_uno"]["value"] > best - 0.06
    assert metrics["metrics"]["ibs"]["value"] < metrics["metrics"]["ibs_kaplan_meier"]["value"] - 0.02
    assert metrics["risk_groups"]["log_rank"]["p"] < 0.01
    assert metrics["risk_groups"]["edges_from"] == "val"
    low, high = metrics["risk_groups"]["groups"]
    assert low["median"] is None or low["median"] > high["median"]
    assert (metrics["patients"], metrics["events"]) == (len(patients), int(follow_up.event.sum()))
    survival = [[float(row[f"survival_{time}"]) for time in (2, 5, 10, 15)] for row in patients]
    assert (np.diff(survival, axis=1) <= 0).all()
    assert (tmp_path / "run" / "evaluation" / "kaplan_meier.png").stat().st_size > 10_000
    console("report", tmp_path / "run")  # the slides themselves are not there to be drawn
    html = (tmp_path / "run" / "report.html").read_text()
    assert all(
        words in html
        for words in ("C index (Uno)", "Kaplan-Meier", "log-rank p = ", f"{len(patients)} patients")
    )
    predictions = table(tmp_path / "run" / "predictions.csv")
    assert list(predictions[0]) == [
        "slide_id", "risk", "survival_2", "survival_5", "survival_10", "survival_15", "n_patches", "status",
        "error",
    ]  # fmt: skip
    history = table(tmp_path / "m" / "history.csv")
    assert max(float(row["val_c_index"]) for row in history) > 0.65
    its = load_checkpoint(tmp_path / "m" / "model.safetensors")[1].model.tasks[0].survival
    assert its is not None
    assert (its.baseline is None, its.edges is None) == (task is HAZARDS, task is COX)


@pytest.mark.slow
def test_all_slides_of_a_patient_are_one_risk(console: Console, tmp_path: Path) -> None:
    """``bag: case`` with survival: patients, not slides, are compared, and a patient's slides share one answer."""
    manifest, _ = draw(tmp_path, 60)
    path = recipe(tmp_path, COX, monitor="c_index", epochs=6)
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "bag": "case"}))
    features, checkpoint = ("--features", tmp_path / "features"), tmp_path / "m" / "model.safetensors"
    assert console("finetune", manifest, *features, "--recipe", path, "--out", tmp_path / "m").code == 0
    run = tmp_path / "run"
    said = console("predict", *features, "--checkpoint", checkpoint, "--cases", manifest, "--out", run)
    assert said.code == 0, said.err
    assert console("evaluate", run, manifest, "--bootstrap", "0").code == 0
    listed = table(manifest)
    patients = {row["case_id"] for row in listed if row["split"] == "test"}
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert metrics["survival"]["death"]["patients"] == len(patients)
    assert metrics["survival"]["death"]["metrics"]["c_index"]["value"] > 0.6
    risks: dict[str, set[str]] = {}
    case_of = {row["slide_id"]: row["case_id"] for row in listed}
    for row in table(run / "predictions.csv"):
        risks.setdefault(case_of[row["slide_id"]], set()).add(row["risk"])
    assert all(len(its) == 1 for its in risks.values())
    train = {row["case_id"] for row in listed if row["split"] == "train"}
    with safe_open(str(checkpoint), "np") as file:
        told = json.loads(file.metadata()["wsi_ips"])
    assert told["notes"]["baseline hazard estimated on"] == f"{len(train)} training bags"
    assert {"epoch", "train_loss", "val_c_index"} <= told["notes"].keys()


@pytest.mark.slow
def test_grades_and_survival_side_by_side(console: Console, tmp_path: Path) -> None:
    manifest, _ = draw(tmp_path, 60)
    metrics = run(console, tmp_path, manifest, GRADES, COX, epochs=6, monitor="kappa")
    assert metrics["tasks"]["grade"]["metrics"]["quadratic_kappa"]["value"] > 0.7
    assert metrics["survival"]["death"]["metrics"]["c_index"]["value"] > 0.6
    row = table(tmp_path / "run" / "predictions.csv")[0]
    grades = [float(row[f"prob_grade_G{grade}"]) for grade in (1, 2, 3)]
    assert sum(grades) == pytest.approx(1, abs=1e-5)
    assert row["pred_grade"] == f"G{1 + int(np.argmax(grades))}"
    assert 0 <= float(row["death_survival_5"]) <= 1
    assert table(tmp_path / "run" / "evaluation" / "slides.csv")[0]["task"] == "grade"


@pytest.mark.slow
def test_folds_are_stratified_by_event_and_measured_each(console: Console, tmp_path: Path) -> None:
    manifest, _ = draw(tmp_path, 60)
    said = console("finetune", manifest, "--features", tmp_path / "features", "--recipe", recipe(tmp_path, COX),
                   "--folds", "2", "--out", tmp_path / "cv")  # fmt: skip
    assert said.code == 0, said.err
    assert "held_out_c_index" in said.out
    died = {row["slide_id"]: row["died"] for row in table(manifest)}
    folds = table(tmp_path / "cv" / "folds.csv")
    events = [
        len({r["case_id"] for r in folds if r["fold"] == fold and died[r["slide_id"]] == "1"})
        for fold in "01"
    ]
    assert abs(events[0] - events[1]) <= 1
    first = table(tmp_path / "cv" / "cv.csv")[0]
    assert float(first["held_out_c_index"]) > 0.6
    said = console("evaluate", tmp_path / "cv" / "held_out", manifest, "--split", "train+val")
    assert said.code != 0
    assert "risks do not compare" in said.complaint


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (("9.5", ""), "patient 'b' has no months, but a died"),
        (("9.5", "-1"), "patient 'b' has the months '-1'"),
        (("9.5", "soon"), "patient 'b' has the months 'soon'"),
        (("9.5,0", "9.5,2"), "patient 'b' has the died '2'"),
        (("9.5,0", "9.5,"), "patient 'b' has no died, but a months"),
        (
            ("b_1,b,train,b_1.tif,9.5,0", "b_1,a,train,b_1.tif,9.5,0"),
            "slides of patient 'a' have different months",
        ),
        (("9.5,0", "9.5,1"), "the patients of split 'train' have only died 1"),
        (("3,1", "19.5,1"), "survival is learned by comparing them: add cases with died 1"),
        (("months", "weeks"), "lacks the column months"),
    ],
)
def test_times_and_events_that_cannot_be_are_named(
    console: Console, tmp_path: Path, change: tuple[str, str], match: str
) -> None:
    text = "slide_id,case_id,split,path,months,died\na_1,a,train,a_1.tif,3,1\nb_1,b,train,b_1.tif,9.5,0\n"
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(text.replace(*change))
    for slide in ("a_1", "b_1"):
        write_features(tmp_path / "features" / f"{slide}.h5", np.zeros((4, WIDTH), np.float32))
    said = console("finetune", manifest, "--features", tmp_path / "features", "--recipe", recipe(tmp_path, COX),
                   "--out", tmp_path / "m")  # fmt: skip
    assert said.code != 0
    assert match in said.complaint
    assert not (tmp_path / "m" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"event": "censorship"}, "opposite of an event"),
        ({"at": [5, 2]}, "at must rise"),
        ({"at": [99999]}, "no training patient was followed longer"),
        ({"risk_set": "step"}, "set 16 or more"),
        ({"time": "died"}, "two columns"),
    ],
)
def test_a_recipe_that_cannot_be_learned_from_is_refused(
    console: Console, tmp_path: Path, change: dict[str, object], match: str
) -> None:
    manifest, _ = draw(tmp_path, 20)
    task = {**COX, "survival": {**SURVIVAL, **change}}
    said = console("finetune", manifest, "--features", tmp_path / "features", "--recipe", recipe(tmp_path, task),
                   "--out", tmp_path / "m")  # fmt: skip
    assert said.code != 0
    assert match in said.err


def test_why_risk_groups_are_cut_by_the_scored_patients_is_said() -> None:
    def said(listed: int, **in_run: int) -> str:
        cases = {"val": listed, "train": listed}
        manifest = SimpleNamespace(
            path=Path("m.csv"),
            split=lambda split: [SimpleNamespace(case_id=str(n)) for n in range(cases[split])],
        )
        risks = {split: [0.5] * count for split, count in in_run.items()}
        return _why_own_edges(risks, manifest, SimpleNamespace(risk_groups=2))

    assert "1 val patient and 3 train patients are in the run, 10 of one split are needed" in said(
        30, val=1, train=3
    )
    assert said(30, val=1, train=3).endswith("; predict all val or train slides of m.csv")
    assert said(3, val=3, train=3).endswith("(5 per group); m.csv lists no more")
