"""Patch coordinates as HDF5 files in the layout of CLAM or TRIDENT; AtlasPatch's and STAMP's are read as well.

Start with :func:`write_coords` and :func:`read_coords`. A file has a dataset ``coords`` of top-left corners in
level-0 pixels and attributes that say how large a patch is. What those layouts cannot hold (fractions of a pixel,
grid ids, shares of tissue) is stored beside it under names that begin with ``wsi_ips_``, so that our own files
come back exactly. :class:`TiledFrom` records what the coordinates were made from, so that the same ones are not
made twice.

How the other programs state a patch's size:

- CLAM: ``patch_size`` pixels of the slide's level ``patch_level`` (times ``custom_downsample``, where present).
  CLAM reads that many pixels of the level for its encoder, so that is the footprint here. Its own grid is laid out
  by the level's downsample without decimals, which is the same where the downsample is whole.
- TRIDENT: ``patch_size`` pixels at ``target_magnification``, which cover ``patch_size_level0`` level-0 pixels
  (decimals cut off) of a slide of ``level0_magnification``, ``level0_width`` x ``level0_height`` pixels.
- AtlasPatch (AtlasAnalyticsLab/AtlasPatch at 24f4d2d: README, services/storage.py, services/extraction.py):
  TRIDENT's attributes, but at the file's root; ``coords`` are (N, 5) int32: x, y, and the width, height and level
  with which the patch was read.
- STAMP: µm, in a file of features (:mod:`wsi_ips.tiling.stamp_files`).

A magnification states a resolution only roughly ("40x" scanners give 0.22 to 0.28 µm per pixel). Where the slide
itself is known, its own µm per pixel are used.

Shape suffix: N patches.
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
from wsi_ips.errors import CoordsError, harmless, one_line
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
from wsi_ips.storage.location import Location, Url
from wsi_ips.tiling.grid import MOST_PATCHES, PatchCoords
from wsi_ips.tiling.stamp_files import check_same_places, is_stamp, our_group, take_stamp_places
from wsi_ips.units import MAGNIFICATION_MPP, Mpp, Size

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
"""Names of the numeric attributes that are read from files of CLAM, TRIDENT and AtlasPatch."""

SAME_DOWNSAMPLE = 0.02
"""Relative difference that is allowed between the downsample in a file and the slide's: readers round level sizes
differently.
"""

Layout = Literal["clam", "trident"]
"""Whose HDF5 layout a file of coordinates has."""

LARGEST_BLOCK_BYTES = 2**28
"""The largest HDF5 chunk that is read. HDF5 unpacks a chunk whole, however little of it is asked for."""

CHUNK_ROWS = 4096
"""Rows per HDF5 chunk of the files that are written here."""

SLIDE_ID = "wsi_ips_slide_id"
"""Attribute with the slide's id."""

NOTE = "wsi_ips_note"
"""Attribute with what a user has to know of how the patches were found, where there is something."""

MADE_FROM = "wsi_ips_made_from"
"""Attribute of the file's root with what its coordinates were made from, in the form of
:meth:`TiledFrom.to_json`.
"""

OUR_ATTRIBUTES = tuple(
    f"wsi_ips_{name}"
    for name in ("patch_px", "patch_mpp", "overlap_px", "slide_mpp", "l0_patch", "l0_size", "g_size")
)
"""Names of the numeric attributes that only our own files have."""

TILE_AGAIN = "write it again with wsi-ips tile"
"""What to do about a broken file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TiledFrom:
    """Everything that decides which patches a slide gets.

    It names no path, so that files may be moved and renamed.
    """

    slide: str
    """Fingerprint of the slide's files, at a URL too; empty where they cannot be read (a disk that is gone, a
    folder at a URL)."""
    mpp_given: float | None
    """µm per pixel that the user gave, or None where the slide's own resolution was used."""
    outlines: str
    """Fingerprint of the tissue outlines that the user gave; empty where our own segmentation finds tissue."""
    tiling: str
    """The tiling settings as JSON. A tissue model is represented by the checksum of its file, not by its path."""
    version: str
    """Version of this package: the tissue segmentation of another version may find other tissue."""

    @classmethod
    def now(
        cls, slide: Location, *, mpp: Mpp | None, tiling: TilingConfig, outlines: Path | None = None
    ) -> Self:
        """What coordinates of this slide would be made from if they were made now.

        ``mpp`` is the resolution that the user gave in µm per pixel, if any. ``outlines`` is the file of tissue
        outlines that replaces our own segmentation, if any.
        """
        return cls(
            slide=slide_fingerprint(slide),
            mpp_given=mpp,
            # Outlines that cannot be read are no outlines that were read before.
            outlines="" if outlines is None else files_fingerprint([outlines]) or "unreadable",
            tiling=settings_in_words(tiling),
            version=versions()["wsi_ips"],
        )

    def is_same(self, now: Self) -> bool:
        """Whether both are known to be the same. False where the slide's fingerprint is missing."""
        return bool(self.slide) and self == now

    def may_be_same(self, now: Self) -> bool:
        """Whether nothing is known that tells the two apart.

        This is also True where the slide cannot be read ``now``, if everything else agrees.
        """
        return self.is_same(now) or (not now.slide and replace(self, slide="") == now)

    def is_of_another(self, slide: Location) -> bool:
        """Whether the file of the slide is another one now. A slide at a URL is not asked for again."""
        now = slide_fingerprint(slide) if self.slide and isinstance(slide, Path) else ""
        return bool(now) and now != self.slide

    def to_json(self) -> str:
        """One line of JSON, always the same for the same content. :meth:`from_json` reads it."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """Read the text that :meth:`to_json` wrote. Returns None for any other text."""
        try:
            held = json.loads(text)
            return cls(
                slide=str(held["slide"]),
                mpp_given=None if held["mpp_given"] is None else float(held["mpp_given"]),
                outlines=str(held["outlines"]),
                tiling=str(held["tiling"]),
                version=str(held["version"]),
            )
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            return None


def settings_in_words(tiling: TilingConfig) -> str:
    """The settings as JSON, as :attr:`TiledFrom.tiling` holds them."""
    settings = tiling.model_dump(mode="json", exclude={"tissue": {"model": {"file"}}})
    return json.dumps(settings, sort_keys=True)


def slide_fingerprint(slide: Location) -> str:
    """The fingerprint of the files of a slide, at a URL too; empty where they cannot be read."""
    if isinstance(slide, Url):
        from wsi_ips.slides.remote import remote_fingerprint  # slow to import

        return remote_fingerprint(slide)
    return files_fingerprint(files_of(slide))


def write_coords(
    path: Path,
    coords: PatchCoords,
    *,
    layout: Layout,
    info: SlideInfo,
    made_from: TiledFrom | None = None,
) -> None:
    """Write the coordinates of one slide to an HDF5 file, which appears whole or not at all.

    CLAM's or TRIDENT's own reader (their formats of 2024) opens the file, as ``layout`` says. The same coordinates
    always give the same bytes. ``made_from`` is stored with them; :func:`stored_tiled_from` reads it.
    """
    with whole_hdf5(path) as file:
        put_coords(file, coords, layout=layout, info=info)
        if made_from is not None:
            file.attrs[MADE_FROM] = fixed_text(made_from.to_json())


def read_coords(path: Path, *, info: SlideInfo | None = None) -> PatchCoords:
    """Read a file of patch coordinates.

    Files of this package are read exactly, those of CLAM, TRIDENT and AtlasPatch as far as their content goes.
    ``info`` is the slide that the coordinates should belong to. It supplies what a foreign file lacks (CLAM states
    neither the slide's size nor its resolution), its resolution is used instead of the file's, and a file of
    another slide is refused. Patches of foreign files are numbered in file order, in a grid of one row.

    Raises :class:`CoordsError` for a file that is missing, damaged, no file of coordinates, or of another slide.
    """
    if not path.is_file():
        raise CoordsError(path, "does not exist", "check the path")
    try:
        with opened_hdf5(path) as file:
            return take_coords(file, path, info=info)
    # h5py has no error of its own: a damaged file shows as any of these.
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        if cause := outside_cause(error):
            raise CoordsError(path, cause.problem, cause.fix) from None
        raise CoordsError(path, "is not an HDF5 file that can be read", TILE_AGAIN) from None


def stored_tiled_from(path: Path) -> TiledFrom | None:
    """What the coordinates in ``path`` were made from, or None where the file does not say or cannot be read."""
    try:
        with opened_hdf5(path) as file:
            stated = stated_text(file.attrs, MADE_FROM)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError):
        return None
    return None if stated is None else TiledFrom.from_json(stated)


def read_coords_if_same(path: Path, now: TiledFrom, *, info: SlideInfo | None = None) -> PatchCoords | None:
    """The coordinates in ``path`` if they were made from what is there ``now``; None where they were not, or where
    there are none that can be read.

    The file is opened once, so coordinates that another process puts in its place meanwhile are not taken for
    those that were compared. ``info`` is as in :func:`read_coords`.
    """
    try:
        with opened_hdf5(path) as file:
            stated = stated_text(file.attrs, MADE_FROM)
            before = None if stated is None else TiledFrom.from_json(stated)
            return take_coords(file, path, info=info) if before is not None and before.is_same(now) else None
    except (CoordsError, OSError, RuntimeError, KeyError, TypeError, ValueError):
        return None


def put_coords(
    file: Any,
    coords: PatchCoords,
    *,
    layout: Layout,
    info: SlideInfo | None = None,
    dtype: type[np.integer[Any]] = np.int64,
) -> None:
    """Write the coordinates into an open HDF5 group.

    ``info`` describes the slide's levels and is needed for CLAM's layout. ``dtype`` is the integer type of the
    stored corners.
    """
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
    if coords.note:
        dataset.attrs[NOTE] = fixed_text(coords.note)
    # Chunks are given their place in the file when they are flushed: else when the dataset happens to be freed,
    # which a profiler may delay, and the same coordinates are not the same bytes.
    dataset.flush()
    file.create_dataset("wsi_ips_patch_ids", data=coords.ids_N)
    file.create_dataset("wsi_ips_tissue", data=coords.tissue_N)


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


def take_coords(file: Any, path: Path, *, info: SlideInfo | None = None) -> PatchCoords:
    """Read the coordinates in an open HDF5 group.

    They are read as from a file (:func:`read_coords`); ``path`` names the file in error messages. The sizes that
    the file states are checked before anything is allocated. Raises :class:`CoordsError` for a group that holds no
    usable coordinates.
    """
    if is_stamp(file):
        return _of_stamp(file, path, info)
    dataset = plain_dataset(file, "coords", path, error=CoordsError, fix="give a file of patch coordinates")
    # AtlasPatch's have five columns, and their attributes at the root.
    columns = {2: dataset.attrs, 5: file.attrs}
    if dataset.ndim != 2 or dataset.shape[1] not in columns:
        raise CoordsError(path, "has no dataset coords of shape (N, 2)", "give a file of patch coordinates")
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


def _of_stamp(file: Any, path: Path, info: SlideInfo | None) -> PatchCoords:
    """Coordinates of a file in STAMP's layout: exact if this package wrote it, else µm on the slide ``info``."""
    places, group = take_stamp_places(file, path), our_group(file, path)
    if group is not None:
        coords = take_coords(group, path)
        check_same_places(places, coords, path)
        return coords if info is None else take_coords(group, path, info=info)
    if info is None:
        raise CoordsError(
            path, "is a STAMP file, which does not say the slide's resolution", "give the slide as well"
        )
    return places.on_slide(path, info)


def _ours(file: Any, dataset: Any, path: Path, info: SlideInfo | None) -> PatchCoords:
    """Coordinates of a file that this package wrote."""
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
        ids_N=np.arange(len(l0_xy_N2), dtype=np.int64),
        l0_xy_N2=l0_xy_N2,
        tissue_N=np.full(len(l0_xy_N2), np.nan, np.float32),
        note=harmless(stated_text(dataset.attrs, NOTE) or ""),
    )
    if keeps_ids(file):
        ids_N = _beside(file, "wsi_ips_patch_ids", path, len(coords)).astype(np.int64)
        tissue_N = _beside(file, "wsi_ips_tissue", path, len(coords)).astype(np.float32)
        coords = replace(coords, ids_N=ids_N, tissue_N=tissue_N)
    else:
        coords = _numbered(coords)
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


def keeps_ids(file: Any) -> bool:
    """Whether an open file holds the grid ids that this package writes beside its coordinates.

    TRIDENT copies the attributes of our coordinates into the features that it makes of them, but no datasets.
    """
    return file.get("wsi_ips_patch_ids", getlink=True) is not None


def _numbered(coords: PatchCoords) -> PatchCoords:
    """The patches with the ids of the cells that they lie in; in file order where they lie in no such grid."""
    l0_step = (coords.patch_px - coords.overlap_px) * coords.patch_mpp / coords.slide_mpp
    g_cells_N2 = np.rint(coords.l0_xy_N2 / l0_step).astype(np.int64)
    numbered = replace(coords, ids_N=g_cells_N2[:, 1] * coords.g_size[0] + g_cells_N2[:, 0])
    return numbered if numbered.lies_on_grid else replace(coords, g_size=(len(coords), 1))


def _corners(dataset: Any, path: Path) -> NDArray[np.int64]:
    """Top-left corners, (N, 2) int64, from the first two columns of the dataset."""
    _check_block(dataset, path, "coords")
    l0_xy_N2: NDArray[np.int64] = dataset[:][:, :2].astype(np.int64)
    return l0_xy_N2


def _beside(file: Any, name: str, path: Path, n: int) -> Any:
    """The (N,) numbers of a dataset that is stored beside the corners.

    Raises ``ValueError`` for another shape or type.
    """
    dataset = plain_dataset(file, name, path, error=CoordsError, fix=TILE_AGAIN)
    if dataset.shape != (n,) or dataset.dtype.kind not in "iuf":
        raise ValueError(f"{name} is {dataset.dtype} of shape {dataset.shape}")
    _check_block(dataset, path, name)
    return dataset[:]


def _check_block(dataset: Any, path: Path, name: str) -> None:
    """Refuse chunks that are too large to unpack, and datasets that the file does not fully hold."""
    if math.prod(dataset.chunks or ()) * dataset.dtype.itemsize > LARGEST_BLOCK_BYTES:
        raise CoordsError(path, f"{name} claims blocks of {dataset.chunks}", TILE_AGAIN)
    check_stored(dataset, path, error=CoordsError, fix=TILE_AGAIN)


def foreign_coords(
    attributes: Mapping[str, Any], l0_xy_N2: NDArray[np.int64], path: Path, info: SlideInfo | None
) -> PatchCoords:
    """Patch coordinates from the attributes of a file of CLAM, TRIDENT or AtlasPatch.

    ``l0_xy_N2`` holds the (N, 2) int64 top-left corners (x, y) in level-0 pixels. ``info`` describes the slide;
    CLAM's files cannot be understood without it. Patches are numbered in file order, in a grid of one row, and
    their share of tissue is NaN.

    Raises :class:`CoordsError` for a file of another slide, and ``KeyError``, ``TypeError`` or ``ValueError`` for
    attributes that are missing or broken.
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
                path, "is a CLAM file, which does not say the slide's resolution", "give the slide as well"
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
    """Raise :class:`CoordsError` if ``l0_size`` (width, height) is not that of the slide ``info``."""
    if l0_size != info.l0_size:
        _refuse_other(path, info, f"a slide of {_by(l0_size)} px", f"is {_by(info.l0_size)}")


def _clam_downsample(attributes: Mapping[str, Any], path: Path, info: SlideInfo) -> float:
    """Level-0 pixels per pixel of CLAM's patches.

    Where the file describes the level that it was read from, that has to be the slide's.
    """
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
    """The value as a finite float above 0. Raises ``TypeError`` or ``ValueError`` for anything else."""
    number = float(value)
    if not (np.isfinite(number) and number > 0):
        raise ValueError(f"{value!r} is not a positive number")
    return number


def pair(value: Any) -> tuple[int, int]:
    """Two positive whole numbers. Raises ``TypeError`` or ``ValueError`` for anything else."""
    first, second = (int(positive(each)) for each in value)
    return first, second
