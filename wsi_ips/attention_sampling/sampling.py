"""Positions drawn from an attention map.

Source: Katharopoulos and Fleuret 2019 and its reference code. Shape suffixes: B images, K all positions of one, N
drawn ones.
"""

from typing import NamedTuple

import torch
from torch import Tensor


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
