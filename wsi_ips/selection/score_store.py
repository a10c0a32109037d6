"""The logits of every patch of a slide, and from them its attention map.

Shape suffixes: n patches of a chunk, N all patches, H heads, T queries.
"""

import torch
from torch import Tensor


class ScoreStore:
    """Gathers logits chunk by chunk on the CPU: heads x queries floats per patch, whatever its pixels."""

    def __init__(self) -> None:
        self._ids: list[Tensor] = []
        self._logits: list[Tensor] = []

    def add(self, ids_n: Tensor, logits_nHT: Tensor) -> None:
        """ids_n: (n,) int64. logits_nHT: pre-softmax attention logits, any device."""
        self._ids.append(ids_n.cpu())
        self._logits.append(logits_nHT.detach().float().cpu())

    def ids(self) -> Tensor:
        """(N,) int64, in stream order."""
        return torch.cat(self._ids)

    def logits(self) -> Tensor:
        """(N, H, T) float32, in stream order."""
        return torch.cat(self._logits)

    def attention(self) -> Tensor:
        """(N, H, T) float32: one softmax over all N patches, per head and query; each sums to 1.

        Unlike scores that were normalised inside a chunk, these compare across the whole slide.
        """
        return self.logits().double().softmax(dim=0).float()
