"""The losses of the tasks, what classes weigh in them, and the schedule of the learning rate.

:func:`task_loss` and :func:`lr_multiplier` are those of the paper (IPS reference code).

Shape suffixes: B bags, C classes.
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
"""Added to a probability before its logarithm is taken."""
FLOOR = 0.001
"""The learning rate at the end of the cosine, as a share of the peak."""


def task_loss(
    logits_BC: Tensor,
    target: Tensor,
    *,
    activation: Literal["softmax", "sigmoid", "linear"],
    weights: Tensor | None = None,
) -> Tensor:
    """The loss of a task, a scalar: the mean over bags.

    Half precision is widened to float32 first: the sigmoid of a half-precision logit of 8.5 is 1, whose loss has
    no gradient, and a sum of small losses loses its digits. The sigmoid loss never sees probabilities, which
    autocast forbids on CUDA.

    Args:
        logits_BC: The output of the head, before its activation.
        target: For softmax (B,) int64 class indices; for sigmoid (B,) or (B, C) of 0 and 1; for linear (B, C)
            numbers.
        activation: ``softmax``: -log(p + 1e-6). ``sigmoid``: binary cross entropy over all elements. ``linear``
            (not in the paper): mean squared error over all elements.
        weights: (C,), from :func:`class_weights`. For softmax the loss of each bag is multiplied by the weight
            of its class. The mean is over bags, not over weights as in PyTorch's ``NLLLoss``: there a step of
            one class, or of one bag, is not weighted at all, and processes could not add up their shares. For
            sigmoid it is the factor on the positive term of each class, as in
            ``BCEWithLogitsLoss(pos_weight=)``. For linear it has to be None.
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
    """The mean of the losses of several tasks."""
    return torch.stack(list(losses)).mean()


def class_weights(
    choice: ClassWeights, task: TaskConfig, targets: Sequence[Mapping[str, Target]]
) -> Tensor | None:
    """The weights of ``TrainingConfig.class_weights`` as (C,) float32 for :func:`task_loss`. None if all weigh
    the same.

    With ``balanced``, a class of a softmax task weighs B / (C' * bags of the class) over the C' classes that
    occur, and a class of a sigmoid task weighs the number of bags without it over the number with it. A class
    that never occurs, or always, weighs 1.

    Args:
        choice: The setting.
        task: The task.
        targets: ``{task: target}`` of each training bag.
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


def lr_multiplier(step: int, *, warmup: int, total: int) -> float:
    """The share of the peak learning rate at ``step``, which counts from 1 to ``total``.

    It rises linearly up to ``warmup``; from there half a cosine leads down to 0.001 at ``total``.
    """
    if step < warmup:
        return step / warmup
    cosine = (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1))) / 2
    return cosine + FLOOR * (1 - cosine)
