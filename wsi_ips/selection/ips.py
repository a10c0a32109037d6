"""Iterative patch selection (Bergner, Lippert, Mahendran, ICLR 2023, section 3): a running top-M memory.

Knows nothing of slides or networks: it sees chunks of patches, their embeddings and their logits.

Shape suffixes: n patches of a chunk, L candidates (memory and newcomers), M memory, N all patches, H heads,
T queries, D embedding width.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from wsi_ips.errors import NotFinite
from wsi_ips.selection.score_store import ScoreStore


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
