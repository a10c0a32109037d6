"""Feature files as CLAM and TRIDENT write them."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

TRIDENT = {
    "patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40.0, "target_magnification": 20.0,
    "overlap": 0, "name": "slide", "savetodir": "x", "level0_width": 20000, "level0_height": 10000,
}  # fmt: skip


def features_of(n: int, width: int, *, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def write_features(
    path: Path, features: NDArray[Any], *, coords: NDArray[Any] | None = None, trident: bool = False
) -> None:
    """CLAM's layout (no attributes, int32 coordinates), or TRIDENT's with attributes."""
    n = len(features)
    if coords is None:
        coords = np.stack([np.arange(n) % 30, np.arange(n) // 30], axis=1) * 512
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features, chunks=(min(32, max(1, n)), *features.shape[1:]))
        written = file.create_dataset("coords", data=coords.astype(np.int64 if trident else np.int32))
        if trident:
            written.attrs.update(TRIDENT)
            file["features"].attrs.update({"name": "slide", "encoder": "uni_v1"})
