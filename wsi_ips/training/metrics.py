"""Figures of a split while training goes on.

Figures of a split while training goes on: the loss, and how well each task tells bags apart.

:class:`SplitMetrics` computes them from what was measured bag by bag.

Metrics of tasks whose answers have an order: the C-index of survival, and the quadratic kappa of grades.

Shape suffixes: B bags, C outputs of a task, S bags that a metric has seen.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCohenKappa,
    MultilabelAUROC,
    MultilabelExactMatch,
)
from torchmetrics.regression import MeanAbsoluteError
from torchmetrics.utilities import dim_zero_cat

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.manifest import Target
from wsi_ips.models.ips_net import BagReading
from wsi_ips.survival.follow_up import FollowUp
from wsi_ips.survival.losses import cox_loss
from wsi_ips.survival.scores import harrell
from wsi_ips.training.learning import step_loss, target_tensor, with_label
from wsi_ips.training.refinement import refinement_loss


class CIndex(Metric):
    """Harrell's C-index of a survival task. It is NaN if no two bags can be compared, or a risk is not finite."""

    said: list[Tensor]
    target: list[Tensor]

    def __init__(self, task: TaskConfig) -> None:
        super().__init__(sync_on_compute=False)
        assert task.survival is not None
        self._survival = task.survival
        self.add_state("said", default=[], dist_reduce_fx="cat")
        self.add_state("target", default=[], dist_reduce_fx="cat")

    def update(self, said_BC: Tensor, target_B2: Tensor) -> None:
        """Add bags. The first column of ``said_BC`` is the risk; ``target_B2`` are time and event."""
        self.said.append(said_BC[:, 0])
        self.target.append(target_B2)

    def compute(self) -> Tensor:
        """The C-index of all bags, a float64 scalar."""
        risk_B, target_B2 = torch.cat(self.said).double(), torch.cat(self.target)
        if not risk_B.isfinite().all():
            return torch.tensor(math.nan, dtype=torch.float64)
        counted = harrell(FollowUp.of(target_B2[:, 0].numpy(), target_B2[:, 1].numpy()), risk_B.numpy())
        return torch.tensor(counted.index if counted.pairs else math.nan, dtype=torch.float64)

    def loss(self) -> float:
        """The Cox loss per event of all bags together.

        It is 0 for ``loss: hazards``, where each bag has a loss of its own, and if no bag has a label.
        """
        if self._survival.loss != "cox" or not self.said:
            return 0.0
        target_B2 = torch.cat(self.target)
        risk_B = torch.cat(self.said).double()
        return float(cox_loss(risk_B, target_B2[:, 0], target_B2[:, 1], ties=self._survival.ties))


class QuadraticKappa(MulticlassCohenKappa):
    """Cohen's kappa with quadratic weights between the likeliest class and the label.

    It is NaN if all bags have the same class and are classified so.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes, weights="quadratic", sync_on_compute=False)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a network said of some bags, on the CPU.

    Attributes:
        loss: Their mean loss.
        bags: How many they are.
        said: For each task the probabilities (B, C) float32, and the targets in the form that the metrics take.
    """

    loss: Tensor
    bags: int
    said: Mapping[str, tuple[Tensor, Tensor]]


class SplitMetrics:
    """The figures of a split, ``{name: value}``, from what was measured bag by bag.

    They are ``loss``; ``refined_loss``, what is left of it at the best temperature
    (:func:`wsi_ips.training.refinement.refinement_loss`), the mean over the tasks, if all of them have classes;
    and for each task ``auc`` (the mean over the classes that some bags have and others do not) and ``accuracy``
    (for sigmoid tasks of several classes, all labels of a bag have to be right). A linear task has ``mae``
    instead, an ordinal task also ``kappa``, and survival has ``c_index``. With several tasks, the name of the
    task stands in front. The part of a Cox task in the loss is that of all bags together. What several processes
    measured is put together first (:mod:`wsi_ips.training.processes`), in the order of the bags, so that the
    figures are those of one process.
    """

    def __init__(self, tasks: Sequence[TaskConfig]) -> None:
        self._tasks = tuple(tasks)

    def measure(
        self,
        reading: BagReading,
        targets: Sequence[Mapping[str, Target]],
        *,
        weights: Mapping[str, Tensor | None],
    ) -> Measured:
        """Measure one bag or more.

        Args:
            reading: What the network says of them.
            targets: ``{task: target}`` of each bag.
            weights: ``{task: (C,) weights of its classes}``; None for equal weights.
        """
        loss = step_loss(reading, targets, self._tasks, weights=weights)
        said: dict[str, tuple[Tensor, Tensor]] = {}
        for task in self._tasks:
            labelled = with_label(task, targets)
            if not labelled:
                continue
            target = target_tensor(task, [targets[place] for place in labelled], torch.device("cpu"))
            counted = target if task.activation == "linear" else target.to(torch.int64)
            said[task.name] = (reading.probabilities[task.name][labelled].detach().float().cpu(), counted)
        return Measured(loss.detach().cpu(), len(targets), said)

    def figures(self, measured: Iterable[Measured]) -> dict[str, float]:
        """The figures over all that was measured, in the order given. A task without labels has NaN."""
        measured = list(measured)
        mean_loss = MeanMetric(sync_on_compute=False)
        measures = [(task, _measures(task)) for task in self._tasks]
        for bags in measured:
            mean_loss.update(bags.loss, weight=bags.bags)
            for task, its in measures:
                for measure in its.values() if task.name in bags.said else ():
                    measure.update(*bags.said[task.name])
        cox = [
            survival.loss()
            for _, its in measures
            for survival in its.values()
            if isinstance(survival, CIndex)
        ]
        found = {"loss": float(mean_loss.compute()) + math.fsum(cox) / len(self._tasks)}
        refined = [_refined_loss(task, measured) for task in self._tasks]
        if not any(math.isnan(loss) for loss in refined):
            found["refined_loss"] = math.fsum(refined) / len(refined)
        for task, its in measures:
            for name, measure in its.items():
                shown = name if len(self._tasks) == 1 else f"{task.name}_{name}"
                # A metric without updates would warn.
                found[shown] = float(measure.compute()) if measure.update_called else math.nan
        return found


def _refined_loss(task: TaskConfig, measured: Sequence[Measured]) -> float:
    """The mean over the task's sigmoids, or of its softmax. NaN where no bag has a label, or it has no classes."""
    said = [bags.said[task.name] for bags in measured if task.name in bags.said]
    if task.activation not in ("softmax", "sigmoid") or not said:
        return math.nan
    p_SC = torch.cat([p for p, _ in said]).double().numpy()
    target = torch.cat([target for _, target in said]).numpy()
    if task.activation == "softmax":
        return refinement_loss(p_SC, target)
    losses = [
        refinement_loss(np.stack([1 - p_S, p_S], axis=1), target_S)
        for p_S, target_S in zip(p_SC.T, target.reshape(p_SC.shape).T, strict=True)
    ]
    return math.fsum(losses) / len(losses)


def _measures(task: TaskConfig) -> dict[str, Metric]:
    classes = len(task.classes)
    if task.kind == "survival":
        return {"c_index": CIndex(task)}
    if task.activation == "linear":
        return {"mae": MeanAbsoluteError(sync_on_compute=False)}
    if task.activation == "softmax":
        kappa = {"kappa": QuadraticKappa(classes)} if task.kind == "ordinal" else {}
        return {
            "auc": _MulticlassMeanAuroc(classes),
            "accuracy": MulticlassAccuracy(classes, average="micro", sync_on_compute=False),
            **kappa,
        }
    if classes == 1:
        return {
            "auc": BinaryAUROC(sync_on_compute=False),
            "accuracy": BinaryAccuracy(sync_on_compute=False),
        }
    return {
        "auc": _MultilabelMeanAuroc(classes),
        "accuracy": MultilabelExactMatch(classes, sync_on_compute=False),
    }


class _MulticlassMeanAuroc(MulticlassAUROC):
    """The mean AUC over classes. torchmetrics counts a class that does not occur as an AUC of 0; here it is left
    out.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes, average="none", sync_on_compute=False)

    def compute(self) -> Tensor:  # type: ignore[override]
        target_S = dim_zero_cat(self.target)
        positives_C = torch.bincount(target_S, minlength=self.num_classes)
        return _mean_of_told(super().compute, positives_C, len(target_S))


class _MultilabelMeanAuroc(MultilabelAUROC):
    def __init__(self, classes: int) -> None:
        super().__init__(classes, average="none", sync_on_compute=False)

    def compute(self) -> Tensor:  # type: ignore[override]
        target_SC = dim_zero_cat(self.target)
        return _mean_of_told(super().compute, target_SC.sum(dim=0), len(target_SC))


def _mean_of_told(aucs: Callable[[], Tensor], positives_C: Tensor, bags: int) -> Tensor:
    """The mean over classes that some bags have and others do not. If there is none, it is 0.5: nothing is told
    apart.
    """
    told_C = (positives_C > 0) & (positives_C < bags)
    if not told_C.any():
        return torch.full((), 0.5, device=positives_C.device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No (positive|negative) samples in targets")
        return aucs()[told_C].mean()
