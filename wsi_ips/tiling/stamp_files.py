"""STAMP's files of patch features: where their patches lie, in µm. They are read and written.

STAMP (KatherLab/STAMP, ``stamp preprocess``) writes a file ``<extractor>/<slide>.h5`` per slide: datasets
``feats`` (N, C) and ``coords`` (N, 2), and attributes of the file's root. CLAM and TRIDENT count a slide's pixels;
STAMP counts µm from the slide's top-left corner:

- version 2.1 and later (``src/stamp/preprocessing/__init__.py`` at c54ce06): ``tile_size_um``, ``tile_size_px``,
  ``unit`` "um", ``feat_type`` "tile", ``extractor``, ``stamp_version``; ``coords`` are float32.
- version 2.0: ``tile_size`` in µm, and ``unit``.
- version 1: nothing of this; ``coords`` are whole pixels of 256/224 µm, and a patch has 224 of them.

One unit taken for the other is a silent error: every number stays plausible. So the step from patch to patch is
compared with the patch's size (:func:`take_stamp_places`), and where the slide is known, its size in µm with the
corners. Texts are not read: HDF5 crashes over those of variable length when they are damaged.

What STAMP's layout cannot hold (level-0 pixels, grid ids, shares of tissue, the slide's size) lies in our own
files in a group ``wsi_ips``, in TRIDENT's layout, so that they come back exactly.

Shape suffix: N patches.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import CoordsError
from wsi_ips.slides.base import SlideInfo
from wsi_ips.storage.hdf5 import NEVER_OPEN, check_stored, plain_dataset, small_numbers
from wsi_ips.tiling.grid import MOST_PATCHES, PatchCoords
from wsi_ips.units import Mpp

FEATS = "feats"
"""Name of the dataset of features, (N, C)."""

OURS = "wsi_ips"
"""Name of the group with the coordinates as this package has them."""

NUMBERS = ("tile_size_um", "tile_size_px", "tile_size")
"""The numeric attributes that say how large a patch is."""

OLD_PX, OLD_UM = 224, 256.0
"""Side of a patch of version 1, in its own pixels and in µm."""

MOST_UM = 300_000.0
"""The largest coordinate that is believed, 30 cm in µm: no slide is that large."""

LEAST_STEP, MOST_STEP = 0.97, 1.5
"""How many sides of a patch the smallest step from patch to patch has to be.

STAMP's patches lie side by side, so it is 1, or up to a pixel more. Pixels of a 20x or 40x scan in place of µm
make it 2 or 4, and version 1's pixels make it 0.875.
"""

FEW = 16
"""So few patches need not have neighbours: their step says nothing about its unit."""

LARGEST_BLOCK_BYTES = 2**28
"""The largest HDF5 chunk that is read. HDF5 unpacks a chunk whole."""

EXTRACT_AGAIN = "extract the slide's features again with STAMP"
"""What to do about a file that is broken."""


@dataclass(frozen=True, slots=True, eq=False)
class StampPlaces:
    """Where the patches of a slide lie.

    ``um_xy_N2``, (N, 2) float64, are top-left corners (x, y) in µm from the slide's top-left corner, ``um_patch``
    is the side of a patch in µm, ``patch_px`` its pixels as the encoder saw it, or None where the file does not
    say them.
    """

    um_xy_N2: NDArray[np.float64]
    um_patch: float
    patch_px: int | None

    def __len__(self) -> int:
        return len(self.um_xy_N2)

    def um_centres(self, rows_n: NDArray[np.int64]) -> NDArray[np.float64]:
        """Centres (x, y) of the patches in these rows of the file, (n, 2) float64 in µm."""
        centres_n2: NDArray[np.float64] = self.um_xy_N2[rows_n] + self.um_patch / 2
        return centres_n2

    def on_slide(self, path: Path, info: SlideInfo) -> PatchCoords:
        """The patches in level-0 pixels of the slide ``info``, which are numbered in file order.

        Corners are rounded, as STAMP rounds them for its heatmaps. Raises :class:`CoordsError` where a patch
        begins outside the slide, and :class:`MissingResolution` for a slide without a resolution.
        """
        slide_mpp = info.known_mpp()
        l0_xy_N2 = np.rint(self.um_xy_N2 / slide_mpp).astype(np.int64)
        if (outside_N := (l0_xy_N2 >= np.array(info.l0_size)).any(axis=1)).any():
            width, height = (side * slide_mpp for side in info.l0_size)
            x, y = self.um_xy_N2[int(outside_N.argmax())]
            raise CoordsError(
                path,
                f"has {outside_N.sum()} of {len(self)} patches that begin outside the slide of {width:.0f}x"
                f"{height:.0f} µm ({slide_mpp:g} µm per pixel), the first at ({x:.0f}, {y:.0f}) µm",
                "give the slide that they are of, and its resolution; or the coordinates are pixels, not µm",
            )
        patch_px = self.patch_px or round(self.um_patch / slide_mpp)
        return PatchCoords(
            slide_id=path.stem,
            l0_size=info.l0_size,
            slide_mpp=slide_mpp,
            patch_px=patch_px,
            patch_mpp=Mpp(self.um_patch / patch_px),
            overlap_px=0,
            l0_patch=self.um_patch / slide_mpp,
            g_size=(len(self), 1),
            ids_N=np.arange(len(self), dtype=np.int64),
            l0_xy_N2=l0_xy_N2,
            tissue_N=np.full(len(self), np.nan, np.float32),
        )


def is_stamp(file: Any) -> bool:
    """Whether an open HDF5 file has STAMP's names of datasets."""
    return FEATS in file and "features" not in file


def our_group(file: Any, path: Path) -> Any | None:
    """The group of a file that this package wrote, or None in a file of STAMP's own.

    Raises :class:`CoordsError` for a group that lies in another file.
    """
    if OURS not in file:
        return None
    if not isinstance(file.get(OURS, getlink=True), h5py.HardLink) or not isinstance(file[OURS], h5py.Group):
        raise CoordsError(path, f"keeps {OURS} in another file", NEVER_OPEN)
    return file[OURS]


def take_stamp_places(file: Any, path: Path) -> StampPlaces:
    """Where the patches of an open file of STAMP's lie.

    Raises :class:`CoordsError` for a file without coordinates (STAMP's features of whole slides and patients have
    none), without a unit, or whose coordinates are not in the unit of its patches' size.
    """
    if "coords" not in file:
        raise CoordsError(
            path,
            "has no coords, so it holds a feature of a whole slide or patient, not of patches",
            "give the folder that stamp preprocess wrote",
        )
    xy_N2 = _corners(plain_dataset(file, "coords", path, error=CoordsError), path)
    stated = small_numbers(file.attrs, NUMBERS)
    px = _side(stated, "tile_size_px", path)
    um, side = _side(stated, "tile_size_um", path), _side(stated, "tile_size", path)
    if um is None and "unit" in file.attrs:
        um = side
    if um is not None:
        places = StampPlaces(xy_N2, um, None if px is None else round(px))
    elif abs((side or smallest_step(xy_N2)) - OLD_PX) <= 0.5:
        places = StampPlaces(xy_N2 * (OLD_UM / OLD_PX), OLD_UM, OLD_PX)
    else:
        raise CoordsError(
            path,
            "does not say how large its patches are, or in which unit (no tile_size_um)",
            EXTRACT_AGAIN,
        )
    if OURS not in file:  # ours may overlap, and have coordinates beside them to be compared with
        _check_unit(places, path)
    return places


def put_stamp(file: Any, coords: PatchCoords, *, encoder: str) -> Any:
    """Write where patches lie as STAMP does, and return the group for the coordinates in level-0 pixels.

    ``coords`` are float32 in µm. ``stamp_version`` is left out: it is not STAMP that wrote the file.
    """
    um_xy_N2 = coords.l0_xy_N2 * float(coords.slide_mpp)
    file.create_dataset("coords", data=um_xy_N2.astype(np.float32))
    file.attrs.update(
        {
            "extractor": encoder,
            "unit": "um",
            "tile_size_um": coords.patch_px * float(coords.patch_mpp),
            "tile_size_px": coords.patch_px,
            "feat_type": "tile",
        }
    )
    return file.create_group(OURS)


def check_same_places(places: StampPlaces, coords: PatchCoords, path: Path) -> None:
    """Raise :class:`CoordsError` unless our own coordinates in a file are where STAMP's in the same file are."""
    um_xy_N2 = coords.l0_xy_N2 * float(coords.slide_mpp)
    # float32 has 7 digits.
    if um_xy_N2.shape != places.um_xy_N2.shape or not np.allclose(
        um_xy_N2, places.um_xy_N2, rtol=1e-5, atol=0.01
    ):
        raise CoordsError(
            path, f"has coords that are not those of its group {OURS}", "store the features again"
        )


def smallest_step(xy_N2: NDArray[np.float64]) -> float:
    """The smallest distance between two columns or two rows of patches; infinite where there is one of each."""
    steps = [np.diff(np.unique(xy_N2[:, axis])) for axis in (0, 1)]
    # What differs by no more than float32 does is the same column.
    least = max(1e-3, float(np.abs(xy_N2).max(initial=0)) * 1e-6)
    together = np.concatenate([step[step > least] for step in steps])
    return float(together.min(initial=np.inf))


def _corners(dataset: Any, path: Path) -> NDArray[np.float64]:
    if dataset.ndim != 2 or dataset.shape[1] != 2 or dataset.dtype.kind not in "fiu":
        raise CoordsError(
            path, f"coords are {dataset.dtype} of shape {dataset.shape}", "expected numbers (N, 2)"
        )
    blocks = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    if len(dataset) > MOST_PATCHES or blocks > LARGEST_BLOCK_BYTES:
        raise CoordsError(path, f"claims coords of shape {dataset.shape}", EXTRACT_AGAIN)
    check_stored(dataset, path, error=CoordsError, fix=EXTRACT_AGAIN)
    xy_N2: NDArray[np.float64] = dataset[:].astype(np.float64)
    if not np.isfinite(xy_N2).all() or xy_N2.min(initial=0) < 0 or xy_N2.max(initial=0) > MOST_UM:
        raise CoordsError(
            path, f"has coords that are not within 0 to {MOST_UM:.0f} µm, as on any slide", EXTRACT_AGAIN
        )
    return xy_N2


def _side(stated: dict[str, Any], name: str, path: Path) -> float | None:
    """A side of a patch that the file states, or None. Raises :class:`CoordsError` for one that cannot be."""
    if name not in stated:
        return None
    try:
        side = float(stated[name])
    except (TypeError, ValueError):
        side = math.nan
    if not 1 <= side <= MOST_UM:
        raise CoordsError(path, f"states {name} {stated[name]}, which cannot be", EXTRACT_AGAIN)
    return side


def _check_unit(places: StampPlaces, path: Path) -> None:
    """Raise :class:`CoordsError` where the step from patch to patch does not fit the size of a patch."""
    step = smallest_step(places.um_xy_N2)
    if len(places) < FEW or not math.isfinite(step):
        return
    if not LEAST_STEP <= step / places.um_patch <= MOST_STEP:
        raise CoordsError(
            path,
            f"says that a patch is {places.um_patch:g} µm wide, but the nearest two lie {step:g} apart, and "
            "STAMP's lie side by side: its coords are not in µm",
            "write coords in µm from the slide's corner, as stamp preprocess does",
        )
