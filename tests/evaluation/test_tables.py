"""The tables of an evaluation: each row is its slide's, and writing them is no quadratic work."""

import numpy as np
import pytest

from wsi_ips.config import TaskConfig
from wsi_ips.evaluation.run import tables
from wsi_ips.evaluation.task_scores import Scored

THREE = TaskConfig(name="grade", classes=("a", "b", "c"))
SEVERAL = TaskConfig(name="marks", classes=("x", "y"), activation="sigmoid")


def scored(task: TaskConfig, outputs: list[list[float]], targets: list[list[float]]) -> Scored:
    return Scored(task, np.array(outputs), np.array(targets), range(len(outputs)))


def test_each_row_says_what_its_slide_was_called() -> None:
    two = scored(TaskConfig(), [[0.75, 0.25], [0.25, 0.75], [0.5, 0.5]], [[1, 0], [1, 0], [0, 1]])
    assert list(tables._called(two)) == [
        ("normal", "0.25", "1"), ("tumor", "0.75", "0"), ("tumor", "0.5", "1"),
    ]  # fmt: skip
    three = scored(THREE, [[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]], [[0, 1, 0], [0, 0, 1]])
    assert list(tables._called(three)) == [("b", "0.5", "1"), ("a", "0.5", "0")]
    several = scored(SEVERAL, [[0.75, 0.5], [0.25, 0.0]], [[1, 0], [0, 0]])
    assert list(tables._called(several)) == [("x;y", "0.75;0.5", "0"), ("none", "0.25;0.0", "1")]


def test_what_is_called_is_worked_out_once_and_not_for_each_slide(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    whole = Scored.called.fget  # type: ignore[attr-defined]

    def counted(self: Scored) -> object:
        asked.append("called")
        return whole(self)

    monkeypatch.setattr(Scored, "called", property(counted))
    outputs = np.random.default_rng(0).random((500, 1))
    many = scored(TaskConfig(), np.hstack([1 - outputs, outputs]).tolist(), [[1, 0]] * 500)
    assert len(list(tables._called(many))) == 500
    assert len(asked) <= 2, "once for the calls, and once for whether they are right"
