"""Attention of learned queries over patches, each patch scored by itself (Bergner et al. 2023, section 3.2).

What the paper's block (:mod:`wsi_ips.models.attention`) and the direct one
(:mod:`wsi_ips.models.attention`) have in common; they differ in what they read with it.

Shape suffixes: B bags, M patches of a bag, T queries, D width, H heads, K key width; n any number of patches.

Direct attention: each head's mean of the patches goes straight to the classifier.

The paper's block (:mod:`wsi_ips.models.attention`) puts a value projection, a residual on the raw query, an
MLP and two LayerNorms between the patches and the classifier. They dim the first gradients: from many starts the
attention never finds what decides the label. Here nothing stands in between, as in attention MIL (Ilse, Tomczak,
Welling, ICML 2018), so that a logit is a sum over patches and each patch's contribution to it is exact. Attention
itself is the paper's: learned queries, scaled dot products, several heads, each patch scored by itself.

Shape suffixes: B bags, M patches of a bag, T queries, D width, H heads, C classes.

The cross-attention transformer: learned queries read the kept patches (Bergner et al. 2023, section 3.2).

Shape suffixes: B bags, M patches of a bag, T queries, D width, H heads, V value width.
"""

import math

import torch
from torch import Tensor, nn

from wsi_ips.models.aggregators.base import Aggregated, Aggregator, pooled_contributions, zeroed
from wsi_ips.models.heads import Heads


class QueryAttention(Aggregator):
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
        attention_BHTM, _, x_BMD = self.attention_and_logits(x_BMD, empty_BM)
        return attention_BHTM, x_BMD

    def attention_and_logits(self, x_BMD: Tensor, empty_BM: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`attention`, with the logits (B, H, T, M) that it was made of in between."""
        bags, patches, _ = x_BMD.shape
        x_BMD = zeroed(x_BMD, empty_BM)
        logits_BHTM = self.logits(x_BMD.flatten(0, 1)).unflatten(0, (bags, patches)).permute(0, 2, 3, 1)
        attention_BHTM, logits_BHTM = self.attended(logits_BHTM, empty_BM)
        return attention_BHTM, logits_BHTM, x_BMD

    def _by_head(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, -1)


class DirectAttention(QueryAttention):
    """Learned queries read a bag: per query the heads' mean embeddings, concatenated.

    dim, queries, heads, key_dim: see :class:`QueryAttention`. attention_dropout: share of the attention that is
    dropped in training.
    """

    def __init__(
        self, dim: int, *, queries: int, heads: int, key_dim: int, attention_dropout: float = 0.0
    ) -> None:
        super().__init__(dim, queries=queries, heads=heads, key_dim=key_dim)
        self.token_dim = heads * dim
        """Width of a query's token: what a task's classifier reads."""
        self.attention_dropout = nn.Dropout(attention_dropout)

    def forward(self, x_BMD: Tensor, empty_BM: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return tokens (B, T, H * D), and attention_BHTM as :meth:`QueryAttention.attention` gives it."""
        aggregated = self.read(x_BMD, empty_BM)
        return aggregated.tokens_BTE, aggregated.attention_BHTM

    def read(
        self, x_BMD: Tensor, empty_BM: Tensor | None = None, places_BM: Tensor | None = None
    ) -> Aggregated:
        """See :meth:`wsi_ips.models.aggregators.base.Aggregator.read`."""
        attention_BHTM, logits_BHTM, x_BMD = self.attention_and_logits(x_BMD, empty_BM)
        tokens_BTHD = torch.einsum("bhtm,bmd->bthd", self.attention_dropout(attention_BHTM), x_BMD)
        return Aggregated(tokens_BTHD.flatten(2), attention_BHTM, attention_logits_BHTM=logits_BHTM)

    def contributions(self, x_MD: Tensor, attention_HTM: Tensor, heads: Heads) -> dict[str, Tensor] | None:
        """Exact: a task's classifier reads the heads' means as they are."""
        return pooled_contributions(x_MD, attention_HTM, heads)


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
        aggregated = self.read(x_BMD, empty_BM)
        return aggregated.tokens_BTE, aggregated.attention_BHTM

    def read(
        self, x_BMD: Tensor, empty_BM: Tensor | None = None, places_BM: Tensor | None = None
    ) -> Aggregated:
        """See :meth:`wsi_ips.models.aggregators.base.Aggregator.read`."""
        attention_BHTM, logits_BHTM, x_BMD = self.attention_and_logits(x_BMD, empty_BM)
        tokens_BTD = self._attend(attention_BHTM, x_BMD)
        tokens_BTD = self.mlp_norm(self.dropout(self.mlp(tokens_BTD)) + tokens_BTD)
        return Aggregated(tokens_BTD, attention_BHTM, attention_logits_BHTM=logits_BHTM)

    def attend(self, x_BMD: Tensor, empty_BM: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The first half of the block: tokens_BTD before the MLP, and attention_BHTM."""
        attention_BHTM, x_BMD = self.attention(x_BMD, empty_BM)
        return self._attend(attention_BHTM, x_BMD), attention_BHTM

    def _attend(self, attention_BHTM: Tensor, x_BMD: Tensor) -> Tensor:
        value_BMHV = self._by_head(self.value(x_BMD))
        read_BTHV = torch.einsum("bhtm,bmhv->bthv", self.attention_dropout(attention_BHTM), value_BMHV)
        read_BTD = self.dropout(self.out(read_BTHV.flatten(2)))
        normed_BTD: Tensor = self.attention_norm(read_BTD + self.query_tokens)
        return normed_BTD
