"""Logits drawn by hypothesis: ties, far-off ones, several heads and queries; and ways to cut a slide in parts."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from wsi_ips.selection.score_store import ScoreStore


@st.composite
def logits_NHT(draw: st.DrawFn, *, most: int = 60, heads: int = 4, queries: int = 3) -> Tensor:  # noqa: N802
    """(N, H, T) float32: a small grid of values makes ties, the wide scales leave windows empty."""
    n = draw(st.integers(1, most))
    shape = (n, draw(st.integers(1, heads)), draw(st.integers(1, queries)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    scale = draw(st.sampled_from([0.5, 4.0, 30.0, 400.0]))
    logits = torch.randn(shape, generator=generator) * scale
    return (logits / scale).round() * scale if draw(st.booleans()) else logits


def stored(ids_n: Tensor, logits: Tensor, *, cut: int = 10**9) -> ScoreStore:
    """A store that was filled chunk by chunk."""
    store = ScoreStore()
    for start in range(0, len(ids_n), cut):
        store.add(ids_n[start : start + cut], logits[start : start + cut])
    return store


@st.composite
def in_parts(draw: st.DrawFn, logits: Tensor) -> list[ScoreStore]:
    """Every patch in one of up to five parts, each in an order of its own; a part may be empty."""
    order = torch.tensor(draw(st.permutations(range(len(logits)))), dtype=torch.int64)
    parts = draw(st.integers(1, 5))
    which = torch.tensor(draw(st.lists(st.integers(0, parts - 1), min_size=len(order), max_size=len(order))))
    return [stored(ids, logits[ids]) for ids in (order[which == part] for part in range(parts))]
