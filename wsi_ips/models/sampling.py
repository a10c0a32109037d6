"""From an attention network's outputs to a distribution over positions, and what keeps it from collapsing.

Source: Katharopoulos and Fleuret 2019 and its reference code. Shape suffixes: B images, K all positions of one.

The expectation of features under an attention map, from a few samples, and its gradients.

Source: Katharopoulos and Fleuret 2019 and its reference code. The reference's gradient to the attention is
biased for two samples or more without replacement: nearly the right direction, and too short, the more so the
more samples there are. ``unbiased`` is the score function of each draw given those before it, plus the pathwise
term, and is exact in expectation. ``tests/models/test_exhaustive.py`` enumerates both.

Shape suffixes: B images, N samples in the order in which they were drawn, D feature width.

From positions of an attention map to patches of the image in full resolution.

Source: the reference code of Katharopoulos and Fleuret 2019. Sizes are (height, width), places (row, column).

Shape suffixes: B images, N samples, C channels, H height, W width, P patch side.

Positions drawn from an attention map.

Source: Katharopoulos and Fleuret 2019 and its reference code. Shape suffixes: B images, K all positions of one, N
drawn ones.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

ENTROPY_EPS = 1e-6
L2_EPS = 1e-12


def sample_softmax(logits: Tensor, *, smoothing: float = 0.0, empty: Tensor | None = None) -> Tensor:
    """One softmax over everything of an image: (B, ...) float to the same shape, each image's sum 1.

    smoothing: share of the mass that is spread evenly, (1 - s) a + s / K, so that no position is out of reach.
    empty: bool, as the logits, True where there is nothing to look at (no tissue): such positions get 0, and are
    not counted in K. Raises ``ValueError`` for an image without positions, and for a smoothing outside 0..1.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is in 0..1, 1 excluded, got {smoothing}")
    logits_BK = logits.flatten(1)
    if not logits_BK.shape[1]:
        raise ValueError("no positions to attend to")
    if empty is None:
        attention_BK = logits_BK.softmax(dim=1)
        even = smoothing / logits_BK.shape[1]
        return (
            ((1 - smoothing) * attention_BK + even).view_as(logits)
            if smoothing
            else attention_BK.view_as(logits)
        )
    empty_BK = empty.flatten(1)
    count_B1 = (~empty_BK).sum(dim=1, keepdim=True)
    if not count_B1.all():
        raise ValueError("an image's mask leaves no position to attend to")
    attention_BK = logits_BK.masked_fill(empty_BK, -torch.inf).softmax(dim=1)
    attention_BK = (1 - smoothing) * attention_BK + (~empty_BK) * (smoothing / count_B1)
    return attention_BK.view_as(logits)


def entropy_regulariser(attention: Tensor, *, strength: float) -> Tensor:
    """Scalar to add to a loss: ``strength`` times the mean over images of sum a log(a + 1e-6).

    attention: (B, ...), the whole map. A positive strength raises the entropy of the map.
    """
    attention_BK = attention.flatten(1)
    return strength * (attention_BK * (attention_BK + ENTROPY_EPS).log()).sum(dim=1).mean()


def l2_normalised(x: Tensor) -> Tensor:
    """x / sqrt(max(sum x^2, 1e-12)) over the last axis; zero stays zero.

    Of features with unit norm the attention is the proposal with the least variance (the paper, section 3.2).
    """
    return x / x.square().sum(dim=-1, keepdim=True).clamp(min=L2_EPS).sqrt()


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


def patch_corners(
    positions_BN2: Tensor,
    *,
    map_size: tuple[int, int],
    low_size: tuple[int, int],
    high_size: tuple[int, int],
    patch_size: tuple[int, int],
    receptive_field: int = 0,
) -> Tensor:
    """Top-left corners (B, N, 2) int64 (row, column) in the image of ``high_size``.

    A cell of the map covers (low - r) * scale / map pixels of it; the patch is centred on the cell, and the
    border of r / 2 that a network without padding does not see is skipped. receptive_field: r, in pixels of the
    image of ``low_size`` that the network saw; 0 for one that pads. Corners may lie outside the image.
    """

    def along(axis: int) -> Tensor:
        scale = high_size[axis] / low_size[axis]
        step = (low_size[axis] - receptive_field) * scale / map_size[axis]
        start = receptive_field / 2 * scale + step / 2 - patch_size[axis] / 2
        # torch.round rounds halves to even, as the reference does.
        return (start + positions_BN2[..., axis].double() * step).round().long()

    return torch.stack([along(0), along(1)], dim=-1)


def extract_patches(image_BCHW: Tensor, corners_BN2: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """(B, N, C, P, P), of the image's dtype and device: the patches at these corners, 0 outside the image."""
    height, width = image_BCHW.shape[-2:]
    corners_BN2 = corners_BN2.to(image_BCHW.device)
    rows_BNP = corners_BN2[..., :1] + torch.arange(patch_size[0], device=image_BCHW.device)
    columns_BNP = corners_BN2[..., 1:] + torch.arange(patch_size[1], device=image_BCHW.device)
    image_B = torch.arange(len(image_BCHW), device=image_BCHW.device)[:, None, None, None]
    patches_BNPPC = image_BCHW[
        image_B,
        :,
        rows_BNP.clamp(0, height - 1)[..., :, None],
        columns_BNP.clamp(0, width - 1)[..., None, :],
    ]
    inside_BNPP = ((rows_BNP >= 0) & (rows_BNP < height))[..., :, None] & (
        (columns_BNP >= 0) & (columns_BNP < width)
    )[..., None, :]
    return (patches_BNPPC * inside_BNPP[..., None]).permute(0, 1, 4, 2, 3)


class Samples(NamedTuple):
    """index_BN: int64, which of the K positions, in the order in which they were drawn. attention_BN: the map's
    values there: through them gradients reach the attention network."""

    index_BN: Tensor
    attention_BN: Tensor


def sample(
    attention_BK: Tensor,
    n: int,
    *,
    replacement: bool,
    generator: torch.Generator | None = None,
) -> Samples:
    """Draw ``n`` positions of each image, with or without replacement; no draw is differentiated.

    attention_BK: (B, K) float, each row a distribution. ``generator``: on the map's device. Raises ``ValueError``
    as :func:`sample_without_replacement`.
    """
    if replacement:
        return sample_with_replacement(attention_BK, n, generator=generator)
    uniform_BK = torch.rand(
        attention_BK.shape, dtype=attention_BK.dtype, device=attention_BK.device, generator=generator
    )
    return sample_without_replacement(attention_BK, n, uniform_BK=uniform_BK)


def sample_with_replacement(
    attention_BK: Tensor, n: int, *, generator: torch.Generator | None = None
) -> Samples:
    """``n`` independent draws. Raises ``ValueError`` for fewer than one."""
    _check(attention_BK, n)
    index_BN = torch.multinomial(attention_BK.detach(), n, replacement=True, generator=generator)
    return Samples(index_BN, attention_BK.gather(1, index_BN))


def sample_without_replacement(attention_BK: Tensor, n: int, *, uniform_BK: Tensor) -> Samples:
    """The ``n`` largest of log a - log(-log u) (Gumbel top-k), largest first.

    That order is a sequential draw without replacement, and the estimator depends on it: keep it. uniform_BK: (B,
    K) in 0..1. Raises ``ValueError`` for more samples than positions with attention.
    """
    _check(attention_BK, n)
    with torch.no_grad():
        attended = int((attention_BK > 0).sum(dim=1).min())
        if n > attended:
            raise ValueError(
                f"{n} samples without replacement of {attended} positions; take fewer, or sample with replacement"
            )
        keys_BK = attention_BK.log() - (-uniform_BK.log()).log()
        index_BN = keys_BK.topk(n, dim=1).indices
    return Samples(index_BN, attention_BK.gather(1, index_BN))


def rows_and_columns(index_BN: Tensor, columns: int) -> Tensor:
    """(B, N, 2) int64, (row, column), of positions in a map of so many columns."""
    return torch.stack([index_BN // columns, index_BN % columns], dim=-1)


def _check(attention_BK: Tensor, n: int) -> None:
    if attention_BK.ndim != 2 or not attention_BK.shape[1]:
        raise ValueError(f"attention is (images, positions), got {tuple(attention_BK.shape)}")
    if n < 1:
        raise ValueError(f"1 sample or more, got {n}")
