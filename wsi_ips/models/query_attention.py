"""Attention of learned queries over patches, each patch scored by itself (Bergner et al. 2023, section 3.2).

What the paper's block (:mod:`wsi_ips.models.cross_attention`) and the direct one
(:mod:`wsi_ips.models.direct_attention`) have in common; they differ in what they read with it.

Shape suffixes: B bags, M patches of a bag, T queries, D width, H heads, K key width; n any number of patches.
"""

import math

import torch
from torch import Tensor, nn


class QueryAttention(nn.Module):
    """Scaled dot products of learned queries with the patches' keys; neither projection has a bias.

    dim: width D of the embeddings. queries: T. heads, key_dim: H and K.
    """

    def __init__(self, dim: int, *, queries: int, heads: int, key_dim: int) -> None:
        super().__init__()
        self.heads = heads
        bound = math.sqrt(1 / key_dim)
        self.query_tokens = nn.Parameter(torch.empty(1, queries, dim).uniform_(-bound, bound))
        self.query = nn.Linear(dim, heads * key_dim, bias=False)
        self.key = nn.Linear(dim, heads * key_dim, bias=False)

    def logits(self, x_nD: Tensor) -> Tensor:
        """Attention before the softmax, (n, H, T), of patches one by one: what selection ranks by."""
        query_THK = self._by_head(self.query(self.query_tokens[0]))
        key_nHK = self._by_head(self.key(x_nD))
        return torch.einsum("thk,nhk->nht", query_THK, key_nHK) / math.sqrt(key_nHK.shape[-1])

    def attention(self, x_BMD: Tensor, empty_BM: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return attention_BHTM, before dropout, and x_BMD with zeros at empty places.

        empty_BM: bool, True where a bag has no patch. Such places get no attention, whatever stands in them. Each
        row of the attention sums to 1 over the bag's own patches; a bag without any gives NaN.
        """
        bags, patches, _ = x_BMD.shape
        if empty_BM is not None:
            x_BMD = x_BMD.masked_fill(empty_BM[..., None], 0)  # no attention times NaN would still be NaN
        logits_BHTM = self.logits(x_BMD.flatten(0, 1)).unflatten(0, (bags, patches)).permute(0, 2, 3, 1)
        if empty_BM is not None:
            logits_BHTM = logits_BHTM.masked_fill(empty_BM[:, None, None], -torch.inf)
        return logits_BHTM.softmax(dim=-1), x_BMD

    def _by_head(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, -1)
