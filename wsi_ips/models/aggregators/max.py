"""The bag is as its most telling patch: the maximum over patches of a linear classifier.

``per_class`` takes each class's own maximum, and classes may take it from different patches. ``one_patch`` is the
baseline of CLAM's code: one patch decides for all classes. For two classes it is the patch that looks most like
class 1, else the patch with the largest probability of any class; a patch that is surely normal then wins in a
tumour slide, so prefer ``per_class`` for finding things.

Shape suffixes: see :mod:`wsi_ips.models.aggregators.base`; S classes of all tasks in a row.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from wsi_ips.config import TaskConfig
from wsi_ips.models.aggregators.base import (
    Aggregated,
    Aggregator,
    EmbeddingOptions,
    Kind,
    class_row_names,
    class_rows,
    plain_embedding,
    predicted_rows,
    refuse_tasks,
    zeroed,
)
from wsi_ips.models.heads import Heads


class MaxOptions(EmbeddingOptions):
    """Settings of ``max``."""

    rule: Literal["per_class", "one_patch"] = "per_class"
    """Whether each class takes its own best patch, or one patch decides for all (softmax tasks only)."""


class Max(Aggregator):
    """dim: D. rule: see :class:`MaxOptions`. Gradients reach the deciding patches only."""

    has_softmax = False

    def __init__(
        self, dim: int, tasks: Sequence[TaskConfig], *, rule: Literal["per_class", "one_patch"] = "per_class"
    ) -> None:
        super().__init__()
        self._tasks = tuple(tasks)
        self.rule = rule
        self.layers = nn.ModuleList(nn.Linear(dim, len(task.classes)) for task in tasks)

    def instance_logits(self, x_nD: Tensor) -> list[Tensor]:
        """The classifier on each patch, (..., C) for each task."""
        return [layer(x_nD) for layer in self.layers]

    def logits(self, x_nD: Tensor) -> Tensor:
        """Scores (n, 1, 1) of patches one by one.

        With the rule ``per_class`` it is the largest logit of any class, with ``one_patch`` what decides which
        patch is read.
        """
        scores = []
        for logits_nC in self.instance_logits(x_nD):
            if self.rule == "one_patch":
                scores.append(_deciding(logits_nC).amax(dim=-1))
            else:
                scores.append(logits_nC.amax(dim=-1))
        return torch.stack(scores).amax(dim=0)[:, None, None]

    def read(
        self, x_BMD: Tensor, empty_BM: Tensor | None = None, places_BM: Tensor | None = None
    ) -> Aggregated:
        """Logits by task; tokens (B, S, D) are the deciding patches' embeddings, attention is 1 at these."""
        x_BMD = zeroed(x_BMD, empty_BM)
        logits, critical = {}, []
        for task, logits_BMC in zip(self._tasks, self.instance_logits(x_BMD), strict=True):
            index_BC = self._critical(logits_BMC, empty_BM)
            logits[task.name] = logits_BMC.gather(1, index_BC[:, None])[:, 0]
            critical.append(index_BC)
        index_BS = torch.cat(critical, dim=1)
        tokens_BSD = x_BMD.gather(1, index_BS[..., None].expand(-1, -1, x_BMD.shape[2]))
        places_M = torch.arange(x_BMD.shape[1], device=x_BMD.device)
        one_hot_BSM = (index_BS[..., None] == places_M).to(x_BMD)
        return Aggregated(tokens_BSD, one_hot_BSM[:, None], logits)

    def contributions(self, x_MD: Tensor, attention_HTM: Tensor, heads: Heads) -> dict[str, Tensor] | None:
        """All of a class's logit but the bias comes from its deciding patch."""
        told = {}
        for task, layer, rows in zip(self._tasks, self.layers, class_rows(self._tasks), strict=True):
            assert isinstance(layer, nn.Linear)
            told[task.name] = (x_MD @ layer.weight.T) * attention_HTM[0, rows].T
        return told

    def task_rows(self, probabilities: Mapping[str, Tensor]) -> Mapping[str, int] | None:
        """The row of the predicted class."""
        return predicted_rows(self._tasks, probabilities)

    def row_names(self) -> tuple[str, ...]:
        """Tasks and classes."""
        return class_row_names(self._tasks)

    def _critical(self, logits_BMC: Tensor, empty_BM: Tensor | None) -> Tensor:
        """(B, C) int64: which patch decides."""
        ranked_BMC = _deciding(logits_BMC) if self.rule == "one_patch" else logits_BMC
        if empty_BM is not None:
            ranked_BMC = ranked_BMC.masked_fill(empty_BM[..., None], -torch.inf)
        if self.rule == "per_class":
            return ranked_BMC.argmax(dim=1)
        return ranked_BMC.amax(dim=2).argmax(dim=1, keepdim=True).expand(-1, logits_BMC.shape[2])


def _deciding(logits_nC: Tensor) -> Tensor:
    """What the one deciding patch is the maximum of: the probability of class 1 of two, else of any class."""
    log_probability_nC = logits_nC.log_softmax(dim=-1)
    return log_probability_nC[..., 1:] if logits_nC.shape[-1] == 2 else log_probability_nC


def _build(options: MaxOptions, dim: int, tasks: Sequence[TaskConfig]) -> Max:
    if options.rule == "one_patch":
        refuse_tasks("max", tasks, allowed=["softmax"], reason="rule: one_patch compares classes")
    return Max(dim, tasks, rule=options.rule)


KIND = Kind(MaxOptions, _build, plain_embedding)
