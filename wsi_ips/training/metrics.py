"""What is measured of a split while training goes on: the loss and how well each task is told apart."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, distributed, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    MulticlassAccuracy,
    MulticlassAUROC,
    MultilabelAUROC,
    MultilabelExactMatch,
)
from torchmetrics.regression import MeanAbsoluteError
from torchmetrics.utilities import dim_zero_cat

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.targets import Target
from wsi_ips.models.ips_net import BagReading
from wsi_ips.training.learning import step_loss, target_tensor, with_label


class SplitMetrics(nn.Module):
    """Gathers bag by bag, over all processes; ``compute`` gives ``{name: value}`` and starts anew.

    Names: ``loss``; per task ``auc`` (the mean over the classes that some bags have and others do not) and
    ``accuracy`` (all labels of a bag right, for sigmoid tasks of several classes), or ``mae`` for a linear task,
    with the task's name in front where there are several.
    """

    def __init__(self, tasks: Sequence[TaskConfig]) -> None:
        super().__init__()
        self._tasks = tuple(tasks)
        self._loss = MeanMetric()
        self._measures = nn.ModuleList(nn.ModuleDict(_measures(task)) for task in tasks)

    def update(
        self,
        reading: BagReading,
        targets: Sequence[Mapping[str, Target]],
        *,
        weights: Mapping[str, Tensor | None],
    ) -> None:
        """What a network says of one bag or more, and what they are; all of it as for :func:`step_loss`."""
        loss = step_loss(reading, targets, self._tasks, weights=weights)
        self._loss.update(loss.detach(), weight=len(targets))
        for task, measures in zip(self._tasks, self._measures, strict=True):
            labelled = with_label(task, targets)
            if not labelled:
                continue
            its = [targets[place] for place in labelled]
            target = target_tensor(task, its, reading.tokens_BTD.device)
            counted = target if task.activation == "linear" else target.to(torch.int64)
            for measure in measures.values():  # type: ignore[operator]
                measure.update(reading.probabilities[task.name][labelled].float(), counted)

    def compute(self) -> dict[str, float]:
        found = {"loss": float(self._loss.compute())}
        self._loss.reset()
        for task, measures in zip(self._tasks, self._measures, strict=True):
            for name, measure in measures.items():  # type: ignore[operator]
                shown = name if len(self._tasks) == 1 else f"{task.name}_{name}"
                # Without labels there is nothing to measure here; another process may have some.
                nothing = not measure.update_called and not distributed.is_initialized()
                found[shown] = math.nan if nothing else float(measure.compute())
                measure.reset()
        return found


def _measures(task: TaskConfig) -> dict[str, Metric]:
    classes = len(task.classes)
    if task.activation == "linear":
        return {"mae": MeanAbsoluteError()}
    if task.activation == "softmax":
        return {
            "auc": _MulticlassMeanAuroc(classes),
            "accuracy": MulticlassAccuracy(classes, average="micro"),
        }
    if classes == 1:
        return {"auc": BinaryAUROC(), "accuracy": BinaryAccuracy()}
    return {"auc": _MultilabelMeanAuroc(classes), "accuracy": MultilabelExactMatch(classes)}


class _MulticlassMeanAuroc(MulticlassAUROC):
    """torchmetrics counts a class that does not occur as an AUC of 0, which is no judgement of a small split."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes, average="none")

    def compute(self) -> Tensor:  # type: ignore[override]
        target_S = dim_zero_cat(self.target)
        positives_C = torch.bincount(target_S, minlength=self.num_classes)
        return _mean_of_told(super().compute, positives_C, len(target_S))


class _MultilabelMeanAuroc(MultilabelAUROC):
    def __init__(self, classes: int) -> None:
        super().__init__(classes, average="none")

    def compute(self) -> Tensor:  # type: ignore[override]
        target_SC = dim_zero_cat(self.target)
        return _mean_of_told(super().compute, target_SC.sum(dim=0), len(target_SC))


def _mean_of_told(aucs: Callable[[], Tensor], positives_C: Tensor, bags: int) -> Tensor:
    """The mean over classes that some bags have and others do not; where there is none, nothing is told: 0.5."""
    told_C = (positives_C > 0) & (positives_C < bags)
    if not told_C.any():
        return torch.full((), 0.5, device=positives_C.device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No (positive|negative) samples in targets")
        return aucs()[told_C].mean()
