"""Patch features that CLAM, TRIDENT or STAMP stored, an HDF5 file per slide, which are checked before use.

Start with :func:`find_features` and :func:`open_features`. CLAM's files have ``features`` (N, C) and ``coords``
(N, 2) without attributes, in ``h5_files/``. TRIDENT's have the same with the attributes of its coordinates, so
that the size and place of patches in µm are known too. STAMP's have ``feats`` (N, C) and ``coords`` in µm, but do
not say which pixels these are: a slide has to tell (:mod:`wsi_ips.tiling.stamp_files`).

Shape suffixes: N patches of a slide, n some of them, C feature width.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import CoordsError, FeaturesError, first_of, one_line
from wsi_ips.models.encoders.identity import EncoderIdentity, FeaturesOrigin
from wsi_ips.slides.base import SlideInfo
from wsi_ips.storage.files import outside_cause
from wsi_ips.storage.hdf5 import check_stored, opened_hdf5, plain_dataset, stated_text
from wsi_ips.tiling.coords import TILE_AGAIN, check_l0_size, keeps_ids, take_coords
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.patches import repeated_note
from wsi_ips.tiling.stamp_files import FEATS, OURS, StampPlaces, is_stamp, take_stamp_places

MOST_PATCHES = 10_000_000
"""The most patches of one slide."""
LARGEST_WIDTH = 65_536
"""The widest features that are read."""
LARGEST_BLOCK_BYTES = 2**28
"""The largest HDF5 chunk that is read. HDF5 unpacks a chunk whole, however little of it is asked for."""
MADE_BY_ENCODER = "wsi_ips_encoder"
"""The attribute that says which encoder made the features: an :class:`EncoderIdentity` as text."""
AGAIN = "extract the slide's features again"
"""What to do about a broken file."""


@dataclass(frozen=True, slots=True, eq=False)
class FeatureFile:
    """What a file of features holds, without the features themselves.

    ``width`` is C. ``l0_xy_N2``, (N, 2) int64, are top-left corners in level-0 pixels; -1 where the file does not
    say them (STAMP's). ``ids_N``, (N,) int64, are raster indices if the file has them (``on_grid``), else 0, 1, …
    in file order. ``coords`` is set if the file says how large its patches are, as TRIDENT's do; with None, only
    their corners are known. ``places`` are their corners in µm as STAMP's files state them, whether or not a slide
    has said in which pixels they lie. ``encoder`` is what made the features; None if the file does not say it, as
    those of other programs do not.
    """

    path: Path
    width: int
    l0_xy_N2: NDArray[np.int64]
    ids_N: NDArray[np.int64]
    on_grid: bool
    coords: PatchCoords | None
    places: StampPlaces | None = None
    encoder: EncoderIdentity | None = None

    def __len__(self) -> int:
        return len(self.l0_xy_N2)

    @property
    def origin(self) -> FeaturesOrigin:
        """What the features are of, as far as the file says it."""
        um_patch = None
        if self.places is not None:
            um_patch = self.places.um_patch
        elif self.coords is not None:
            um_patch = self.coords.patch_px * float(self.coords.patch_mpp)
        return FeaturesOrigin(self.encoder, um_patch)

    @property
    def repeated(self) -> str:
        """A note if several rows are of the same patch; empty if none are, or the file does not say where they
        lie."""
        if (self.l0_xy_N2 == -1).all():
            return ""
        return repeated_note(self.l0_xy_N2, file="features", done="counted")

    def check_origin(self, expected: FeaturesOrigin, *, whose: str) -> None:
        """Check that the features are of this encoder and of patches of this size, as far as both are known.

        Args:
            expected: What they should be of.
            whose: What is of that, for the message: "the checkpoint learned from features".

        Raises:
            FeaturesError: They are of another encoder, or of patches of another size.
        """
        if (differs := expected.difference(self.origin)) is not None:
            theirs, ours = differs
            raise FeaturesError(
                self.path,
                f"holds features of {theirs}, and {whose} of {ours}",
                "give features of one and the same encoder, stored with the same settings and weights, of patches "
                "of the same size in µm",
            )


def find_features(folder: Path, slide_ids: Iterable[str]) -> dict[str, Path]:
    """{slide_id: its file}, of the slides that are asked for.

    A file is ``<slide_id>.h5`` in the folder itself (TRIDENT) or in its ``h5_files`` (CLAM), or in any folder
    below (STAMP keeps the folders of the slides).

    Raises one :class:`FeaturesError` for all files that are missing, and one for a slide with two files.
    """
    if not folder.is_dir():
        raise FeaturesError(folder, "no such folder of features", "name the one that holds <slide_id>.h5")
    found: dict[str, Path] = {}
    missing: list[str] = []
    below: dict[str, Path] | None = None
    for slide_id in slide_ids:
        places = (folder / f"{slide_id}.h5", folder / "h5_files" / f"{slide_id}.h5")
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            if below is None:
                below = _features_below(folder)
            path = below.get(slide_id)
        if path is None:
            missing.append(slide_id)
        else:
            found[slide_id] = path
    if missing:
        named = first_of(missing, 5)
        raise FeaturesError(
            folder,
            f"has no features of {len(missing)} of {len(missing) + len(found)} slides ({named})",
            "they are looked for as <slide_id>.h5 there and below; extract them, or leave the slides out",
        )
    return found


def list_features(folder: Path) -> dict[str, Path]:
    """{slide_id: its file} for all features in a folder, in any layout, sorted by id.

    Folders below are searched only where the folder itself and its ``h5_files`` hold none. Raises
    :class:`FeaturesError` if there are none, or two of a slide.
    """
    files = [*sorted((folder / "h5_files").glob("*.h5")), *sorted(folder.glob("*.h5"))]
    found = {path.stem: path for path in files if path.is_file() and not path.name.startswith(".")}
    if not found:
        found = _features_below(folder)
    if not found:
        raise FeaturesError(folder, "holds no features", "name the folder of <slide_id>.h5, or of h5_files/")
    return dict(sorted(found.items()))


def _features_below(folder: Path) -> dict[str, Path]:
    """{slide_id: its file} for files in folders below, except files of coordinates (``patches``) and hidden ones.

    Raises :class:`FeaturesError` for two files of a name, as two encoders' folders have them.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.h5")):
        parts = path.relative_to(folder).parts
        if "patches" in parts or any(part.startswith(".") for part in parts) or not path.is_file():
            continue
        if path.stem in found:
            raise FeaturesError(
                folder,
                f"holds two files of features of {path.stem}: {found[path.stem]} and {path}",
                "name the folder of one encoder, or give the slides different names",
            )
        found[path.stem] = path
    return found


def open_features(path: Path, *, info: SlideInfo | None = None) -> FeatureFile:
    """Check a file of features of any layout, and read where its patches lie.

    ``info`` is the slide that the features are of. STAMP's files do not say in which pixels their patches lie; the
    slide does. All other files are read as without it, but refused if they state another size of their slide.

    No features are read, and nothing is allocated before types, shapes and sizes are known to be plausible. Raises
    :class:`FeaturesError` for a file that cannot be used.
    """
    try:
        with opened_hdf5(path) as file:
            encoder = EncoderIdentity.from_text(stated_text(file.attrs, MADE_BY_ENCODER))
            return replace(_checked(file, path, info), encoder=encoder)
    except CoordsError as error:
        fix = AGAIN if error.args[2] == TILE_AGAIN else error.args[2]
        raise FeaturesError(path, error.args[1], fix) from None
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
        dataset = _plain(file, path, name_of_features(file))
        features = dataset[rising[0] : rising[-1] + 1] if together else dataset[rising]
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        if cause := outside_cause(error):
            raise FeaturesError(path, cause.problem, cause.fix) from None
        raise FeaturesError(path, f"features cannot be read ({one_line(error, most=200)})", AGAIN) from None
    features_nC: NDArray[np.float32] = features.astype(np.float32, copy=False)[back]
    if not np.isfinite(features_nC).all():
        raise FeaturesError(path, "holds features that are not finite", AGAIN)
    return features_nC


def name_of_features(file: Any) -> str:
    """The name of the dataset of features in an open file: ``feats`` in STAMP's layout, else ``features``."""
    return FEATS if is_stamp(file) else "features"


def _checked(file: Any, path: Path, info: SlideInfo | None) -> FeatureFile:
    if is_stamp(file):
        return _of_stamp(file, path, info)
    for name in ("features", "coords"):
        if name not in file:
            raise FeaturesError(path, f"has no dataset {name}", "give a file of patch features")
        _plain(file, path, name)
    coords = file["coords"]
    if coords.ndim != 2 or coords.shape[1] != 2 or coords.dtype.kind not in "iu":
        raise FeaturesError(
            path, f"coords are {coords.dtype} of shape {coords.shape}", "expected integers (N, 2)"
        )
    width = _width(file["features"], path, n_coords=len(coords))
    check_stored(coords, path, error=FeaturesError, fix=AGAIN)
    if "patch_size" not in coords.attrs:
        return _of_corners(file, path, width)
    return _with_geometry(file, path, width, coords.attrs, info)


def _width(features: Any, path: Path, *, n_coords: int) -> int:
    """C, after a check of the dataset of features."""
    if features.ndim != 2 or features.dtype.kind != "f":
        raise FeaturesError(
            path,
            f"features are {features.dtype} of shape {features.shape}",
            "expected floats (N, C) of patches",
        )
    if len(features) != n_coords:
        raise FeaturesError(path, f"has {len(features)} features and {n_coords} coords", AGAIN)
    if not 1 <= len(features) <= MOST_PATCHES or not 1 <= features.shape[1] <= LARGEST_WIDTH:
        raise FeaturesError(path, f"claims features of shape {features.shape}", AGAIN)
    check_stored(features, path, error=FeaturesError, fix=AGAIN)
    return int(features.shape[1])


def _of_corners(file: Any, path: Path, width: int) -> FeatureFile:
    """A file that does not say how large its patches are."""
    l0_xy_N2 = file["coords"][:].astype(np.int64)
    return FeatureFile(path, width, l0_xy_N2, np.arange(len(l0_xy_N2)), on_grid=False, coords=None)


def _of_stamp(file: Any, path: Path, info: SlideInfo | None) -> FeatureFile:
    places, features = take_stamp_places(file, path), _plain(file, path, FEATS)
    width = _width(features, path, n_coords=len(places))
    if OURS in file:
        coords = take_coords(file, path)
        if info is not None:
            check_l0_size(coords.l0_size, path, info)
        return _placed(path, width, coords, on_grid=coords.lies_on_grid)
    on_slide = None if info is None else places.on_slide(path, info)
    l0_xy_N2 = np.full((len(places), 2), -1, np.int64) if on_slide is None else on_slide.l0_xy_N2
    return FeatureFile(
        path, width, l0_xy_N2, np.arange(len(places)), on_grid=False, coords=on_slide, places=places
    )


def _with_geometry(
    file: Any, path: Path, width: int, attributes: Mapping[str, Any], info: SlideInfo | None
) -> FeatureFile:
    ours = "wsi_ips_l0_patch" in attributes
    if not ours and "target_magnification" not in attributes:  # CLAM's: a level, of a slide that is not here
        return _of_corners(file, path, width)
    if ours and keeps_ids(file):
        for name in ("wsi_ips_patch_ids", "wsi_ips_tissue"):
            dataset = _plain(file, path, name)
            if dataset.shape != (len(file["coords"]),) or dataset.dtype.kind not in "iuf":
                raise FeaturesError(path, f"{name} is {dataset.dtype} of shape {dataset.shape}", AGAIN)
    coords = take_coords(file, path)
    if info is not None:
        check_l0_size(coords.l0_size, path, info)
    return _placed(path, width, coords, on_grid=ours and coords.lies_on_grid)


def _placed(path: Path, width: int, coords: PatchCoords, *, on_grid: bool) -> FeatureFile:
    """A file that says where its patches lie and how large they are."""
    if np.any(np.diff(coords.ids_N) <= 0):
        raise FeaturesError(path, "numbers its patches out of order", AGAIN)
    return FeatureFile(path, width, coords.l0_xy_N2, coords.ids_N, on_grid=on_grid, coords=coords)


def _plain(file: Any, path: Path, name: str) -> Any:
    """A dataset that does not reach into other files and whose chunks are not too large."""
    dataset = plain_dataset(file, name, path, error=FeaturesError)
    if math.prod(dataset.chunks or ()) * dataset.dtype.itemsize > LARGEST_BLOCK_BYTES:
        raise FeaturesError(path, f"{name} claims blocks of {dataset.chunks}", AGAIN)
    return dataset
