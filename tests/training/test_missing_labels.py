"""A slide without a label for one of several tasks teaches the others, and is measured by them."""

import math

import pytest
import torch
from torch import Tensor

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.manifest import SlideRecord, Target, folds_by_case
from wsi_ips.models.ips_net import BagReading
from wsi_ips.training.learning import step_loss
from wsi_ips.training.losses import class_weights
from wsi_ips.training.metrics import SplitMetrics
from wsi_ips.training.sampling import order_of_epoch

TASKS = (
    TaskConfig(name="grade", classes=("low", "high")),
    TaskConfig(name="found", classes=("a", "b"), activation="sigmoid"),
    TaskConfig(name="age", classes=("years",), activation="linear"),
)


def reading(bags: int) -> BagReading:
    generator = torch.Generator().manual_seed(0)
    widths = {"grade": 2, "found": 2, "age": 1}
    raw = {name: torch.randn(bags, width, generator=generator) for name, width in widths.items()}
    return as_read({name: logits.requires_grad_() for name, logits in raw.items()})


def as_read(logits: dict[str, Tensor]) -> BagReading:
    bags = len(next(iter(logits.values())))
    said = {
        "grade": logits["grade"].softmax(dim=1),
        "found": logits["found"].sigmoid(),
        "age": logits["age"],
    }
    return BagReading(logits, said, torch.zeros(bags, 1, 1), torch.zeros(bags, 1, 1, 1))


def test_a_missing_label_has_no_gradient_and_adds_nothing() -> None:
    said = reading(2)
    targets: list[dict[str, Target]] = [
        {"grade": 0, "age": (0.5,)},
        {"grade": 1, "found": (1.0, 0.0), "age": (0.1,)},
    ]
    loss = step_loss(said, targets, TASKS, weights={})
    loss.backward()
    assert said.logits["found"].grad is not None
    assert (said.logits["found"].grad[0] == 0).all()
    assert (said.logits["found"].grad[1] != 0).all()
    grade, found, age = (said.probabilities[name].detach() for name in ("grade", "found", "age"))
    expected = (
        -((grade[0, 0] + 1e-6).log() + (grade[1, 1] + 1e-6).log()) / 2
        - (found[1, 0].log() + (1 - found[1, 1]).log()) / 2 / 2  # of two classes, of two bags
        + ((age[0, 0] - 0.5) ** 2 + (age[1, 0] - 0.1) ** 2) / 2
    ) / 3
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_parts_of_several_processes_add_up() -> None:
    said = reading(3)
    targets: list[dict[str, Target]] = [{"grade": 0}, {"grade": 1, "found": (1.0, 1.0)}, {"age": (0.2,)}]
    whole = step_loss(said, targets, TASKS, weights={})
    parts = [
        step_loss(
            as_read({name: each[place] for name, each in said.logits.items()}),
            targets[place],
            TASKS,
            weights={},
        )
        for place in (slice(0, 1), slice(1, 3))
    ]
    assert whole.item() == pytest.approx((parts[0] / 3 + parts[1] * 2 / 3).item(), rel=1e-6)


def test_figures_are_of_the_bags_that_have_a_label() -> None:
    said = reading(4)
    targets: list[dict[str, Target]] = [{"grade": 0}, {"grade": 1}, {"age": (0.0,)}, {"age": (1.0,)}]
    metrics = SplitMetrics(TASKS)
    figures = metrics.figures([metrics.measure(said, targets, weights={})])
    age = said.probabilities["age"].detach()
    assert figures["age_mae"] == pytest.approx((abs(age[2, 0] - 0) + abs(age[3, 0] - 1)).item() / 2)
    called = said.probabilities["grade"][:2].argmax(dim=1)
    assert figures["grade_accuracy"] == (called == torch.tensor([0, 1])).float().mean().item()
    assert math.isnan(figures["found_auc"])
    assert math.isfinite(figures["loss"])


def test_weights_and_balance_count_labels_that_are_there() -> None:
    targets: list[dict[str, Target]] = [{"grade": 0}, {"grade": 0}, {"grade": 1}, {"age": (1.0,)}]
    weights = class_weights("balanced", TASKS[0], targets)
    assert weights is not None
    assert weights.tolist() == pytest.approx([3 / 4, 3 / 2])
    with pytest.raises(ValueError, match="that every slide has a label for"):
        order_of_epoch(targets, seed=0, epoch=0, balanced=True)


def test_cases_without_the_label_of_the_strata_are_dealt_out_too() -> None:
    records = [
        SlideRecord(f"s{n}", f"c{n}", {"grade": ("low", "high")[n % 2] if n else ""}, "train", None)  # type: ignore[arg-type]
        for n in range(9)
    ]
    folds = folds_by_case(records, k=4, column="grade", seed=0)
    assert sorted(folds.count(number) for number in range(4)) == [2, 2, 2, 3]
