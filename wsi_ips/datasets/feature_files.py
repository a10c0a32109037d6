"""Patch features that CLAM or TRIDENT stored, one HDF5 file per slide, which are checked before they are used.

Start with :func:`find_features` and :func:`open_features`. CLAM's files have ``features`` (N, C) and ``coords``
(N, 2) without attributes, in ``h5_files/``. TRIDENT's have the same with the attributes of its coordinates, so
that the size and place of patches in µm are known too.

Shape suffixes: N patches of a slide, n some of them, C feature width.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import CoordsError, FeaturesError, one_line
from wsi_ips.storage.files import outside_cause
from wsi_ips.storage.hdf5 import check_stored, opened_hdf5, plain_dataset
from wsi_ips.tiling.coords import take_coords
from wsi_ips.tiling.grid import PatchCoords

MOST_PATCHES = 10_000_000
"""The most patches of one slide."""
LARGEST_WIDTH = 65_536
"""The widest features that are read."""
LARGEST_BLOCK_BYTES = 2**28
"""The largest HDF5 chunk that is read. HDF5 unpacks a chunk whole, however little of it is asked for."""
AGAIN = "extract the slide's features again"
"""What to do about a broken file."""


@dataclass(frozen=True, slots=True, eq=False)
class FeatureFile:
    """What a file of features holds, without the features themselves.

    ``width`` is C. ``l0_xy_N2``, (N, 2) int64, are top-left corners in level-0 pixels. ``ids_N``, (N,) int64, are
    raster indices if the file has them (``on_grid``), else 0, 1, ... in file order. ``coords`` is set if the file
    says how large its patches are, as TRIDENT's do; with None, only their corners are known.
    """

    path: Path
    width: int
    l0_xy_N2: NDArray[np.int64]
    ids_N: NDArray[np.int64]
    on_grid: bool
    coords: PatchCoords | None

    def __len__(self) -> int:
        return len(self.l0_xy_N2)


def find_features(folder: Path, slide_ids: Iterable[str]) -> dict[str, Path]:
    """{slide_id: its file}: ``<slide_id>.h5`` in the folder itself (TRIDENT) or in its ``h5_files`` (CLAM).

    Raises one :class:`FeaturesError` for all files that are missing.
    """
    if not folder.is_dir():
        raise FeaturesError(folder, "no such folder of features", "name the one that holds <slide_id>.h5")
    found: dict[str, Path] = {}
    missing: list[str] = []
    for slide_id in slide_ids:
        places = (folder / f"{slide_id}.h5", folder / "h5_files" / f"{slide_id}.h5")
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            missing.append(slide_id)
        else:
            found[slide_id] = path
    if missing:
        named = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise FeaturesError(
            folder,
            f"has no features of {len(missing)} of {len(missing) + len(found)} slides ({named})",
            "they are looked for as <slide_id>.h5 there and in h5_files/; extract them, or leave the slides out",
        )
    return found


def list_features(folder: Path) -> dict[str, Path]:
    """{slide_id: its file} for all features in a folder, in either layout, sorted by id.

    Raises :class:`FeaturesError` if there are none.
    """
    files = [*sorted((folder / "h5_files").glob("*.h5")), *sorted(folder.glob("*.h5"))]
    found = {path.stem: path for path in files if path.is_file() and not path.name.startswith(".")}
    if not found:
        raise FeaturesError(folder, "holds no features", "name the folder of <slide_id>.h5, or of h5_files/")
    return dict(sorted(found.items()))


def open_features(path: Path) -> FeatureFile:
    """Check a file of features of either layout, and read where its patches lie.

    No features are read, and nothing is allocated before types, shapes and sizes are known to be plausible. Raises
    :class:`FeaturesError` for a file that cannot be used.
    """
    try:
        with opened_hdf5(path) as file:
            return _checked(file, path)
    except CoordsError as error:
        raise FeaturesError(path, error.args[1], AGAIN) from None
    # h5py has no error of its own: a damaged file shows as any of these.
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        if cause := outside_cause(error):
            raise FeaturesError(path, cause.problem, cause.fix) from None
        raise FeaturesError(
            path, f"is not an HDF5 file that can be read ({one_line(error, most=200)})", AGAIN
        ) from None


def read_rows(file: Any, path: Path, rows_n: NDArray[np.int64]) -> NDArray[np.float32]:
    """Features (n, C) float32 of these rows of an open file, in the order given.

    Raises :class:`FeaturesError` for features that cannot be read or are not finite.
    """
    # HDF5 takes rows in rising order only, each once.
    rising, back = np.unique(rows_n, return_inverse=True)
    together = len(rising) and rising[-1] - rising[0] + 1 == len(rising)
    try:
        dataset = _plain(file, path, "features")
        features = dataset[rising[0] : rising[-1] + 1] if together else dataset[rising]
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        if cause := outside_cause(error):
            raise FeaturesError(path, cause.problem, cause.fix) from None
        raise FeaturesError(path, f"features cannot be read ({one_line(error, most=200)})", AGAIN) from None
    features_nC: NDArray[np.float32] = features.astype(np.float32, copy=False)[back]
    if not np.isfinite(features_nC).all():
        raise FeaturesError(path, "holds features that are not finite", AGAIN)
    return features_nC


def _checked(file: Any, path: Path) -> FeatureFile:
    for name in ("features", "coords"):
        if name not in file:
            raise FeaturesError(path, f"has no dataset {name}", "give a file of patch features")
        _plain(file, path, name)
    features, coords = file["features"], file["coords"]
    if features.ndim != 2 or features.dtype.kind != "f":
        raise FeaturesError(
            path,
            f"features are {features.dtype} of shape {features.shape}",
            "expected floats (N, C) of patches",
        )
    if coords.ndim != 2 or coords.shape[1] != 2 or coords.dtype.kind not in "iu":
        raise FeaturesError(
            path, f"coords are {coords.dtype} of shape {coords.shape}", "expected integers (N, 2)"
        )
    if len(features) != len(coords):
        raise FeaturesError(path, f"has {len(features)} features and {len(coords)} coords", AGAIN)
    if not 1 <= len(features) <= MOST_PATCHES or not 1 <= features.shape[1] <= LARGEST_WIDTH:
        raise FeaturesError(path, f"claims features of shape {features.shape}", AGAIN)
    for dataset in (features, coords):
        check_stored(dataset, path, error=FeaturesError, fix=AGAIN)
    width = int(features.shape[1])
    if "patch_size" not in coords.attrs:
        l0_xy_N2 = coords[:].astype(np.int64)
        return FeatureFile(path, width, l0_xy_N2, np.arange(len(l0_xy_N2)), on_grid=False, coords=None)
    return _with_geometry(file, path, width, coords.attrs)


def _with_geometry(file: Any, path: Path, width: int, attributes: Mapping[str, Any]) -> FeatureFile:
    ours = "wsi_ips_l0_patch" in attributes
    if not ours and "target_magnification" not in attributes:  # CLAM's: a level, of a slide that is not here
        l0_xy_N2 = file["coords"][:].astype(np.int64)
        return FeatureFile(path, width, l0_xy_N2, np.arange(len(l0_xy_N2)), on_grid=False, coords=None)
    if ours:
        for name in ("wsi_ips_patch_ids", "wsi_ips_tissue"):
            dataset = _plain(file, path, name)
            if dataset.shape != (len(file["coords"]),) or dataset.dtype.kind not in "iuf":
                raise FeaturesError(path, f"{name} is {dataset.dtype} of shape {dataset.shape}", AGAIN)
    coords = take_coords(file, path)
    if np.any(np.diff(coords.ids_N) <= 0):
        raise FeaturesError(path, "numbers its patches out of order", AGAIN)
    return FeatureFile(
        path, width, coords.l0_xy_N2, coords.ids_N, on_grid=ours and coords.lies_on_grid, coords=coords
    )


def _plain(file: Any, path: Path, name: str) -> Any:
    """A dataset that does not reach into other files and whose chunks are not too large."""
    dataset = plain_dataset(file, name, path, error=FeaturesError)
    if math.prod(dataset.chunks or ()) * dataset.dtype.itemsize > LARGEST_BLOCK_BYTES:
        raise FeaturesError(path, f"{name} claims blocks of {dataset.chunks}", AGAIN)
    return dataset
