"""A calibration's file: read back as it was written, and refused for anything that it cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest

from wsi_ips.config import TaskConfig
from wsi_ips.errors import CalibrationError
from wsi_ips.evaluation.conformal import (
    Calibration,
    QuestionRule,
    TaskCalibration,
    check_belongs,
    read_calibration,
    write_calibration,
)

RULE = QuestionRule(question="", answers=("normal", "tumor"), thresholds=(0.4, 0.7), cases=(30, 30))
TASK = TaskCalibration(
    classes=("normal", "tumor"),
    activation="softmax",
    temperature=2.0,
    temperature_fitted=True,
    slides=30,
    nll_before=0.6,
    nll_after=0.5,
    ece_before=0.2,
    ece_after=0.1,
    rules=(RULE,),
)
CALIBRATION = Calibration(
    checkpoint="ab" * 32,
    split="val",
    risk=0.1,
    by_class=True,
    seed=0,
    slides=("a", "b"),
    tasks={"label": TASK},
)


def test_it_is_read_back(tmp_path: Path) -> None:
    write_calibration(tmp_path / "c.json", CALIBRATION)
    assert read_calibration(tmp_path / "c.json") == CALIBRATION


@pytest.mark.parametrize(
    ("tumor", "answers"),
    [(0.2, ("normal",)), (0.35, ("normal", "tumor")), (0.5, ("tumor",)), (0.9, ("tumor",))],
)
def test_the_set_is_of_the_networks_own_probabilities(tumor: float, answers: tuple[str, ...]) -> None:
    """normal from 0.6 on, tumor from 0.3 on; at temperature 2, 0.2 would be 0.33 and in the set."""
    told = {"normal": 1 - tumor, "tumor": tumor}
    assert TASK.sets(told) == (answers,)
    assert TASK.tempered(told)["tumor"] == pytest.approx(tumor**0.5 / (tumor**0.5 + (1 - tumor) ** 0.5))


def test_no_answer_may_be_left() -> None:
    strict = TASK.model_copy(update={"rules": (RULE.model_copy(update={"thresholds": (0.1, 0.1)}),)})
    assert strict.sets({"normal": 0.5, "tumor": 0.5}) == ((),)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": 2}, "format"),
        ({"risk": 2}, "risk"),
        ({"more": 2}, "more"),
        ({"tasks": {"label": {"temperature": -1}}}, "tasks.label"),
        ({"rule": {"thresholds": [0.5]}}, "2 answers, 1 thresholds"),
        ({"rule": {"thresholds": [0.5, float("nan")]}}, "thresholds"),
        ({"rule": {"thresholds": [0.5, 1.5]}}, "thresholds"),
        ({"rule": {"answers": ["tumor", "normal"]}}, "the rules are not those of the task's classes"),
        ({"task": {"classes": ["normal", "benign"]}}, "the rules are not those of the task's classes"),
        ({"task": {"temperature": 0}}, "temperature"),
        ({"task": {"temperature": float("inf")}}, "temperature"),
        ({"task": {"rules": []}}, "the rules are not those of the task's classes"),
    ],
)
def test_what_it_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    held = CALIBRATION.to_json()
    if "rule" in change:
        held["tasks"]["label"]["rules"][0] |= change["rule"]
    elif "task" in change:
        held["tasks"]["label"] |= change["task"]
    else:
        held |= change
    (tmp_path / "c.json").write_text(json.dumps(held))
    with pytest.raises(CalibrationError) as error:
        read_calibration(tmp_path / "c.json")
    assert str(tmp_path / "c.json") in str(error.value)
    assert why in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", "[" * 5000])
def test_what_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(CalibrationError, match="is no calibration"):
        read_calibration(tmp_path / "c.json")


def test_a_file_that_is_not_there_or_huge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="does not exist"):
        read_calibration(tmp_path / "c.json")
    with (tmp_path / "c.json").open("wb") as file:
        file.truncate(2**25)
    with pytest.raises(CalibrationError, match="is larger than"):
        read_calibration(tmp_path / "c.json")


def test_whose_it_is() -> None:
    path, tasks = Path("c.json"), [TaskConfig()]
    check_belongs(path, CALIBRATION, sha256="ab" * 32, tasks=tasks)
    with pytest.raises(
        CalibrationError, match="belongs to checkpoint abababababab, this one is cdcdcdcdcdcd"
    ):
        check_belongs(path, CALIBRATION, sha256="cd" * 32, tasks=tasks)
    for other in (TaskConfig(classes=("tumor", "normal")), TaskConfig(name="size")):
        with pytest.raises(CalibrationError, match="is none of the model's"):
            check_belongs(path, CALIBRATION, sha256="ab" * 32, tasks=[other])
