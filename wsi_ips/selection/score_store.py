"""What divides a softmax over a whole slide: one sum of exponentials per head and query, exact in any order.

A float sum depends on the order of its terms, so two shards' sums added up would not be the whole slide's to
the bit, and two almost equal scores could change places. Here a term is rounded once, by itself, to an integer
number of units, and integers add up the same in any order. The units are those of the window of logits that the
term lies in; windows far below the highest one are dropped, which no float64 would notice (the idea of Demmel
and Nguyen, "Parallel reproducible summation", IEEE Trans. Comput. 2015, in its simplest form).

Shape suffixes: n, N patches, H heads, T queries, C columns (heads x queries), W windows, 2 limbs of an integer.

The logits of every patch of a slide, and from them its attention map.

Shape suffixes: n patches of a chunk, N all patches, C capacity (N or more), H heads, T queries.
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
"""What lies below the last window is less than e**-64 of the sum, per patch."""
LIMB = 2.0**31
"""A term is a high and a low limb: 62 bits, and 2**31 of either add up in an int64."""
BLOCK = 2**16
"""Logits worked on at a time: they and what is made of them stay in a core's cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Normalisers:
    """Sums of exponentials of the logits of some patches, (H, T) of them. A few kilobytes, whatever N.

    shape: (H, T). top_C: float64, number of the highest window. sums_W2C: int64, from the highest window down.
    """

    shape: tuple[int, int]
    top_C: NDArray[np.float64]
    sums_W2C: NDArray[np.int64]

    @classmethod
    def of(cls, logits_NHT: Tensor) -> Self:
        """Of these patches' logits (N, H, T), float, on the CPU; N is 1 or more.

        Raises ``ValueError`` for none, and :class:`NotFinite` for a network that went wrong.
        """
        if not len(logits_NHT):
            raise ValueError("no patches")
        return reduce(cls._and, (cls._of_block(logits_NHT[rows]) for rows in _blocks(logits_NHT)))

    @classmethod
    def merged(cls, parts: Iterable[Self]) -> Self:
        """Of all the patches of ``parts`` together: the same whatever their cut and order.

        Raises ``ValueError`` for no parts, or parts with other heads and queries.
        """
        parts = list(parts)
        if len({part.shape for part in parts}) != 1:
            raise ValueError(
                f"normalisers of {[part.shape for part in parts]} heads and queries do not add up"
            )
        return reduce(cls._and, parts)

    def attention(self, logits_NHT: Tensor) -> Tensor:
        """(N, H, T) float32: the softmax of these logits over all patches that the normalisers are of."""
        attention_NHT = torch.empty(logits_NHT.shape)
        for rows in _blocks(logits_NHT):
            attention_NHT[rows] = torch.from_numpy(self._attention(logits_NHT[rows])).unflatten(1, self.shape)
        return attention_NHT

    def scores(self, logits_NHT: Tensor) -> Tensor:
        """(N,) float64: the same, mean over heads and queries."""
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
        # Of floats, but whole ones below 2**53: a block is far too short to leave them.
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
        """The sums as seen from a higher top: each column moved down, what leaves the last window dropped."""
        moved_C = np.minimum(top_C - self.top_C, WINDOWS).astype(np.int64)
        from_WC = np.arange(WINDOWS)[:, None] - moved_C
        sums_W2C = np.take_along_axis(self.sums_W2C, from_WC.clip(min=0)[:, None], axis=0)
        return np.where(from_WC[:, None] >= 0, sums_W2C, 0)

    def _attention(self, logits_nHT: Tensor) -> NDArray[np.float64]:
        """(n, C) float64, each value by itself: the same in whatever block it comes."""
        powers_W2 = np.exp(-WIDTH * np.arange(WINDOWS))[:, None] * [1 / LIMB, LIMB**-2]
        total_C = (self.sums_W2C * powers_W2[:, :, None])[::-1].sum(axis=(0, 1))
        attention_nC: NDArray[np.float64] = np.exp(_columns(logits_nHT) - self.top_C * WIDTH) / total_C
        return attention_nC


def _columns(logits_nHT: Tensor) -> NDArray[Any]:
    """(n, C) float64, contiguous."""
    return logits_nHT.detach().flatten(1).double().numpy()


def _blocks(logits_NHT: Tensor) -> Iterator[slice]:
    rows = max(1, BLOCK // max(1, logits_NHT[0].numel())) if len(logits_NHT) else 1
    return (slice(start, start + rows) for start in range(0, len(logits_NHT), rows))


FIRST_CAPACITY = 4096


class ScoreStore:
    """Gathers logits chunk by chunk: heads x queries floats per patch, whatever its pixels.

    They stay on the device that made them until they are asked for: to fetch a chunk's would make the program wait
    for the device at every chunk, and the device for the program.

    In one growing array: small tensors that stay, a pair a chunk, would lie between the large ones that come
    and go, and the heap would grow with the slide.
    """

    def __init__(self) -> None:
        self._n = 0
        self._ids_C = torch.empty(0, dtype=torch.int64)
        self._logits_CHT = torch.empty(0, 0, 0)

    def add(self, ids_n: Tensor, logits_nHT: Tensor) -> None:
        """ids_n: (n,) int64. logits_nHT: pre-softmax attention logits, any device."""
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
        """(N,) int64, in stream order."""
        return self._ids_C[: self._n]

    def logits(self) -> Tensor:
        """(N, H, T) float32 on the CPU, in stream order."""
        if self._logits_CHT.device.type != "cpu":
            self._logits_CHT, self._ids_C = self._logits_CHT[: self._n].cpu(), self.ids()
        return self._logits_CHT[: self._n]

    def normalisers(self) -> Normalisers:
        """What the softmax over all N patches divides by. Raises ``ValueError`` without patches."""
        return Normalisers.of(self.logits())

    def attention(self, normalisers: Normalisers | None = None) -> Tensor:
        """(N, H, T) float32: one softmax over all N patches, per head and query; each sums to 1.

        Unlike scores that were normalised inside a chunk, these compare across the whole slide. A part of
        a slide is given the whole slide's ``normalisers``. Raises ``ValueError`` without patches.
        """
        return (normalisers or self.normalisers()).attention(self.logits())

    @classmethod
    def merged(cls, stores: Sequence[Self]) -> Self:
        """The patches of several parts of one slide, in the order of their ids: the slide's own grid order.

        Raises ``ValueError`` for a patch that is in two parts, or for parts with other heads and queries.
        """
        shapes = {tuple(store.logits().shape[1:]) for store in stores if len(store.ids())}
        if len(shapes) > 1:
            raise ValueError(f"parts have {sorted(shapes)} heads and queries: of different networks")
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
        """Travels to another process without its spare capacity."""
        return {"ids": self.ids().clone(), "logits": self.logits().clone()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._ids_C, self._logits_CHT = state["ids"], state["logits"]
        self._n = len(self._ids_C)
