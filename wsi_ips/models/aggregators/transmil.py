"""TransMIL: a class token and two layers of self-attention among all patches (Shao et al., NeurIPS 2021).

Patches are laid on a square in the order of their places, not where they lie, as published: depth-wise
convolutions over that square stand for positions, so the result depends on the order. No patch has a score of its
own; all patches of a bag are read.

Shape suffixes: see :mod:`wsi_ips.models.aggregators.base`; S side of the square, N = 1 + S * S tokens.
"""

import math
from collections.abc import Sequence

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from wsi_ips.config import TaskConfig
from wsi_ips.config.section import Fraction
from wsi_ips.errors import ConfigError
from wsi_ips.models.aggregators.base import Aggregated, Aggregator, Kind
from wsi_ips.models.aggregators.embedding import EmbeddingOptions, plain_embedding
from wsi_ips.models.aggregators.nystrom import NystromAttention
from wsi_ips.models.heads import queries_of


class TransMilOptions(EmbeddingOptions):
    """Settings of ``transmil``."""

    dropout: Fraction = 0.0
    """Share of the embedding that is dropped in training; the published model drops none."""
    heads: PositiveInt = 8
    """H; the width of the embedding is a multiple of it."""
    landmarks: PositiveInt | None = None
    """Landmarks of the approximate attention; none: half of the embedding's width, as published."""
    attention_dropout: Fraction = 0.1
    """Share of each attention layer's output that is dropped in training."""


class TransMil(Aggregator):
    """dim: D, a multiple of ``heads``. Each bag is read by itself, so that bags of one step change nothing in
    each other."""

    scores_patches = False
    has_softmax = False
    ordered = True

    def __init__(
        self, dim: int, *, queries: int, heads: int = 8, landmarks: int | None = None, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.token_dim = dim
        self.queries = queries
        self.class_token = nn.Parameter(torch.randn(1, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.layers = nn.ModuleList(
            NystromAttention(dim, heads=heads, landmarks=landmarks or max(1, dim // 2), dropout=dropout)
            for _ in range(2)
        )
        self.position = SquarePositions(dim)
        self.norm = nn.LayerNorm(dim)

    def read(
        self, x_BMD: Tensor, empty_BM: Tensor | None = None, places_BM: Tensor | None = None
    ) -> Aggregated:
        """Tokens (B, T, D), the same for each query, and attention (B, H, T, M).

        The attention is the class token's row of the second layer, where a patch that stands twice on the square
        has the sum of both. It can be negative and need not sum to 1.
        """
        tokens, attentions = [], []
        for bag in range(len(x_BMD)):
            real_m = torch.arange(x_BMD.shape[1], device=x_BMD.device)
            if empty_BM is not None:
                real_m = real_m[~empty_BM[bag]]
            if places_BM is not None:
                real_m = real_m[_reading_order(places_BM[bag].to(x_BMD.device)[real_m])]
            token_D, attention_Hm = self._read_one(x_BMD[bag, real_m])
            tokens.append(token_D)
            attention_HM = x_BMD.new_zeros(len(attention_Hm), x_BMD.shape[1])
            attentions.append(attention_HM.index_copy(1, real_m, attention_Hm.to(attention_HM)))
        rows = (-1, -1, self.queries, -1)
        return Aggregated(
            torch.stack(tokens)[:, None].expand(-1, self.queries, -1),
            torch.stack(attentions)[:, :, None].expand(rows),
        )

    def _read_one(self, x_mD: Tensor) -> tuple[Tensor, Tensor]:
        """The class token (D,) and its attention (H, m) of one bag."""
        count, side = len(x_mD), math.isqrt(len(x_mD) - 1) + 1
        repeated = side * side - count
        x_ND = torch.cat([self.class_token, x_mD, x_mD[:repeated]])
        read_ND, _ = self.layers[0](self.norms[0](x_ND))
        x_ND = self.position(x_ND + read_ND, side)
        read_1D, first_HN = self.layers[1](self.norms[1](x_ND), first_only=True)
        token_D: Tensor = self.norm(x_ND[0] + read_1D[0])
        attention_Hm = first_HN[:, 1 : 1 + count].clone()
        attention_Hm[:, :repeated] += first_HN[:, 1 + count :]
        return token_D, attention_Hm


class SquarePositions(nn.Module):
    """Adds depth-wise convolutions of 7, 5 and 3 to the patches' tokens, laid row by row on a square."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(dim, dim, size, padding=size // 2, groups=dim) for size in (7, 5, 3)
        )

    def forward(self, x_ND: Tensor, side: int) -> Tensor:
        """Add positions to the tokens (1 + side * side, D); the first one, the class token, stays as it is."""
        square_1DSS = x_ND[1:].T.unflatten(1, (side, side))[None]
        kernel_D177, bias_D = self._together()
        placed_1DSS = conv2d(square_1DSS, kernel_D177, bias_D, padding=3, groups=len(bias_D))
        return torch.cat([x_ND[:1], placed_1DSS[0].flatten(1).T])

    def _together(self) -> tuple[Tensor, Tensor]:
        """One kernel (D, 1, 7, 7) and bias (D,) for the three convolutions and the tokens themselves."""
        kernels, biases = [], []
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv2d)
            assert convolution.bias is not None
            kernels.append(pad(convolution.weight, (3 - convolution.kernel_size[0] // 2,) * 4))
            biases.append(convolution.bias)
        itself_177 = torch.zeros_like(kernels[0][0])
        itself_177[:, 3, 3] = 1
        return torch.stack(kernels).sum(dim=0) + itself_177, torch.stack(biases).sum(dim=0)


def _reading_order(places_m: Tensor) -> Tensor:
    """Order of raster indices (m,), or of centres (m, 2) as (x, y): by row, then by column."""
    if places_m.ndim == 1:
        return places_m.argsort(stable=True)
    by_x = places_m[:, 0].argsort(stable=True)
    return by_x[places_m[by_x, 1].argsort(stable=True)]


def _build(options: TransMilOptions, dim: int, tasks: Sequence[TaskConfig]) -> TransMil:
    if dim % options.heads:
        raise ConfigError(
            f"model.aggregator: transmil has {options.heads} heads, which do not divide the embedding's width "
            f"{dim}: set encoder.project to a multiple of them"
        )
    return TransMil(
        dim,
        queries=queries_of(tasks),
        heads=options.heads,
        landmarks=options.landmarks,
        dropout=options.attention_dropout,
    )


KIND = Kind(TransMilOptions, _build, plain_embedding)
