"""The exact top-M of a slide: one softmax over all of its patches, whatever the order they came in.

The paper's memory (:mod:`wsi_ips.selection.ips`) normalises inside an iteration, so with several heads or queries
it depends on order, M and I. Here every patch's logits are kept (heads x queries floats) and ranked once.

Shape suffixes: n patches of a chunk, N all patches, M kept patches, D embedding width, H heads, T queries.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wsi_ips.selection.ips import Kept
from wsi_ips.selection.normalisers import Normalisers
from wsi_ips.selection.score_store import ScoreStore


@dataclass(frozen=True, slots=True)
class Top:
    """The best patches: ids_M (int64), scores_M (float64), logits_MHT (float32), on the CPU.

    Order: falling score, of equal scores the lowest grid id first.
    """

    ids_M: Tensor
    scores_M: Tensor
    logits_MHT: Tensor

    @classmethod
    def merged(cls, tops: Sequence["Top"], m: int) -> "Top":
        """The ``m`` best of several parts of one slide, all scored with the whole slide's normalisers."""
        return cls(
            torch.cat([top.ids_M for top in tops]),
            torch.cat([top.scores_M for top in tops]),
            torch.cat([top.logits_MHT for top in tops]),
        ).best(m)

    def best(self, m: int) -> "Top":
        """The ``m`` best of these, or all of them."""
        best_M = torch.from_numpy(np.lexsort((self.ids_M.numpy(), -self.scores_M.numpy()))[:m].copy())
        return Top(self.ids_M[best_M], self.scores_M[best_M], self.logits_MHT[best_M])


def global_top(store: ScoreStore, m: int, normalisers: Normalisers | None = None) -> Top:
    """The ``m`` patches with the highest attention over all N, mean over heads and queries.

    A score is exact to float64's last digits and depends on nothing but the set of logits: not on order, nor on
    how a slide was cut into parts. Scores below float64's normal numbers (2.2e-308) are flushed to zero by some
    of torch's kernels, so their order among each other is open. A part of a slide is given the whole slide's
    ``normalisers``. Raises
    ``ValueError`` without patches and for ``m`` below 1, and :class:`NotFinite`.
    """
    if m < 1:
        raise ValueError(f"M is 1 or more, got {m}")
    normalisers = store.normalisers() if normalisers is None else normalisers
    return Top(store.ids(), normalisers.scores(store.logits()), store.logits()).best(m)


def select_global(
    chunks: Iterable[tuple[Tensor, Tensor]],
    *,
    encode: Callable[[Tensor], Tensor],
    logits: Callable[[Tensor, Tensor], Tensor],
    m: int,
    store: ScoreStore,
) -> Kept:
    """Encode every patch once, without gradients, gather all logits in ``store``, and keep the exact top-M.

    Arguments and errors as of :func:`wsi_ips.selection.ips.select_patches`. The kept patches' embeddings are
    gone by the time they are known to be kept: ``emb_MD`` is None.
    """
    with torch.no_grad():
        for ids_n, pixels in chunks:
            store.add(ids_n, logits(encode(pixels), ids_n))
    top = global_top(store, m)
    return Kept(top.ids_M, None, top.scores_M.float(), top.logits_MHT)
