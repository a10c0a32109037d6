"""The paper's losses (IPS reference code), computed from logits in float32, and what classes weigh in them.

Shape suffixes: B bags, C classes.

The paper's learning-rate schedule (IPS reference code).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from wsi_ips.config import ClassWeights, TaskConfig
from wsi_ips.datasets.manifest import Target

EPS = 1e-6
"""Added to a probability before its logarithm."""


def task_loss(
    logits_BC: Tensor,
    target: Tensor,
    *,
    activation: Literal["softmax", "sigmoid", "linear"],
    weights: Tensor | None = None,
) -> Tensor:
    """Scalar, mean over bags, of what the heads say before their activation.

    softmax: ``target`` (B,) int64 class indices, -log(p + 1e-6). sigmoid: (B,) or (B, C) of 0 and 1, binary
    cross entropy over all elements. linear (ours): (B, C) numbers, mean squared error over all elements.

    Half precision is widened to float32 first: the sigmoid of a half-precision logit of 8.5 is 1, whose loss has
    no gradient, and a sum of small losses loses its digits. The sigmoid loss never sees probabilities, which
    autocast forbids on CUDA.

    ``weights`` (C,), from :func:`class_weights`. softmax: each bag's loss is multiplied by its class's weight.
    The mean is over bags, not over weights as in PyTorch's ``NLLLoss``: there a step of one class, or of one
    bag, is not weighted at all, and processes could not add up their shares. sigmoid
    (``BCEWithLogitsLoss(pos_weight=)``): factor on the positive term of each class. linear has none: None.
    """
    logits_BC = logits_BC.float() if logits_BC.dtype.itemsize < 4 else logits_BC
    if activation == "linear":
        return mse_loss(logits_BC, target.to(logits_BC.dtype))
    if activation == "softmax":
        loss_B = -(logits_BC.softmax(dim=1).gather(1, target[:, None])[:, 0] + EPS).log()
        return (loss_B if weights is None else weights.to(loss_B)[target] * loss_B).mean()
    target_BC = target.reshape(logits_BC.shape).to(logits_BC.dtype)
    factor_C = None if weights is None else weights.to(logits_BC)
    return binary_cross_entropy_with_logits(logits_BC, target_BC, pos_weight=factor_C)


def mean_loss(losses: Sequence[Tensor]) -> Tensor:
    """Tasks count the same."""
    return torch.stack(list(losses)).mean()


def class_weights(
    choice: ClassWeights, task: TaskConfig, targets: Sequence[Mapping[str, Target]]
) -> Tensor | None:
    """``TrainingConfig.class_weights`` as (C,) float32 for :func:`task_loss`; None where nothing is weighted.

    ``targets``: of the training bags, {task: target} each. ``balanced``, softmax: B / (C' * bags of the class)
    over the C' classes that occur; sigmoid: bags without the class over bags with it. A class that never
    occurs, or always, weighs 1.
    """
    if choice == "none" or task.activation == "linear":
        return None
    if isinstance(choice, Mapping):
        given = choice.get(task.name)
        return None if given is None else torch.tensor([given.get(name, 1.0) for name in task.classes])
    values = [bag[task.name] for bag in targets if task.name in bag]
    if task.activation == "softmax":
        occur = Counter(values)
        return torch.tensor(
            [len(values) / (len(occur) * occur[index]) if occur[index] else 1.0
             for index in range(len(task.classes))]
        )  # fmt: skip
    positive_C = torch.tensor(values, dtype=torch.float32).reshape(len(values), len(task.classes)).sum(dim=0)
    negative_C = len(values) - positive_C
    both_C = (positive_C > 0) & (negative_C > 0)
    return torch.where(both_C, negative_C / positive_C.clamp(min=1), 1.0)


FLOOR = 0.001
"""Where the cosine ends, as a share of the peak."""


def lr_multiplier(step: int, *, warmup: int, total: int) -> float:
    """Share of the peak learning rate at ``step`` (counted from 1 to ``total``).

    Below ``warmup`` it rises linearly; from there half a cosine leads down to 0.001 at ``total``.
    """
    if step < warmup:
        return step / warmup
    cosine = (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1))) / 2
    return cosine + FLOOR * (1 - cosine)
