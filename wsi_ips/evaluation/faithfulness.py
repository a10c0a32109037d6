"""Does a map show what decided? Patches are removed in its order, and the prediction is watched:
:func:`faithfulness`.

If a map names what a prediction rests on, removing its highest patches first makes the probability fall at once,
and removing its lowest first leaves it unchanged for long. The area between the two curves measures how faithful
the map is; a random order shows what a worthless map gives. Formulas: xMIL (Hense et al., NeurIPS 2024).

:func:`gradient_x_input`, :func:`squared_gradient`, :func:`keep_one`, :func:`drop_one` and :func:`relevance`
compute maps to compare with.

Shape suffixes: N patches of a bag, n some of them, C width of features, K steps, D width of embeddings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

Predict = Callable[[Tensor], Tensor]
"""A function from the features (n, C) of a bag to one number, such as the probability of the class that is
explained.
"""

ONE_PERCENT = 100
"""Steps of a curve, each of one percent of the patches."""
RANDOM_ORDERS = 10
"""How many random orders are averaged."""


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """How faithful a map of one bag is.

    Attributes:
        most_first: Area under the curve of dropping the patches with the highest scores first.
        least_first: Area under the curve of dropping those with the lowest scores first.
        random: Mean of the area between the two curves of random orders.
    """

    most_first: float
    least_first: float
    random: float

    @property
    def between(self) -> float:
        """The area between the two curves. Higher is more faithful."""
        return self.least_first - self.most_first


@dataclass(frozen=True, slots=True, eq=False)
class FlippingCurves:
    """What is predicted while patches are removed in the order of a map, and in the reverse order.

    Attributes:
        most_first: (K + 1,), patches with the highest scores go first.
        least_first: (K + 1,), those with the lowest scores go first.
    """

    most_first: Tensor
    least_first: Tensor

    @property
    def between(self) -> float:
        """The area between the two curves."""
        return float(area_under(self.least_first)) - float(area_under(self.most_first))


def flipping_curves(
    predict: Predict, features_NC: Tensor, scores_N: Tensor, *, steps: int = ONE_PERCENT
) -> FlippingCurves:
    """The two curves of a map. Arguments are those of :func:`faithfulness`."""
    return FlippingCurves(
        flipping_curve(predict, features_NC, scores_N, steps=steps, order="most_relevant_first"),
        flipping_curve(predict, features_NC, scores_N, steps=steps, order="least_relevant_first"),
    )


def random_curves(
    predict: Predict, features_NC: Tensor, *, steps: int = ONE_PERCENT, seed: int = 0
) -> list[FlippingCurves]:
    """The curves of :data:`RANDOM_ORDERS` maps of uniform random numbers, the same for the same seed.

    Other arguments are those of :func:`faithfulness`.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.rand(len(features_NC), generator=generator) for _ in range(RANDOM_ORDERS)]
    return [
        flipping_curves(predict, features_NC, scores_N.to(features_NC.device), steps=steps)
        for scores_N in drawn
    ]


def faithfulness(
    predict: Predict, features_NC: Tensor, scores_N: Tensor, *, steps: int = ONE_PERCENT, seed: int = 0
) -> Faithfulness:
    """Measure a map of one bag.

    Args:
        predict: Gives the probability of the class that is explained.
        features_NC: The features of the bag.
        scores_N: The map.
        steps: K.
        seed: Seed of the random orders.
    """
    drawn = random_curves(predict, features_NC, steps=steps, seed=seed)
    curves = flipping_curves(predict, features_NC, scores_N, steps=steps)
    return Faithfulness(
        float(area_under(curves.most_first)),
        float(area_under(curves.least_first)),
        sum(each.between for each in drawn) / len(drawn),
    )


@torch.no_grad()
def flipping_curve(
    predict: Predict,
    features_NC: Tensor,
    scores_N: Tensor,
    *,
    steps: int = ONE_PERCENT,
    order: Literal["most_relevant_first", "least_relevant_first"] = "most_relevant_first",
    mode: Literal["drop", "add"] = "drop",
) -> Tensor:
    """The predictions (K + 1,) while patches are dropped, or added, in the order of their scores.

    Patches that stay keep their order in the bag; among equal scores the first comes first. An empty bag is N
    patches whose features are all 0. Memory: one bag.

    Args:
        predict: What is watched.
        features_NC: The features of the bag.
        scores_N: The map.
        steps: K.
        order: Which patches go first.
        mode: Whether patches are dropped from the whole bag, or added to an empty one.
    """
    order_N = scores_N.argsort(descending=order == "most_relevant_first", stable=True)
    gone, curve = 0, []
    for size in [0, *step_sizes(len(features_NC), steps)]:
        gone += size
        rows_n = order_N[gone:] if mode == "drop" else order_N[:gone]
        bag_nC = features_NC[rows_n.sort().values] if len(rows_n) else torch.zeros_like(features_NC)
        curve.append(predict(bag_nC).reshape(()))
    return torch.stack(curve)


def area_under(curve: Tensor) -> Tensor:
    """AUPC: the mean of all points of a flipping curve."""
    return curve.mean()


def area_over(curve: Tensor) -> Tensor:
    """AOPC: the mean of how far the points are below the first one."""
    return (curve[0] - curve).mean()


def step_sizes(patches: int, steps: int) -> list[int]:
    """How many patches go in each step: after step k of K it is round(k N / K) of N. K is at most N."""
    count = min(steps, patches)
    removed = [round(number * patches / count) for number in range(count + 1)]
    return [after - before for before, after in pairwise(removed)]


def gradient_x_input(predict: Predict, features_NC: Tensor) -> Tensor:
    """A map (N,): the sum over features of the feature times the gradient of ``predict`` with respect to it."""
    return (features_NC * _gradient(predict, features_NC)).sum(dim=1).detach()


def squared_gradient(predict: Predict, features_NC: Tensor) -> Tensor:
    """A map (N,): the sum over features of the squared gradient of ``predict``."""
    return _gradient(predict, features_NC).square().sum(dim=1)


@torch.no_grad()
def keep_one(predict: Predict, features_NC: Tensor) -> Tensor:
    """A map (N,): what is predicted for a bag of this patch alone."""
    return torch.stack([predict(patch_1C).reshape(()) for patch_1C in features_NC.split(1)])


@torch.no_grad()
def drop_one(predict: Predict, features_NC: Tensor) -> Tensor:
    """A map (N,): how much the prediction falls if this patch is left out. The bag needs two patches or more."""
    whole, rows_N = predict(features_NC), torch.arange(len(features_NC), device=features_NC.device)
    return torch.stack(
        [(whole - predict(features_NC[rows_N != row])).reshape(()) for row in range(len(features_NC))]
    )


def relevance(
    features_NC: Tensor,
    layers: Sequence[tuple[Tensor, Tensor | None]],
    attention_N: Tensor,
    head_weight_D: Tensor,
    logit: Tensor,
    *,
    gamma: float = 0.0,
    epsilon: float = 1e-8,
) -> Tensor:
    """A map (N,): layer-wise relevance propagation through attention MIL. Its sum is the logit.

    Biases are left out of the denominators.

    Args:
        features_NC: The features of the bag.
        layers: Weight and bias of the Linear and ReLU layers in front of the attention.
        attention_N: The attention, which is held constant.
        head_weight_D: The weight of the class in the linear head.
        logit: The logit of the class.
        gamma: How much more positive weights count. 0 is the epsilon rule.
        epsilon: Keeps denominators away from 0.
    """
    inputs = [features_NC]
    for weight, bias in layers:
        inputs.append(torch.nn.functional.linear(inputs[-1], weight, bias).relu())
    embedded_ND = inputs.pop()
    bag_D = attention_N @ embedded_ND
    voting_D = _favoured(head_weight_D, gamma) * bag_D
    relevance_D = logit * voting_D / _stable(voting_D.sum(), epsilon)
    relevance_ND = attention_N[:, None] * embedded_ND * relevance_D / _stable(bag_D, epsilon)
    for (weight, _), input_NC in zip(reversed(layers), reversed(inputs), strict=True):
        favoured = _favoured(weight, gamma)
        relevance_ND = input_NC * ((relevance_ND / _stable(input_NC @ favoured.T, epsilon)) @ favoured)
    return relevance_ND.sum(dim=1)


def _gradient(predict: Predict, features_NC: Tensor) -> Tensor:
    """The gradient, which is not accumulated anywhere, so that a second call gives the same."""
    leaf_NC = features_NC.detach().clone().requires_grad_()
    with torch.enable_grad():
        (gradient_NC,) = torch.autograd.grad(predict(leaf_NC).sum(), leaf_NC)
    return gradient_NC


def _favoured(weight: Tensor, gamma: float) -> Tensor:
    return weight + gamma * weight.clamp(min=0)


def _stable(value: Tensor, epsilon: float) -> Tensor:
    return value + epsilon * torch.where(value >= 0, 1.0, -1.0).to(value)
