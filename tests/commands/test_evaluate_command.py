"""``evaluate``: every figure, table and plot of drawn runs, and what it does with what is missing or wrong."""

import csv
import json
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import h5py
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.commands.console import Console
from tests.commands.evaluated_run import Made, Slide, make_run, tumor
from tests.conftest import SmallData
from wsi_ips.commands.evaluate import EvaluateJob
from wsi_ips.config import TaskConfig
from wsi_ips.datasets.annotations import write_asap
from wsi_ips.datasets.camelyon import NODE_CLASSES
from wsi_ips.evaluation.froc import SlideHits, froc_curve, read_detections
from wsi_ips.evaluation.run.froc import _pruned
from wsi_ips.evaluation.slide_level import roc_auc
from wsi_ips.evaluation.staging import read_submission
from wsi_ips.evaluation.task_scores import Pooling

FAST = ("--bootstrap", "50", "--no-plots")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def metrics(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return read


def two_classes(count: int = 24, *, slides_per_case: int = 1) -> list[Slide]:
    """Every third case has tumour; probabilities overlap a little."""
    rng = np.random.default_rng(0)
    slides = []
    for number in range(count):
        case = number // slides_per_case
        positive = case % 3 == 0
        chance = float(np.clip(rng.normal(0.65 if positive else 0.35, 0.2), 0.01, 0.99))
        slides.append(
            tumor(f"s{number:02}", chance, "tumor" if positive else "normal", case_id=f"patient {case}")
        )
    return slides


def test_figures_tables_and_lines(console: Console, tmp_path: Path) -> None:
    slides = two_classes()
    made = make_run(tmp_path, slides)
    said = console("evaluate", made.run, made.manifest, "--bootstrap", "200", "--no-plots")
    assert said.code == 0, said.err
    out = made.run / "evaluation"
    assert sorted(path.name for path in out.iterdir()) == ["cases.csv", "metrics.json", "slides.csv"]
    found = metrics(out)
    scores = np.array([slide.probabilities["label"]["tumor"] for slide in slides if slide.probabilities])
    positive = np.array([slide.cells["label"] == "tumor" for slide in slides])
    auc = found["tasks"]["label"]["metrics"]["auc"]
    assert auc["value"] == roc_auc(scores, positive)
    assert 0.5 < auc["low"] < auc["value"] < auc["high"] <= 1
    assert f"label: AUC {auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]" in said.out
    assert "24 of 24 slides of split test scored" in said.out
    delong = found["tasks"]["label"]["auc_delong"]
    assert (delong["low"], delong["high"]) == pytest.approx((auc["low"], auc["high"]), abs=0.1)
    assert found["tasks"]["label"]["confusion"]["classes"] == ["normal", "tumor"]
    assert np.sum(found["tasks"]["label"]["confusion"]["rows_are_labels"]) == 24
    table = rows(out / "slides.csv")
    assert [float(row["probability"]) for row in table] == scores.tolist()
    assert [row["predicted"] == "tumor" for row in table] == (scores >= 0.5).tolist()
    assert [row["correct"] == "1" for row in table] == ((scores >= 0.5) == positive).tolist()
    assert len(rows(out / "cases.csv")) == 24


def test_nothing_of_an_earlier_evaluation_lies_beside_new_figures(console: Console, tmp_path: Path) -> None:
    """It may have been asked for more: plots, FROC, another run."""
    made = make_run(tmp_path, two_classes())
    out = made.run / "evaluation"
    assert console("evaluate", made.run, made.manifest, *FAST).code == 0
    held = metrics(out)
    held["froc"] = {"task": "label"}
    (out / "metrics.json").write_text(json.dumps(held))
    (out / "detections").mkdir()
    left = ["roc.png", "roc_label.png", "froc.png", "froc.csv", "against.json", "detections/s00.csv"]
    for name in (*left, "mine.png"):
        (out / name).touch()
    assert console("evaluate", made.run, made.manifest, "--split", "nothing", *FAST).code == 2
    assert all((out / name).exists() for name in left), "nothing is removed for nothing"
    assert console("evaluate", made.run, made.manifest, *FAST).code == 0
    names = {path.name for path in out.rglob("*") if path.is_file()}
    assert names == {"cases.csv", "metrics.json", "slides.csv", "mine.png"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "roc.png").touch()
    assert console("evaluate", made.run, made.manifest, "--out", tmp_path / "other", *FAST).code == 0
    assert (tmp_path / "other" / "roc.png").exists(), "there was no evaluation that could have left it"


def test_the_same_seed_gives_the_same_file(console: Console, tmp_path: Path) -> None:
    made = make_run(tmp_path, two_classes())
    read = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        said = console("evaluate", made.run, made.manifest, "--out", tmp_path / name, *FAST, "--seed", seed)
        assert said.code == 0
        read.append(metrics(tmp_path / name)["tasks"])
    assert read[0] == read[1] != read[2]


def test_slides_that_cannot_be_scored_are_named_and_counted(console: Console, tmp_path: Path) -> None:
    slides = [*two_classes(), tumor("broken", None, "tumor", case_id="p"), tumor("gone", 0.5, "normal")]
    made = make_run(tmp_path, slides)
    predictions = made.run / "predictions.csv"
    lines = [line for line in predictions.read_text().splitlines() if not line.startswith("gone,")]
    predictions.write_text("\n".join(lines) + "\n")
    said = console("evaluate", made.run, made.manifest, *FAST)
    assert said.code == 3
    assert "failed: broken: predict failed: cannot be decoded" in said.out
    assert "failed: gone: is in the manifest, not in the predictions" in said.out
    assert "24 of 26 slides" in said.out
    found = metrics(made.run / "evaluation")["slides"]
    assert found["failed"] == {"broken": "cannot be decoded"}
    assert (found["missing"], found["scored"], found["in_split"]) == (["gone"], 24, 26)
    table = {row["slide_id"]: row for row in rows(made.run / "evaluation" / "slides.csv")}
    assert (table["broken"]["status"], table["broken"]["label"], table["broken"]["case_id"]) == (
        "failed", "tumor", "p",
    )  # fmt: skip
    assert table["gone"]["status"] == "missing"


def test_patients_are_resampled_and_pooled(console: Console, tmp_path: Path) -> None:
    made = make_run(tmp_path, two_classes(48, slides_per_case=4))
    for how in ("max", "mean", "noisy_or"):
        said = console("evaluate", made.run, made.manifest, "--out", tmp_path / how, "--pool", how, *FAST)
        assert said.code == 0, said.err
        assert "label, 12 patients: AUC" in said.out
    table = rows(tmp_path / "max" / "cases.csv")
    assert [row["slides"] for row in table] == ["4"] * 12
    chances = {
        how: float(rows(tmp_path / how / "cases.csv")[0]["probability"])
        for how in ("max", "mean", "noisy_or")
    }
    assert chances["mean"] < chances["max"] < chances["noisy_or"]
    found = metrics(tmp_path / "max")["tasks"]["label"]
    assert found["cases"]["pooled"] == 12
    assert "auc_delong" not in found, "slides of one patient are not independent"


def test_patients_who_all_have_tumour_have_no_auc(console: Console, tmp_path: Path) -> None:
    slides = [
        tumor(f"s{n}", 0.2 + n / 10, "tumor" if n % 2 else "normal", case_id=f"p{n // 2}") for n in range(6)
    ]
    made = make_run(tmp_path, slides)
    said = console("evaluate", made.run, made.manifest, *FAST)
    assert said.code == 0, said.err
    assert "label, 3 patients: AUC not defined" in said.out
    assert metrics(made.run / "evaluation")["tasks"]["label"]["cases"]["metrics"]["auc"]["value"] is None


def test_the_threshold_may_be_chosen_on_another_split(console: Console, tmp_path: Path) -> None:
    val = [tumor("v1", 0.30, "tumor", split="val"), tumor("v2", 0.29, "normal", split="val")]
    made = make_run(tmp_path, [*two_classes(), *val])
    said = console("evaluate", made.run, made.manifest, *FAST, "--threshold-from", "val")
    assert said.code == 0, said.err
    found = metrics(made.run / "evaluation")["tasks"]["label"]
    assert found["threshold"] == {"value": 0.3, "chosen_on": "val"}
    table = rows(made.run / "evaluation" / "slides.csv")
    assert [row["predicted"] == "tumor" for row in table] == [
        float(row["probability"]) >= 0.3 for row in table
    ]
    said = console("evaluate", made.run, made.manifest, *FAST, "--threshold-from", "val", "--split", "val")
    assert said.code == 2
    assert "another split" in said.complaint


def lesions() -> list[Slide]:
    """Two slides with a lesion that attention finds, one whose lesion it misses, one normal."""
    big = (4000, 3000, 900)
    return [
        tumor("found", 0.9, "tumor", lesion=big, hot=((4000, 3000, 0.5), (7000, 7000, 0.1))),
        tumor("second", 0.8, "tumor", lesion=big, hot=((4000, 3000, 0.4),)),
        tumor("missed", 0.7, "tumor", lesion=big, hot=((7500, 500, 0.6),)),
        tumor("normal", 0.4, "normal", hot=((1000, 1000, 0.3),)),
    ]


def test_froc_from_stored_attention_and_outlines(console: Console, tmp_path: Path) -> None:
    made = make_run(tmp_path, [*lesions(), tumor("unlabelled", 0.9, "tumor")])
    said = console("evaluate", made.run, made.manifest, *FAST, "--annotations", made.annotations)
    assert said.code == 3
    assert "failed: unlabelled: left out of FROC: no outlines" in said.out
    out = made.run / "evaluation"
    froc = metrics(out)["froc"]
    assert (froc["slides"], froc["lesions"], froc["task"]) == (4, 3, "label")
    assert froc["scales"] == [{"l0_mpp": 0.243, "level": 5}]
    assert froc["left_out"]["without_outlines"] == ["unlabelled"]
    # Both lesions are found before the second false positive of four slides: at half a one a slide.
    assert froc["sensitivity_at"]["0.5"] == pytest.approx(2 / 3)
    assert 0 < froc["score"]["value"] <= 2 / 3 + 1e-9
    assert "FROC score" in said.out
    table = rows(out / "froc.csv")
    assert (table[-1]["threshold"], table[-1]["sensitivity"]) == ("inf", "0.0")
    assert max(float(row["sensitivity"]) for row in table) == pytest.approx(2 / 3)
    detections = read_detections(out / "detections" / "found.csv")
    assert detections.probability_N[:2] == pytest.approx([0.9, 0.9 * 0.1 / 0.5])
    assert abs(detections.l0_xy_N2[0] - [4000, 3000]).max() < 512


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 1)), min_size=1, max_size=5), st.integers(0, 99))
def test_false_positives_that_resampling_leaves_out_change_no_rate_that_counts(
    drawn: list[tuple[int, float]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    hits = [SlideHits(rng.random(count), np.array([score, 0], np.float32), 2) for count, score in drawn]
    with patch("wsi_ips.evaluation.run.froc.RATES_RESAMPLED", 9):
        pruned = _pruned(hits)
    assert sum(len(one.false_positives_F) for one in pruned) <= 9 * len(hits) + 1
    assert np.array_equal(froc_curve(pruned).sensitivity_at(), froc_curve(hits).sensitivity_at())


def test_wrong_outlines(console: Console, tmp_path: Path) -> None:
    made = make_run(tmp_path, lesions())
    empty, broken, strangers = tmp_path / "empty", tmp_path / "broken", tmp_path / "strangers"
    for folder in (empty, broken, strangers):
        folder.mkdir()
    (broken / "found.xml").write_text("<ASAP_Annotations>")
    outside = tmp_path / "outside"
    write_asap(outside / "found.xml", [shapely.box(100, 100, 900, 900), shapely.box(9000, 0, 9500, 500)])
    (strangers / "other.xml").write_text("<ASAP_Annotations/>")
    twice = tmp_path / "twice"
    for name in ("found", "Found"):
        write_asap(twice / f"{name}.xml", [shapely.box(100, 100, 900, 900)])
    for folder, problem in (
        (tmp_path / "absent", "no such folder"),
        (empty, "no outlines for any"),
        (strangers, "no outlines for any"),
        (broken, "is not XML"),
        (outside, "outside"),
        (twice, "holds Found.xml and found.xml, outlines of the same slide"),
    ):
        said = console("evaluate", made.run, made.manifest, *FAST, "--annotations", folder)
        assert said.code == 2
        assert problem in said.complaint
        assert str(folder) in said.complaint
        assert not (made.run / "evaluation").exists()


def test_the_tables_of_the_run_itself_are_never_replaced(console: Console, tmp_path: Path) -> None:
    made = make_run(tmp_path, two_classes())
    (made.run / "slides.csv").write_text("what predict wrote")
    said = console("evaluate", made.run, made.manifest, *FAST, "--out", made.run)
    assert said.code == 2
    assert "is the run itself" in said.complaint
    assert (made.run / "slides.csv").read_text() == "what predict wrote"


def test_outlines_of_nothing_are_none(console: Console, tmp_path: Path) -> None:
    """An empty file must not make a tumour slide one without lesions."""
    made = make_run(tmp_path, lesions())
    for slide_id in ("missed", "normal"):
        write_asap(made.annotations / f"{slide_id}.xml", [])
    said = console("evaluate", made.run, made.manifest, *FAST, "--annotations", made.annotations)
    assert said.code == 3
    assert "failed: missed: left out of FROC: no outlines" in said.out
    froc = metrics(made.run / "evaluation")["froc"]
    assert (froc["slides"], froc["lesions"]) == (3, 2)


def test_attention_that_is_gone_leaves_the_slide_out(console: Console, tmp_path: Path) -> None:
    made = make_run(tmp_path, lesions())
    (made.run / "attention" / "second.h5").write_bytes(b"no HDF5")
    with h5py.File(made.run / "attention" / "missed.h5", "a") as file:
        file["attention"][3] = np.nan
    said = console("evaluate", made.run, made.manifest, *FAST, "--annotations", made.annotations)
    assert said.code == 3
    assert "failed: second: left out of FROC" in said.out
    assert "failed: missed: left out of FROC: attention" in said.out
    assert metrics(made.run / "evaluation")["froc"]["slides"] == 2


TASKS = (
    TaskConfig(name="subtype", classes=("benign", "adeno", "squamous")),
    TaskConfig(name="receptors", classes=("er", "pr"), activation="sigmoid"),
    TaskConfig(name="age", classes=("age",), activation="linear"),
)


def several_tasks() -> list[Slide]:
    rng = np.random.default_rng(0)
    slides = []
    for number in range(18):
        kind, er, pr, age = number % 3, number % 2, number % 5 == 0, 40 + number
        chances = rng.dirichlet(1 + 3 * (np.arange(3) == kind))
        outputs = {
            "subtype": dict(zip(TASKS[0].classes, chances.tolist(), strict=True)),
            "receptors": {"er": float(np.clip(0.5 * er + rng.random() / 2, 0, 1)), "pr": float(rng.random())},
            "age": {"age": age + float(rng.normal(0, 4))},
        }
        names = [name for name, has in (("er", er), ("pr", pr)) if has]
        cells = {"subtype": TASKS[0].classes[kind], "receptors": ";".join(names) or "none", "age": str(age)}
        slides.append(Slide(f"s{number:02}", outputs, cells))
    return slides


def test_every_kind_of_task_and_every_plot(console: Console, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = make_run(tmp_path, several_tasks(), TASKS)
    history = tmp_path / "model" / "history.csv"
    history.parent.mkdir()
    history.write_text("epoch,train_loss,val_loss,val_auc\n0,0.7,0.69,0.5\n1,0.6,0.66,\n2,0.5,0.68,0.7\n")
    said = console("evaluate", made.run, made.manifest, "--bootstrap", "20", "--plots", "--history", history)
    assert said.code == 0, said.err
    out = made.run / "evaluation"
    found = metrics(out)["tasks"]
    assert [found[task.name]["kind"] for task in TASKS] == ["multiclass", "multilabel", "regression"]
    assert found["subtype"]["metrics"]["auc_macro"]["value"] > 0.7
    assert set(found["age"]["metrics"]) == {"mae", "rmse", "r2", "spearman"}
    assert found["receptors"]["metrics"]["auc_er"]["value"] == 1
    assert len(rows(out / "slides.csv")) == 3 * 18
    drawn = {path.name for path in out.glob("*.png")}
    assert drawn == {
        "roc_subtype.png", "roc_receptors.png", "reliability_subtype.png", "reliability_receptors.png",
        "confusion_subtype.png", "loss.png",
    }  # fmt: skip
    for name in drawn:
        with Image.open(out / name) as picture:
            assert min(picture.size) > 400
            assert len(set(picture.convert("RGB").get_flattened_data())) > 20, f"{name} is blank"
    said = console("evaluate", made.run, made.manifest, "--task", "age", "--out", tmp_path / "one", *FAST)
    assert said.code == 0
    assert list(metrics(tmp_path / "one")["tasks"]) == ["age"]


def test_without_matplotlib_the_figures_stand(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    made = make_run(tmp_path, two_classes())
    said = console("evaluate", made.run, made.manifest, "--bootstrap", "20")
    assert said.code == 0
    assert "pip install 'wsi_ips[plots]'" in said.out
    assert (made.run / "evaluation" / "metrics.json").exists()
    said = console("evaluate", made.run, made.manifest, "--plots", "--out", tmp_path / "other")
    assert said.code == 2
    assert "pip install 'wsi_ips[plots]'" in said.complaint
    assert not (tmp_path / "other").exists()


def test_node_classes_are_staged(console: Console, tmp_path: Path) -> None:
    task = TaskConfig(name="node", classes=NODE_CLASSES)
    slides = []
    for patient in range(6):
        for node in range(5):
            kind = NODE_CLASSES[patient % 4] if node == 0 else "negative"
            called = "micro" if (patient, node) == (1, 0) else kind
            chances = {name: 0.7 if name == called else 0.1 for name in NODE_CLASSES}
            slides.append(
                Slide(
                    f"patient_{patient}_node_{node}", {"node": chances}, {"node": kind}, f"patient_{patient}"
                )
            )
    made = make_run(tmp_path, slides, [task])
    said = console("evaluate", made.run, made.manifest, *FAST)
    assert said.code == 0, said.err
    staged = metrics(made.run / "evaluation")["stages"]["node"]
    assert staged["patients"]["patient_1"] == {"label": "pN0(i+)", "predicted": "pN1mi"}
    assert 0 < staged["quadratic_kappa"]["value"] < 1
    assert read_submission(made.run / "evaluation" / "submission.csv").patients["patient_3"] == "pN1"
    assert "quadratic kappa" in said.out


def test_a_patient_with_a_node_that_was_not_scored_is_not_staged(console: Console, tmp_path: Path) -> None:
    task = TaskConfig(name="node", classes=NODE_CLASSES)

    def node(patient: str, number: int, kind: str, *, failed: bool = False) -> Slide:
        chances = {"node": {name: float(name == kind) for name in NODE_CLASSES}}
        return Slide(f"{patient}_node_{number}", None if failed else chances, {"node": kind}, patient)

    torn = [node("a", 0, "macro"), node("a", 1, "itc", failed=True)]
    whole = [node("b", 0, "micro"), node("c", 0, "itc")]
    torn_too = [node("d", 0, "itc", failed=True), node("d", 1, "micro")]
    for name, slides in (("some", [*torn, *whole]), ("none", [*torn, *torn_too])):
        (tmp_path / name).mkdir()
        made = make_run(tmp_path / name, slides, [task])
        assert console("evaluate", made.run, made.manifest, *FAST).code == 3
        staged = metrics(made.run / "evaluation")["stages"]["node"]
        assert list(staged["patients"]) == (["b", "c"] if name == "some" else [])
        assert staged["incomplete"] == (["a"] if name == "some" else ["a", "d"])
        assert staged["quadratic_kappa"]["value"] == (1 if name == "some" else None)


def test_the_command_s_choices_are_the_library_s() -> None:
    assert get_args(EvaluateJob.model_fields["pool"].annotation) == get_args(Pooling)


@pytest.fixture
def good(tmp_path: Path) -> Made:
    return make_run(tmp_path, two_classes())


def complaint(console: Console, made: Made, *flags: str | Path) -> str:
    """The one line, after which nothing is written."""
    said = console("evaluate", made.run, made.manifest, *FAST, *flags)
    assert said.code == 2
    assert not (made.run / "evaluation").exists()
    return said.complaint


def test_one_class_only(console: Console, tmp_path: Path) -> None:
    made = make_run(tmp_path, [tumor(f"s{n}", 0.5, "tumor") for n in range(4)])
    line = complaint(console, made)
    assert "all 4 scored slides of split 'test' have the label 'tumor'" in line
    assert str(made.manifest) in line


def test_wrong_flags(console: Console, good: Made) -> None:
    assert "grade" in complaint(console, good, "--task", "grade")
    assert "'val'" in complaint(console, good, "--split", "val")
    assert "split" in complaint(console, good, "--split", "held-out")
    assert "threshold" in complaint(console, good, "--threshold", "1.5")
    assert "no such history" in complaint(console, good, "--history", good.run / "history.csv")
    assert "column epoch" in complaint(console, good, "--history", good.manifest.with_name("s00.tif"))


def test_labels_missing_for_a_task(console: Console, good: Made) -> None:
    text = good.manifest.read_text()
    good.manifest.write_text(text.replace(",label,", ",grade,"))
    assert "lacks the column label" in complaint(console, good)
    good.manifest.write_text(text.replace(",tumor,", ",,", 1))
    assert "label is empty" in complaint(console, good)


def test_other_slides_than_were_predicted(console: Console, good: Made) -> None:
    predictions = good.run / "predictions.csv"
    text = predictions.read_text()
    predictions.write_text("\n".join([text.splitlines()[0], *(f"x{line}" for line in text.splitlines()[1:])]))
    assert "no prediction for any of the 24 slides" in complaint(console, good)
    predictions.write_text(text + text.splitlines()[1] + "\n")
    assert "'s00' occurs twice" in complaint(console, good)
    header, first, *rest = text.splitlines()
    said = {"nan": "'s00' for task 'label' cannot be", "1.5": "row 2 is broken (prob_normal is '1.5'"}
    for wrong, problem in said.items():
        cells = first.split(",")
        predictions.write_text("\n".join([header, ",".join([cells[0], wrong, *cells[2:]]), *rest]) + "\n")
        assert problem in complaint(console, good)


def test_folders_that_are_no_run(console: Console, good: Made) -> None:
    description = good.run / "run.json"
    for content, problem in (
        ("{}", "which tasks"),
        ("[", "which tasks"),
        ('{"config": {"model": {"tasks": [{"name": 3}]}}}', "which tasks"),
        ('{"config": {}, "checkpoint": {"path": "gone.safetensors"}}', "no such checkpoint"),
    ):
        description.write_text(content)
        assert problem in complaint(console, good)
    description.unlink()
    assert "no run.json" in complaint(console, good)
    assert "no such folder" in complaint(console, Made(good.run / "absent", good.manifest, good.annotations))


def test_an_old_run_s_tasks_come_from_its_checkpoint(
    console: Console, good: Made, small_checkpoint: Path
) -> None:
    (good.run / "run.json").write_text(
        json.dumps({"config": {"slides": "s"}, "checkpoint": {"path": str(small_checkpoint)}})
    )
    assert console("evaluate", good.run, good.manifest, *FAST).code == 0


def test_what_predict_writes_is_what_evaluate_reads(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    """Real files from end to end: drawn slides with outlines, an untrained network."""
    run, annotations = tmp_path / "run", small_data.manifest.parent / "annotations"
    said = console(
        "predict", small_data.slides, "--checkpoint", small_checkpoint, "--out", run, "--no-overlays"
    )
    assert said.code == 0, said.err
    said = console("evaluate", run, small_data.manifest, *FAST, "--annotations", annotations)
    assert said.code == 0, said.err
    found = metrics(run / "evaluation")
    assert (found["slides"]["scored"], found["slides"]["predicted_elsewhere"]) == (2, 4)
    assert found["froc"]["scales"] == [{"l0_mpp": 0.5, "level": 4}]
    assert found["froc"]["lesions"] >= 1
    assert len(rows(run / "evaluation" / "slides.csv")) == 2
