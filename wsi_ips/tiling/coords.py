"""Patch coordinates as HDF5, in the layouts of CLAM and of TRIDENT.

Both keep a dataset ``coords`` (N, 2) int64 of level-0 top-left corners with attributes that say how large a
patch is. What their layouts cannot hold (fractions of a pixel, grid ids) goes beside it under names that start
with ``wsi_ips_``, so that our own files come back exactly and theirs are read as far as they tell.
"""

from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from wsi_ips.errors import CoordsError
from wsi_ips.files import whole_file
from wsi_ips.slides.base import SlideInfo
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.units import MAGNIFICATION_MPP, Mpp

Layout = Literal["clam", "trident"]

MOST_PATCHES = 100_000_000
CHUNK_ROWS = 4096


def write_coords(path: Path, coords: PatchCoords, *, layout: Layout, info: SlideInfo) -> None:
    """Write whole or not at all. CLAM's own reader and TRIDENT's open the file (their formats, 2024)."""
    with whole_file(path) as partial, h5py.File(partial, "w") as file:
        put_coords(file, coords, layout=layout, info=info)


def put_coords(file: Any, coords: PatchCoords, *, layout: Layout, info: SlideInfo | None = None) -> None:
    """Write the coordinates into an open HDF5 group. CLAM's layout needs the slide's levels: ``info``."""
    dataset = file.create_dataset(
        "coords", data=coords.l0_xy_N2, maxshape=(None, 2), chunks=(min(CHUNK_ROWS, max(1, len(coords))), 2)
    )
    if layout == "clam":
        assert info is not None
        attributes = _clam_attributes(coords, info)
    else:
        attributes = _trident_attributes(coords)
    dataset.attrs.update(attributes)
    dataset.attrs.update(
        {
            "wsi_ips_patch_px": coords.patch_px,
            "wsi_ips_patch_mpp": coords.patch_mpp,
            "wsi_ips_overlap_px": coords.overlap_px,
            "wsi_ips_slide_mpp": coords.slide_mpp,
            "wsi_ips_l0_patch": coords.l0_patch,
            "wsi_ips_l0_size": np.array(coords.l0_size, np.int64),
            "wsi_ips_g_size": np.array(coords.g_size, np.int64),
        }
    )
    # Chunks are given their place in the file when they are flushed: else when the dataset happens to be freed,
    # which a profiler may delay, and the same coordinates are not the same bytes.
    dataset.flush()
    file.create_dataset("wsi_ips_patch_ids", data=coords.ids_N)
    file.create_dataset("wsi_ips_tissue", data=coords.tissue_N)


def read_coords(path: Path, *, info: SlideInfo | None = None) -> PatchCoords:
    """Read our own files exactly, CLAM's and TRIDENT's as far as they tell.

    ``info`` gives what a foreign file lacks: a CLAM file says neither the slide's size nor its resolution.
    Patches of foreign files are numbered in file order, in a grid of one row. Raises :class:`CoordsError`.
    """
    if not path.is_file():
        raise CoordsError(path, "does not exist", "check the path")
    try:
        with h5py.File(path, "r") as file:
            return take_coords(file, path, info=info)
    except OSError:
        raise CoordsError(path, "is not an HDF5 file", "write it again with wsi-ips tile") from None


def take_coords(file: Any, path: Path, *, info: SlideInfo | None = None) -> PatchCoords:
    """The coordinates in an open HDF5 group; ``path`` is for messages."""
    dataset = file.get("coords")
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 2 or dataset.shape[1] != 2:
        raise CoordsError(path, "has no dataset coords of shape (N, 2)", "is it a coordinates file?")
    if dataset.dtype.kind not in "iu" or len(dataset) > MOST_PATCHES:
        raise CoordsError(path, f"coords are {dataset.dtype} of length {len(dataset)}", "expected integers")
    attributes = dict(dataset.attrs)
    l0_xy_N2 = dataset[:].astype(np.int64)
    try:
        if "wsi_ips_l0_patch" in attributes:
            return _ours(file, attributes, l0_xy_N2, path)
        return _foreign(attributes, l0_xy_N2, path, info)
    except (KeyError, TypeError, ValueError) as error:
        raise CoordsError(
            path, f"has broken attributes ({error})", "write it again with wsi-ips tile"
        ) from None


def _ours(file: Any, attributes: dict[str, Any], l0_xy_N2: Any, path: Path) -> PatchCoords:
    ids_N, tissue_N = file["wsi_ips_patch_ids"][:], file["wsi_ips_tissue"][:]
    if not len(ids_N) == len(tissue_N) == len(l0_xy_N2):
        raise ValueError("lengths differ")
    return PatchCoords(
        slide_id=str(attributes.get("name", path.stem)),
        l0_size=_pair(attributes["wsi_ips_l0_size"]),
        slide_mpp=Mpp(_positive(attributes["wsi_ips_slide_mpp"])),
        patch_px=int(_positive(attributes["wsi_ips_patch_px"])),
        patch_mpp=Mpp(_positive(attributes["wsi_ips_patch_mpp"])),
        overlap_px=int(attributes["wsi_ips_overlap_px"]),
        l0_patch=_positive(attributes["wsi_ips_l0_patch"]),
        g_size=_pair(attributes["wsi_ips_g_size"]),
        ids_N=ids_N.astype(np.int64),
        l0_xy_N2=l0_xy_N2,
        tissue_N=tissue_N.astype(np.float32),
    )


def _foreign(attributes: dict[str, Any], l0_xy_N2: Any, path: Path, info: SlideInfo | None) -> PatchCoords:
    """TRIDENT's file has a target magnification; CLAM's has a level, whose downsample it may also name."""
    patch_px = int(_positive(attributes["patch_size"]))
    if "target_magnification" in attributes:
        target = _positive(attributes["target_magnification"])
        slide_mpp = MAGNIFICATION_MPP / _positive(attributes["level0_magnification"])
        patch_mpp = MAGNIFICATION_MPP / target
        l0_size = (int(attributes["level0_width"]), int(attributes["level0_height"]))
    else:
        if info is None:
            raise CoordsError(
                path, "is a CLAM file, which does not say the slide's resolution", "name the slide"
            )
        level = int(attributes["patch_level"])
        if not 0 <= level < len(info.levels):
            raise ValueError(f"patch_level {level} is not a level of the slide")
        slide_mpp = info.known_mpp()
        custom = _positive(attributes.get("custom_downsample", 1))
        patch_mpp = slide_mpp * info.levels[level].downsample * custom
        l0_size = info.l0_size
    return PatchCoords(
        slide_id=path.stem.removesuffix("_patches"),
        l0_size=l0_size,
        slide_mpp=Mpp(slide_mpp),
        patch_px=patch_px,
        patch_mpp=Mpp(patch_mpp),
        overlap_px=int(attributes.get("overlap", 0)),
        l0_patch=patch_px * patch_mpp / slide_mpp,
        g_size=(len(l0_xy_N2), 1),
        ids_N=np.arange(len(l0_xy_N2), dtype=np.int64),
        l0_xy_N2=l0_xy_N2,
        tissue_N=np.full(len(l0_xy_N2), np.nan, np.float32),
    )


def _clam_attributes(coords: PatchCoords, info: SlideInfo) -> dict[str, Any]:
    level = info.level_for(coords.patch_mpp / coords.slide_mpp)
    downsample = info.levels[level].downsample
    size = info.levels[level].size
    return {
        "patch_size": round(coords.l0_patch / downsample),
        "patch_level": level,
        "downsample": np.array([downsample, downsample]),
        "downsampled_level_dim": np.array(size, np.int64),
        "level_dim": np.array(size, np.int64),
        "name": coords.slide_id,
        "save_path": "patches",
    }


def _trident_attributes(coords: PatchCoords) -> dict[str, Any]:
    return {
        "patch_size": coords.patch_px,
        "patch_size_level0": round(coords.l0_patch),
        "level0_magnification": MAGNIFICATION_MPP / coords.slide_mpp,
        "target_magnification": MAGNIFICATION_MPP / coords.patch_mpp,
        "overlap": coords.overlap_px,
        "name": coords.slide_id,
        "savetodir": "patches",
        "level0_width": coords.l0_size[0],
        "level0_height": coords.l0_size[1],
    }


def _positive(value: Any) -> float:
    number = float(value)
    if not (np.isfinite(number) and number > 0):
        raise ValueError(f"{value!r} is not a positive number")
    return number


def _pair(value: Any) -> tuple[int, int]:
    first, second = (int(_positive(each)) for each in value)
    return first, second
