"""The means of areas, from their definition and in float64."""

import numpy as np


def exact_means(region: np.ndarray, *, inset: tuple[float, float], side: float, patch_px: int) -> np.ndarray:
    """(P, P, 3) float64: how much of every pixel lies in every footprint, and the mean with these weights."""

    def shares(start: float, length: int) -> np.ndarray:
        edges, pixels = start + np.arange(patch_px + 1) * side / patch_px, np.arange(length)
        covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
        return covered.clip(0) / (side / patch_px)

    down, across = shares(inset[1], region.shape[0]), shares(inset[0], region.shape[1])
    return np.einsum("ij,jkc,lk->ilc", down, region[..., :3].astype(np.float64), across, optimize=True)
