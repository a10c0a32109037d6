"""Augmentation that scoring and learning agree on: seeded by (seed, epoch, slide, patch).

Shape suffixes: n patches, P patch side.
"""

from hashlib import sha256

import numpy as np
import torch
from torch import Tensor


def quarter_turns_and_flips(pixels_n3PP: Tensor, ids_n: Tensor, *, key: str) -> Tensor:
    """Turn and mirror each patch by one of the eight symmetries of the square.

    pixels_n3PP: (n, 3, P, P), any dtype; a new tensor is returned. ids_n: (n,) int64 grid ids. The symmetry
    depends on ``key`` (seed, epoch and slide) and the patch's id alone: not on the chunk it came in, so the
    pass that scores a patch and the one that learns from it see the same pixels.
    """
    symmetry_n = _symmetries(ids_n, key)
    turned = torch.empty_like(pixels_n3PP)
    for symmetry in range(8):
        rows = (symmetry_n == symmetry).nonzero().flatten().to(pixels_n3PP.device)
        if not len(rows):
            continue
        patches = torch.rot90(pixels_n3PP[rows], symmetry % 4, dims=(2, 3))
        turned[rows] = patches.flip(3) if symmetry >= 4 else patches
    return turned


def _symmetries(ids_n: Tensor, key: str) -> Tensor:
    """(n,) int64 in 0..7, uniform; a counter-based generator gives every id its own draw."""
    seed = int.from_bytes(sha256(key.encode()).digest()[:8], "little")
    mixed = ids_n.cpu().numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    # SplitMix64's finaliser (Steele, Lea, Flood 2014): neighbouring ids give unrelated bits.
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy(((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(61)).astype(np.int64))
