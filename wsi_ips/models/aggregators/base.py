"""What an aggregator is: it reads the patches of a bag and says what the bag is.

An aggregator receives embeddings (one vector per patch) and returns either one token per query, which linear heads
turn into the tasks' logits, or the logits themselves. It may also be able to score a patch without seeing the rest
of the bag; patch selection (IPS) needs that, because it scores each patch once.

To add an aggregator, write one file with a subclass of :class:`Aggregator` and a :class:`Kind`, and add one line
to :mod:`wsi_ips.models.aggregators.registry`; see ``docs/aggregators.md``.

The layer in front of an aggregator, from features to embeddings.

Shape suffixes: B bags, M patches of the largest bag, n any patches, D width of embeddings, H heads, T attention
rows (queries, branches or classes), C classes of a task, E width of a token, n patches, C width of features, D
of embeddings.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu

from wsi_ips.config import Section, TaskConfig
from wsi_ips.config.section import Fraction
from wsi_ips.errors import ConfigError
from wsi_ips.models.heads import Heads

Auxiliary = Callable[[Mapping[str, Sequence[int | None]]], dict[str, Tensor]]
"""From the class index of each bag (None where a bag has no label), by task, to losses by name. Each is a scalar
and already weighted. Only softmax tasks are given."""


@dataclass(frozen=True, slots=True)
class Aggregated:
    """What an aggregator makes of a batch of bags.

    tokens_BTE: what the bags were summarised to. logits: {task: (B, C)} where the aggregator classifies by itself;
    None where heads read the tokens. attention_BHTM: what each patch counts for, 0 at empty places; it sums to 1
    over a bag's own patches where :attr:`Aggregator.has_softmax` says so. attention_logits_BHTM: the same before
    the softmax, minus infinity at empty places; None without a softmax.

    further_logits: {name: (weight, {task: (B, C)})}, further predictions that are learned from like the logits.
    auxiliary: losses that need the labels; called in training only.
    """

    tokens_BTE: Tensor
    attention_BHTM: Tensor
    logits: dict[str, Tensor] | None = None
    attention_logits_BHTM: Tensor | None = None
    further_logits: Mapping[str, tuple[float, dict[str, Tensor]]] = field(default_factory=dict)
    auxiliary: Auxiliary | None = None


class Aggregator(nn.Module, ABC):
    """Base class of all aggregators.

    Subclasses implement :meth:`read`, and :meth:`logits` if they can score a patch by itself.
    """

    scores_patches: ClassVar[bool] = True
    """Whether :meth:`logits` exists: whether a patch can be scored without the other patches of its bag."""
    has_softmax: ClassVar[bool] = True
    """Whether attention is a softmax over the patches of a bag, which penalties against collapse work on."""
    token_dim: int | None = None
    """E, width of the token that a head reads; None for an aggregator that returns logits itself."""
    bag_weight: float = 1.0
    """Factor on the loss of the bag's logits in training."""
    ordered: ClassVar[bool] = False
    """Whether the result depends on the order of patches, so that :meth:`read` is told their places."""
    masking: Callable[[Tensor], Tensor] | None = None
    """Changes attention logits (B, H, T, M) before the softmax, in training mode only. Set by training."""

    def logits(self, x_nD: Tensor) -> Tensor:
        """Scores (n, H, T) of patches one by one; selection applies a softmax to them and ranks by it.

        Raises :class:`ConfigError` for an aggregator without ``scores_patches``.
        """
        raise ConfigError(f"{type(self).__name__} scores no patch by itself")

    @abstractmethod
    def read(
        self, x_BMD: Tensor, empty_BM: Tensor | None = None, places_BM: Tensor | None = None
    ) -> Aggregated:
        """Read bags.

        Parameters
        ----------
        x_BMD: embeddings. empty_BM: bool, True where a bag has no patch; nothing that stands there changes the
        result, or gets a gradient. places_BM: (B, M) int64 raster indices or (B, M, 2) float64 µm, only for
        aggregators whose result depends on the order of patches; None: the given order is used.
        """

    def contributions(self, x_MD: Tensor, attention_HTM: Tensor, heads: Heads) -> dict[str, Tensor] | None:
        """{task: (M, C)}, what each patch of one bag adds to the logits; with the classifier's bias they sum to
        the logits exactly. None for aggregators whose logits are no such sum."""
        return None

    def task_rows(self, probabilities: Mapping[str, Tensor]) -> Mapping[str, int] | None:
        """{task: the attention row to draw for it} for one bag with these probabilities (1, C); None where tasks
        read rows as their configuration says."""
        return None

    def row_names(self) -> tuple[str, ...]:
        """Names of the T attention rows; empty where tasks read rows as their configuration says."""
        return ()

    def attended(self, logits_BHTM: Tensor, empty_BM: Tensor | None) -> tuple[Tensor, Tensor]:
        """Softmax over each bag's own patches.

        Returns the attention and the logits that it was made of: minus infinity at empty places and, in training,
        changed by ``masking``.
        """
        if empty_BM is not None:
            logits_BHTM = logits_BHTM.masked_fill(empty_BM[:, None, None], -torch.inf)
        if self.training and self.masking is not None:
            logits_BHTM = self.masking(logits_BHTM)
        return logits_BHTM.softmax(dim=-1), logits_BHTM


@dataclass(frozen=True, slots=True)
class Kind:
    """How an aggregator is made from a configuration.

    options: the pydantic section with its settings. build: (options, embedding width D, tasks) to the module;
    raises :class:`ConfigError` for tasks that it cannot learn. embedding: (options, feature width, D) to the layer
    in front of it. width: D where ``encoder.project`` is not given; 0: the features themselves.
    """

    options: type[Section]
    build: Callable[[Any, int, Sequence[TaskConfig]], Aggregator]
    embedding: Callable[[Any, int, int], nn.Module]
    width: int = 512


def zeroed(x_BMD: Tensor, empty_BM: Tensor | None) -> Tensor:
    """Embeddings with zeros at empty places: no attention times NaN would still be NaN."""
    return x_BMD if empty_BM is None else x_BMD.masked_fill(empty_BM[..., None], 0)


def patch_counts(x_BMD: Tensor, empty_BM: Tensor | None) -> Tensor:
    """(B,) int64: how many patches each bag has."""
    if empty_BM is None:
        return torch.full((x_BMD.shape[0],), x_BMD.shape[1], device=x_BMD.device)
    return (~empty_BM).sum(dim=1)


def pooled_contributions(x_MD: Tensor, attention_HTM: Tensor, heads: Heads) -> dict[str, Tensor]:
    """Contributions where each task's linear head reads the attention-weighted means of the H heads, side by side.

    See :meth:`Aggregator.contributions`.
    """
    n_heads = attention_HTM.shape[0]
    told = {}
    for task, weight_CE in heads.weights().items():
        weight_CHD = weight_CE.unflatten(1, (n_heads, -1))
        votes_MHC = torch.einsum("md,chd->mhc", x_MD, weight_CHD)
        told[task] = torch.einsum("hm,mhc->mc", attention_HTM[:, heads.tokens[task]], votes_MHC)
    return told


def class_rows(tasks: Sequence[TaskConfig]) -> list[slice]:
    """Which rows are a task's, for aggregators with one attention row for every class of every task."""
    rows, start = [], 0
    for task in tasks:
        rows.append(slice(start, start + len(task.classes)))
        start += len(task.classes)
    return rows


def class_row_names(tasks: Sequence[TaskConfig]) -> tuple[str, ...]:
    """Names of the rows under :func:`class_rows`."""
    return tuple(f"{task.name}: {name}" for task in tasks for name in task.classes)


def predicted_rows(tasks: Sequence[TaskConfig], probabilities: Mapping[str, Tensor]) -> dict[str, int]:
    """{task: row of its most probable class} under :func:`class_rows`."""
    return {
        task.name: rows.start + int(probabilities[task.name][0].argmax())
        for task, rows in zip(tasks, class_rows(tasks), strict=True)
    }


def refuse_tasks(name: str, tasks: Sequence[TaskConfig], *, allowed: Sequence[str], reason: str) -> None:
    """Raise :class:`ConfigError` for a task with another activation."""
    for task in tasks:
        if task.activation not in allowed:
            what = task.activation if task.kind == "label" else task.kind
            raise ConfigError(
                f"model.aggregator: {name} cannot learn task {task.name} ({what}): {reason}; take "
                "abmil, which learns any task"
            )


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
