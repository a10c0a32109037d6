"""ABMILX: attention MIL with several heads, whose scores are refined by how patches resemble each other.

Source: Tang et al., NeurIPS 2025. Each head scores patches by itself (the local score, which selection ranks by);
the refinement adds to it the scores of similar patches of the bag. With patch selection the refinement sees the
kept patches only.

Shape suffixes: see :mod:`wsi_ips.models.aggregators.base`; K width of a head.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from wsi_ips.config import TaskConfig
from wsi_ips.config.section import LayerWidth
from wsi_ips.errors import ConfigError
from wsi_ips.models.aggregators.base import Aggregated, Aggregator, Embedding, EmbeddingOptions, Kind, zeroed
from wsi_ips.models.heads import queries_of


class AbmilxOptions(EmbeddingOptions):
    """Settings of ``abmilx``; the defaults are those of the published end-to-end configurations."""

    heads: LayerWidth = 8
    """H; the width of the embedding is a multiple of it."""
    refine: bool = True
    """Add the scores of similar patches to each patch's own."""
    norm: bool = True
    """LayerNorm (without bias) of the features and of the bag's embedding."""
    activation: Literal["gelu", "relu"] = "gelu"
    """Of the embedding; the scoring network always has GELU."""
    bias: bool = False
    """Biases in the embedding and in the projection of the bag."""


class Abmilx(Aggregator):
    """dim: D, a multiple of ``heads``. The scoring network and the refinement are shared by the heads."""

    def __init__(
        self,
        dim: int,
        *,
        queries: int,
        heads: int = 8,
        refine: bool = True,
        norm: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.token_dim = dim
        self.heads = heads
        self.queries = queries
        width = dim // heads
        self.hidden = nn.Linear(width, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)
        self.refine_norm = nn.LayerNorm(width) if refine else None
        self.query_key = nn.Linear(width, 2 * width, bias=False) if refine else None
        self.refine_scale = nn.Linear(1, 1, bias=False) if refine else None
        self.project = nn.Linear(dim, dim, bias=bias)
        self.norm = nn.LayerNorm(dim, bias=False) if norm else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def logits(self, x_nD: Tensor) -> Tensor:
        """(n, H, T): the local scores, before the refinement."""
        x_nHK = x_nD.unflatten(-1, (self.heads, -1))
        scores_nH1: Tensor = self.score(gelu(self.hidden(x_nHK)))
        return scores_nH1.expand(-1, -1, self.queries)

    def read(
        self, x_BMD: Tensor, empty_BM: Tensor | None = None, places_BM: Tensor | None = None
    ) -> Aggregated:
        """Tokens (B, T, D) and the refined attention (B, H, T, M); all queries read the same."""
        x_BMD = zeroed(x_BMD, empty_BM)
        x_BHMK = x_BMD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores_BHM1 = self.score(gelu(self.hidden(x_BHMK)))
        scores_BH1M = self._refined(x_BHMK, scores_BHM1, empty_BM).mT
        attention_BH1M, logits_BH1M = self.attended(scores_BH1M, empty_BM)
        bag_BD = (attention_BH1M @ x_BHMK).flatten(1)
        token_BD = self.norm(self.project(bag_BD))
        rows = (-1, -1, self.queries, -1)
        return Aggregated(
            token_BD[:, None].expand(-1, self.queries, -1),
            attention_BH1M.expand(rows),
            attention_logits_BHTM=logits_BH1M.expand(rows),
        )

    def _refined(self, x_BHMK: Tensor, scores_BHM1: Tensor, empty_BM: Tensor | None) -> Tensor:
        """Scores plus beta times their mean over similar patches.

        The fused attention never holds the M x M table; its values are as wide as its keys, as its fast paths
        want it.
        """
        if self.refine_norm is None or self.query_key is None or self.refine_scale is None:
            return scores_BHM1
        query_BHMK, key_BHMK = self.query_key(self.refine_norm(x_BHMK)).chunk(2, dim=-1)
        allowed = None if empty_BM is None else ~empty_BM[:, None, None]
        values_BHMK = scores_BHM1.expand_as(query_BHMK)
        similar_BHMK = scaled_dot_product_attention(query_BHMK, key_BHMK, values_BHMK, attn_mask=allowed)
        refined: Tensor = scores_BHM1 + self.refine_scale(similar_BHMK[..., :1])
        return refined


def _build(options: AbmilxOptions, dim: int, tasks: Sequence[TaskConfig]) -> Abmilx:
    if dim % options.heads:
        raise ConfigError(
            f"model.aggregator: abmilx has {options.heads} heads, which do not divide the embedding's width "
            f"{dim}: set encoder.project to a multiple of them"
        )
    return Abmilx(
        dim,
        queries=queries_of(tasks),
        heads=options.heads,
        refine=options.refine,
        norm=options.norm,
        bias=options.bias,
    )


def _embedding(options: AbmilxOptions, n_in: int, dim: int) -> nn.Module:
    embedding = Embedding(
        n_in,
        dim,
        activation=options.activation,
        bias=options.bias,
        norm=options.norm,
        dropout=options.dropout,
    )
    nn.init.xavier_normal_(embedding.linear.weight)
    if embedding.linear.bias is not None:
        nn.init.zeros_(embedding.linear.bias)
    return embedding


KIND = Kind(AbmilxOptions, _build, _embedding)
