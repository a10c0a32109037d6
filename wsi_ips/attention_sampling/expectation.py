"""The expectation of features under an attention map, from a few samples, and its gradients.

Source: Katharopoulos and Fleuret 2019 and its reference code. The reference's gradient to the attention is
biased for two samples or more without replacement: nearly the right direction, and too short, the more so the
more samples there are. ``unbiased`` is the score function of each draw given those before it, plus the pathwise
term, and is exact in expectation. ``tests/attention_sampling/test_exhaustive.py`` enumerates both.

Shape suffixes: B images, N samples in the order in which they were drawn, D feature width.
"""

from typing import Any, Literal

import torch
from torch import Tensor

Gradient = Literal["unbiased", "reference"]


def expectation(
    attention_BN: Tensor,
    features_BND: Tensor,
    *,
    replacement: bool,
    gradient: Gradient = "unbiased",
    weights_BN: Tensor | None = None,
) -> Tensor:
    """Estimate sum_i a_i f_i over all positions, (B, D), without bias.

    attention_BN: the map at the sampled positions. weights_BN: what each sample counts, rows summing to 1; none:
    1 / N each. No gradient goes to them. With replacement both gradients are the same, unbiased one.
    """
    n = attention_BN.shape[1]
    if features_BND.shape[:2] != attention_BN.shape:
        raise ValueError(f"attention {tuple(attention_BN.shape)}, features {tuple(features_BND.shape)}")
    weights_BN = torch.full_like(attention_BN, 1 / n) if weights_BN is None else weights_BN
    weights_BN = weights_BN.detach().to(features_BND.dtype)
    if replacement:
        return _scored(features_BND, attention_BN.log(), weights_BN)
    if gradient == "reference":
        result: Tensor = _Reference.apply(attention_BN, features_BND, weights_BN)
        return result
    left_BN = _mass_left(attention_BN)
    estimates_BND = _estimates(attention_BN, features_BND, left_BN)
    return _scored(estimates_BND, attention_BN.log() - left_BN.log(), weights_BN)


def _scored(estimates_BND: Tensor, log_chance_BN: Tensor, weights_BN: Tensor) -> Tensor:
    """The weighted sum of the estimates; its gradient has the score function of each draw beside the pathwise
    term (the factor is 1, and its gradient that of the logarithm)."""
    score_BN1 = (log_chance_BN - log_chance_BN.detach())[..., None]
    return (weights_BN[..., None] * (estimates_BND + estimates_BND.detach() * score_BN1)).sum(dim=1)


def _mass_left(attention_BN: Tensor) -> Tensor:
    """c_n = 1 - sum of the a_k drawn before the n-th."""
    left_BN = 1 - (attention_BN.cumsum(dim=1) - attention_BN)
    # What is left holds the draw itself. Rounding may say less, even nothing, when nearly all has been drawn; the
    # gradient is that of the sum.
    return left_BN + (torch.maximum(left_BN, attention_BN) - left_BN).detach()


def _estimates(attention_BN: Tensor, features_BND: Tensor, left_BN: Tensor) -> Tensor:
    """E_n = sum_{k<n} a_k f_k + c_n f_n: each unbiased, given the draws before it."""
    mass_BND = attention_BN[..., None] * features_BND
    return mass_BND.cumsum(dim=1) - mass_BND + left_BN[..., None] * features_BND


class _Reference(torch.autograd.Function):
    """Sampling without replacement with the gradients that the reference code computes."""

    @staticmethod
    def forward(ctx: Any, attention_BN: Tensor, features_BND: Tensor, weights_BN: Tensor) -> Tensor:
        ctx.save_for_backward(attention_BN, features_BND, weights_BN)
        estimates_BND = _estimates(attention_BN, features_BND, _mass_left(attention_BN))
        return (weights_BN[..., None] * estimates_BND).sum(dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad_BD,) = grads
        attention_BN, features_BND, weights_BN = ctx.saved_tensors
        n = attention_BN.shape[1]
        left_BN = _mass_left(attention_BN)
        after_N = torch.arange(n - 1, -1, -1, device=attention_BN.device)
        factor_BN = weights_BN * (left_BN + after_N * attention_BN)
        grad_features_BND = factor_BN[..., None] * grad_BD[:, None]

        estimates_BND = _estimates(attention_BN, features_BND, left_BN)
        before_BND = features_BND.cumsum(dim=1) - features_BND
        before_N1 = torch.arange(n, device=attention_BN.device)[:, None]
        slope_BND = (
            estimates_BND * (left_BN / attention_BN)[..., None] + before_BND - before_N1 * features_BND
        )
        grad_attention_BN = weights_BN * (slope_BND * grad_BD[:, None]).sum(dim=-1)
        return grad_attention_BN, grad_features_BND, None
