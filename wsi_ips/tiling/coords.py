"""What stored patch coordinates were made from, so that the same are not made twice.

What the coordinates of CLAM, TRIDENT and AtlasPatch say of a slide's patches.

All give top-left corners in level-0 pixels. How large a patch is they say each in their own way:

- CLAM: ``patch_size`` pixels of the slide's level ``patch_level`` (times ``custom_downsample``, where it is
  there). What it reads for its encoder is that many pixels of the level, so that is the footprint here; it lays
  out its own grid by the level's downsample without decimals, the same where that is whole.
- TRIDENT: ``patch_size`` pixels at ``target_magnification``, ``patch_size_level0`` level-0 pixels (decimals cut
  off) of a slide of ``level0_magnification``, ``level0_width`` x ``level0_height``.
- AtlasPatch (AtlasAnalyticsLab/AtlasPatch at 24f4d2d: README, services/storage.py, services/extraction.py): the
  same names as TRIDENT's, but at the file's root; ``coords`` are (N, 5) int32, x, y and how it read them (width,
  height, level).

A magnification says little of a resolution ("40x" scanners give 0.22 to 0.28 µm): where the slide is known, its
own µm per pixel count.

Patch coordinates as HDF5, in the layouts of CLAM and of TRIDENT.

Both keep a dataset ``coords`` (N, 2) int64 of level-0 top-left corners with attributes that say how large a
patch is. What their layouts cannot hold (fractions of a pixel, grid ids) goes beside it under names that start
with ``wsi_ips_``, so that our own files come back exactly and theirs are read as far as they tell
(:mod:`wsi_ips.tiling.coords`; AtlasPatch's too).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import TilingConfig
from wsi_ips.errors import CoordsError, one_line
from wsi_ips.slides.base import SlideInfo
from wsi_ips.slides.folder import files_of
from wsi_ips.storage.files import outside_cause
from wsi_ips.storage.fingerprint import files_fingerprint, versions
from wsi_ips.storage.hdf5 import (
    check_stored,
    fixed_text,
    opened_hdf5,
    plain_dataset,
    small_numbers,
    stated_text,
    whole_hdf5,
)
from wsi_ips.storage.location import Location
from wsi_ips.tiling.grid import MOST_PATCHES, PatchCoords
from wsi_ips.units import MAGNIFICATION_MPP, Mpp, Size


@dataclass(frozen=True, slots=True, kw_only=True)
class TiledFrom:
    """Everything that decides a slide's patches. It names no path, so that files may be moved and renamed."""

    slide: str
    """Fingerprint of the slide's files; empty where it cannot be had (a URL, a disk that is gone)."""
    mpp_given: float | None
    """µm per pixel that the user gave; None: the file's own were believed."""
    outlines: str
    """Fingerprint of the tissue outlines that the user gave; empty where our own segmentation finds tissue."""
    tiling: str
    """The tiling's settings as JSON; a tissue model counts by its contents."""
    version: str
    """This package's version: the segmentation of another version may find other tissue."""

    @classmethod
    def now(
        cls, slide: Location, *, mpp: Mpp | None, tiling: TilingConfig, outlines: Path | None = None
    ) -> Self:
        """What coordinates would be made from if they were made now."""
        settings = tiling.model_dump(mode="json", exclude={"tissue": {"model": {"file"}}})
        return cls(
            slide=files_fingerprint(files_of(slide)),
            mpp_given=mpp,
            # Outlines that cannot be read are no outlines that were read before.
            outlines="" if outlines is None else files_fingerprint([outlines]) or "unreadable",
            tiling=json.dumps(settings, sort_keys=True),
            version=versions()["wsi_ips"],
        )

    def is_same(self, now: Self) -> bool:
        """Whether both are known to be the same."""
        return bool(self.slide) and self == now

    def may_be_same(self, now: Self) -> bool:
        """Whether nothing is known that tells them apart: the slide's fingerprint may be missing."""
        return self.is_same(now) or (not now.slide and replace(self, slide="") == now)

    def to_json(self) -> str:
        """One line, always the same for the same content."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """What :meth:`to_json` wrote; None for any other text."""
        try:
            held = json.loads(text)
            return cls(
                slide=str(held["slide"]),
                mpp_given=None if held["mpp_given"] is None else float(held["mpp_given"]),
                outlines=str(held["outlines"]),
                tiling=str(held["tiling"]),
                version=str(held["version"]),
            )
        except (ValueError, TypeError, KeyError, RecursionError):
            return None


FOREIGN_ATTRIBUTES = (
    "patch_size",
    "patch_level",
    "downsample",
    "custom_downsample",
    "level_dim",
    "downsampled_level_dim",
    "patch_size_level0",
    "level0_magnification",
    "target_magnification",
    "level0_width",
    "level0_height",
    "overlap",
)
"""The numbers that are read, whoever wrote them."""

SAME_DOWNSAMPLE = 0.02
"""How far the downsample that a file names may be from the slide's: readers round level sizes differently."""


def foreign_coords(
    attributes: Mapping[str, Any], l0_xy_N2: NDArray[np.int64], path: Path, info: SlideInfo | None
) -> PatchCoords:
    """These corners with what the attributes say of them; patches are numbered in file order.

    ``info``: the slide, which CLAM's files need. Raises :class:`CoordsError` for a file of another slide, and
    ``KeyError``, ``TypeError`` or ``ValueError`` for attributes that are missing or broken.
    """
    patch_px = int(positive(attributes["patch_size"]))
    if "target_magnification" in attributes:
        target = positive(attributes["target_magnification"])
        nominal_mpp = MAGNIFICATION_MPP / positive(attributes["level0_magnification"])
        coarser = MAGNIFICATION_MPP / target / nominal_mpp
        l0_size = pair((attributes["level0_width"], attributes["level0_height"]))
        if info is not None:
            check_l0_size(l0_size, path, info)
        slide_mpp = (info and info.mpp) or Mpp(nominal_mpp)
        l0_patch = positive(attributes.get("patch_size_level0", patch_px * coarser))
    else:
        if info is None:
            raise CoordsError(
                path, "is a CLAM file, which does not say the slide's resolution", "name the slide"
            )
        l0_size, slide_mpp = info.l0_size, info.known_mpp()
        l0_patch = patch_px * _clam_downsample(attributes, path, info)
    return PatchCoords(
        slide_id=path.stem.removesuffix("_patches"),
        l0_size=l0_size,
        slide_mpp=slide_mpp,
        patch_px=patch_px,
        patch_mpp=Mpp(l0_patch * slide_mpp / patch_px),
        overlap_px=int(attributes.get("overlap", 0)),
        l0_patch=l0_patch,
        g_size=(len(l0_xy_N2), 1),
        ids_N=np.arange(len(l0_xy_N2), dtype=np.int64),
        l0_xy_N2=l0_xy_N2,
        tissue_N=np.full(len(l0_xy_N2), np.nan, np.float32),
    )


def check_l0_size(l0_size: Size, path: Path, info: SlideInfo) -> None:
    """Raises :class:`CoordsError` for the size of another slide."""
    if l0_size != info.l0_size:
        _refuse_other(path, info, f"a slide of {_by(l0_size)} px", f"is {_by(info.l0_size)}")


def _clam_downsample(attributes: Mapping[str, Any], path: Path, info: SlideInfo) -> float:
    """Level-0 pixels per pixel of the patches. Where the file describes its level, it must be the slide's."""
    number = int(attributes["patch_level"])
    if not 0 <= number < len(info.levels):
        raise ValueError(f"patch_level {number} is not a level of the slide")
    level = info.levels[number]
    for name in ("level_dim", "downsampled_level_dim"):
        if name in attributes and (size := pair(attributes[name])) != level.size:
            _refuse_other(
                path, info, f"a slide whose level {number} is {_by(size)} px", f"has {_by(level.size)}"
            )
    for stated in map(positive, np.ravel(attributes.get("downsample", level.downsample))):
        if abs(stated / level.downsample - 1) > SAME_DOWNSAMPLE:
            _refuse_other(
                path,
                info,
                f"a slide whose level {number} is {stated:g} times smaller",
                f"has {level.downsample:g}",
            )
    return level.downsample * positive(attributes.get("custom_downsample", 1))


def _refuse_other(path: Path, info: SlideInfo, theirs: str, ours: str) -> None:
    raise CoordsError(
        path, f"holds patches of {theirs}; {info.path} {ours}", "give the coordinates of this very file"
    )


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def positive(value: Any) -> float:
    """Raises ``TypeError`` or ``ValueError`` for anything else."""
    number = float(value)
    if not (np.isfinite(number) and number > 0):
        raise ValueError(f"{value!r} is not a positive number")
    return number


def pair(value: Any) -> tuple[int, int]:
    """Two positive whole numbers. Raises as :func:`positive`."""
    first, second = (int(positive(each)) for each in value)
    return first, second


Layout = Literal["clam", "trident"]

LARGEST_BLOCK_BYTES = 2**28
"""A file's own block (HDF5 chunk) is unpacked whole, however little of it is asked for."""
CHUNK_ROWS = 4096
SLIDE_ID = "wsi_ips_slide_id"
MADE_FROM = "wsi_ips_made_from"
OUR_ATTRIBUTES = tuple(
    f"wsi_ips_{name}"
    for name in ("patch_px", "patch_mpp", "overlap_px", "slide_mpp", "l0_patch", "l0_size", "g_size")
)
TILE_AGAIN = "write it again with wsi-ips tile"


def write_coords(
    path: Path,
    coords: PatchCoords,
    *,
    layout: Layout,
    info: SlideInfo,
    made_from: TiledFrom | None = None,
) -> None:
    """Write whole or not at all. CLAM's own reader and TRIDENT's open the file (their formats, 2024).

    The same coordinates give the same bytes. ``made_from`` is kept with them, for :func:`stored_tiled_from`.
    """
    with whole_hdf5(path) as file:
        put_coords(file, coords, layout=layout, info=info)
        if made_from is not None:
            file.attrs[MADE_FROM] = fixed_text(made_from.to_json())


def stored_tiled_from(path: Path) -> TiledFrom | None:
    """What the coordinates in ``path`` were made from; None where the file does not say, or cannot be read."""
    try:
        with opened_hdf5(path) as file:
            stated = stated_text(file.attrs, MADE_FROM)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError):
        return None
    return None if stated is None else TiledFrom.from_json(stated)


def put_coords(
    file: Any,
    coords: PatchCoords,
    *,
    layout: Layout,
    info: SlideInfo | None = None,
    dtype: type[np.integer[Any]] = np.int64,
) -> None:
    """Write the coordinates into an open HDF5 group. CLAM's layout needs the slide's levels: ``info``."""
    dataset = file.create_dataset(
        "coords",
        data=coords.l0_xy_N2.astype(dtype, copy=False),
        maxshape=(None, 2),
        chunks=(min(CHUNK_ROWS, max(1, len(coords))), 2),
    )
    if layout == "clam":
        assert info is not None
        attributes = _clam_attributes(coords, info)
    else:
        attributes = _trident_attributes(coords)
    dataset.attrs.update(attributes)
    dataset.attrs.update(
        {
            # Beside the others' own ``name``, a text that is not safe to read.
            SLIDE_ID: fixed_text(coords.slide_id),
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
    """Read our own files exactly, those of CLAM, TRIDENT and AtlasPatch as far as they tell.

    ``info`` is the slide that they should be of: it gives what a foreign file lacks (CLAM's says neither the
    slide's size nor its resolution), its resolution counts, not the file's, and a file of another slide is
    refused. Patches of foreign files are numbered in file order, in a grid of one row. Raises
    :class:`CoordsError`.
    """
    if not path.is_file():
        raise CoordsError(path, "does not exist", "check the path")
    try:
        with opened_hdf5(path) as file:
            return take_coords(file, path, info=info)
    # h5py has no error of its own: a damaged file shows as any of these.
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        if cause := outside_cause(error):
            raise CoordsError(path, cause.problem, cause.mend) from None
        raise CoordsError(path, "is not an HDF5 file that can be read", TILE_AGAIN) from None


def take_coords(file: Any, path: Path, *, info: SlideInfo | None = None) -> PatchCoords:
    """The coordinates in an open HDF5 group; ``path`` is for messages. As :func:`read_coords`.

    Nothing is allocated before sizes are known to be sane.
    """
    dataset = plain_dataset(file, "coords", path, error=CoordsError, mend="is it a coordinates file?")
    # AtlasPatch's have five columns, and their attributes at the root.
    columns = {2: dataset.attrs, 5: file.attrs}
    if dataset.ndim != 2 or dataset.shape[1] not in columns:
        raise CoordsError(path, "has no dataset coords of shape (N, 2)", "is it a coordinates file?")
    if dataset.dtype.kind not in "iu" or len(dataset) > MOST_PATCHES:
        raise CoordsError(path, f"coords are {dataset.dtype} of length {len(dataset)}", "expected integers")
    attributes = columns[dataset.shape[1]]
    try:
        if "wsi_ips_l0_patch" in attributes:
            return _ours(file, dataset, path, info)
        stated = small_numbers(attributes, FOREIGN_ATTRIBUTES)
        return foreign_coords(stated, _corners(dataset, path), path, info)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CoordsError(path, f"has broken attributes ({one_line(error, most=200)})", TILE_AGAIN) from None


def _corners(dataset: Any, path: Path) -> NDArray[np.int64]:
    """(N, 2) int64; x and y lead, whatever follows."""
    _check_block(dataset, path, "coords")
    l0_xy_N2: NDArray[np.int64] = dataset[:][:, :2].astype(np.int64)
    return l0_xy_N2


def _beside(file: Any, name: str, path: Path, n: int) -> Any:
    """What we keep beside the corners: (N,) numbers. Raises ``ValueError`` for another shape."""
    dataset = plain_dataset(file, name, path, error=CoordsError, mend=TILE_AGAIN)
    if dataset.shape != (n,) or dataset.dtype.kind not in "iuf":
        raise ValueError(f"{name} is {dataset.dtype} of shape {dataset.shape}")
    _check_block(dataset, path, name)
    return dataset[:]


def _check_block(dataset: Any, path: Path, name: str) -> None:
    if math.prod(dataset.chunks or ()) * dataset.dtype.itemsize > LARGEST_BLOCK_BYTES:
        raise CoordsError(path, f"{name} claims blocks of {dataset.chunks}", TILE_AGAIN)
    check_stored(dataset, path, error=CoordsError, mend=TILE_AGAIN)


def _ours(file: Any, dataset: Any, path: Path, info: SlideInfo | None) -> PatchCoords:
    attributes, l0_xy_N2 = small_numbers(dataset.attrs, OUR_ATTRIBUTES), _corners(dataset, path)
    coords = PatchCoords(
        slide_id=stated_text(dataset.attrs, SLIDE_ID) or path.stem.removesuffix("_patches"),
        l0_size=pair(attributes["wsi_ips_l0_size"]),
        slide_mpp=Mpp(positive(attributes["wsi_ips_slide_mpp"])),
        patch_px=int(positive(attributes["wsi_ips_patch_px"])),
        patch_mpp=Mpp(positive(attributes["wsi_ips_patch_mpp"])),
        overlap_px=int(attributes["wsi_ips_overlap_px"]),
        l0_patch=positive(attributes["wsi_ips_l0_patch"]),
        g_size=pair(attributes["wsi_ips_g_size"]),
        ids_N=_beside(file, "wsi_ips_patch_ids", path, len(l0_xy_N2)).astype(np.int64),
        l0_xy_N2=l0_xy_N2,
        tissue_N=_beside(file, "wsi_ips_tissue", path, len(l0_xy_N2)).astype(np.float32),
    )
    if info is None:
        return coords
    check_l0_size(coords.l0_size, path, info)
    slide_mpp = info.mpp or coords.slide_mpp
    return (
        coords
        if slide_mpp == coords.slide_mpp
        else replace(
            coords, slide_mpp=slide_mpp, patch_mpp=Mpp(coords.l0_patch * slide_mpp / coords.patch_px)
        )
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
