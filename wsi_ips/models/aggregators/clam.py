"""CLAM: attention MIL whose attention is also taught by an instance loss (Lu et al., Nature BME 2021).

``clam_sb`` has one attention row for each task, ``clam_mb`` one for each class. It learns softmax tasks only: the
instance loss needs one class for each bag.

Shape suffixes: see :mod:`wsi_ips.models.aggregators.base`; S classes of all tasks in a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from wsi_ips.config import TaskConfig, task_queries
from wsi_ips.config.section import Fraction
from wsi_ips.models.aggregators.abmil import Abmil, AbmilOptions
from wsi_ips.models.aggregators.base import (
    Aggregated,
    Auxiliary,
    Kind,
    class_row_names,
    class_rows,
    predicted_rows,
    refuse_tasks,
    zeroed,
)
from wsi_ips.models.aggregators.embedding import plain_embedding
from wsi_ips.models.aggregators.instance_loss import InstanceLoss
from wsi_ips.models.heads import Heads, queries_of


class ClamOptions(AbmilOptions):
    """Settings of ``clam_sb`` and ``clam_mb``; the defaults are those of the published recipe."""

    score_dropout: Fraction = 0.25
    """Share of the scoring network's hidden layer that is dropped in training."""
    patches: PositiveInt = 8
    """Patches that the instance loss takes from the top, and as many from the bottom."""
    bag_weight: Fraction = 0.7
    """Weight of the bag's loss; the instance loss has the rest."""
    instance_loss: Literal["svm", "cross_entropy"] = "svm"
    subtyping: bool = True
    """Whether classes exclude each other's morphology (tumour subtypes). Set it to false where one class is the
    absence of the other; the bottom patches of a normal slide are then taught to be not normal, as published."""


class Clam(Abmil):
    """Single branch: gated attention whose heads read the weighted mean, and the instance loss in training."""

    multi_branch = False

    def __init__(self, dim: int, tasks: Sequence[TaskConfig], options: ClamOptions) -> None:
        rows = class_rows(tasks)[-1].stop if self.multi_branch else queries_of(tasks)
        super().__init__(
            dim,
            queries=rows,
            hidden=options.hidden,
            gated=options.gated,
            score_dropout=options.score_dropout,
        )
        self._tasks = tuple(tasks)
        self.bag_weight = options.bag_weight
        self.instances = nn.ModuleList(
            InstanceLoss(
                dim,
                len(task.classes),
                k=options.patches,
                subtyping=options.subtyping,
                kind=options.instance_loss,
            )
            for task in tasks
        )

    def read(
        self, x_BMD: Tensor, empty_BM: Tensor | None = None, places_BM: Tensor | None = None
    ) -> Aggregated:
        """Read bags by gated attention.

        Returns tokens (B, T, D), the attention (B, 1, T, M), and the instance loss, which needs the bags'
        labels, as the auxiliary loss.
        """
        x_BMD = zeroed(x_BMD, empty_BM)
        scores_BTM = self.scores(x_BMD).mT
        aggregated = self.read_scored(x_BMD, scores_BTM, empty_BM)
        return replace(aggregated, auxiliary=self._auxiliary(x_BMD, empty_BM, scores_BTM))

    def _rows(self) -> list[slice]:
        """The attention rows of each task."""
        tokens = task_queries(self._tasks)
        return [slice(tokens[task.name], tokens[task.name] + 1) for task in self._tasks]

    def _auxiliary(self, x_BMD: Tensor, empty_BM: Tensor | None, scores_BTM: Tensor) -> Auxiliary:
        """The instance loss, by scores that nothing has masked."""

        def of_bag(bag: int, rows: slice, instances: nn.Module, target: int) -> Tensor:
            x_nD, scores_Tn = x_BMD[bag], scores_BTM[bag, rows]
            if empty_BM is not None:
                x_nD, scores_Tn = x_nD[~empty_BM[bag]], scores_Tn[:, ~empty_BM[bag]]
            loss: Tensor = instances(x_nD, scores_Tn, target)
            return loss

        def losses(targets: Mapping[str, Sequence[int | None]]) -> dict[str, Tensor]:
            of_tasks = []
            for task, rows, instances in zip(self._tasks, self._rows(), self.instances, strict=True):
                of_bags = [
                    x_BMD.new_zeros(()) if target is None else of_bag(bag, rows, instances, target)
                    for bag, target in enumerate(targets[task.name])
                ]
                of_tasks.append(torch.stack(of_bags).mean())
            return {"instances": (1 - self.bag_weight) * torch.stack(of_tasks).mean()}

        return losses


class ClamMultiBranch(Clam):
    """One attention row for every class, and one linear classifier with a single output for each."""

    multi_branch = True

    def __init__(self, dim: int, tasks: Sequence[TaskConfig], options: ClamOptions) -> None:
        super().__init__(dim, tasks, options)
        self.token_dim = None
        self.layers = nn.ModuleList(nn.Linear(dim, len(task.classes)) for task in tasks)

    def read(
        self, x_BMD: Tensor, empty_BM: Tensor | None = None, places_BM: Tensor | None = None
    ) -> Aggregated:
        """Logits by task; tokens (B, S, D), one for each class."""
        aggregated = super().read(x_BMD, empty_BM)
        logits = {}
        for task, layer, rows in zip(self._tasks, self.layers, self._rows(), strict=True):
            assert isinstance(layer, nn.Linear)
            logits[task.name] = (aggregated.tokens_BTE[:, rows] * layer.weight).sum(dim=2) + layer.bias
        return replace(aggregated, logits=logits)

    def contributions(self, x_MD: Tensor, attention_HTM: Tensor, heads: Heads) -> dict[str, Tensor] | None:
        """What each patch adds to the logits, {task: (M, C)}; exact, since a class's logit is linear in the mean
        that its own row weighs."""
        told = {}
        for task, layer, rows in zip(self._tasks, self.layers, self._rows(), strict=True):
            assert isinstance(layer, nn.Linear)
            told[task.name] = (x_MD @ layer.weight.T) * attention_HTM[0, rows].T
        return told

    def task_rows(self, probabilities: Mapping[str, Tensor]) -> Mapping[str, int] | None:
        """The row of the predicted class."""
        return predicted_rows(self._tasks, probabilities)

    def row_names(self) -> tuple[str, ...]:
        """Tasks and classes."""
        return class_row_names(self._tasks)

    def _rows(self) -> list[slice]:
        return class_rows(self._tasks)


def _build_single(options: ClamOptions, dim: int, tasks: Sequence[TaskConfig]) -> Clam:
    refuse_tasks(
        "clam_sb", tasks, allowed=["softmax"], reason="its instance loss needs one class for each bag"
    )
    return Clam(dim, tasks, options)


def _build_multi(options: ClamOptions, dim: int, tasks: Sequence[TaskConfig]) -> Clam:
    refuse_tasks(
        "clam_mb", tasks, allowed=["softmax"], reason="its instance loss needs one class for each bag"
    )
    return ClamMultiBranch(dim, tasks, options)


SINGLE = Kind(ClamOptions, _build_single, plain_embedding)
MULTI = Kind(ClamOptions, _build_multi, plain_embedding)
