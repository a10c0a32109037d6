"""From query tokens to labels: one layer per task, also for grades in order and for survival.
survival.

Shape suffixes: B bags, T tasks (and query tokens), D width, C classes of a task.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from wsi_ips.config import TaskConfig, task_queries
from wsi_ips.config.survival import SurvivalConfig
from wsi_ips.survival.cox import cox_survival
from wsi_ips.survival.hazards import hazard_risk, hazard_survival_at


class OrdinalHead(nn.Module):
    """Classes in order from one score s = w x (cumulative link, proportional odds; McCullagh 1980).

    The chance that a bag is above class k is sigmoid(s - threshold_k), with thresholds that rise whatever is
    learned. ``forward`` gives the logarithms of the classes' probabilities (B, C), so that they are logits of a
    softmax like any other task's.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1, bias=False)
        even = torch.logit(torch.arange(1, classes) / classes)
        self.first = nn.Parameter(even[:1].clone())
        # Classes begin equally likely at a score of 0; each step is the softplus of its weight.
        self.steps = nn.Parameter(torch.log(torch.expm1(even.diff())))

    @property
    def thresholds(self) -> Tensor:
        """(C - 1,) rising."""
        return torch.cat([self.first, self.first + softplus(self.steps).cumsum(0)])

    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, C) log probabilities."""
        above_BK = _wide(self.score(x_BD)) - _wide(self.thresholds)
        # log(sigmoid(a) - sigmoid(b)) for a > b, without taking one probability from another.
        log_above_BK, log_below_BK = -softplus(-above_BK), -softplus(above_BK)
        gap_K = softplus(_wide(self.steps))
        between = log_above_BK[:, :-1] + log_below_BK[:, 1:] + torch.log(-torch.expm1(-gap_K))
        return torch.cat([log_below_BK[:, :1], between, log_above_BK[:, -1:]], dim=1)

    @property
    def weight(self) -> Tensor:
        """(C, D) what a contribution to each class is told by: the score's weights for the highest class, their
        opposite for the lowest, and evenly between the two for the others."""
        classes = len(self.first) + len(self.steps) + 1
        signs_C = torch.linspace(-1, 1, classes).to(self.score.weight)
        return signs_C[:, None] * self.score.weight


class SurvivalHead(nn.Module):
    """One risk (``loss: cox``) or a logit per time bin (``loss: hazards``), and survival at the task's times."""

    def __init__(self, dim: int, survival: SurvivalConfig) -> None:
        super().__init__()
        self._survival = survival
        edges = survival.edges
        bins = survival.bins if edges is None else len(edges) - 1
        self.linear = nn.Linear(dim, 1 if survival.loss == "cox" else bins, bias=survival.loss != "cox")

    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, 1) risks, or (B, K) logits of hazards."""
        raw_BK: Tensor = self.linear(x_BD)
        return raw_BK

    def said(self, raw_BK: Tensor) -> Tensor:
        """(B, 1 + T) the risk, higher for an earlier event, and the probability of survival at each time.

        Survival is NaN as long as the config lacks the baseline hazard or the edges that it needs.
        """
        its = self._survival
        raw_BK = _wide(raw_BK)
        unknown_BT = raw_BK.new_full((len(raw_BK), len(its.at)), math.nan)
        if its.loss == "cox":
            risk_B, survival_BT = raw_BK[:, 0], unknown_BT
            if its.baseline is not None:
                survival_BT = cox_survival(risk_B, raw_BK.new_tensor(its.baseline))
        else:
            risk_B, survival_BT = hazard_risk(raw_BK), unknown_BT
            if its.edges is not None:
                at_T, edges_K1 = (torch.tensor(each, dtype=torch.float64) for each in (its.at, its.edges))
                device = raw_BK.device
                survival_BT = hazard_survival_at(raw_BK, edges_K1.to(device), at_T.to(device))
        return torch.cat([risk_B[:, None], survival_BT], dim=1)

    @property
    def weight(self) -> Tensor:
        """(1 + T, D) what a contribution to each output is told by: to the log hazard (of ``loss: hazards``, the
        mean of the bins' logits) for the risk, and its opposite for survival at any time."""
        log_hazard_1D = self.linear.weight.mean(dim=0, keepdim=True)
        return torch.cat([log_hazard_1D, *[-log_hazard_1D] * len(self._survival.at)])


def _wide(x: Tensor) -> Tensor:
    """Half precision as float32, and what is wider as it is."""
    return x.float() if x.dtype.itemsize < 4 else x


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits_BC: logits_BC.softmax(dim=-1),
    "sigmoid": Tensor.sigmoid,
    "linear": lambda outputs_BC: outputs_BC,
}


class Heads(nn.Module):
    """A task reads the token that its config names, or the one of its own place.

    dim: D; None where an aggregator returns logits itself: then there are no layers, only the
    tasks' activations.
    """

    def __init__(self, dim: int | None, tasks: Sequence[TaskConfig]) -> None:
        super().__init__()
        self._tasks = tuple(tasks)
        self.tokens = task_queries(tasks)
        """{task: the token that it reads}"""
        self.queries = queries_of(tasks)
        layers = [] if dim is None else [_layer(dim, task) for task in tasks]
        self.layers = nn.ModuleList(layers)

    def forward(self, tokens_BTD: Tensor) -> dict[str, Tensor]:
        """Task name to logits (B, C); of a survival task what its head says before it is risk and survival."""
        return {
            task.name: layer(tokens_BTD[:, self.tokens[task.name]])
            for task, layer in zip(self._tasks, self.layers, strict=True)
        }

    def weights(self) -> dict[str, Tensor]:
        """Task name to its layer's weight (C, D), a row for each of the task's classes."""
        layers = zip(self._tasks, self.layers, strict=True)
        return {
            task.name: layer.weight
            for task, layer in layers
            if isinstance(layer, nn.Linear | OrdinalHead | SurvivalHead)
        }

    def probabilities(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Task name to probabilities (B, C): softmax or sigmoid, as the task says; a linear task's own numbers;
        of a survival task the risk and the probabilities of survival."""
        layers = dict(zip((task.name for task in self._tasks), self.layers, strict=False))
        said: dict[str, Tensor] = {}
        for task in self._tasks:
            layer = layers.get(task.name)
            turn = layer.said if isinstance(layer, SurvivalHead) else _ACTIVATIONS[task.activation]
            said[task.name] = turn(logits[task.name])
        return said


def _layer(dim: int, task: TaskConfig) -> nn.Module:
    if task.survival is not None:
        return SurvivalHead(dim, task.survival)
    classes = len(task.classes)
    return OrdinalHead(dim, classes) if task.kind == "ordinal" else nn.Linear(dim, classes)


def queries_of(tasks: Sequence[TaskConfig]) -> int:
    """How many query tokens the tasks read."""
    return max(task_queries(tasks).values()) + 1
