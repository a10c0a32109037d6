"""What a history says of a run that has found nothing."""

import math
from typing import Any

import pytest

from wsi_ips.config import FinetuneConfig, TaskConfig
from wsi_ips.training.diagnosis import behind_head_start, findings, guess_loss

TRAIN = [{"label": 0}] * 6 + [{"label": 1}] * 2
VAL = [{"label": 0}] * 3 + [{"label": 1}]
GUESS = -(3 * math.log(0.75) + math.log(0.25)) / 4


def said(*rows: dict[str, float], **training: Any) -> list[str]:
    config = FinetuneConfig.model_validate({"training": training})
    best = min(range(len(rows)), key=lambda row: rows[row]["val_loss"])
    return findings(rows, best, config, train=TRAIN, val=VAL)


def test_a_loss_that_guessing_has_too_is_said() -> None:
    assert guess_loss([TaskConfig()], train=TRAIN, val=VAL) == pytest.approx(GUESS)
    (doubt,) = said({"val_loss": GUESS * 1.01}, {"val_loss": GUESS * 0.99})
    assert f"{GUESS:.3f}" in doubt
    assert "has not found what decides them" in doubt
    assert said({"val_loss": GUESS * 1.01}, {"val_loss": GUESS * 0.5}) == []


def test_scales_are_advised_where_they_have_not_been_tried() -> None:
    config = FinetuneConfig.model_validate({"model": {"encoder": {"standardise": True}}})
    (before,) = said({"val_loss": GUESS})
    (after,) = findings([{"val_loss": GUESS}], 0, config, train=TRAIN, val=VAL)
    assert "try model.encoder.standardise=centre, training.restarts=5" in before
    assert "try training.restarts=5" in after


def test_what_is_advised_can_be_tried() -> None:
    """With an encoder that begins with random weights there is no head start to begin again, and the direct block
    selects with a LayerNorm, which a user may have turned off."""
    (doubt,) = findings([{"val_loss": GUESS}], 0, from_scratch(layer_norm=False), train=TRAIN, val=VAL)
    assert "try model.attention.layer_norm=true, another training.lr" in doubt
    assert "restarts" not in doubt
    other = FinetuneConfig.model_validate(
        {"model": {"encoder": {"weights": "none"}, "aggregator": {"name": "abmil"}}}
    )
    (doubt,) = findings([{"val_loss": GUESS}], 0, other, train=TRAIN, val=VAL)
    assert "try model.aggregator=direct, another training.lr" in doubt
    sampling = {"model": {"encoder": {"weights": "none"}}, "selection": {"selector": "attention_sampling"}}
    begun = {"model": {"encoder": {"weights": "none"}}, "training": {"start": "model.safetensors"}}
    for given in (sampling, begun):
        (doubt,) = findings(
            [{"val_loss": GUESS}], 0, FinetuneConfig.model_validate(given), train=TRAIN, val=VAL
        )
        assert "try another training.lr" in doubt
    for attention in ({"layer_norm": True}, {"block": "paper"}):
        (doubt,) = findings([{"val_loss": GUESS}], 0, from_scratch(**attention), train=TRAIN, val=VAL)
        assert "model.attention" not in doubt
        assert "restarts" not in doubt


def from_scratch(**attention: object) -> FinetuneConfig:
    return FinetuneConfig.model_validate({"model": {"encoder": {"weights": "none"}, "attention": attention}})


def test_weighted_classes_have_another_guess_and_nothing_is_said_of_it() -> None:
    assert said({"val_loss": GUESS}, class_weights="balanced") == []


def test_flat_attention_is_said() -> None:
    flat = {"val_loss": 0.1, "kept_attention": 0.2, "attention_spread": 0.97}
    (doubt,) = said(flat, flat, flat)
    assert "attention is flat: 97 %" in doubt
    assert said(flat, flat, {**flat, "attention_spread": 0.3}) == []


def test_a_selection_that_does_not_settle_is_said() -> None:
    drifting = {"val_loss": 0.1, "kept_attention": 0.4, "attention_spread": 0.3, "kept_overlap": 0.2}
    (doubt,) = said(drifting, drifting, drifting)
    assert "selection does not settle" in doubt
    assert said(drifting, drifting, {**drifting, "kept_overlap": 0.8}) == []
    assert said(drifting, drifting) == []


def test_a_sigmoid_task_is_guessed_class_by_class() -> None:
    task = TaskConfig(name="marks", classes=("a", "b"), activation="sigmoid")
    train = [{"marks": (1.0, 0.0)}, {"marks": (1.0, 1.0)}, {"marks": (0.0, 0.0)}, {"marks": (1.0, 0.0)}]
    val = [{"marks": (1.0, 1.0)}]
    wanted = (-math.log(0.75) - math.log(0.25)) / 2
    assert guess_loss([task], train=train, val=val) == pytest.approx(wanted)
    linear = TaskConfig(name="marks", classes=("a",), activation="linear")
    assert guess_loss([linear], train=train, val=val) == math.inf


def test_a_head_start_that_was_better_is_said() -> None:
    start = {"epoch": 39.0, "train_loss": 0.2, "val_loss": 0.9, "val_refined_loss": 0.5, "val_label_auc": 0.8}
    worse = {"epoch": 1.0, "train_loss": 0.1, "val_loss": 0.7, "val_refined_loss": 0.6, "val_label_auc": 0.75}
    said = behind_head_start(start, worse, "refined_loss")
    assert said is not None
    assert "the loss at the best temperature of the validation slides is 0.600, and was 0.500 after" in said
    assert behind_head_start(start, worse, "last") == said
    assert "the mean auc of the validation slides is 0.750, and was 0.800" in str(
        behind_head_start(start, worse, "auc")
    )
    assert behind_head_start(start, worse, "loss") is None  # 0.9 → 0.7
    assert behind_head_start(worse, start, "refined_loss") is None
    assert behind_head_start(start, start, "refined_loss") is None
    kappas = ({**start, "val_label_kappa": 0.2}, {**worse, "val_label_kappa": -0.1})
    assert "the mean kappa of the validation slides is -0.100, and was 0.200" in str(
        behind_head_start(*kappas, "kappa")
    )
    only_trained = {"epoch": 1.0, "train_loss": 0.1}
    assert behind_head_start(only_trained, only_trained, "refined_loss") is None
