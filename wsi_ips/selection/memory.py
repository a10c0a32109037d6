"""Iterative patch selection (Bergner, Lippert, Mahendran, ICLR 2023, section 3): a running top-M memory.

Knows nothing of slides or networks: it sees chunks of patches, their embeddings and their logits.

Shape suffixes: n patches of a chunk, L candidates (memory and newcomers), M memory, N all patches, H heads,
T queries, D embedding width.

The exact top-M of a slide: one softmax over all of its patches, whatever the order they came in.

The paper's memory (:mod:`wsi_ips.selection.memory`) normalises inside an iteration, so with several heads or
queries it depends on order, M and I. Here every patch's logits are kept (heads x queries floats) and ranked once.

Shape suffixes: n patches of a chunk, N all patches, M kept patches, D embedding width, H heads, T queries.

One slide scored in several parts, by several processes or machines, and selected from as if it had been whole.

A part cannot tell by itself which of its patches are kept: a patch's score is a mean over heads and queries of
attentions whose normalisers are the whole slide's, and they weigh the heads and queries anew. A patch is out for
certain only if M others of its part have logits as high for every head and query: of 250,000 patches with 8 heads
and 4 queries next to none (if heads were independent). But the normalisers are a few numbers and add up exactly,
so nothing that grows with the slide has to travel:

1. every part scores its patches: ``store``, and sends ``store.normalisers()``;
2. ``Normalisers.merged`` of all of them goes back to every part;
3. a part sends ``global_top(store, m, normalisers)``: M ids, scores and logits;
4. ``Top.merged(tops, m)`` is the slide's selection, to the bit.

``store.attention(normalisers)`` is then the part's own share of the slide's attention map. Where the logits of
all patches are gathered anyway, because a result file holds them, :func:`select_over_parts` does all of it.
Only the global rule can be cut into parts: the paper's memory is one patch after the other.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wsi_ips.errors import NotFinite
from wsi_ips.selection.score_store import Normalisers, ScoreStore


@dataclass(frozen=True, slots=True)
class Kept:
    """What is left after a pass: ids_M (int64, CPU), emb_MD, scores_M, logits_MHT.

    Order: falling score in the last iteration, and with M patches or fewer all of them in stream order; under
    the global rule always falling score. emb_MD is None there: the kept patches are to be encoded again.
    """

    ids_M: Tensor
    emb_MD: Tensor | None
    scores_M: Tensor
    logits_MHT: Tensor


def attention_scores(logits_LHT: Tensor) -> Tensor:
    """Scores (L,): attention over exactly these candidates, mean over heads and queries."""
    return logits_LHT.softmax(dim=0).mean(dim=(1, 2))


def looking_waits(device: torch.device) -> bool:
    """Whether a look at a number on this device makes the program wait for all that was handed to the device."""
    return device.type != "cpu"


class TopMBuffer:
    """The paper's memory: M patches, challenged by I newcomers at a time.

    A patch's logits do not change during a pass, because the weights do not, so they are computed once when
    it is encoded; an iteration only normalises them over its candidates. Newcomers are pooled until I of them
    are there: the result depends on their order, on M and on I, not on how the stream was cut. Of equal
    scores the one that came first wins, and the memory before newcomers.
    """

    def __init__(self, *, m: int, i: int) -> None:
        """m, i: 1 or more. Raises ``ValueError``."""
        if m < 1 or i < 1:
            raise ValueError(f"M and I are 1 or more, got {m} and {i}")
        self._m = m
        self._i = i
        self._memory: _Candidates | None = None
        self._pool: list[_Candidates] = []
        self._pooled = 0
        self._finite: Tensor | None = None

    def add(self, ids_n: Tensor, emb_nD: Tensor, logits_nHT: Tensor) -> None:
        """Take in any number of patches. ids_n: (n,) int64; emb_nD and logits_nHT on one device.

        On CUDA nothing here waits for the device. Raises :class:`NotFinite` for scores that are not finite; on an
        accelerator :meth:`finish` does, since a look at the scores would wait.
        """
        ids_n = ids_n.to(logits_nHT.device, non_blocking=logits_nHT.is_cuda)
        newcomers = _Candidates(ids_n, emb_nD, logits_nHT)
        while len(newcomers):
            held = len(self._memory) if self._memory else 0
            if held < self._m:
                head, newcomers = newcomers.split(self._m - held)
                self._memory = head if self._memory is None else self._memory.with_(head)
                continue
            head, newcomers = newcomers.split(self._i - self._pooled)
            self._pool.append(head)
            self._pooled += len(head)
            if self._pooled == self._i:
                self._iterate()

    def finish(self) -> Kept:
        """The memory, after a last iteration with what is left in the pool.

        Raises ``ValueError`` if empty, and like :meth:`add` :class:`NotFinite` for scores that are not finite.
        """
        if self._pool:
            self._iterate()
        if self._memory is None:
            raise ValueError("no patches")
        memory = self._memory
        scores_M = self._scores(memory.logits_LHT) if memory.scores_L is None else memory.scores_L
        self._raise_if_not_finite()
        return Kept(memory.ids_L.cpu(), memory.emb_LD, scores_M, memory.logits_LHT)

    def _iterate(self) -> None:
        assert self._memory is not None
        candidates = self._memory
        for newcomers in self._pool:
            candidates = candidates.with_(newcomers)
        scores_L = self._scores(candidates.logits_LHT)
        # Not torch.topk: it leaves ties open, and blank patches tie.
        best_M = torch.argsort(scores_L, descending=True, stable=True)[: self._m]
        self._memory = candidates.rows(best_M, scores_L)
        self._pool, self._pooled = [], 0

    def _scores(self, logits_LHT: Tensor) -> Tensor:
        scores_L = attention_scores(logits_LHT)
        finite = torch.isfinite(scores_L).all()
        self._finite = finite if self._finite is None else self._finite & finite
        if not looking_waits(scores_L.device):
            self._raise_if_not_finite()
        return scores_L

    def _raise_if_not_finite(self) -> None:
        """One NaN makes every score of its iteration NaN, and all newcomers would be lost without a word."""
        if self._finite is not None and not self._finite:
            raise NotFinite("attention logits")


def select_patches(
    chunks: Iterable[tuple[Tensor, Tensor]],
    *,
    encode: Callable[[Tensor], Tensor],
    logits: Callable[[Tensor, Tensor], Tensor],
    m: int,
    i: int,
    store: ScoreStore | None = None,
) -> Kept:
    """Encode every patch once and keep the M most salient, without gradients.

    chunks: (ids_n, pixels_n...) pairs. encode: pixels to emb_nD. logits: (emb_nD, ids_n) to logits_nHT.
    ``store`` gathers the logits of all patches. Holds M + I embeddings and one chunk whatever the stream's
    length. Raises ``ValueError`` for an empty stream, :class:`NotFinite` for scores that are not finite.
    """
    buffer = TopMBuffer(m=m, i=i)
    with torch.no_grad():
        for ids_n, pixels in chunks:
            emb_nD = encode(pixels)
            logits_nHT = logits(emb_nD, ids_n)
            buffer.add(ids_n, emb_nD, logits_nHT)
            if store is not None:
                store.add(ids_n, logits_nHT)
        return buffer.finish()


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Rows that compete. scores_L are those of the iteration that they came out of, if any."""

    ids_L: Tensor
    emb_LD: Tensor
    logits_LHT: Tensor
    scores_L: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids_L)

    def split(self, n: int) -> tuple["_Candidates", "_Candidates"]:
        """The first ``n`` rows, and the rest."""
        return (
            _Candidates(self.ids_L[:n], self.emb_LD[:n], self.logits_LHT[:n]),
            _Candidates(self.ids_L[n:], self.emb_LD[n:], self.logits_LHT[n:]),
        )

    def with_(self, others: "_Candidates") -> "_Candidates":
        """These rows, then the others."""
        return _Candidates(
            torch.cat([self.ids_L, others.ids_L]),
            torch.cat([self.emb_LD, others.emb_LD]),
            torch.cat([self.logits_LHT, others.logits_LHT]),
        )

    def rows(self, rows_M: Tensor, scores_L: Tensor) -> "_Candidates":
        """The rows asked for, with their scores."""
        return _Candidates(self.ids_L[rows_M], self.emb_LD[rows_M], self.logits_LHT[rows_M], scores_L[rows_M])


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

    Arguments and errors as of :func:`wsi_ips.selection.memory.select_patches`. The kept patches' embeddings are
    gone by the time they are known to be kept: ``emb_MD`` is None.
    """
    with torch.no_grad():
        for ids_n, pixels in chunks:
            store.add(ids_n, logits(encode(pixels), ids_n))
    top = global_top(store, m)
    return Kept(top.ids_M, None, top.scores_M.float(), top.logits_MHT)


@dataclass(frozen=True, slots=True)
class SlideSelection:
    """top: the M kept patches. store: the logits of all N patches, in the order of their ids. attention_NHT:
    (N, H, T) float32 in the same order, the softmax over all N."""

    top: Top
    store: ScoreStore
    attention_NHT: Tensor


def select_over_parts(stores: Sequence[ScoreStore], m: int) -> SlideSelection:
    """Merge the scored parts of one slide, in any order, and keep its ``m`` best patches.

    Equal to the bit to the whole slide scored in one pass with the same logits, whatever the cut (on one kind of
    CPU: another's exponentials may differ in their last bit). The kept patches are to be read again:
    :func:`wsi_ips.selection.slide_reading.encode_again`. Raises ``ValueError`` without patches, for a patch in
    two parts and for parts of different networks, and :class:`NotFinite`.
    """
    store = ScoreStore.merged(stores)
    normalisers = store.normalisers()
    return SlideSelection(global_top(store, m, normalisers), store, store.attention(normalisers))
