"""The attention logits of every patch of a slide, and its attention map, the same whatever order the patches
came in.

:class:`ScoreStore` gathers the logits chunk by chunk. :class:`Normalisers` are what a softmax over the whole
slide divides by: one sum of exponentials for each head and query. They can be computed in parts and merged
exactly.

A sum of floats depends on the order of its terms, so the sums of two parts of a slide would not add up to that
of the whole slide to the bit, and two almost equal scores could change places. Here each term is rounded once,
by itself, to an integer number of units, and integers add up the same in any order. The units are those of the
window of logits that the term lies in. Windows far below the highest one are dropped, which no float64 would
notice. This is the idea of Demmel and Nguyen, "Parallel reproducible summation", IEEE Trans. Comput. 2015, in
its simplest form.

Shape suffixes: n patches of a chunk, N all patches, H heads, T queries, C capacity of the store (N or more), in
:class:`Normalisers` C columns (heads x queries), W windows, 2 the two limbs of an integer.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ips.errors import NotFinite

WIDTH = 8.0
"""Logits of one window differ by less than this, so that a term keeps 50 bits or more."""
WINDOWS = 9
"""Number of windows. What lies below the last one is less than e**-64 of the sum, per patch."""
LIMB = 2.0**31
"""Units of a limb. A term is a high and a low limb, 62 bits together, and 2**31 terms add up in an int64."""
BLOCK = 2**16
"""How many logits are worked on at a time, so that they and what is made of them stay in the cache of a core."""
FIRST_CAPACITY = 4096
"""How many patches the first array of a store has room for."""


@dataclass(frozen=True, slots=True, eq=False)
class Normalisers:
    """Sums of exponentials of the logits of some patches, for each head and query. A few kilobytes, whatever N.

    Attributes:
        shape: (H, T).
        top_C: float64, the number of the highest window.
        sums_W2C: int64, the sums from the highest window downwards.
    """

    shape: tuple[int, int]
    top_C: NDArray[np.float64]
    sums_W2C: NDArray[np.int64]

    @classmethod
    def of(cls, logits_NHT: Tensor) -> Self:
        """The normalisers of patches with the logits ``logits_NHT``, float on the CPU.

        Raises:
            ValueError: There are no patches.
            NotFinite: A logit is NaN or infinite.
        """
        if not len(logits_NHT):
            raise ValueError("no patches")
        return reduce(cls._and, (cls._of_block(logits_NHT[rows]) for rows in _blocks(logits_NHT)))

    @classmethod
    def merged(cls, parts: Iterable[Self]) -> Self:
        """The normalisers of all patches of ``parts`` together, the same whatever the cut and the order.

        Raises:
            ValueError: There are no parts, or they differ in heads or queries.
        """
        parts = list(parts)
        if len({part.shape for part in parts}) != 1:
            raise ValueError(
                f"normalisers with {[part.shape for part in parts]} heads and queries cannot be merged"
            )
        return reduce(cls._and, parts)

    def attention(self, logits_NHT: Tensor) -> Tensor:
        """The attention (N, H, T) float32: the softmax of these logits over all patches that the normalisers
        cover.
        """
        attention_NHT = torch.empty(logits_NHT.shape)
        for rows in _blocks(logits_NHT):
            attention_NHT[rows] = torch.from_numpy(self._attention(logits_NHT[rows])).unflatten(1, self.shape)
        return attention_NHT

    def scores(self, logits_NHT: Tensor) -> Tensor:
        """The scores (N,) float64: the attention averaged over heads and queries."""
        scores_N = torch.empty(len(logits_NHT), dtype=torch.float64)
        for rows in _blocks(logits_NHT):
            scores_N[rows] = torch.from_numpy(self._attention(logits_NHT[rows]).mean(axis=1))
        return scores_N

    @classmethod
    def _of_block(cls, logits_nHT: Tensor) -> Self:
        logits_nC = _columns(logits_nHT)
        if not np.isfinite(logits_nC).all():
            raise NotFinite("attention logits")
        heads, queries = logits_nHT.shape[1:]
        columns = logits_nC.shape[1]
        window_nC = np.ceil(logits_nC / WIDTH)
        top_C = window_nC.max(axis=0)
        depth_nC = np.minimum(top_C - window_nC, WINDOWS).astype(np.int64)
        term_nC = np.exp(logits_nC - window_nC * WIDTH) * LIMB
        high_nC = np.floor(term_nC)
        low_nC = np.floor((term_nC - high_nC) * LIMB)
        # One row of bins more than is kept, for what lies below the last window.
        bins_nC = (depth_nC * columns + np.arange(columns)).ravel()
        # These are sums of floats, but of whole numbers: a block is far too short for them to reach 2**53.
        sums = [
            np.bincount(bins_nC, limb_nC.ravel(), minlength=(WINDOWS + 1) * columns)
            for limb_nC in (high_nC, low_nC)
        ]
        sums_W2C = np.stack(sums).reshape(2, WINDOWS + 1, columns)[:, :WINDOWS].swapaxes(0, 1)
        return cls((heads, queries), top_C, sums_W2C.astype(np.int64))

    def _and(self, other: Self) -> Self:
        top_C = np.maximum(self.top_C, other.top_C)
        return type(self)(self.shape, top_C, self._down_to(top_C) + other._down_to(top_C))

    def _down_to(self, top_C: NDArray[np.float64]) -> NDArray[np.int64]:
        """The sums relative to a higher top: each column is moved down, and what leaves the last window is
        dropped.
        """
        moved_C = np.minimum(top_C - self.top_C, WINDOWS).astype(np.int64)
        from_WC = np.arange(WINDOWS)[:, None] - moved_C
        sums_W2C = np.take_along_axis(self.sums_W2C, from_WC.clip(min=0)[:, None], axis=0)
        return np.where(from_WC[:, None] >= 0, sums_W2C, 0)

    def _attention(self, logits_nHT: Tensor) -> NDArray[np.float64]:
        """The attention (n, C) float64. Each value is computed by itself, so it is the same in any block."""
        powers_W2 = np.exp(-WIDTH * np.arange(WINDOWS))[:, None] * [1 / LIMB, LIMB**-2]
        total_C = (self.sums_W2C * powers_W2[:, :, None])[::-1].sum(axis=(0, 1))
        attention_nC: NDArray[np.float64] = np.exp(_columns(logits_nHT) - self.top_C * WIDTH) / total_C
        return attention_nC


def _columns(logits_nHT: Tensor) -> NDArray[Any]:
    """The logits as a contiguous array (n, C) float64."""
    return logits_nHT.detach().flatten(1).double().numpy()


def _blocks(logits_NHT: Tensor) -> Iterator[slice]:
    rows = max(1, BLOCK // max(1, logits_NHT[0].numel())) if len(logits_NHT) else 1
    return (slice(start, start + rows) for start in range(0, len(logits_NHT), rows))


class ScoreStore:
    """The logits of the patches of a slide, gathered chunk by chunk: heads x queries floats per patch.

    They stay on the device that made them until they are asked for. Fetching those of each chunk would make the
    program wait for the device at every chunk. They lie in one growing array: a pair of small tensors for each
    chunk would lie between the large tensors that come and go, and the heap would grow with the slide.
    """

    def __init__(self) -> None:
        self._n = 0
        self._ids_C = torch.empty(0, dtype=torch.int64)
        self._logits_CHT = torch.empty(0, 0, 0)

    def add(self, ids_n: Tensor, logits_nHT: Tensor) -> None:
        """Add the patches of a chunk.

        Args:
            ids_n: (n,) int64, the ids of the patches.
            logits_nHT: Their attention logits before the softmax, on any device.
        """
        end = self._n + len(ids_n)
        if end > len(self._ids_C):
            self._grow(max(end, 2 * len(self._ids_C), FIRST_CAPACITY), logits_nHT)
        self._ids_C[self._n : end] = ids_n
        self._logits_CHT[self._n : end] = logits_nHT.detach()
        self._n = end

    def _grow(self, capacity: int, logits_nHT: Tensor) -> None:
        ids_C = torch.empty(capacity, dtype=torch.int64)
        logits_CHT = torch.empty(capacity, *logits_nHT.shape[1:], device=logits_nHT.device)
        if self._n:
            ids_C[: self._n] = self._ids_C[: self._n]
            logits_CHT[: self._n] = self._logits_CHT[: self._n]
        self._ids_C, self._logits_CHT = ids_C, logits_CHT

    def ids(self) -> Tensor:
        """The ids (N,) int64 of all patches, in stream order."""
        return self._ids_C[: self._n]

    def logits(self) -> Tensor:
        """The logits (N, H, T) float32 of all patches on the CPU, in stream order."""
        if self._logits_CHT.device.type != "cpu":
            self._logits_CHT, self._ids_C = self._logits_CHT[: self._n].cpu(), self.ids()
        return self._logits_CHT[: self._n]

    def normalisers(self) -> Normalisers:
        """What the softmax over all N patches divides by. Raises ``ValueError`` without patches."""
        return Normalisers.of(self.logits())

    def attention(self, normalisers: Normalisers | None = None) -> Tensor:
        """The attention (N, H, T) float32: for each head and query one softmax over all N patches, which sums to
        1.

        Unlike scores that were normalised inside a chunk, attention can be compared across the whole slide.

        Args:
            normalisers: Those of the whole slide, if the store holds only a part of it.

        Raises:
            ValueError: There are no patches.
            NotFinite: A logit is NaN or infinite.
        """
        return (normalisers or self.normalisers()).attention(self.logits())

    @classmethod
    def merged(cls, stores: Sequence[Self]) -> Self:
        """One store of the patches of several parts of a slide, sorted by id, which is the grid order of the
        slide.

        Raises:
            ValueError: A patch is in two parts, or the parts differ in heads or queries.
        """
        shapes = {tuple(store.logits().shape[1:]) for store in stores if len(store.ids())}
        if len(shapes) > 1:
            raise ValueError(
                f"parts have {sorted(shapes)} heads and queries: they come from different networks"
            )
        filled = [store for store in stores if len(store.ids())]
        whole = cls()
        if filled:
            ids_N, order_N = torch.cat([store.ids() for store in filled]).sort()
            twice = ids_N[1:][ids_N[1:] == ids_N[:-1]]
            if len(twice):
                raise ValueError(f"patches {twice[:5].tolist()} are in more than one part")
            whole._logits_CHT = torch.cat([store.logits() for store in filled])[order_N]
            whole._ids_C, whole._n = ids_N, len(ids_N)
        return whole

    def __getstate__(self) -> dict[str, Any]:
        """The content without the spare capacity, for another process."""
        return {"ids": self.ids().clone(), "logits": self.logits().clone()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._ids_C, self._logits_CHT = state["ids"], state["logits"]
        self._n = len(self._ids_C)
