"""CLAM's instance loss: the patches that attention favours, and those it ignores, are given labels of their own.

Source: Lu et al., Nature Biomedical Engineering 2021.

Shape suffixes: n patches of one bag, D width of embeddings, C classes of a task, k patches at each end.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

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
