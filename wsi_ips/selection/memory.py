"""Which patches of a slide are kept: the running memory of the paper, and the exact top M.

:class:`TopMBuffer` is the memory of iterative patch selection (Bergner, Lippert, Mahendran, ICLR 2023, section
3): M patches are kept, and I newcomers at a time compete with them. It normalises scores within each iteration,
so with several heads or queries the result depends on the order of the patches, on M and on I.
:func:`global_top` is the alternative rule: the logits of all patches are kept (heads x queries floats per
patch), normalised by one softmax over the whole slide, and ranked once, whatever order they came in.
:func:`select_patches` and :func:`select_global` run a stream of patches through the one or the other. This
module knows nothing of slides or networks.

Under the global rule a slide can be scored in several parts, by several processes or machines, with the same
result to the bit as if it had been scored whole. A part cannot tell by itself which of its patches are kept,
because a score is the mean over heads and queries of attentions that are normalised over the whole slide. But
the normalisers are a few numbers and add up exactly, so nothing that grows with the slide has to travel:

1. Every part scores its patches into a ``ScoreStore`` and sends ``store.normalisers()``.
2. ``Normalisers.merged`` of all of them goes back to every part.
3. Each part sends ``global_top(store, m, normalisers)``: M ids, scores and logits.
4. ``Top.merged(tops, m)`` is the selection of the slide.

``store.attention(normalisers)`` is then the part's share of the attention map of the slide. Where the logits of
all patches are gathered anyway, because a result file holds them, :func:`select_over_parts` does all of this.

Shape suffixes: n patches of a chunk, L candidates (memory and newcomers), M kept patches, N all patches of a
slide, H heads, T queries, D embedding width.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wsi_ips.errors import NotFinite
from wsi_ips.selection.score_store import Normalisers, ScoreStore
from wsi_ips.timeline import span


@dataclass(frozen=True, slots=True)
class Kept:
    """The patches that are left after a pass over a bag.

    Under the running memory they are sorted by falling score in the last iteration; if the bag has M patches or
    fewer, all of them are there in stream order. Under the global rule they are always sorted by falling score.

    Attributes:
        ids_M: int64 on the CPU, the ids of the patches.
        emb_MD: Their embeddings. None under the global rule, where the kept patches have to be encoded again.
        scores_M: Their scores, the attention averaged over heads and queries.
        logits_MHT: Their attention logits.
    """

    ids_M: Tensor
    emb_MD: Tensor | None
    scores_M: Tensor
    logits_MHT: Tensor


def select_patches(
    chunks: Iterable[tuple[Tensor, Tensor]],
    *,
    encode: Callable[[Tensor], Tensor],
    logits: Callable[[Tensor, Tensor], Tensor],
    m: int,
    i: int,
    store: ScoreStore | None = None,
) -> Kept:
    """Encode every patch once and keep the M most salient with the running memory, without gradients.

    Memory: M + I embeddings and one chunk, however long the stream is.

    Args:
        chunks: Pairs of ids (n,) int64 and pixels (n, ...).
        encode: Maps pixels to embeddings (n, D).
        logits: Maps embeddings (n, D) and ids (n,) to attention logits (n, H, T).
        m: How many patches are kept.
        i: How many newcomers compete at a time.
        store: Gathers the logits of all patches, if given.

    Raises:
        ValueError: The stream is empty.
        NotFinite: Scores are not finite.
    """
    buffer = TopMBuffer(m=m, i=i)
    with torch.no_grad():
        for ids_n, pixels in chunks:
            with span("encode"):
                emb_nD = encode(pixels)
            with span("select"):
                logits_nHT = logits(emb_nD, ids_n)
                buffer.add(ids_n, emb_nD, logits_nHT)
                if store is not None:
                    store.add(ids_n, logits_nHT)
        with span("select"):
            return buffer.finish()


def select_global(
    chunks: Iterable[tuple[Tensor, Tensor]],
    *,
    encode: Callable[[Tensor], Tensor],
    logits: Callable[[Tensor, Tensor], Tensor],
    m: int,
    store: ScoreStore,
) -> Kept:
    """Encode every patch once, gather the logits of all of them, and keep the exact top M, without gradients.

    The embeddings of the kept patches are gone by the time it is known that they are kept, so ``emb_MD`` is
    None.

    Args:
        chunks: Pairs of ids (n,) int64 and pixels (n, ...).
        encode: Maps pixels to embeddings (n, D).
        logits: Maps embeddings (n, D) and ids (n,) to attention logits (n, H, T).
        m: How many patches are kept, 1 or more.
        store: Gathers the logits of all patches.

    Raises:
        ValueError: The stream is empty, or ``m`` is below 1.
        NotFinite: Logits are not finite.
    """
    with torch.no_grad():
        for ids_n, pixels in chunks:
            with span("encode"):
                emb_nD = encode(pixels)
            with span("select"):
                store.add(ids_n, logits(emb_nD, ids_n))
    with span("select"):
        top = global_top(store, m)
    return Kept(top.ids_M, None, top.scores_M.float(), top.logits_MHT)


class TopMBuffer:
    """The running memory of the paper: M patches, and I newcomers at a time that compete with them.

    The logits of a patch do not change during a pass, because the weights do not, so they are computed once when
    the patch is encoded; an iteration only normalises them over its candidates. Newcomers are pooled until there
    are I of them, so the result depends on their order, on M and on I, but not on how the stream was cut into
    chunks. Among equal scores the patch that came first wins, and the memory wins over newcomers.
    """

    def __init__(self, *, m: int, i: int) -> None:
        """Start with an empty memory.

        Args:
            m: How many patches are kept, 1 or more.
            i: How many newcomers compete at a time, 1 or more.

        Raises:
            ValueError: ``m`` or ``i`` is below 1.
        """
        if m < 1 or i < 1:
            raise ValueError(f"M and I are 1 or more, got {m} and {i}")
        self._m = m
        self._i = i
        self._memory: _Candidates | None = None
        self._pool: list[_Candidates] = []
        self._pooled = 0
        self._finite: Tensor | None = None

    def add(self, ids_n: Tensor, emb_nD: Tensor, logits_nHT: Tensor) -> None:
        """Add any number of patches. On CUDA nothing here waits for the device.

        Args:
            ids_n: (n,) int64, the ids of the patches.
            emb_nD: Their embeddings, on the device of the logits.
            logits_nHT: Their attention logits.

        Raises:
            NotFinite: Scores are not finite. On an accelerator :meth:`finish` raises this instead, since looking
                at the scores would wait for the device.
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
        """Let what is left in the pool compete, and return the memory.

        Raises:
            ValueError: No patch was ever added.
            NotFinite: Scores are not finite.
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
        """Raise NotFinite where an iteration had a NaN: it makes all scores NaN, and the newcomers would be lost
        silently.
        """
        if self._finite is not None and not self._finite:
            raise NotFinite("attention logits")


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Patches that compete. ``scores_L`` are the scores of the iteration that kept them, if there was one."""

    ids_L: Tensor
    emb_LD: Tensor
    logits_LHT: Tensor
    scores_L: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids_L)

    def split(self, n: int) -> tuple["_Candidates", "_Candidates"]:
        """Return the first ``n`` rows, and the rest."""
        return (
            _Candidates(self.ids_L[:n], self.emb_LD[:n], self.logits_LHT[:n]),
            _Candidates(self.ids_L[n:], self.emb_LD[n:], self.logits_LHT[n:]),
        )

    def with_(self, others: "_Candidates") -> "_Candidates":
        """Return these rows followed by ``others``."""
        return _Candidates(
            torch.cat([self.ids_L, others.ids_L]),
            torch.cat([self.emb_LD, others.emb_LD]),
            torch.cat([self.logits_LHT, others.logits_LHT]),
        )

    def rows(self, rows_M: Tensor, scores_L: Tensor) -> "_Candidates":
        """Return the rows ``rows_M`` with their scores."""
        return _Candidates(self.ids_L[rows_M], self.emb_LD[rows_M], self.logits_LHT[rows_M], scores_L[rows_M])


def attention_scores(logits_LHT: Tensor) -> Tensor:
    """Scores (L,) of candidates: their softmax over exactly these candidates, averaged over heads and queries."""
    return logits_LHT.softmax(dim=0).mean(dim=(1, 2))


def looking_waits(device: torch.device) -> bool:
    """Whether reading a number from this device makes the program wait for all work that the device was given."""
    return device.type != "cpu"


@dataclass(frozen=True, slots=True)
class Top:
    """The best patches under the global rule, sorted by falling score and among equals by rising id.

    Attributes:
        ids_M: int64 on the CPU.
        scores_M: float64 on the CPU.
        logits_MHT: float32 on the CPU.
    """

    ids_M: Tensor
    scores_M: Tensor
    logits_MHT: Tensor

    @classmethod
    def merged(cls, tops: Sequence["Top"], m: int) -> "Top":
        """The ``m`` best of several parts of one slide, which were all scored with the normalisers of the whole
        slide.
        """
        return cls(
            torch.cat([top.ids_M for top in tops]),
            torch.cat([top.scores_M for top in tops]),
            torch.cat([top.logits_MHT for top in tops]),
        ).best(m)

    def best(self, m: int) -> "Top":
        """The ``m`` best of these patches, or all of them if there are fewer."""
        best_M = torch.from_numpy(np.lexsort((self.ids_M.numpy(), -self.scores_M.numpy()))[:m].copy())
        return Top(self.ids_M[best_M], self.scores_M[best_M], self.logits_MHT[best_M])


def global_top(store: ScoreStore, m: int, normalisers: Normalisers | None = None) -> Top:
    """The ``m`` patches with the highest attention over all N patches, averaged over heads and queries.

    A score is exact to the last digits of float64. It depends only on the set of logits, not on their order or
    on how the slide was cut into parts. Some kernels of torch flush scores below the normal numbers of float64
    (2.2e-308) to zero, so the order among such scores is undefined.

    Args:
        store: The logits of the patches.
        m: How many patches to keep, 1 or more.
        normalisers: Those of the whole slide if ``store`` holds a part of it. None: those of ``store``.

    Raises:
        ValueError: There are no patches, or ``m`` is below 1.
        NotFinite: Logits are not finite.
    """
    if m < 1:
        raise ValueError(f"M is 1 or more, got {m}")
    normalisers = store.normalisers() if normalisers is None else normalisers
    return Top(store.ids(), normalisers.scores(store.logits()), store.logits()).best(m)


@dataclass(frozen=True, slots=True)
class SlideSelection:
    """The selection over all parts of a slide.

    Attributes:
        top: The M kept patches.
        store: The logits of all N patches, in the order of their ids.
        attention_NHT: (N, H, T) float32 in the same order, the softmax over all N patches.
    """

    top: Top
    store: ScoreStore
    attention_NHT: Tensor


def select_over_parts(stores: Sequence[ScoreStore], m: int) -> SlideSelection:
    """Merge the scored parts of one slide, given in any order, and keep its ``m`` best patches.

    The result equals, to the bit, that of the whole slide scored in one pass with the same logits. (Logits of
    two kinds of CPU may differ in the last bit.) The kept patches then have to be encoded again, see
    :func:`wsi_ips.selection.slide_reading.encode_again`.

    Raises:
        ValueError: There are no patches, a patch is in two parts, or the parts come from different networks.
        NotFinite: Logits are not finite.
    """
    store = ScoreStore.merged(stores)
    normalisers = store.normalisers()
    return SlideSelection(global_top(store, m, normalisers), store, store.attention(normalisers))
