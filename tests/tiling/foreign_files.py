"""Coordinates as CLAM, TRIDENT and AtlasPatch write them: from their formats, with nothing of ours."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

Corners = NDArray[np.integer[Any]]
Attributes = dict[str, Any]


def write_clam(
    path: Path, corners: Corners, *, patch_size: int, level: int, downsample: float, level_size: tuple[int, int],
    **more: Any,
) -> Path:  # fmt: skip
    """``patches/<id>.h5`` of create_patches_fp.py."""
    attributes = {
        "patch_size": patch_size, "patch_level": level, "downsample": (downsample, downsample),
        "downsampled_level_dim": level_size, "level_dim": level_size, "name": path.stem,
        "save_path": "somewhere/patches", **more,
    }  # fmt: skip
    return _write(path, corners.astype(np.int64), attributes)


def write_trident(
    path: Path, corners: Corners, *, patch_size: int, target: float, level0: float, size: tuple[int, int],
    overlap: int = 0, **more: Any,
) -> Path:  # fmt: skip
    """``patches/<id>_patches.h5``."""
    attributes = {
        "patch_size": patch_size, "patch_size_level0": int(patch_size * level0 // target),
        "level0_magnification": level0, "target_magnification": target, "overlap": overlap,
        "name": path.stem.removesuffix("_patches"), "savetodir": "somewhere", "level0_width": size[0],
        "level0_height": size[1], **more,
    }  # fmt: skip
    return _write(path, corners.astype(np.int64), attributes)


def write_atlaspatch(
    path: Path, corners: Corners, *, patch_size: int, target: int, level0: int, size: tuple[int, int],
    level: int = 0, read: int | None = None, **more: Any,
) -> Path:  # fmt: skip
    """``patches/<id>.h5``: five columns, attributes at the root."""
    path.parent.mkdir(parents=True, exist_ok=True)
    side = patch_size * level0 // target
    rows = np.tile(np.array([0, 0, read or side, read or side, level], np.int32), (len(corners), 1))
    rows[:, :2] = corners
    with h5py.File(path, "w") as file:
        file.create_dataset("coords", data=rows, maxshape=(None, 5), chunks=(8192, 5))
        file.create_dataset("passports", data=np.full(len(corners), b"p", "S160"))
        file.attrs.update({
            "patch_size": patch_size, "patch_size_level0": side, "level0_magnification": level0,
            "target_magnification": target, "overlap": 0, "level0_width": size[0], "level0_height": size[1],
            "wsi_path": "somewhere/slide.svs", "passport_version": 2, "num_patches": len(corners), **more,
        })  # fmt: skip
    return path


def _write(path: Path, corners: Corners, attributes: Attributes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("coords", data=corners, maxshape=(None, 2), chunks=(1, 2))
        dataset.attrs.update(attributes)
    return path
