"""Heads: from the tokens of an aggregator to the outputs of each task. Start with :class:`Heads`.

A task has a linear layer; a task with grades in order has an :class:`OrdinalHead`, and a survival task a
:class:`SurvivalHead`.

Shape suffixes: B bags, T query tokens (in :class:`SurvivalHead` times), D width, C classes of a task, K
thresholds or time bins.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from wsi_ips.config import TaskConfig, task_queries
from wsi_ips.config.survival import SurvivalConfig
from wsi_ips.survival.losses import cox_survival, hazard_risk, hazard_survival_at

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits_BC: logits_BC.softmax(dim=-1),
    "sigmoid": Tensor.sigmoid,
    "linear": lambda outputs_BC: outputs_BC,
}


class Heads(nn.Module):
    """One layer per task. Each reads the token that the configuration of the task names, or the one of its own
    place.

    Args:
        dim: Width D of the tokens. None if an aggregator returns logits itself: then there are no layers, only
            the activations of the tasks.
        tasks: The tasks.
    """

    def __init__(self, dim: int | None, tasks: Sequence[TaskConfig]) -> None:
        super().__init__()
        self._tasks = tuple(tasks)
        self.tokens = task_queries(tasks)
        """For each task, the number of the token that it reads."""
        self.queries = queries_of(tasks)
        layers = [] if dim is None else [_layer(dim, task) for task in tasks]
        self.layers = nn.ModuleList(layers)

    def forward(self, tokens_BTD: Tensor) -> dict[str, Tensor]:
        """The logits (B, C) of each task. For a survival task these are the raw outputs of
        :class:`SurvivalHead`.
        """
        return {
            task.name: layer(tokens_BTD[:, self.tokens[task.name]])
            for task, layer in zip(self._tasks, self.layers, strict=True)
        }

    def weights(self) -> dict[str, Tensor]:
        """The weight (C, D) of the layer of each task, with a row for each class."""
        layers = zip(self._tasks, self.layers, strict=True)
        return {
            task.name: layer.weight
            for task, layer in layers
            if isinstance(layer, nn.Linear | OrdinalHead | SurvivalHead)
        }

    def explained(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a map explains of each task: (B, C), a number for each class or other output, with gradients.

        These are the logits themselves. Of a survival task they are the log hazard for the risk (with ``loss:
        hazards`` the mean of the logits of the bins), and its opposite for survival at each time.
        """
        layers = dict(zip((task.name for task in self._tasks), self.layers, strict=False))
        told: dict[str, Tensor] = {}
        for task in self._tasks:
            layer = layers.get(task.name)
            turn = layer.log_hazards if isinstance(layer, SurvivalHead) else _ACTIVATIONS["linear"]
            told[task.name] = turn(logits[task.name])
        return told

    def probabilities(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The probabilities (B, C) of each task.

        They are the softmax or the sigmoid of its logits, as the task says. A linear task keeps its numbers. A
        survival task gives the risk and the probabilities of survival, see :meth:`SurvivalHead.said`.
        """
        layers = dict(zip((task.name for task in self._tasks), self.layers, strict=False))
        said: dict[str, Tensor] = {}
        for task in self._tasks:
            layer = layers.get(task.name)
            turn = layer.said if isinstance(layer, SurvivalHead) else _ACTIVATIONS[task.activation]
            said[task.name] = turn(logits[task.name])
        return said


def queries_of(tasks: Sequence[TaskConfig]) -> int:
    """How many query tokens the tasks read."""
    return max(task_queries(tasks).values()) + 1


def _layer(dim: int, task: TaskConfig) -> nn.Module:
    if task.survival is not None:
        return SurvivalHead(dim, task.survival)
    classes = len(task.classes)
    return OrdinalHead(dim, classes) if task.kind == "ordinal" else nn.Linear(dim, classes)


class OrdinalHead(nn.Module):
    """Classes in order, from one score s = w x (cumulative link, proportional odds; McCullagh 1980).

    The probability that a bag is above class k is sigmoid(s - threshold_k), with thresholds that always rise.

    Args:
        dim: Width D of the token.
        classes: Number C of classes.
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
        """The thresholds (C - 1,), rising."""
        return torch.cat([self.first, self.first + softplus(self.steps).cumsum(0)])

    def forward(self, x_BD: Tensor) -> Tensor:
        """The logarithms (B, C) of the probabilities of the classes. They serve as logits of a softmax as those
        of any other task.
        """
        above_BK = _wide(self.score(x_BD)) - _wide(self.thresholds)
        # log(sigmoid(a) - sigmoid(b)) for a > b, without the cancellation of subtracting two probabilities.
        log_above_BK, log_below_BK = -softplus(-above_BK), -softplus(above_BK)
        gap_K = softplus(_wide(self.steps))
        between = log_above_BK[:, :-1] + log_below_BK[:, 1:] + torch.log(-torch.expm1(-gap_K))
        return torch.cat([log_below_BK[:, :1], between, log_above_BK[:, -1:]], dim=1)

    @property
    def weight(self) -> Tensor:
        """The weights (C, D) by which a contribution to each class is told.

        These are the weights of the score for the highest class, their opposite for the lowest, and evenly
        between the two for the others.
        """
        classes = len(self.first) + len(self.steps) + 1
        signs_C = torch.linspace(-1, 1, classes).to(self.score.weight)
        return signs_C[:, None] * self.score.weight


class SurvivalHead(nn.Module):
    """One risk (``loss: cox``) or a logit for each time bin (``loss: hazards``), and survival at the times of
    the task.

    Args:
        dim: Width D of the token.
        survival: The settings of the task.
    """

    def __init__(self, dim: int, survival: SurvivalConfig) -> None:
        super().__init__()
        self._survival = survival
        edges = survival.edges
        bins = survival.bins if edges is None else len(edges) - 1
        self.linear = nn.Linear(dim, 1 if survival.loss == "cox" else bins, bias=survival.loss != "cox")

    def forward(self, x_BD: Tensor) -> Tensor:
        """The risks (B, 1), or the logits (B, K) of the hazards."""
        raw_BK: Tensor = self.linear(x_BD)
        return raw_BK

    def said(self, raw_BK: Tensor) -> Tensor:
        """Risk and survival (B, 1 + T) from the output of :meth:`forward`.

        The first column is the risk, which is higher for an earlier event. The others are the probabilities of
        survival at each time of the task; they are NaN as long as the configuration lacks the baseline hazard or
        the bin edges that they need.
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

    def log_hazards(self, raw_BK: Tensor) -> Tensor:
        """The log hazards (B, 1 + T) that a map explains, from the output of :meth:`forward`.

        Their signs are those of :attr:`weight`.
        """
        log_hazard_B1 = raw_BK.mean(dim=1, keepdim=True)
        return torch.cat([log_hazard_B1, *[-log_hazard_B1] * len(self._survival.at)], dim=1)

    @property
    def weight(self) -> Tensor:
        """The weights (1 + T, D) by which a contribution to each output is told.

        For the risk, it is the contribution to the log hazard (with ``loss: hazards``, to the mean of the logits
        of the bins); for survival at any time, its opposite.
        """
        log_hazard_1D = self.linear.weight.mean(dim=0, keepdim=True)
        return torch.cat([log_hazard_1D, *[-log_hazard_1D] * len(self._survival.at)])


def _wide(x: Tensor) -> Tensor:
    """Half precision as float32; wider types as they are."""
    return x.float() if x.dtype.itemsize < 4 else x
