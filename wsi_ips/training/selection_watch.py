"""What can be seen of a selection while it learns: does it keep the same patches, and what do they hold?

Shape suffixes: N all patches of a bag, M kept patches, H heads, T queries.
"""

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SelectionFigures:
    """One bag's selection in one epoch.

    kept_overlap: share of the kept patches that the last selection kept too; NaN the first time. kept_attention:
    share of the attention over all N patches that lies on the kept ones. attention_spread: the number of patches
    that share the attention (the exponential of its entropy) divided by N: 1 where it is flat, 1/N on one patch.
    """

    kept_overlap: float
    kept_attention: float
    attention_spread: float

    @classmethod
    def of(
        cls, logits_NHT: Tensor, ids_N: Tensor, kept_M: Tensor, before_M: Tensor | None
    ) -> "SelectionFigures":
        """logits_NHT: of all patches, before the softmax. ids_N: which patches these are. kept_M: ids of the kept
        ones now, before_M: those of the last selection of this bag."""
        attention_N = logits_NHT.double().softmax(dim=0).mean(dim=(1, 2))
        entropy = -float(torch.special.xlogy(attention_N, attention_N).sum())
        overlap = math.nan
        if before_M is not None:
            overlap = float(torch.isin(kept_M, before_M).double().mean())
        kept = float(attention_N[torch.isin(ids_N, kept_M)].sum())
        return cls(overlap, min(1.0, kept), min(1.0, math.exp(entropy) / len(attention_N)))


def mean_figures(watched: Iterable[SelectionFigures]) -> dict[str, float]:
    """The mean of each figure over the bags in which it is known; without one it is left out."""
    columns = zip(*(astuple(each) for each in watched), strict=True)
    known = {
        field.name: [value for value in column if not math.isnan(value)]
        for field, column in zip(fields(SelectionFigures), columns, strict=False)
    }
    return {name: math.fsum(values) / len(values) for name, values in known.items() if values}
