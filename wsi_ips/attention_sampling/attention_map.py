"""From an attention network's outputs to a distribution over positions, and what keeps it from collapsing.

Source: Katharopoulos and Fleuret 2019 and its reference code. Shape suffixes: B images, K all positions of one.
"""

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
