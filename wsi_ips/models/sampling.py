"""The functions of attention sampling: from attention logits to sampled patches and the expectation of their
features.

An image (or a slide) is looked at in low resolution, and a network gives a logit for each position. The steps
are:

1. :func:`sample_softmax` makes a distribution over the positions, and :func:`entropy_regulariser` keeps it from
   collapsing.
2. :func:`sample` draws positions from it, with or without replacement.
3. :func:`patch_corners` and :func:`extract_patches` cut the patches at these positions out of the
   full-resolution image.
4. :func:`expectation` estimates the expectation of the features of the patches under the attention, with
   gradients to both.

Source: Katharopoulos and Fleuret, ICML 2019, and its reference code. Without replacement and with two samples or
more, the gradient that the reference code sends to the attention is biased: it points in nearly the right
direction but is too short, the more so the more samples there are. The gradient ``unbiased`` is the score
function of each draw given those before it, plus the pathwise term, and is exact in expectation.
``tests/models/test_exhaustive.py`` enumerates both.

Shape suffixes: B images, K all positions of an image, N samples in the order in which they were drawn, D feature
width, C channels, H height, W width, P patch side. Sizes are (height, width), places (row, column).
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

ENTROPY_EPS = 1e-6
"""Added to the attention before its logarithm is taken, as in the reference code."""
L2_EPS = 1e-12
"""Smallest squared norm that features are divided by, as in the reference code."""
Gradient = Literal["unbiased", "reference"]
"""Which gradient reaches the attention when samples are drawn without replacement."""


def sample_softmax(logits: Tensor, *, smoothing: float = 0.0, empty: Tensor | None = None) -> Tensor:
    """One softmax over all positions of an image.

    Args:
        logits: (B, ...) float.
        smoothing: Share s of the mass that is spread evenly, (1 - s) a + s / K, so that every position can be
            drawn. In 0..1, 1 excluded.
        empty: bool, shaped like the logits, True where there is nothing to look at (no tissue). Such positions
            get 0 and do not count in K.

    Returns:
        Attention shaped like the logits, which sums to 1 for each image.

    Raises:
        ValueError: An image has no position to attend to, or ``smoothing`` is out of range.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be in 0..1, 1 excluded, not {smoothing}")
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
    """A scalar to add to a loss: ``strength`` times the mean over images of sum a log(a + 1e-6).

    ``attention`` is the whole map (B, ...). A positive strength raises the entropy of the map.
    """
    attention_BK = attention.flatten(1)
    return strength * (attention_BK * (attention_BK + ENTROPY_EPS).log()).sum(dim=1).mean()


class Samples(NamedTuple):
    """Positions that were drawn from an attention map.

    Attributes:
        index_BN: int64, which of the K positions, in the order in which they were drawn.
        attention_BN: The attention there. Gradients reach the attention network through it.
    """

    index_BN: Tensor
    attention_BN: Tensor


def sample(
    attention_BK: Tensor,
    n: int,
    *,
    replacement: bool,
    generator: torch.Generator | None = None,
) -> Samples:
    """Draw ``n`` positions of each image. The draw itself is not differentiated.

    Args:
        attention_BK: float, each row a distribution.
        n: How many positions, 1 or more.
        replacement: Whether a position can be drawn more than once.
        generator: Random generator on the device of the attention.

    Raises:
        ValueError: ``n`` is below 1, or without replacement larger than the number of positions with attention.
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
    """Draw ``n`` positions of each image independently. Raises ``ValueError`` if ``n`` is below 1.

    ``attention_BK`` is float, each row a distribution. ``generator`` has to be on its device.
    """
    _check(attention_BK, n)
    index_BN = torch.multinomial(attention_BK.detach(), n, replacement=True, generator=generator)
    return Samples(index_BN, attention_BK.gather(1, index_BN))


def sample_without_replacement(attention_BK: Tensor, n: int, *, uniform_BK: Tensor) -> Samples:
    """Draw ``n`` different positions of each image: the largest of log a - log(-log u), largest first (Gumbel
    top-k).

    In this order they are a sequential draw without replacement. The estimator depends on the order.

    Args:
        attention_BK: float, each row a distribution.
        n: How many positions, 1 or more.
        uniform_BK: Random numbers in 0..1.

    Raises:
        ValueError: ``n`` is below 1, or an image has fewer positions with attention.
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


def _check(attention_BK: Tensor, n: int) -> None:
    if attention_BK.ndim != 2 or not attention_BK.shape[1]:
        raise ValueError(f"attention must be of shape (images, positions), not {tuple(attention_BK.shape)}")
    if n < 1:
        raise ValueError(f"1 sample or more must be drawn, not {n}")


def rows_and_columns(index_BN: Tensor, columns: int) -> Tensor:
    """The (row, column) of positions in a map with so many columns: (B, N) to (B, N, 2) int64."""
    return torch.stack([index_BN // columns, index_BN % columns], dim=-1)


def patch_corners(
    positions_BN2: Tensor,
    *,
    map_size: tuple[int, int],
    low_size: tuple[int, int],
    high_size: tuple[int, int],
    patch_size: tuple[int, int],
    receptive_field: int = 0,
) -> Tensor:
    """Top-left corners of the patches at positions of an attention map, in pixels of the full-resolution image.

    A cell of the map covers (low - r) * scale / map pixels of that image, where r is the receptive field. The
    patch is centred on the cell, and the border of r / 2 that a network without padding does not see is skipped.
    Source: the reference code.

    Args:
        positions_BN2: (row, column) in the map.
        map_size: Size of the map.
        low_size: Size of the low-resolution image that the attention network saw.
        high_size: Size of the full-resolution image.
        patch_size: Size of a patch.
        receptive_field: r, in pixels of the low-resolution image; 0 for a network that pads.

    Returns:
        (B, N, 2) int64 (row, column). Corners may lie outside the image.
    """

    def along(axis: int) -> Tensor:
        scale = high_size[axis] / low_size[axis]
        step = (low_size[axis] - receptive_field) * scale / map_size[axis]
        start = receptive_field / 2 * scale + step / 2 - patch_size[axis] / 2
        # torch.round rounds halves to even, as the reference does.
        return (start + positions_BN2[..., axis].double() * step).round().long()

    return torch.stack([along(0), along(1)], dim=-1)


def extract_patches(image_BCHW: Tensor, corners_BN2: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Cut patches out of images.

    Args:
        image_BCHW: The images.
        corners_BN2: Top-left corners (row, column), which may lie outside the image.
        patch_size: Size of a patch.

    Returns:
        (B, N, C, P, P) of the dtype and on the device of the images; 0 outside the image.
    """
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


def l2_normalised(x: Tensor) -> Tensor:
    """x / sqrt(max(sum x^2, 1e-12)) over the last axis; zero stays zero.

    For features of unit norm, the attention is the proposal with the least variance (section 3.2 of the paper).
    """
    return x / x.square().sum(dim=-1, keepdim=True).clamp(min=L2_EPS).sqrt()


def expectation(
    attention_BN: Tensor,
    features_BND: Tensor,
    *,
    replacement: bool,
    gradient: Gradient = "unbiased",
    weights_BN: Tensor | None = None,
) -> Tensor:
    """Estimate the expectation of features under the attention, sum_i a_i f_i over all positions, without bias.

    Args:
        attention_BN: Attention at the sampled positions.
        features_BND: Features of the sampled patches.
        replacement: Whether the positions were drawn with replacement.
        gradient: Which gradient reaches the attention. With replacement both are the same, unbiased one.
        weights_BN: Weight of each sample; rows sum to 1. None: 1 / N each. No gradient flows to the weights.

    Returns:
        (B, D) float.

    Raises:
        ValueError: Attention and features are not of the same images and samples.
    """
    n = attention_BN.shape[1]
    if features_BND.shape[:2] != attention_BN.shape:
        raise ValueError(
            f"attention of shape {tuple(attention_BN.shape)} does not fit features of shape "
            f"{tuple(features_BND.shape)}"
        )
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
    """The weighted sum of the estimates, whose gradient has the score function of each draw beside the pathwise
    term.

    The factor is 1, and its gradient is that of the logarithm of the chance.
    """
    score_BN1 = (log_chance_BN - log_chance_BN.detach())[..., None]
    return (weights_BN[..., None] * (estimates_BND + estimates_BND.detach() * score_BN1)).sum(dim=1)


def _mass_left(attention_BN: Tensor) -> Tensor:
    """The mass before each draw: c_n = 1 - the sum of all a_k that were drawn before the n-th."""
    left_BN = 1 - (attention_BN.cumsum(dim=1) - attention_BN)
    # The mass left includes that of the draw itself. When nearly all has been drawn, rounding may give less, even
    # 0, so the value is raised to the draw's own attention; the gradient stays that of the sum.
    return left_BN + (torch.maximum(left_BN, attention_BN) - left_BN).detach()


def _estimates(attention_BN: Tensor, features_BND: Tensor, left_BN: Tensor) -> Tensor:
    """E_n = sum_{k<n} a_k f_k + c_n f_n. Each is unbiased, given the draws before it."""
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
