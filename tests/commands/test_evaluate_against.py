"""``evaluate A --against B``: the figures of both runs, paired, on the slides that both have predicted."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wsi_ips as wi
from tests.commands.console import Console
from tests.commands.evaluated_run import Made, Slide, make_run, tumor
from wsi_ips.config import TaskConfig
from wsi_ips.config.survival import SurvivalConfig
from wsi_ips.evaluation.intervals import delong_test
from wsi_ips.evaluation.slide_level import roc_auc

FAST = ("--bootstrap", "100", "--no-plots")


def slides(noise: float, *, count: int = 30, slides_per_case: int = 1) -> list[Slide]:
    """The same cases and labels whatever the noise of the probabilities is."""
    rng = np.random.default_rng(5)
    made = []
    for number in range(count):
        case = number // slides_per_case
        positive = case % 3 == 0
        chance = float(np.clip((0.7 if positive else 0.3) + noise * rng.normal(), 0.01, 0.99))
        made.append(tumor(f"s{number:02}", chance, "tumor" if positive else "normal", case_id=f"p{case}"))
    return made


def two_runs(folder: Path, ours: list[Slide], theirs: list[Slide], **more: Any) -> tuple[Made, Made]:
    return make_run(folder / "a", ours, **more), make_run(folder / "b", theirs, **more)


def table(made: Made) -> dict[tuple[str, str, str], dict[str, str]]:
    with (made.run / "evaluation" / "against.csv").open(newline="") as file:
        return {(row["task"], row["of"], row["figure"]): row for row in csv.DictReader(file)}


def chances(given: list[Slide]) -> np.ndarray:
    return np.array([s.probabilities["label"]["tumor"] for s in given if s.probabilities])


def test_figures_difference_interval_and_test(console: Console, tmp_path: Path) -> None:
    good, poor = slides(0.1), slides(0.5)
    ours, theirs = two_runs(tmp_path, good, poor)
    said = console("evaluate", ours.run, ours.manifest, "--against", theirs.run, *FAST)
    assert said.code == 0, said.err
    positive = np.array([slide.cells["label"] == "tumor" for slide in good])
    aucs = [roc_auc(chances(each), positive) for each in (good, poor)]
    row = table(ours)["label", "slides", "auc"]
    assert (float(row["a"]), float(row["b"])) == pytest.approx(aucs)
    assert float(row["difference"]) == pytest.approx(aucs[0] - aucs[1])
    assert float(row["difference_low"]) <= float(row["difference"]) <= float(row["difference_high"])
    p = delong_test(chances(good), chances(poor), positive).p
    assert float(row["delong_p"]) == pytest.approx(p)
    assert row["count"] == "30"
    assert f"DeLong p {p:.2g}" in said.out
    told = json.loads((ours.run / "evaluation" / "against.json").read_text())
    assert told["slides"] == {"common": 30, "only_a": [], "only_b": []}
    assert next(f for f in told["figures"] if f["figure"] == "auc")["delong_p"] == pytest.approx(p)
    metrics = json.loads((ours.run / "evaluation" / "metrics.json").read_text())
    assert metrics["tasks"]["label"]["metrics"]["auc"]["low"] == pytest.approx(float(row["a_low"]))


def test_only_the_common_slides_are_compared(console: Console, tmp_path: Path) -> None:
    good, poor = slides(0.1), slides(0.5)
    ours, theirs = two_runs(
        tmp_path, good[2:], [replace(poor[5], probabilities=None), *poor[:5], *poor[6:27]]
    )
    manifest = make_run(tmp_path / "all", good).manifest
    said = console("evaluate", ours.run, manifest, "--against", theirs.run, *FAST)
    assert said.code == 3, "A lacks two slides of the split"
    common = [slide for n, slide in enumerate(good[:27]) if n not in (0, 1, 5)]
    row = table(ours)["label", "slides", "auc"]
    assert row["count"] == str(len(common)) == "24"
    positive = np.array([slide.cells["label"] == "tumor" for slide in common])
    assert float(row["a"]) == pytest.approx(roc_auc(chances(common), positive))
    told = json.loads((ours.run / "evaluation" / "against.json").read_text())
    assert told["slides"] == {"common": 24, "only_a": ["s05", "s27", "s28", "s29"], "only_b": ["s00", "s01"]}
    assert "4 slides that only A has predicted: left out of the comparison" in said.out
    assert "2 slides that only B has predicted: left out of the comparison" in said.out


def test_patients_of_several_slides_have_figures_of_their_own(console: Console, tmp_path: Path) -> None:
    ours, theirs = two_runs(tmp_path, slides(0.1, slides_per_case=2), slides(0.5, slides_per_case=2))
    assert console("evaluate", ours.run, ours.manifest, "--against", theirs.run, *FAST).code == 0
    found = table(ours)
    assert found["label", "slides", "auc"]["delong_p"] == "", "slides of a patient are not independent"
    assert found["label", "patients", "auc"]["count"] == "15"
    assert 0 <= float(found["label", "patients", "auc"]["delong_p"]) <= 1


@pytest.mark.parametrize(
    ("tumors", "count", "why"),
    [(3, 30, "3 cases of a class, and 5 are needed"), (4, 8, "8 cases, and 10 are needed")],
)
def test_too_few_cases_have_no_interval_and_no_p(
    console: Console, tmp_path: Path, tumors: int, count: int, why: str
) -> None:
    rng = np.random.default_rng(1)
    runs = []
    for name in "ab":
        drawn = [
            tumor(f"s{number:02}", float(rng.random()), "tumor" if number < tumors else "normal")
            for number in range(count)
        ]
        runs.append(make_run(tmp_path / name, drawn))
    said = console("evaluate", runs[0].run, runs[0].manifest, "--against", runs[1].run, *FAST)
    assert said.code == 0, said.err
    row = table(runs[0])["label", "slides", "auc"]
    assert math.isfinite(float(row["difference"]))
    ends = [row[f"{of}_{end}"] for of in ("a", "b", "difference") for end in ("low", "high")]
    assert (ends, row["delong_p"], row["why_none"]) == (["nan"] * 6, "", why)
    assert f"(too few for an interval and a DeLong p: {why})" in said.out
    assert "DeLong p 0" not in said.out
    metrics = json.loads((runs[0].run / "evaluation" / "metrics.json").read_text())["tasks"]["label"]
    assert metrics["metrics"]["auc"]["why_none"] == why
    assert "auc_delong" not in metrics
    assert console("evaluate", runs[0].run, runs[0].manifest, "--against", runs[1].run, "--bootstrap", "0",
                   "--no-plots").out.count(f"no DeLong p (too few: {why})") == 1  # fmt: skip


def test_few_events_have_no_interval(console: Console, tmp_path: Path) -> None:
    task = TaskConfig(
        name="death", kind="survival", survival=SurvivalConfig(time="months", event="died", at=(6.0, 12.0))
    )
    rng = np.random.default_rng(0)
    runs = []
    for name in "ab":
        drawn = [
            Slide(
                f"s{place:02}",
                {"death": {"risk": float(rng.normal()), **dict.fromkeys(task.classes[1:], 0.5)}},
                {"months": str(place + 1), "died": str(int(place < 4))},
            )
            for place in range(20)
        ]
        runs.append(make_run(tmp_path / name, drawn, [task]))
    assert console("evaluate", runs[0].run, runs[0].manifest, "--against", runs[1].run, *FAST).code == 0
    row = table(runs[0])["death", "patients", "c_index"]
    assert row["why_none"] == "4 cases with an event, and 5 are needed"
    assert (row["a_low"], row["difference_low"]) == ("nan", "nan")


def test_a_run_does_not_differ_from_itself(console: Console, tmp_path: Path) -> None:
    made = make_run(tmp_path, slides(0.3))
    assert console("evaluate", made.run, made.manifest, "--against", made.run, *FAST).code == 0
    for row in table(made).values():
        assert [float(row[name]) for name in ("difference", "difference_low", "difference_high")] == [0, 0, 0]
    assert float(table(made)["label", "slides", "auc"]["delong_p"]) == 1


def test_the_risks_of_two_survival_models(console: Console, tmp_path: Path) -> None:
    task = TaskConfig(
        name="death", kind="survival", survival=SurvivalConfig(time="months", event="died", at=(6.0, 12.0))
    )
    rng = np.random.default_rng(0)
    risks = rng.normal(size=(2, 25))
    runs = []
    for number, folder in enumerate("ab"):
        drawn = []
        for place in range(25):
            survival = dict.fromkeys(task.classes[1:], 0.5)
            said = {"death": {"risk": float(risks[number, place]), **survival}}
            cells = {"months": f"{20 - 5 * risks[0, place]:.3f}", "died": str(int(place % 4 > 0))}
            split = "train" if place < 5 else "test"
            drawn.append(Slide(f"s{place:02}", said, cells, split=split))
        runs.append(make_run(tmp_path / folder, drawn, [task]))
    said = console("evaluate", runs[0].run, runs[0].manifest, "--against", runs[1].run, *FAST)
    assert said.code == 0, said.err
    row = table(runs[0])["death", "patients", "c_index"]
    assert float(row["a"]) == 1
    assert float(row["difference"]) == pytest.approx(1 - float(row["b"]))
    assert float(row["difference_low"]) > 0
    assert (row["count"], row["delong_p"]) == ("20", "")


def test_other_labels_are_refused_and_nothing_is_written(console: Console, tmp_path: Path) -> None:
    ours = make_run(tmp_path / "a", slides(0.2))
    other = [
        replace(slide, probabilities={"label": {"normal": 0.5, "cancer": 0.5}}, cells={"label": "cancer"})
        for slide in slides(0.2)
    ]
    theirs = make_run(tmp_path / "b", other, [TaskConfig(classes=("normal", "cancer"))])
    said = console("evaluate", ours.run, ours.manifest, "--against", theirs.run, *FAST)
    assert said.code == 2
    assert "task label has other labels in the two runs" in said.err
    assert "cancer" in said.err
    assert not (ours.run / "evaluation").exists()


@pytest.mark.parametrize("what", ["no folder", "no slide", "no task"])
def test_what_cannot_be_compared_is_said(console: Console, tmp_path: Path, what: str) -> None:
    ours, theirs = two_runs(
        tmp_path, slides(0.2), [replace(s, slide_id=f"x{s.slide_id}") for s in slides(0.2)]
    )
    words = "no prediction for any"
    if what == "no folder":
        theirs, words = replace(theirs, run=tmp_path / "nowhere"), "no such folder"
    if what == "no task":
        other = [replace(s, probabilities={"other": s.probabilities["label"]}) for s in slides(0.2)]  # type: ignore[index]
        theirs, words = (
            make_run(tmp_path / "c", other, [TaskConfig(name="other", column="label")]),
            "no task in",
        )
    said = console("evaluate", ours.run, ours.manifest, "--against", theirs.run, *FAST)
    assert said.code == 2
    assert words in " ".join(said.err.split())
    assert not (ours.run / "evaluation").exists()


def test_from_python(tmp_path: Path) -> None:
    ours, theirs = two_runs(tmp_path, slides(0.1), slides(0.5))
    scores = wi.evaluate(ours.run, ours.manifest, against=theirs.run, bootstrap=0, plots=False)
    assert scores.against is not None
    assert scores.against["figures"][0]["figure"] == "auc"
    assert scores.against["figures"][0]["difference_low"] is None
    assert wi.evaluate(ours.run, ours.manifest, bootstrap=0, plots=False).against is None
