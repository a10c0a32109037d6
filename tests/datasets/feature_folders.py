"""Feature files as CLAM, TRIDENT and STAMP write them."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
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


def write_stamp(
    path: Path, features: NDArray[Any], um_xy_N2: NDArray[Any], *, um_patch: float = 256.0, patch_px: int = 224,
    version: str = "2.5.0",
) -> None:  # fmt: skip
    """Write features of patches as ``stamp preprocess`` of this version of STAMP does.

    ``um_xy_N2`` are corners in µm. Version 2 and later write these; version 1 writes pixels of 256/224 µm.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["feats"] = features.astype(np.float16)
        file.attrs["extractor"] = "STAMP-extract-1.1.0_ctranspath" if version < "2" else "ctranspath"
        if version < "2":
            file["coords"] = np.rint(um_xy_N2 * (224 / 256)).astype(np.int64)
            file["augmented"] = np.zeros(len(features), bool)
            return
        file["coords"] = um_xy_N2.astype(np.float32)
        file.attrs.update({"stamp_version": version, "unit": "um"})
        if version == "2.0.0":
            file.attrs["tile_size"] = um_patch
        else:
            file.attrs.update({"tile_size_um": um_patch, "tile_size_px": patch_px, "code_hash": "a1b2c3d4",
                               "feat_type": "tile"})  # fmt: skip


def write_recipe(path: Path, *, width: int, positions: str) -> None:
    """A short training of a small model on features of this width."""
    attention = {"heads": 2, "key_dim": 4, "value_dim": 4, "inner_dim": 16, "positions": positions}
    encoder = {"name": "features", "features": width, "project": 8}
    recipe = {
        "selection": {"m": 8, "i": 8},
        "model": {"encoder": encoder, "attention": attention},
        "training": {"epochs": 1, "warmup_epochs": 0},
    }
    path.write_text(yaml.safe_dump(recipe))
