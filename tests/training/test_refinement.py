"""Epochs are judged by how well they tell slides apart, not by how sure they are."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from tests.training.test_metrics import KINDS, MARKS, figures
from wsi_ips.config import FinetuneConfig, TaskConfig
from wsi_ips.training.diagnosis import findings
from wsi_ips.training.refinement import refinement_loss
from wsi_ips.training.run_state import merit


def two_classes(logits_S: NDArray[np.float64]) -> NDArray[np.float64]:
    p_S = 1 / (1 + np.exp(-logits_S))
    return np.stack([1 - p_S, p_S], axis=1)


def drawn(slides: int = 60) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    chance = np.random.default_rng(0)
    target_S = np.arange(slides) % 2
    return 1.5 * (target_S - 0.5) + chance.normal(size=slides), target_S


def test_certainty_does_not_count() -> None:
    logits_S, target_S = drawn()
    calm = refinement_loss(two_classes(logits_S), target_S)
    assert 0.1 < calm < math.log(2)
    for sure in (0.05, 7.0):
        assert refinement_loss(two_classes(sure * logits_S), target_S) == pytest.approx(calm, abs=1e-6)


def test_it_is_the_lowest_loss_of_any_temperature() -> None:
    logits_S, target_S = drawn()
    sign_S = 2 * target_S - 1
    tried = [np.logaddexp(0, -sign_S * logits_S / t).mean() for t in np.geomspace(0.01, 100, 4001)]
    assert refinement_loss(two_classes(logits_S), target_S) == pytest.approx(min(tried), abs=1e-6)


def test_worse_than_chance_is_chance_and_all_right_is_nothing() -> None:
    logits_S, target_S = drawn()
    for sure in (1, 20):
        assert refinement_loss(two_classes(-sure * logits_S), target_S) == pytest.approx(
            math.log(2), abs=1e-3
        )
    assert refinement_loss(two_classes(-50 * logits_S), target_S) <= math.log(2)
    right_SC = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]])
    assert refinement_loss(right_SC, np.arange(3)) == pytest.approx(0, abs=1e-6)


def test_a_probability_of_nothing_is_no_infinite_loss() -> None:
    said_SC = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert math.isfinite(refinement_loss(said_SC, np.array([0, 1, 1])))


def test_a_split_has_the_figure_for_softmax_and_for_each_sigmoid() -> None:
    said = [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.5, 0.2]]
    wanted = refinement_loss(np.array(said), np.array([0, 1, 2]))
    assert figures(KINDS, said, [0, 1, 2])["refined_loss"] == pytest.approx(wanted, abs=1e-6)
    marks = [[0.9, 0.4], [0.2, 0.6], [0.6, 0.5]]
    by_class = [
        refinement_loss(np.array([[1 - row[c], row[c]] for row in marks]), np.array(target))
        for c, target in ((0, [1, 0, 0]), (1, [0, 1, 0]))
    ]
    found = figures(MARKS, marks, [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])["refined_loss"]
    assert found == pytest.approx(sum(by_class) / 2, abs=1e-6)


def test_a_task_without_classes_has_no_such_figure() -> None:
    amount = TaskConfig(name="amount", classes=("much",), activation="linear")
    assert "refined_loss" not in figures(amount, [[0.3], [0.9]], [(0.2,), (1.0,)])


def test_the_epoch_that_tells_slides_apart_best_is_chosen_though_it_is_too_sure() -> None:
    early = {"train_loss": 0.69, "val_loss": 0.69, "val_refined_loss": 0.69, "val_auc": 0.5}
    late = {"train_loss": 0.01, "val_loss": 2.5, "val_refined_loss": 0.45, "val_auc": 0.8}
    assert merit(late, "refined_loss") > merit(early, "refined_loss")
    assert merit(late, "loss") < merit(early, "loss")


def test_the_last_epoch_may_be_asked_for_whatever_its_figures() -> None:
    early, late = ({"epoch": epoch, "train_loss": 0.1, "val_loss": 0.1 + epoch} for epoch in (0, 1))
    assert merit(late, "last") > merit(early, "last")
    with pytest.raises(ValidationError, match=r"training\.patience waits for a better epoch"):
        FinetuneConfig.model_validate({"training": {"patience": 2, "monitor": "last"}})


def test_without_the_figure_and_between_equals_the_loss_decides() -> None:
    assert merit({"train_loss": 0.3, "val_loss": 0.6}, "refined_loss")[0] == -0.6
    assert merit({"train_loss": 0.3}, "refined_loss")[0] == -0.3
    early, late = ({"train_loss": 0.1, "val_loss": loss, "val_refined_loss": 1e-7} for loss in (0.5, 0.2))
    assert merit(late, "refined_loss") > merit(early, "refined_loss")
    broken = {"train_loss": math.nan, "val_loss": math.nan, "val_refined_loss": 0.1}
    assert merit(broken, "loss") < merit(early, "loss")


def test_too_sure_is_not_taken_for_having_found_nothing() -> None:
    targets = [{"label": 0}, {"label": 1}]
    row = {"val_loss": 2.5, "val_refined_loss": 0.3}
    assert findings([row], 0, FinetuneConfig(), train=targets, val=targets) == []
    (doubt,) = findings([row | {"val_refined_loss": 0.69}], 0, FinetuneConfig(), train=targets, val=targets)
    assert "at the best temperature, 0.690" in doubt


def test_half_precision_probabilities_are_read() -> None:
    assert figures(KINDS, torch.full((3, 3), 1 / 3).tolist(), [0, 1, 2])["refined_loss"] == pytest.approx(
        math.log(3), abs=1e-5
    )
