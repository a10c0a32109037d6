"""The mean of a bag's patches, read by a linear head: the baseline without attention.

Shape suffixes: see :mod:`wsi_ips.models.aggregators.base`.
"""

from collections.abc import Sequence

from torch import Tensor

from wsi_ips.config import TaskConfig
from wsi_ips.models.aggregators.base import (
    Aggregated,
    Aggregator,
    EmbeddingOptions,
    Kind,
    patch_counts,
    plain_embedding,
    pooled_contributions,
    zeroed,
)
from wsi_ips.models.heads import Heads, queries_of


class Mean(Aggregator):
    """Every patch counts the same. It has no score for a patch: keeping some of the patches would change what is
    learned."""

    scores_patches = False
    has_softmax = False

    def __init__(self, dim: int, *, queries: int) -> None:
        super().__init__()
        self.token_dim = dim
        self.queries = queries

    def read(
        self, x_BMD: Tensor, empty_BM: Tensor | None = None, places_BM: Tensor | None = None
    ) -> Aggregated:
        """Tokens (B, T, D), the same for each query; attention 1 / N."""
        counts_B = patch_counts(x_BMD, empty_BM).to(x_BMD)
        share_BM = (1 / counts_B)[:, None].expand(-1, x_BMD.shape[1])
        if empty_BM is not None:
            share_BM = share_BM.masked_fill(empty_BM, 0)
        mean_BD = zeroed(x_BMD, empty_BM).sum(dim=1) / counts_B[:, None]
        return Aggregated(
            mean_BD[:, None].expand(-1, self.queries, -1),
            share_BM[:, None, None].expand(-1, 1, self.queries, -1),
        )

    def contributions(self, x_MD: Tensor, attention_HTM: Tensor, heads: Heads) -> dict[str, Tensor] | None:
        """What each patch adds to the logits, {task: (M, C)}; exact, since the head is linear in the mean."""
        return pooled_contributions(x_MD, attention_HTM, heads)


def _build(options: EmbeddingOptions, dim: int, tasks: Sequence[TaskConfig]) -> Mean:
    return Mean(dim, queries=queries_of(tasks))


KIND = Kind(EmbeddingOptions, _build, plain_embedding)
