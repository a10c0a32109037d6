"""The cross-attention transformer: learned queries read the kept patches (Bergner et al. 2023, section 3.2).

Shape suffixes: B bags, M patches of a bag, T queries, D width, H heads, K key width, V value width; n any
number of patches.
"""

import math

import torch
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6


class CrossAttention(nn.Module):
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
        super().__init__()
        self.heads = heads
        self.token_dim = dim
        """Width of a query's token: what a task's classifier reads."""
        self.query_tokens = nn.Parameter(torch.empty(1, queries, dim))
        bound = math.sqrt(1 / key_dim)
        nn.init.uniform_(self.query_tokens, -bound, bound)
        self.query = nn.Linear(dim, heads * key_dim, bias=False)
        self.key = nn.Linear(dim, heads * key_dim, bias=False)
        self.value = nn.Linear(dim, heads * value_dim, bias=False)
        self.out = nn.Linear(heads * value_dim, dim, bias=False)
        self.attention_dropout = nn.Dropout(attention_dropout)
        self.dropout = nn.Dropout(dropout)
        self.attention_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = nn.Sequential(nn.Linear(dim, inner_dim), nn.ReLU(), nn.Linear(inner_dim, dim))
        self.mlp_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

    def logits(self, x_nD: Tensor) -> Tensor:
        """Pre-softmax attention (n, H, T) of patches, each by itself: what selection ranks by."""
        query_THK = self._by_head(self.query(self.query_tokens[0]))
        key_nHK = self._by_head(self.key(x_nD))
        return torch.einsum("thk,nhk->nht", query_THK, key_nHK) / math.sqrt(key_nHK.shape[-1])

    def forward(self, x_BMD: Tensor, empty_BM: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return tokens_BTD and attention_BHTM (before dropout).

        empty_BM: bool, True where a bag has no patch; such places get no attention, whatever stands in them.
        Each row of the attention sums to 1 over the bag's own patches; a bag without any gives NaN.
        """
        tokens_BTD, attention_BHTM = self.attend(x_BMD, empty_BM)
        return self.mlp_norm(self.dropout(self.mlp(tokens_BTD)) + tokens_BTD), attention_BHTM

    def attend(self, x_BMD: Tensor, empty_BM: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The first half of the block: tokens_BTD before the MLP, and attention_BHTM."""
        bags, patches, _ = x_BMD.shape
        if empty_BM is not None:
            x_BMD = x_BMD.masked_fill(empty_BM[..., None], 0)  # no attention times NaN would still be NaN
        logits_BHTM = self.logits(x_BMD.flatten(0, 1)).unflatten(0, (bags, patches)).permute(0, 2, 3, 1)
        if empty_BM is not None:
            logits_BHTM = logits_BHTM.masked_fill(empty_BM[:, None, None], -torch.inf)
        attention_BHTM = logits_BHTM.softmax(dim=-1)
        value_BMHV = self._by_head(self.value(x_BMD))
        read_BTHV = torch.einsum("bhtm,bmhv->bthv", self.attention_dropout(attention_BHTM), value_BMHV)
        read_BTD = self.dropout(self.out(read_BTHV.flatten(2)))
        return self.attention_norm(read_BTD + self.query_tokens), attention_BHTM

    def _by_head(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, -1)
