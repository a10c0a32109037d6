"""The layer in front of an aggregator, from features to embeddings.

Shape suffixes: n patches, C width of features, D of embeddings.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import gelu, relu

from wsi_ips.config.section import Fraction, Section


class EmbeddingOptions(Section):
    """Settings that all aggregators share."""

    dropout: Fraction = 0.25
    """Share of the embedding that is dropped in training."""


class Embedding(nn.Module):
    """LayerNorm (without bias, if asked for), Linear, activation, dropout; each patch by itself.

    n_in, dim: C and D. activation: ``gelu`` is the exact one.
    """

    def __init__(
        self,
        n_in: int,
        dim: int,
        *,
        activation: Literal["relu", "gelu"] = "relu",
        bias: bool = True,
        norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.norm = nn.LayerNorm(n_in, bias=False) if norm else nn.Identity()
        self.linear = nn.Linear(n_in, dim, bias=bias)
        self.activation = relu if activation == "relu" else gelu
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_nC: Tensor) -> Tensor:
        """The embeddings (n, D) of features (n, C), both float."""
        embedded: Tensor = self.dropout(self.activation(self.linear(self.norm(x_nC))))
        return embedded


def plain_embedding(options: EmbeddingOptions, n_in: int, dim: int) -> nn.Module:
    """Linear, ReLU, dropout: what most aggregators have in front of them."""
    return Embedding(n_in, dim, dropout=options.dropout)
