"""The paper's losses, on probabilities (IPS reference code).

Shape suffixes: B bags, C classes.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, mse_loss

EPS = 1e-6
"""Added to a probability before its logarithm."""


def task_loss(
    probabilities_BC: Tensor, target: Tensor, *, activation: Literal["softmax", "sigmoid", "linear"]
) -> Tensor:
    """Scalar, mean over bags.

    softmax: ``target`` (B,) int64 class indices, -log(p + 1e-6). sigmoid: (B,) or (B, C) of 0 and 1, binary
    cross entropy over all elements. linear (ours): (B, C) numbers, mean squared error over all elements.
    """
    if activation == "linear":
        return mse_loss(probabilities_BC, target.to(probabilities_BC.dtype))
    if activation == "softmax":
        return -(probabilities_BC.gather(1, target[:, None]) + EPS).log().mean()
    return binary_cross_entropy(probabilities_BC.flatten(), target.flatten().to(probabilities_BC.dtype))


def mean_loss(losses: Sequence[Tensor]) -> Tensor:
    """Tasks count the same."""
    return torch.stack(list(losses)).mean()
