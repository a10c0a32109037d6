"""CLAM with one branch and with several, and its loss on instances.

CLAM: attention MIL whose attention is also taught by an instance loss (Lu et al., Nature BME 2021).

``clam_sb`` has one attention row for each task, ``clam_mb`` one for each class. It learns softmax tasks only: the
instance loss needs one class for each bag.

CLAM's instance loss: the patches that attention favours, and those it ignores, are given labels of their own.

Source: Lu et al., Nature Biomedical Engineering 2021.

Shape suffixes: see :mod:`wsi_ips.models.aggregators.base`, S classes of all tasks in a row, n patches of one
bag, D width of embeddings, C classes of a task, k patches at each end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from wsi_ips.config import TaskConfig, task_queries
from wsi_ips.config.section import Fraction
from wsi_ips.models.aggregators.abmil import Abmil, AbmilOptions
from wsi_ips.models.aggregators.base import (
    Aggregated,
    Auxiliary,
    Kind,
    class_row_names,
    class_rows,
    plain_embedding,
    predicted_rows,
    refuse_tasks,
    zeroed,
)
from wsi_ips.models.heads import Heads, queries_of

LARGE_MARGIN = 6.907755278982137
"""log(1000): the smooth SVM loss of two outputs that differ by more is their maximum."""


class InstanceLoss(nn.Module):
    """One classifier of two outputs for each class: does this patch speak for the class?

    dim: D. classes: C. k: patches taken from the top and from the bottom of the attention. subtyping: also teach
    the other classes that their favourite patches are not theirs, for labels that exclude each other. kind:
    ``svm`` is the smooth top-1 SVM with alpha and tau of 1.
    """

    def __init__(
        self, dim: int, classes: int, *, k: int, subtyping: bool, kind: Literal["svm", "cross_entropy"]
    ) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(nn.Linear(dim, 2) for _ in range(classes))
        self._k = k
        self._subtyping = subtyping
        self._loss = smooth_svm if kind == "svm" else cross_entropy

    def forward(self, x_nD: Tensor, logits_Cn: Tensor, target: int) -> Tensor:
        """Scalar loss of one bag of class ``target``.

        logits_Cn: attention logits of each class, or (1, n) where all classes share one row. With fewer than 2 k
        patches k is half of them, so that no patch gets both labels; one patch alone has no instance loss (0).
        """
        k = min(self._k, len(x_nD) // 2)
        if k < 1:
            return x_nD.sum() * 0
        losses = []
        for number, classifier in enumerate(self.classifiers):
            if number != target and not self._subtyping:
                continue
            row_n = logits_Cn[number if len(logits_Cn) > 1 else 0]
            index_k, labels_k = self._labelled(row_n, k, inside=number == target)
            losses.append(self._loss(classifier(x_nD[index_k]), labels_k))
        total = torch.stack(losses).sum()
        return total / len(self.classifiers) if self._subtyping else total

    @staticmethod
    def _labelled(row_n: Tensor, k: int, *, inside: bool) -> tuple[Tensor, Tensor]:
        """Which patches are taught, and as what: of the bag's class the top k as 1 and the bottom k as 0, of
        another class the top k as 0."""
        top_k = row_n.topk(k).indices
        if not inside:
            return top_k, torch.zeros_like(top_k)
        bottom_k = (-row_n).topk(k).indices
        return torch.cat([top_k, bottom_k]), torch.cat([torch.ones_like(top_k), torch.zeros_like(bottom_k)])


def smooth_svm(outputs_n2: Tensor, labels_n: Tensor) -> Tensor:
    """Smooth top-1 SVM of two outputs, mean over patches.

    With m_j = g_j - g_label + [j is not the label] it is log(sum_j exp(m_j)), and max_j m_j where the two outputs
    differ by log(1000) or more.
    """
    right_n1 = outputs_n2.gather(1, labels_n[:, None])
    wrong_n2 = torch.ones_like(outputs_n2).scatter(1, labels_n[:, None], 0)
    margins_n2 = outputs_n2 - right_n1 + wrong_n2
    apart_n = (outputs_n2[:, 0] - outputs_n2[:, 1]).abs() >= LARGE_MARGIN
    return torch.where(apart_n, margins_n2.amax(dim=1), margins_n2.logsumexp(dim=1)).mean()


class ClamOptions(AbmilOptions):
    """Settings of ``clam_sb`` and ``clam_mb``; the defaults are those of the published recipe."""

    score_dropout: Fraction = 0.25
    """Share of the scoring network's hidden layer that is dropped in training."""
    patches: PositiveInt = 8
    """Patches that the instance loss takes from the top, and as many from the bottom."""
    bag_weight: Fraction = 0.7
    """Weight of the bag's loss; the instance loss has the rest."""
    instance_loss: Literal["svm", "cross_entropy"] = "svm"
    subtyping: bool = True
    """Whether classes exclude each other's morphology (tumour subtypes). Set it to false where one class is the
    absence of the other; the bottom patches of a normal slide are then taught to be not normal, as published."""


class Clam(Abmil):
    """Single branch: gated attention whose heads read the weighted mean, and the instance loss in training."""

    multi_branch = False

    def __init__(self, dim: int, tasks: Sequence[TaskConfig], options: ClamOptions) -> None:
        rows = class_rows(tasks)[-1].stop if self.multi_branch else queries_of(tasks)
        super().__init__(
            dim,
            queries=rows,
            hidden=options.hidden,
            gated=options.gated,
            score_dropout=options.score_dropout,
        )
        self._tasks = tuple(tasks)
        self.bag_weight = options.bag_weight
        self.instances = nn.ModuleList(
            InstanceLoss(
                dim,
                len(task.classes),
                k=options.patches,
                subtyping=options.subtyping,
                kind=options.instance_loss,
            )
            for task in tasks
        )

    def read(
        self, x_BMD: Tensor, empty_BM: Tensor | None = None, places_BM: Tensor | None = None
    ) -> Aggregated:
        """Read bags by gated attention.

        Returns tokens (B, T, D), the attention (B, 1, T, M), and the instance loss, which needs the bags'
        labels, as the auxiliary loss.
        """
        x_BMD = zeroed(x_BMD, empty_BM)
        scores_BTM = self.scores(x_BMD).mT
        aggregated = self.read_scored(x_BMD, scores_BTM, empty_BM)
        return replace(aggregated, auxiliary=self._auxiliary(x_BMD, empty_BM, scores_BTM))

    def _rows(self) -> list[slice]:
        """The attention rows of each task."""
        tokens = task_queries(self._tasks)
        return [slice(tokens[task.name], tokens[task.name] + 1) for task in self._tasks]

    def _auxiliary(self, x_BMD: Tensor, empty_BM: Tensor | None, scores_BTM: Tensor) -> Auxiliary:
        """The instance loss, by scores that nothing has masked."""

        def of_bag(bag: int, rows: slice, instances: nn.Module, target: int) -> Tensor:
            x_nD, scores_Tn = x_BMD[bag], scores_BTM[bag, rows]
            if empty_BM is not None:
                x_nD, scores_Tn = x_nD[~empty_BM[bag]], scores_Tn[:, ~empty_BM[bag]]
            loss: Tensor = instances(x_nD, scores_Tn, target)
            return loss

        def losses(targets: Mapping[str, Sequence[int | None]]) -> dict[str, Tensor]:
            of_tasks = []
            for task, rows, instances in zip(self._tasks, self._rows(), self.instances, strict=True):
                of_bags = [
                    x_BMD.new_zeros(()) if target is None else of_bag(bag, rows, instances, target)
                    for bag, target in enumerate(targets[task.name])
                ]
                of_tasks.append(torch.stack(of_bags).mean())
            return {"instances": (1 - self.bag_weight) * torch.stack(of_tasks).mean()}

        return losses


class ClamMultiBranch(Clam):
    """One attention row for every class, and one linear classifier with a single output for each."""

    multi_branch = True

    def __init__(self, dim: int, tasks: Sequence[TaskConfig], options: ClamOptions) -> None:
        super().__init__(dim, tasks, options)
        self.token_dim = None
        self.layers = nn.ModuleList(nn.Linear(dim, len(task.classes)) for task in tasks)

    def read(
        self, x_BMD: Tensor, empty_BM: Tensor | None = None, places_BM: Tensor | None = None
    ) -> Aggregated:
        """Logits by task; tokens (B, S, D), one for each class."""
        aggregated = super().read(x_BMD, empty_BM)
        logits = {}
        for task, layer, rows in zip(self._tasks, self.layers, self._rows(), strict=True):
            assert isinstance(layer, nn.Linear)
            logits[task.name] = (aggregated.tokens_BTE[:, rows] * layer.weight).sum(dim=2) + layer.bias
        return replace(aggregated, logits=logits)

    def contributions(self, x_MD: Tensor, attention_HTM: Tensor, heads: Heads) -> dict[str, Tensor] | None:
        """What each patch adds to the logits, {task: (M, C)}; exact, since a class's logit is linear in the mean
        that its own row weighs."""
        told = {}
        for task, layer, rows in zip(self._tasks, self.layers, self._rows(), strict=True):
            assert isinstance(layer, nn.Linear)
            told[task.name] = (x_MD @ layer.weight.T) * attention_HTM[0, rows].T
        return told

    def task_rows(self, probabilities: Mapping[str, Tensor]) -> Mapping[str, int] | None:
        """The row of the predicted class."""
        return predicted_rows(self._tasks, probabilities)

    def row_names(self) -> tuple[str, ...]:
        """Tasks and classes."""
        return class_row_names(self._tasks)

    def _rows(self) -> list[slice]:
        return class_rows(self._tasks)


def _build_single(options: ClamOptions, dim: int, tasks: Sequence[TaskConfig]) -> Clam:
    refuse_tasks(
        "clam_sb", tasks, allowed=["softmax"], reason="its instance loss needs one class for each bag"
    )
    return Clam(dim, tasks, options)


def _build_multi(options: ClamOptions, dim: int, tasks: Sequence[TaskConfig]) -> Clam:
    refuse_tasks(
        "clam_mb", tasks, allowed=["softmax"], reason="its instance loss needs one class for each bag"
    )
    return ClamMultiBranch(dim, tasks, options)


SINGLE = Kind(ClamOptions, _build_single, plain_embedding)
MULTI = Kind(ClamOptions, _build_multi, plain_embedding)
