"""A model's calibration: temperatures and thresholds of its tasks, as one JSON, and what they make of an
answer."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError, model_validator

from wsi_ips.config import Fraction, Section, TaskConfig
from wsi_ips.errors import CalibrationError, one_line
from wsi_ips.evaluation.conformal import Question, in_sets, questions
from wsi_ips.evaluation.temperature import HIGHEST, LOWEST, with_temperature
from wsi_ips.files import whole_file

LARGEST_BYTES = 2**24

Risk = Annotated[float, Field(gt=0, lt=1)]
AnswerSet = tuple[str, ...]


class QuestionRule(Section):
    """Which answers of one question are in a slide's set: those with 1 - probability up to their threshold."""

    question: str
    """Empty where it is the task's only one, else the class that is asked for."""
    answers: tuple[str, ...]
    thresholds: tuple[Fraction, ...]
    """Of each answer; all the same, unless the calibration is ``by_class``."""
    cases: tuple[PositiveInt, ...]
    """How many slides, one a case, each threshold was chosen from."""


class TaskCalibration(Section):
    """One task's. The thresholds are of the network's own probabilities, the temperature does not move them."""

    classes: tuple[str, ...]
    activation: Literal["softmax", "sigmoid"]
    temperature: Annotated[float, Field(ge=LOWEST, le=HIGHEST)]
    temperature_fitted: bool
    """False: every slide was right, so no temperature fits best, and 1 stands."""
    slides: PositiveInt
    nll_before: FiniteFloat
    nll_after: FiniteFloat
    ece_before: FiniteFloat
    ece_after: FiniteFloat
    rules: tuple[QuestionRule, ...]

    @model_validator(mode="after")
    def _rules_are_the_tasks(self) -> Self:
        asked = self.questions
        if [(rule.question, rule.answers) for rule in self.rules] != [
            (one.name, one.answers) for one in asked
        ]:
            raise ValueError("the rules are not those of the task's classes")
        for rule in self.rules:
            if not len(rule.answers) == len(rule.thresholds) == len(rule.cases):
                raise ValueError(f"{len(rule.answers)} answers, {len(rule.thresholds)} thresholds")
        return self

    @property
    def questions(self) -> tuple[Question, ...]:
        return questions(TaskConfig(classes=self.classes, activation=self.activation))

    def tempered(self, told: Mapping[str, float]) -> dict[str, float]:
        """{class: probability} at the temperature."""
        tempered_1C = with_temperature(self.activation, self._row(told), self.temperature)
        return dict(zip(self.classes, tempered_1C[0].tolist(), strict=True))

    def sets(self, told: Mapping[str, float]) -> tuple[AnswerSet, ...]:
        """Each question's set, from the network's own {class: probability}."""
        output_1C = self._row(told)
        found = []
        for question, rule in zip(self.questions, self.rules, strict=True):
            held_A = in_sets(question.probabilities(output_1C), rule.thresholds)[0]
            found.append(
                tuple(name for name, held in zip(rule.answers, held_A.tolist(), strict=True) if held)
            )
        return tuple(found)

    def _row(self, told: Mapping[str, float]) -> NDArray[np.float64]:
        return np.array([[told[name] for name in self.classes]], np.float64)


class Calibration(Section):
    """What ``wsi-ips calibrate`` found on the slides of one split, for one checkpoint (or one group of them)."""

    format: Literal[1] = 1
    checkpoint: str
    """SHA-256 of the checkpoint whose run was calibrated; of several, their run's."""
    split: Literal["val", "test"]
    risk: Risk
    by_class: bool
    seed: NonNegativeInt
    slides: tuple[str, ...]
    """Ids of the slides that it comes from, which no figure may be measured on."""
    tasks: dict[str, TaskCalibration]

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write the JSON whole."""
    with whole_file(path) as partial:
        text = json.dumps(calibration.to_json(), indent=2, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")


def read_calibration(path: Path) -> Calibration:
    """Read what :func:`write_calibration` wrote. Raises :class:`CalibrationError` for anything else."""
    mend = "name a file that wsi-ips calibrate wrote"
    if not path.is_file():
        raise CalibrationError(path, "does not exist", mend)
    if path.stat().st_size > LARGEST_BYTES:
        raise CalibrationError(path, f"is larger than {LARGEST_BYTES} bytes", mend)
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        why = one_line(f"{where}: {first['msg']}" if where else first["msg"], most=200)
        raise CalibrationError(path, f"is no calibration ({why})", mend) from None


def check_belongs(path: Path, calibration: Calibration, *, sha256: str, tasks: Sequence[TaskConfig]) -> None:
    """Raises :class:`CalibrationError` for a calibration of another checkpoint, or of tasks that it does not
    have."""
    if calibration.checkpoint != sha256:
        raise CalibrationError(
            path,
            f"belongs to checkpoint {calibration.checkpoint[:12]}, this one is {sha256[:12]}",
            "calibrate a run of this checkpoint (of several: of the same ones in the same order)",
        )
    known = {task.name: (task.classes, task.activation) for task in tasks}
    for name, task in calibration.tasks.items():
        if known.get(name) != (task.classes, task.activation):
            raise CalibrationError(
                path,
                f"task {name!r} with classes {', '.join(task.classes)} is none of the model's",
                "calibrate again",
            )
