"""Attention-based MIL, plain and gated (Ilse, Tomczak, Welling, ICML 2018).

A small network scores each patch by itself; the softmax of the scores weighs the patches' mean, and a linear head
reads it. The score is what patch selection ranks by: the M patches with the highest score are the same however the
slide is cut into chunks.

Shape suffixes: see :mod:`wsi_ips.models.aggregators.base`; L hidden width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsi_ips.config import TaskConfig
from wsi_ips.config.section import Fraction, LayerWidth
from wsi_ips.models.aggregators.base import (
    Aggregated,
    Aggregator,
    EmbeddingOptions,
    Kind,
    plain_embedding,
    pooled_contributions,
    zeroed,
)
from wsi_ips.models.heads import Heads, queries_of


class AbmilOptions(EmbeddingOptions):
    """Settings of ``abmil``."""

    gated: bool = True
    """Multiply the tanh layer by a sigmoid gate (equation 9 of the paper)."""
    hidden: LayerWidth = 256
    """L, width of the scoring network."""
    score_dropout: Fraction = 0.0
    """Share of the scoring network's hidden layer that is dropped in training."""


class PatchScores(nn.Module):
    """w (tanh(V h) * sigmoid(U h)) + b: T scores for each patch; without the gate w tanh(V h) + b.

    dim: D. hidden: L. rows: T, which share V and U. The bias b cancels in the softmax.
    """

    def __init__(self, dim: int, *, hidden: int, rows: int, gated: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.tanh = nn.Linear(dim, hidden)
        self.gate = nn.Linear(dim, hidden) if gated else None
        self.score = nn.Linear(hidden, rows)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_nD: Tensor) -> Tensor:
        """The scores (..., T) of patches with the embeddings (..., D)."""
        hidden_nL: Tensor = self.dropout(self.tanh(x_nD).tanh())
        if self.gate is not None:
            hidden_nL = hidden_nL * self.dropout(self.gate(x_nD).sigmoid())
        scores_nT: Tensor = self.score(hidden_nL)
        return scores_nT


class Abmil(Aggregator):
    """Each query has an attention row of its own, and its token is the mean that this row weighs.

    dim: D. queries: T. hidden, gated, score_dropout: see :class:`AbmilOptions`.
    """

    def __init__(
        self, dim: int, *, queries: int, hidden: int = 256, gated: bool = True, score_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.token_dim = dim
        self.scores = PatchScores(dim, hidden=hidden, rows=queries, gated=gated, dropout=score_dropout)

    def logits(self, x_nD: Tensor) -> Tensor:
        """Scores (n, 1, T) of patches one by one, before the softmax."""
        scores_nT: Tensor = self.scores(x_nD)
        return scores_nT[:, None]

    def read(
        self, x_BMD: Tensor, empty_BM: Tensor | None = None, places_BM: Tensor | None = None
    ) -> Aggregated:
        """Read bags: tokens (B, T, D), each the mean of the embeddings weighted by attention (B, 1, T, M)."""
        x_BMD = zeroed(x_BMD, empty_BM)
        return self.read_scored(x_BMD, self.scores(x_BMD).mT, empty_BM)

    def read_scored(self, x_BMD: Tensor, scores_BTM: Tensor, empty_BM: Tensor | None) -> Aggregated:
        """Read bags whose patches have been scored; the embeddings must be 0 at empty places."""
        attention_B1TM, logits_B1TM = self.attended(scores_BTM[:, None], empty_BM)
        tokens_BTD = torch.einsum("btm,bmd->btd", attention_B1TM[:, 0], x_BMD)
        return Aggregated(tokens_BTD, attention_B1TM, attention_logits_BHTM=logits_B1TM)

    def contributions(self, x_MD: Tensor, attention_HTM: Tensor, heads: Heads) -> dict[str, Tensor] | None:
        """What each patch adds to the logits, {task: (M, C)}; exact, since the head is linear in their mean."""
        return pooled_contributions(x_MD, attention_HTM, heads)


def _build(options: AbmilOptions, dim: int, tasks: Sequence[TaskConfig]) -> Abmil:
    return Abmil(
        dim,
        queries=queries_of(tasks),
        hidden=options.hidden,
        gated=options.gated,
        score_dropout=options.score_dropout,
    )


KIND = Kind(AbmilOptions, _build, plain_embedding)
