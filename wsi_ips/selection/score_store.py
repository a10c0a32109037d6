"""The logits of every patch of a slide, and from them its attention map.

Shape suffixes: n patches of a chunk, N all patches, C capacity (N or more), H heads, T queries.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from wsi_ips.selection.normalisers import Normalisers

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
