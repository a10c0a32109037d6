"""The logits of every patch of a slide, and from them its attention map.

Shape suffixes: n patches of a chunk, N all patches, C capacity (N or more), H heads, T queries.
"""

import torch
from torch import Tensor

FIRST_CAPACITY = 4096


class ScoreStore:
    """Gathers logits chunk by chunk on the CPU: heads x queries floats per patch, whatever its pixels.

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
            self._grow(max(end, 2 * len(self._ids_C), FIRST_CAPACITY), logits_nHT.shape[1:])
        self._ids_C[self._n : end] = ids_n
        self._logits_CHT[self._n : end] = logits_nHT.detach()
        self._n = end

    def _grow(self, capacity: int, heads_and_queries: torch.Size) -> None:
        ids_C = torch.empty(capacity, dtype=torch.int64)
        logits_CHT = torch.empty(capacity, *heads_and_queries)
        if self._n:
            ids_C[: self._n] = self._ids_C[: self._n]
            logits_CHT[: self._n] = self._logits_CHT[: self._n]
        self._ids_C, self._logits_CHT = ids_C, logits_CHT

    def ids(self) -> Tensor:
        """(N,) int64, in stream order."""
        return self._ids_C[: self._n]

    def logits(self) -> Tensor:
        """(N, H, T) float32, in stream order."""
        return self._logits_CHT[: self._n]

    def attention(self) -> Tensor:
        """(N, H, T) float32: one softmax over all N patches, per head and query; each sums to 1.

        Unlike scores that were normalised inside a chunk, these compare across the whole slide.
        """
        return self.logits().double().softmax(dim=0).float()
