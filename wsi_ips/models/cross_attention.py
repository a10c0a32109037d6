"""The cross-attention transformer: learned queries read the kept patches (Bergner et al. 2023, section 3.2).

Shape suffixes: B bags, M patches of a bag, T queries, D width, H heads, V value width.
"""

import torch
from torch import Tensor, nn

from wsi_ips.models.query_attention import QueryAttention

LAYER_NORM_EPS = 1e-6


class CrossAttention(QueryAttention):
    """One block: cross-attention, then an MLP, each with a residual and a LayerNorm behind it.

    The four projections have no bias, and the first residual adds the raw learned queries.
    """

    def __init__(
        self,
        dim: int,
        *,
        queries: int,
        heads: int,
        key_dim: int,
        value_dim: int,
        inner_dim: int,
        attention_dropout: float,
        dropout: float,
    ) -> None:
        super().__init__(dim, queries=queries, heads=heads, key_dim=key_dim)
        self.token_dim = dim
        """Width of a query's token: what a task's classifier reads."""
        self.value = nn.Linear(dim, heads * value_dim, bias=False)
        self.out = nn.Linear(heads * value_dim, dim, bias=False)
        self.attention_dropout = nn.Dropout(attention_dropout)
        self.dropout = nn.Dropout(dropout)
        self.attention_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = nn.Sequential(nn.Linear(dim, inner_dim), nn.ReLU(), nn.Linear(inner_dim, dim))
        self.mlp_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

    def forward(self, x_BMD: Tensor, empty_BM: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return tokens_BTD, and attention_BHTM as :meth:`QueryAttention.attention` gives it."""
        tokens_BTD, attention_BHTM = self.attend(x_BMD, empty_BM)
        return self.mlp_norm(self.dropout(self.mlp(tokens_BTD)) + tokens_BTD), attention_BHTM

    def attend(self, x_BMD: Tensor, empty_BM: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The first half of the block: tokens_BTD before the MLP, and attention_BHTM."""
        attention_BHTM, x_BMD = self.attention(x_BMD, empty_BM)
        value_BMHV = self._by_head(self.value(x_BMD))
        read_BTHV = torch.einsum("bhtm,bmhv->bthv", self.attention_dropout(attention_BHTM), value_BMHV)
        read_BTD = self.dropout(self.out(read_BTHV.flatten(2)))
        return self.attention_norm(read_BTD + self.query_tokens), attention_BHTM
