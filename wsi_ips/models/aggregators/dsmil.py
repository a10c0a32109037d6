"""DSMIL: each class's most telling patch, and attention by likeness to it (Li, Li, Eliceiri, CVPR 2021).

Two streams predict the bag. One is the maximum over patches of a linear classifier; the other reads the mean of
the patches weighted by how much their query resembles that of the class's best patch. Both are learned with half
the loss each; the second one predicts. The model works on the features themselves, without an embedding.

Shape suffixes: see :mod:`wsi_ips.models.aggregators.base`; Q width of a query, S classes of all tasks in a row, V
width of a value.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from wsi_ips.config import TaskConfig
from wsi_ips.config.section import Fraction, LayerWidth
from wsi_ips.models.aggregators.base import (
    Aggregated,
    Aggregator,
    EmbeddingOptions,
    Kind,
    class_row_names,
    class_rows,
    plain_embedding,
    predicted_rows,
    refuse_tasks,
    zeroed,
)
from wsi_ips.models.heads import Heads


class DsmilOptions(EmbeddingOptions):
    """Settings of ``dsmil``."""

    query_dim: LayerWidth = 128
    """Q, width of a query."""
    nonlinear: bool = True
    """A query is tanh of two layers instead of one linear layer."""
    values: bool = False
    """Pass the patches through a layer of their own (dropout, Linear, ReLU) before they are averaged."""
    value_dropout: Fraction = 0.0
    """Share of the features that is dropped in front of that layer in training."""


class Dsmil(Aggregator):
    """dim: D. The bag's classifier of a task reads the weighted means of all of the task's classes together."""

    bag_weight = 0.5

    def __init__(self, dim: int, tasks: Sequence[TaskConfig], options: DsmilOptions) -> None:
        super().__init__()
        self._tasks = tuple(tasks)
        width = options.query_dim
        self.instances = nn.ModuleList(nn.Linear(dim, len(task.classes)) for task in tasks)
        self.query = (
            nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh())
            if options.nonlinear
            else nn.Linear(dim, width)
        )
        self.value = (
            nn.Sequential(nn.Dropout(options.value_dropout), nn.Linear(dim, dim), nn.ReLU())
            if options.values
            else nn.Identity()
        )
        self.layers = nn.ModuleList(nn.Linear(len(task.classes) * dim, len(task.classes)) for task in tasks)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight)
                nn.init.zeros_(module.bias)

    def logits(self, x_nD: Tensor) -> Tensor:
        """(n, 1, 1): the largest instance logit of any class. The attention needs the whole bag."""
        return torch.cat([layer(x_nD) for layer in self.instances], dim=-1).amax(dim=-1)[:, None, None]

    def read(
        self, x_BMD: Tensor, empty_BM: Tensor | None = None, places_BM: Tensor | None = None
    ) -> Aggregated:
        """Logits by task; tokens (B, S, D), attention (B, 1, S, M) and the maxima as further logits."""
        x_BMD = zeroed(x_BMD, empty_BM)
        instance_BMS = torch.cat([layer(x_BMD) for layer in self.instances], dim=-1)
        if empty_BM is not None:
            instance_BMS = instance_BMS.masked_fill(empty_BM[..., None], -torch.inf)
        largest_BS, critical_BS = instance_BMS.max(dim=1)
        query_BMQ = self.query(x_BMD)
        critical_BSQ = query_BMQ.gather(1, critical_BS[..., None].expand(-1, -1, query_BMQ.shape[2]))
        alike_BSM = critical_BSQ @ query_BMQ.mT / math.sqrt(query_BMQ.shape[2])
        attention_B1SM, logits_B1SM = self.attended(alike_BSM[:, None], empty_BM)
        tokens_BSV = attention_B1SM[:, 0] @ zeroed(self.value(x_BMD), empty_BM)
        logits, largest = {}, {}
        for task, layer, rows in zip(self._tasks, self.layers, class_rows(self._tasks), strict=True):
            logits[task.name] = layer(tokens_BSV[:, rows].flatten(1))
            largest[task.name] = largest_BS[:, rows]
        return Aggregated(
            tokens_BSV,
            attention_B1SM,
            logits,
            attention_logits_BHTM=logits_B1SM,
            further_logits={"max": (0.5, largest)},
        )

    def contributions(self, x_MD: Tensor, attention_HTM: Tensor, heads: Heads) -> dict[str, Tensor] | None:
        """What each patch adds to the logits, {task: (M, C)}; exact, since the bag's classifier is linear in the
        weighted means."""
        value_MV = self.value(x_MD)
        told = {}
        for task, layer, rows in zip(self._tasks, self.layers, class_rows(self._tasks), strict=True):
            assert isinstance(layer, nn.Linear)
            weight_CEV = layer.weight.unflatten(1, (len(task.classes), -1))
            votes_MCE = torch.einsum("mv,cev->mce", value_MV, weight_CEV)
            told[task.name] = torch.einsum("em,mce->mc", attention_HTM[0, rows], votes_MCE)
        return told

    def task_rows(self, probabilities: Mapping[str, Tensor]) -> Mapping[str, int] | None:
        """The row of the predicted class."""
        return predicted_rows(self._tasks, probabilities)

    def row_names(self) -> tuple[str, ...]:
        """Tasks and classes."""
        return class_row_names(self._tasks)


def _build(options: DsmilOptions, dim: int, tasks: Sequence[TaskConfig]) -> Dsmil:
    refuse_tasks("dsmil", tasks, allowed=["softmax", "sigmoid"], reason="its patches compete for classes")
    return Dsmil(dim, tasks, options)


KIND = Kind(DsmilOptions, _build, plain_embedding, width=0)
