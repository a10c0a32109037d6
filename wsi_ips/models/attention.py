"""Attention of learned queries over patches, in which each patch is scored by itself.

:class:`CrossAttention` is the block of the paper (Bergner et al. 2023, section 3.2): cross-attention of learned
queries, then an MLP. A value projection, a residual on the raw query, an MLP and two LayerNorms stand between
the patches and the classifier. They dim the first gradients, and from many starts the attention never finds what
decides the label.

:class:`DirectAttention` has the same attention, but the mean of the patches under each head goes straight to the
classifier, as in attention MIL (Ilse, Tomczak, Welling, ICML 2018). A logit is then a sum over patches, and the
contribution of each patch to it is exact. An encoder that begins with random weights learns to select with a
LayerNorm on these means, and not without one (benchmarks/megapixel_mnist.py).

:class:`QueryAttention` is what both have in common.

Shape suffixes: B bags, M patches of a bag, n any number of patches, T queries, D width, H heads, K key width, V
value width, E width of tokens.
"""

import math

import torch
from torch import Tensor, nn

from wsi_ips.models.aggregators.base import Aggregated, Aggregator, pooled_contributions, zeroed
from wsi_ips.models.heads import Heads

LAYER_NORM_EPS = 1e-6
"""Epsilon of the LayerNorms, as in the reference code."""


class QueryAttention(Aggregator):
    """Scaled dot products of learned queries with the keys of patches. Neither projection has a bias.

    Args:
        dim: Width D of the embeddings.
        queries: Number T of queries.
        heads: Number H of heads.
        key_dim: Width K of a key.
    """

    def __init__(self, dim: int, *, queries: int, heads: int, key_dim: int) -> None:
        super().__init__()
        self.heads = heads
        bound = math.sqrt(1 / key_dim)
        self.query_tokens = nn.Parameter(torch.empty(1, queries, dim).uniform_(-bound, bound))
        self.query = nn.Linear(dim, heads * key_dim, bias=False)
        self.key = nn.Linear(dim, heads * key_dim, bias=False)

    def logits(self, x_nD: Tensor) -> Tensor:
        """The attention logits (n, H, T) of patches, each by itself. Selection ranks patches by them."""
        query_THK = self._by_head(self.query(self.query_tokens[0]))
        key_nHK = self._by_head(self.key(x_nD))
        return torch.einsum("thk,nhk->nht", query_THK, key_nHK) / math.sqrt(key_nHK.shape[-1])

    def attention(self, x_BMD: Tensor, empty_BM: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attention over bags, and the embeddings with zeros at empty places.

        Args:
            x_BMD: Embeddings of the bags.
            empty_BM: bool, True where a bag has no patch. Such places get no attention, whatever stands there.
                None: there are none.

        Returns:
            attention_BHTM before dropout, and x_BMD. Each row of the attention sums to 1 over the patches of the
                bag; a bag without patches gives NaN.
        """
        attention_BHTM, _, x_BMD = self.attention_and_logits(x_BMD, empty_BM)
        return attention_BHTM, x_BMD

    def attention_and_logits(self, x_BMD: Tensor, empty_BM: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Attention, the logits (B, H, T, M) behind it, and the embeddings with zeros at empty places.

        Arguments are those of :meth:`attention`.
        """
        bags, patches, _ = x_BMD.shape
        x_BMD = zeroed(x_BMD, empty_BM)
        logits_BHTM = self.logits(x_BMD.flatten(0, 1)).unflatten(0, (bags, patches)).permute(0, 2, 3, 1)
        attention_BHTM, logits_BHTM = self.attended(logits_BHTM, empty_BM)
        return attention_BHTM, logits_BHTM, x_BMD

    def forward(self, x_BMD: Tensor, empty_BM: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the tokens (B, T, E) and the attention (B, H, T, M), as :meth:`read` computes them.

        E is :attr:`token_dim`.
        """
        aggregated = self.read(x_BMD, empty_BM)
        return aggregated.tokens_BTE, aggregated.attention_BHTM

    def _by_head(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, -1)


class DirectAttention(QueryAttention):
    """Learned queries read a bag: for each query the mean embeddings of all heads, concatenated.

    Args:
        dim: Width D of the embeddings.
        queries: Number T of queries.
        heads: Number H of heads.
        key_dim: Width K of a key.
        attention_dropout: Share of the attention that is dropped in training.
        layer_norm: Whether each head's mean embedding is normalised over its D numbers, without weights.
    """

    def __init__(
        self,
        dim: int,
        *,
        queries: int,
        heads: int,
        key_dim: int,
        attention_dropout: float = 0.0,
        layer_norm: bool = False,
    ) -> None:
        super().__init__(dim, queries=queries, heads=heads, key_dim=key_dim)
        self.token_dim = heads * dim
        """Width of a query's token: what a task's classifier reads."""
        self.attention_dropout = nn.Dropout(attention_dropout)
        self.layer_norm = layer_norm

    def read(
        self, x_BMD: Tensor, empty_BM: Tensor | None = None, places_BM: Tensor | None = None
    ) -> Aggregated:
        """Read bags. See :meth:`wsi_ips.models.aggregators.base.Aggregator.read`."""
        attention_BHTM, logits_BHTM, x_BMD = self.attention_and_logits(x_BMD, empty_BM)
        tokens_BTHD = torch.einsum("bhtm,bmd->bthd", self.attention_dropout(attention_BHTM), x_BMD)
        if self.layer_norm:
            tokens_BTHD = nn.functional.layer_norm(tokens_BTHD, tokens_BTHD.shape[-1:], eps=LAYER_NORM_EPS)
        return Aggregated(tokens_BTHD.flatten(2), attention_BHTM, attention_logits_BHTM=logits_BHTM)

    def contributions(self, x_MD: Tensor, attention_HTM: Tensor, heads: Heads) -> dict[str, Tensor] | None:
        """What each patch adds to the logits, {task: (M, C)}; exact, since the classifier reads the means as they
        are, or as LayerNorm scales them: by one number for the whole bag, under each head of each query.
        """
        if self.layer_norm:
            x_MD = x_MD - x_MD.mean(dim=-1, keepdim=True)
            mean_HTD = torch.einsum("htm,md->htd", attention_HTM, x_MD)
            variance_HT1 = mean_HTD.square().mean(dim=-1, keepdim=True)
            attention_HTM = attention_HTM / (variance_HT1 + LAYER_NORM_EPS).sqrt()
        return pooled_contributions(x_MD, attention_HTM, heads)


class CrossAttention(QueryAttention):
    """The block of the paper: cross-attention, then an MLP, each with a residual and a LayerNorm behind it.

    The four projections have no bias, and the first residual adds the raw learned queries.

    Args:
        dim: Width D of the embeddings.
        queries: Number T of queries.
        heads: Number H of heads.
        key_dim: Width K of a key.
        value_dim: Width V of a value.
        inner_dim: Width of the hidden layer of the MLP.
        attention_dropout: Share of the attention that is dropped in training.
        dropout: Dropout behind the projection of the values and behind the MLP.
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

    def read(
        self, x_BMD: Tensor, empty_BM: Tensor | None = None, places_BM: Tensor | None = None
    ) -> Aggregated:
        """Read bags. See :meth:`wsi_ips.models.aggregators.base.Aggregator.read`."""
        attention_BHTM, logits_BHTM, x_BMD = self.attention_and_logits(x_BMD, empty_BM)
        tokens_BTD = self._attend(attention_BHTM, x_BMD)
        tokens_BTD = self.mlp_norm(self.dropout(self.mlp(tokens_BTD)) + tokens_BTD)
        return Aggregated(tokens_BTD, attention_BHTM, attention_logits_BHTM=logits_BHTM)

    def attend(self, x_BMD: Tensor, empty_BM: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The first half of the block: the tokens (B, T, D) before the MLP, and the attention (B, H, T, M)."""
        attention_BHTM, x_BMD = self.attention(x_BMD, empty_BM)
        return self._attend(attention_BHTM, x_BMD), attention_BHTM

    def _attend(self, attention_BHTM: Tensor, x_BMD: Tensor) -> Tensor:
        value_BMHV = self._by_head(self.value(x_BMD))
        read_BTHV = torch.einsum("bhtm,bmhv->bthv", self.attention_dropout(attention_BHTM), value_BMHV)
        read_BTD = self.dropout(self.out(read_BTHV.flatten(2)))
        normed_BTD: Tensor = self.attention_norm(read_BTD + self.query_tokens)
        return normed_BTD
