"""What is measured of a validation split."""

import pytest
import torch
from torch import Tensor

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.manifest import Target
from wsi_ips.models.ips_net import BagReading
from wsi_ips.training.metrics import SplitMetrics

KINDS = TaskConfig(name="kind", classes=("a", "b", "c"))
MARKS = TaskConfig(name="marks", classes=("x", "y"), activation="sigmoid")


def reading(task: TaskConfig, probabilities_S: list[list[float]]) -> BagReading:
    said = torch.tensor(probabilities_S)
    logits = said.logit() if task.activation == "sigmoid" else said.log()
    tokens = torch.zeros(len(said), 1, 4)
    return BagReading({task.name: logits}, {task.name: said}, tokens, torch.zeros(len(said), 1, 1, 1))


def figures(task: TaskConfig, probabilities_S: list[list[float]], targets: list[Target]) -> dict[str, float]:
    metrics = SplitMetrics([task])
    return metrics.figures(
        metrics.measure(reading(task, [row]), [{task.name: target}], weights={task.name: None})
        for row, target in zip(probabilities_S, targets, strict=True)
    )


def test_a_class_that_does_not_occur_counts_for_nothing() -> None:
    said = [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.5, 0.2]]
    assert figures(KINDS, said, [0, 1, 1])["auc"] == 1
    assert figures(KINDS, said, [0, 2, 2])["auc"] == pytest.approx(
        (1 + 0.75) / 2
    )  # c: of 0.1 and 0.2, one ties


def test_a_label_that_all_or_none_have_counts_for_nothing() -> None:
    said = [[0.9, 0.4], [0.2, 0.6], [0.1, 0.5]]
    assert figures(MARKS, said, [(1.0, 1.0), (0.0, 1.0), (0.0, 1.0)])["auc"] == 1
    assert figures(MARKS, said, [(0.0, 0.0), (0.0, 0.0), (1.0, 0.0)])["auc"] == 0


def test_a_split_of_one_class_tells_nothing_apart() -> None:
    said: list[list[float]] = [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1]]
    assert figures(KINDS, said, [1, 1])["auc"] == 0.5


def test_with_every_class_it_is_torchmetrics_own() -> None:
    from torchmetrics.classification import MulticlassAUROC

    generator = torch.Generator().manual_seed(0)
    said: Tensor = torch.rand((40, 3), generator=generator).softmax(dim=1)
    target = torch.arange(40) % 3
    whole = MulticlassAUROC(3)
    whole.update(said, target)
    assert figures(KINDS, said.tolist(), target.tolist())["auc"] == pytest.approx(float(whole.compute()))
