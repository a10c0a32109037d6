"""``calibrate``, ``predict --calibration`` and ``evaluate``, one after another, as a user runs them."""

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.commands.console import Console, Said
from tests.conftest import SmallData
from tests.datasets.feature_folders import features_of, write_features
from wsi_ips.commands.recipe import make_job, run_job
from wsi_ips.config import ModelConfig, PipelineConfig, TaskConfig
from wsi_ips.evaluation.conformal import (
    Calibration,
    QuestionRule,
    TaskCalibration,
    one_of_each_case,
    rank,
    write_calibration,
)
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import checkpoint_sha256, save_checkpoint
from wsi_ips.progress import silent

WIDTH, VAL, TEST = 6, 24, 26
THREE = TaskConfig(name="size", classes=("none", "micro", "macro"))
MARKS = TaskConfig(name="marks", classes=("er", "pr"), activation="sigmoid")
AGE = TaskConfig(name="age", classes=("age",), activation="linear")


def checkpoint_of(path: Path, tasks: Sequence[TaskConfig], *, seed: int = 0) -> Path:
    """An untrained network that says different things of different slides."""
    model = ModelConfig.model_validate(
        {
            "encoder": {"name": "features", "features": WIDTH},
            "attention": {"heads": 2, "key_dim": 4, "value_dim": 4, "inner_dim": 8},
            "tasks": [task.model_dump() for task in tasks],
        }
    )
    torch.manual_seed(seed)
    net = build_net(model)
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(3)
    save_checkpoint(path, net, PipelineConfig(model=model))
    return path


@dataclass(frozen=True)
class World:
    """Slides as features, a manifest whose labels follow the network's probabilities, and its run."""

    console: Console
    folder: Path
    checkpoint: Path

    def predict(self, out: str, *more: str | Path) -> Said:
        return self.console(
            "predict", "--features", self.folder / "features", "--checkpoint", self.checkpoint,
            "--out", self.folder / out, *more,
        )  # fmt: skip

    def calibrate(self, *more: str | Path) -> Said:
        return self.console(
            "calibrate", self.folder / "run", self.folder / "labels.csv", "--out", self.json, *more
        )

    def evaluate(self, out: str, *more: str | Path) -> Said:
        return self.console(
            "evaluate",
            self.folder / out,
            self.folder / "labels.csv",
            "--no-plots",
            "--bootstrap",
            "50",
            *more,
        )

    @property
    def json(self) -> Path:
        return self.folder / "calibration.json"

    def metrics(self, out: str) -> Any:
        return json.loads((self.folder / out / "evaluation" / "metrics.json").read_text())["tasks"]


def table(run: Path) -> dict[str, dict[str, str]]:
    with (run / "predictions.csv").open(newline="") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


def make_world(
    console: Console, folder: Path, tasks: Sequence[TaskConfig], *, slides_a_case: int = 1
) -> World:
    make_slides(folder, tasks, slides_a_case=slides_a_case)
    return World(console, folder, folder / "model.safetensors")


def make_slides(folder: Path, tasks: Sequence[TaskConfig], *, slides_a_case: int = 1) -> None:
    checkpoint = checkpoint_of(folder / "model.safetensors", tasks)
    ids = [f"s{number:03}" for number in range(VAL + TEST)]
    for number, slide_id in enumerate(ids):
        features = features_of(8, WIDTH, seed=number) + 2 * features_of(1, WIDTH, seed=1000 + number)
        write_features(folder / "features" / f"{slide_id}.h5", features, trident=True)
    values = {
        "command": "predict",
        "checkpoint": checkpoint,
        "features": folder / "features",
        "out": folder / "run",
    }
    assert run_job(make_job(values, source="test"), silent).exit_code == 0
    rng = np.random.default_rng(0)
    lines = [",".join(["slide_id", "case_id", *(task.name for task in tasks), "split", "path"])]
    told = table(folder / "run")
    for number, slide_id in enumerate(ids):
        cells = [_label(task, told[slide_id], rng, alone=len(tasks) == 1) for task in tasks]
        case = f"c{number // slides_a_case}"
        lines.append(",".join([slide_id, case, *cells, "val" if number < VAL else "test", f"{slide_id}.svs"]))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def _label(task: TaskConfig, cells: dict[str, str], rng: np.random.Generator, *, alone: bool) -> str:
    prefix = "prob_" if alone else f"prob_{task.name}_"
    chances = np.array([float(cells[prefix + name]) for name in task.classes])
    if task.activation == "linear":
        return "1.5"
    if task.activation == "sigmoid":
        return ";".join(n for n, p in zip(task.classes, chances, strict=True) if rng.random() < p) or "none"
    return str(rng.choice(task.classes, p=(chances + 0.1) / (chances + 0.1).sum()))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_slides(folder, [TaskConfig()])
    return folder


@pytest.fixture
def world(console: Console, made: Path, tmp_path: Path) -> World:
    folder = tmp_path / "world"
    shutil.copytree(made, folder)
    return World(console, folder, folder / "model.safetensors")


def test_calibrate_predict_evaluate(world: World) -> None:
    said = world.calibrate()
    assert said.code == 0, said
    assert "24 slides of split val calibrated on" in said.out
    assert "9 of 10 calibrations" in said.out
    assert "the epoch was probably chosen on these validation slides too" in said.out
    assert world.predict("calibrated", "--calibration", world.json).code == 0
    held = json.loads(world.json.read_text())["tasks"]["label"]
    (rule,) = held["rules"]
    for slide_id, row in table(world.folder / "calibrated").items():
        before = table(world.folder / "run")[slide_id]
        raw = {name: float(before[f"prob_{name}"]) for name in ("normal", "tumor")}
        assert {name: float(row[f"raw_{name}"]) for name in raw} == raw
        assert row["pred"] == before["pred"]
        heated = {name: p ** (1 / held["temperature"]) for name, p in raw.items()}
        assert float(row["prob_tumor"]) == pytest.approx(heated["tumor"] / sum(heated.values()))
        wanted = [name for name, most in zip(raw, rule["thresholds"], strict=True) if 1 - raw[name] <= most]
        assert row["set"] == "|".join(wanted)
        assert row["abstain"] == str(int(len(wanted) != 1))
    said = world.evaluate("calibrated")
    assert said.code == 0, said
    assert "promised 0.9" in said.out
    doubt = world.metrics("calibrated")["label"]["doubt"]
    assert doubt["calibrated_on"] == {"split": "val", "slides": VAL}
    figures = doubt["sets"]["label"]
    assert figures["slides"] == TEST
    assert figures["interval_method"] == "Clopper-Pearson"
    rows, labels = table(world.folder / "calibrated"), _labels(world.folder)
    test = [slide_id for slide_id in rows if slide_id >= f"s{VAL:03}"]
    covered = [labels[slide_id] in rows[slide_id]["set"].split("|") for slide_id in test]
    assert figures["coverage"]["value"] == np.mean(covered)
    assert figures["single"] == np.mean([rows[slide_id]["abstain"] == "0" for slide_id in test])


def _labels(folder: Path, task: str = "label") -> dict[str, str]:
    with (folder / "labels.csv").open(newline="") as file:
        return {row["slide_id"]: row[task] for row in csv.DictReader(file)}


def test_the_network_that_is_too_sure_has_a_lower_loss_afterwards(world: World) -> None:
    """Labels are random against the network's opinion, so its certainty does not hold on new slides either."""
    lines = (world.folder / "labels.csv").read_text().splitlines()
    rng = np.random.default_rng(1)
    coin = [rng.choice(["normal", "tumor"]) for _ in lines]
    random = [
        line.replace("normal", label).replace("tumor", label) for line, label in zip(lines, coin, strict=True)
    ]
    (world.folder / "labels.csv").write_text("\n".join(random) + "\n")
    assert world.calibrate().code == 0
    assert world.predict("calibrated", "--calibration", world.json).code == 0
    assert world.evaluate("calibrated").code == 0
    doubt = world.metrics("calibrated")["label"]["doubt"]
    assert doubt["temperature"] > 1.2
    assert doubt["nll"]["after"] < doubt["nll"]["before"]
    plain = world.evaluate("run")
    assert plain.code == 0
    assert "doubt" not in world.metrics("run")["label"]
    assert world.metrics("run")["label"]["metrics"]["ece"]["value"] == pytest.approx(doubt["ece"]["before"])
    assert world.metrics("calibrated")["label"]["metrics"]["ece"]["value"] == doubt["ece"]["after"]


def test_a_run_may_be_calibrated_in_its_own_folder_and_be_taken_back(world: World) -> None:
    run = world.folder / "run"
    assert world.predict("run").code == 0
    stored = {path.name: path.read_bytes() for path in (run / "attention").iterdir()}
    before = (run / "predictions.csv").read_bytes()
    assert world.calibrate().code == 0
    assert world.predict("run", "--calibration", world.json).code == 0
    assert (run / "predictions.csv").read_bytes() != before
    assert {path.name: path.read_bytes() for path in (run / "attention").iterdir()} == stored
    said = world.calibrate()
    assert said.code == 2
    assert "the run is calibrated already; predict again without --calibration" in said.complaint
    assert world.predict("run").code == 0
    assert (run / "predictions.csv").read_bytes() == before


def test_slides_that_were_calibrated_on_count_for_nothing(world: World) -> None:
    assert world.calibrate().code == 0
    assert world.predict("run", "--calibration", world.json).code == 0
    said = world.evaluate("run", "--split", "val")
    assert said.code == 0, said
    assert "24 slides were calibrated on, or are of the same patients: coverage has no others" in said.out
    doubt = world.metrics("run")["label"]["doubt"]
    assert doubt["sets"] == {}
    assert doubt["nll"] is None
    assert len(doubt["left_out"]) == VAL
    labels = world.folder / "labels.csv"
    labels.write_text(labels.read_text().replace(",val,", ",test,").replace("s024,c24", "s024,c1"))
    said = world.evaluate("run")
    assert "25 slides were calibrated on, or are of the same patients: they are left out" in said.out
    assert world.metrics("run")["label"]["doubt"]["sets"]["label"]["slides"] == TEST - 1


def test_several_tasks_of_every_kind(console: Console, tmp_path: Path) -> None:
    world = make_world(console, tmp_path, [THREE, MARKS, AGE])
    said = world.calibrate("--risk", "0.2")
    assert said.code == 0, said
    assert set(json.loads(world.json.read_text())["tasks"]) == {"size", "marks"}
    assert world.predict("calibrated", "--calibration", world.json).code == 0
    rows = table(tmp_path / "calibrated")
    columns = list(rows["s000"])
    assert "raw_age_age" not in columns
    assert [name for name in columns if name.startswith(("set", "abstain"))] == [
        "set_size", "abstain_size", "set_marks_er", "set_marks_pr", "abstain_marks"
    ]  # fmt: skip
    answers = {answer for row in rows.values() for answer in row["set_marks_pr"].split("|") if answer}
    assert answers == {"not pr", "pr"}
    for row in rows.values():
        alone = [
            len(row[f"set_marks_{name}"].split("|")) == 1 and row[f"set_marks_{name}"]
            for name in ("er", "pr")
        ]
        assert row["abstain_marks"] == str(int(not all(alone)))
    said = world.evaluate("calibrated", "--task", "marks")
    assert said.code == 0, said
    doubt = world.metrics("calibrated")["marks"]["doubt"]
    assert set(doubt["sets"]) == {"er", "pr"}
    assert set(doubt["sets"]["er"]["by_answer"]) == {"er", "not er"}
    assert world.calibrate("--task", "age").code == 2


def test_one_task_alone_is_calibrated_and_the_others_stay(console: Console, tmp_path: Path) -> None:
    world = make_world(console, tmp_path, [TaskConfig(), THREE])
    assert world.calibrate("--task", "size").code == 0
    assert world.predict("calibrated", "--calibration", world.json).code == 0
    plain, calibrated = table(tmp_path / "run"), table(tmp_path / "calibrated")
    for slide_id, row in plain.items():
        assert calibrated[slide_id]["prob_label_tumor"] == row["prob_label_tumor"]
    assert "set_label" not in calibrated["s000"]
    assert world.evaluate("calibrated").code == 0
    assert "doubt" not in world.metrics("calibrated")["label"]
    assert "doubt" in world.metrics("calibrated")["size"]


def test_patients_of_several_slides_count_once(console: Console, tmp_path: Path) -> None:
    world = make_world(console, tmp_path, [TaskConfig()], slides_a_case=2)
    assert world.calibrate("--seed", "3").code == 0
    (rule,) = json.loads(world.json.read_text())["tasks"]["label"]["rules"]
    assert rule["cases"] == [VAL // 2, VAL // 2]
    ids = [f"s{number:03}" for number in range(VAL)]
    drawn = one_of_each_case([f"c{number // 2}" for number in range(VAL)], seed=3)
    told, labels = table(tmp_path / "run"), _labels(tmp_path)
    scores = sorted(1 - float(told[ids[place]][f"prob_{labels[ids[place]]}"]) for place in drawn)
    assert rule["thresholds"] == [scores[rank(VAL // 2, 0.1) - 1]] * 2
    assert world.predict("calibrated", "--calibration", world.json).code == 0
    assert world.evaluate("calibrated").code == 0
    figures = world.metrics("calibrated")["label"]["doubt"]["sets"]["label"]
    assert figures["interval_method"] == "percentile bootstrap over cases"


def test_the_risk_holds_by_class_where_that_is_asked_for(world: World) -> None:
    assert world.calibrate("--by-class", "--risk", "0.2").code == 0
    (rule,) = json.loads(world.json.read_text())["tasks"]["label"]["rules"]
    assert sum(rule["cases"]) == VAL
    said = world.calibrate("--by-class", "--risk", "0.01")
    assert said.code == 2
    assert "a risk of 0.01 takes 99 or more" in said.complaint
    assert "leave --by-class out" in said.complaint


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--split", "train"), "split 'train' holds slides that the network learned from"),
        (("--split", "gone"), "split: Input should be 'val' or 'test'"),
        (("--risk", "0"), "risk: Input should be greater than 0"),
        (
            ("--risk", "0.01"),
            "has 24 cases with a label and a prediction in split 'val'; a risk of 0.01 takes 99",
        ),
        (("--task", "stage"), "task 'stage' is not there"),
    ],
)
def test_what_cannot_be_calibrated_is_said(world: World, options: tuple[str, ...], why: str) -> None:
    said = world.calibrate(*options)
    assert said.code == 2
    assert why in said.complaint
    assert not world.json.exists()


def test_slides_of_one_label_teach_nothing(world: World) -> None:
    labels = world.folder / "labels.csv"
    labels.write_text(labels.read_text().replace("tumor", "normal"))
    said = world.calibrate()
    assert said.code == 2
    assert "all 24 scored slides of split 'val' have the label 'normal'" in said.complaint


def test_a_slide_without_a_prediction_is_named(world: World) -> None:
    labels = world.folder / "labels.csv"
    labels.write_text(labels.read_text() + "s999,c999,tumor,val,s999.svs\n")
    said = world.calibrate()
    assert said.code == 3
    assert "s999: is in the manifest, not in the predictions" in said.out


def test_a_calibration_of_another_checkpoint_is_refused(world: World) -> None:
    assert world.calibrate().code == 0
    checkpoint_of(world.checkpoint, [TaskConfig()], seed=1)
    said = world.predict("other", "--calibration", world.json)
    assert said.code == 2
    assert "calibration.json: belongs to checkpoint" in said.complaint
    assert not (world.folder / "other").exists()


def test_a_table_that_was_calibrated_is_not_calibrated_again_whatever_run_json_says(world: World) -> None:
    """A start that dies after it has written run.json leaves no table of the one before; nor is one believed."""
    run = world.folder / "calibrated"
    assert world.calibrate().code == 0
    assert world.predict("calibrated", "--calibration", world.json).code == 0
    described = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**described, "calibration": None}))
    for said in (
        world.console("calibrate", run, world.folder / "labels.csv", "--out", world.folder / "wrong.json"),
        world.evaluate("calibrated"),
    ):
        assert said.code == 2
        assert "was calibrated for other tasks than run.json says; predict again" in said.complaint
    assert not (world.folder / "wrong.json").exists()


@pytest.mark.parametrize("what", ["temperature", "thresholds", "checkpoint"])
def test_a_table_that_another_calibration_made_is_not_scored(world: World, what: str) -> None:
    run = world.folder / "calibrated"
    assert world.calibrate().code == 0
    assert world.predict("calibrated", "--calibration", world.json).code == 0
    described = json.loads((run / "run.json").read_text())
    its = described["calibration"]["tasks"]["label"]
    if what == "temperature":
        its["temperature"] *= 1.01
    elif what == "thresholds":
        its["rules"][0]["thresholds"] = [1, 1]
    else:
        described["calibration"]["checkpoint"] = "ab" * 32
    (run / "run.json").write_text(json.dumps(described))
    said = world.evaluate("calibrated")
    assert said.code == 2
    assert (
        "of another checkpoint" if what == "checkpoint" else "calibrated in another way"
    ) in said.complaint


def test_a_raw_number_that_is_no_probability_is_one_line(world: World) -> None:
    table = world.folder / "calibrated" / "predictions.csv"
    assert world.calibrate().code == 0
    assert world.predict("calibrated", "--calibration", world.json).code == 0
    head, first, *rest = table.read_text().splitlines()
    cells = first.split(",")
    cells[head.split(",").index("raw_tumor")] = "nan"
    table.write_text("\n".join([head, ",".join(cells), *rest]) + "\n")
    said = world.evaluate("calibrated")
    assert said.code == 2
    assert "was calibrated in another way than run.json says; predict again" in said.complaint


def test_no_table_of_another_calibration_outlives_its_run_json(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = world.folder / "run"
    assert world.calibrate().code == 0
    assert (run / "predictions.csv").is_file()

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wsi_ips.inference.feature_predict.RunTables", dies)
    assert world.predict("run", "--calibration", world.json).code != 0
    assert json.loads((run / "run.json").read_text())["calibration"] is not None
    assert not (run / "predictions.csv").exists()
    assert list((run / "attention").iterdir())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tasks": {}}, "at least 1 item"),
        ({"slides": []}, "at least 1 item"),
        ({"checkpoint": "ab"}, "checkpoint"),
        ({"turns": True}, "turns: true is not a number"),
    ],
)
def test_a_calibration_that_says_nothing_is_refused(world: World, values: dict[str, Any], said: str) -> None:
    assert world.calibrate().code == 0
    world.json.write_text(json.dumps({**json.loads(world.json.read_text()), **values}))
    told = world.predict("other", "--calibration", world.json)
    assert told.code == 2
    assert said in told.complaint
    assert not (world.folder / "other").exists()


def test_a_file_that_is_no_calibration_is_refused_before_anything_is_done(world: World) -> None:
    world.json.write_text("{}")
    said = world.predict("other", "--calibration", world.json)
    assert said.code == 2
    assert "calibration.json: is no calibration (checkpoint: Field required)" in said.complaint
    assert not (world.folder / "other").exists()


def test_a_table_that_is_not_of_its_run_json_is_refused(world: World) -> None:
    assert world.calibrate().code == 0
    assert world.predict("calibrated", "--calibration", world.json).code == 0
    other = world.folder / "run" / "predictions.csv"
    (world.folder / "calibrated" / "predictions.csv").write_bytes(other.read_bytes())
    said = world.evaluate("calibrated")
    assert said.code == 2
    assert "was calibrated for other tasks than run.json says" in said.complaint


def test_folds_of_a_cross_validation_have_no_one_model_to_calibrate(world: World) -> None:
    path = world.folder / "run" / "run.json"
    described = json.loads(path.read_text())
    described["config"]["held_out"] = {"model": "of each slide the fold's"}
    path.write_text(json.dumps(described))
    said = world.calibrate()
    assert said.code == 2
    assert "each fold's slides are another model's" in said.complaint


def test_a_run_without_calibration_has_the_columns_it_always_had(world: World) -> None:
    first = (world.folder / "run" / "predictions.csv").read_text().splitlines()[0]
    assert first == "slide_id,prob_normal,prob_tumor,pred,n_patches,status,error"


def test_slides_are_not_read_again_for_their_calibration(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    """Nor is anything of it stored with them; patients' rows pool what was calibrated, a report shows it."""
    slides, run = tmp_path / "slides", tmp_path / "run"
    slides.mkdir()
    for source in sorted(small_data.slides.iterdir())[:2]:
        (slides / source.name).symlink_to(source)
    ids = sorted(path.stem for path in slides.iterdir())
    (tmp_path / "cases.csv").write_text("slide_id,case_id\n" + "".join(f"{one},P\n" for one in ids))
    arguments = (
        "predict", slides, "--checkpoint", small_checkpoint, "--out", run, "--cases", tmp_path / "cases.csv"
    )  # fmt: skip
    assert console(*arguments).code == 0
    plain = table(run)
    before = {path: path.stat().st_mtime_ns for path in (run / "attention").iterdir()}
    told = [float(row["prob_tumor"]) for row in plain.values()]
    threshold = (1 - max(told) + 1 - min(told)) / 2  # tumor is in one slide's set, and not in the other's
    rule = QuestionRule(
        question="", answers=("normal", "tumor"), thresholds=(threshold, threshold), cases=(9, 9)
    )
    calibration = Calibration(
        checkpoint=checkpoint_sha256(small_checkpoint), split="val", risk=0.1, by_class=False, seed=0,
        slides=("another",),
        tasks={
            "label": TaskCalibration(
                classes=("normal", "tumor"), activation="softmax", temperature=4.0, temperature_fitted=True,
                slides=9, nll_before=1, nll_after=1, ece_before=0, ece_after=0, rules=(rule,),
            )
        },
    )  # fmt: skip
    write_calibration(tmp_path / "c.json", calibration)
    assert console(*arguments, "--calibration", tmp_path / "c.json").code == 0
    assert {path: path.stat().st_mtime_ns for path in (run / "attention").iterdir()} == before
    rows = table(run)
    assert {row["raw_tumor"] for row in rows.values()} == {row["prob_tumor"] for row in plain.values()}
    held = {slide_id: "tumor" in row["set"].split("|") for slide_id, row in rows.items()}
    assert held == {slide_id: float(row["prob_tumor"]) == max(told) for slide_id, row in plain.items()}
    with (run / "cases.csv").open(newline="") as file:
        (patient,) = csv.DictReader(file)
    assert float(patient["prob_tumor"]) == max(float(row["prob_tumor"]) for row in rows.values())
    said = console("report", run)
    assert said.code == 0, said
    assert (
        "Probabilities are calibrated: <bdi>label: on 1 slide of split val"
        in (run / "report.html").read_text()
    )
    other = tmp_path / "other"
    said = console(*arguments[:4], "--out", other, "--no-overlays", "--calibration", tmp_path / "c.json")
    assert said.code == 0, said
    assert (other / "predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()
