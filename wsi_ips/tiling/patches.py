"""Which patches of a slide are read, and the folder of tiled slides that they are stored in.

Which patches of a slide are read: those that hold tissue, or those that somebody laid out before.

Start with :class:`FindPatches`, the protocol. :class:`PatchesInTissue` lays a grid and keeps the cells with enough
tissue (:func:`tile_slide`); :class:`StoredPatches` reads a folder of coordinates of CLAM, TRIDENT, AtlasPatch or
``wsi-ips tile``. Besides, this module refuses slides that are coarser than their patches
(:func:`check_upsampling`), explains why a slide has no patches (:func:`no_patches`), and lays out the windows in
which a coarse scorer sees the patches (:func:`window_coords`).

A folder of tiled slides: coordinates, contours and previews of each, and when they are made anew.

Shape suffixes: N patches, W windows.
"""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from shapely import Polygon

from wsi_ips import timeline
from wsi_ips.config import CoarseConfig, TilingConfig
from wsi_ips.errors import ConfigError, CoordsError, NoTissue, SlideReadError, TooCoarse, count
from wsi_ips.slides.base import SlideInfo, SlideReader, failure_in_words, named
from wsi_ips.slides.registry import open_slide
from wsi_ips.storage.held_folder import first_difference
from wsi_ips.storage.location import Location
from wsi_ips.tiling.contours import ContourFolder, l0_origin, outlined_tissue, tissue_contours, write_geojson
from wsi_ips.tiling.coords import (
    Layout,
    TiledFrom,
    read_coords,
    read_coords_if_same,
    settings_in_words,
    stored_tiled_from,
    write_coords,
)
from wsi_ips.tiling.grid import MOST_PATCHES, PatchCoords, PatchGrid
from wsi_ips.tiling.tissue import TissueMask, find_tissue
from wsi_ips.units import Mpp

UPSAMPLING_TOLERANCE = 0.1
"""How much coarser than its patches a slide may be: what scanners call 0.5 µm per pixel is 0.45 to 0.55."""

SIZE_TOLERANCE = 0.1
"""How much larger or smaller than the model's patches stored patches may be."""

SAME_MPP = 0.02
"""How much a given resolution may differ from the file's and still count as the same."""

MOST_LOOKED_AT = 16
"""Stored slides whose settings are compared with those of a start."""

ROUNDING = 1e-6
"""Shares of tissue this close to each other count as equal: sums over a whole mask in float64 are not exact."""


class FindPatches(Protocol):
    """What gives an open slide's patches. An implementation can be pickled, for it is sent to other processes."""

    def __call__(self, slide: SlideReader, *, slide_id: str, mpp: Mpp | None) -> PatchCoords:
        """The slide's patches, at least one. ``mpp`` (µm per pixel) is used instead of the file's own resolution.

        Raises the slide's own error, :class:`wsi_ips.errors.NoTissue`, :class:`wsi_ips.errors.TooCoarse` or
        :class:`CoordsError`.
        """
        ...

    def read_from(self, slide_id: str) -> Sequence[Path]:
        """The files beside the slide that decide its patches. Raises :class:`CoordsError` where one is missing."""
        ...


@dataclass(frozen=True, slots=True)
class PatchesInTissue:
    """The cells of a grid over the slide that hold enough tissue, by our own or a learned segmentation."""

    tiling: TilingConfig

    def __call__(self, slide: SlideReader, *, slide_id: str, mpp: Mpp | None) -> PatchCoords:
        """The patches with tissue, as :class:`FindPatches` describes.

        Raises :class:`NoTissue` where there are none.
        """
        coords, mask = tile_slide(slide, self.tiling, slide_id=slide_id, mpp=mpp)
        if not len(coords):
            raise no_patches(slide.info.path, coords, mask, self.tiling)
        return coords

    def read_from(self, slide_id: str) -> Sequence[Path]:
        """No files: only the slide itself decides."""
        return ()


@timeline.staged("plan")
def tile_slide(
    slide: SlideReader,
    config: TilingConfig,
    *,
    slide_id: str,
    mpp: Mpp | None = None,
    mask: TissueMask | None = None,
) -> tuple[PatchCoords, TissueMask]:
    """Find the slide's tissue, lay the grid, and keep the patches with enough tissue.

    ``mpp`` (µm per pixel) is used instead of the file's own resolution. ``mask`` is tissue that is already known;
    without it, the slide is segmented. Returns the patches, of which there may be none, and the mask.

    Raises :class:`MissingResolution` where neither the file nor ``mpp`` gives a resolution, :class:`TooCoarse`,
    before any pixel is read, for a slide that is coarser than the patches (unless ``config.allow_upsampling``),
    and :class:`ConfigError` for more patches than fit in memory, before anything is allocated for them.
    """
    slide_mpp = mpp or slide.info.known_mpp()
    check_upsampling(
        slide.info.path,
        slide_mpp=slide_mpp,
        patch_mpp=Mpp(config.patch_mpp),
        allowed=config.allow_upsampling,
    )
    try:
        grid = PatchGrid.cover(slide.info.l0_size, slide_mpp=slide_mpp, tiling=config)
    except ConfigError as error:
        raise ConfigError(f"{slide.info.path}: {error}") from None
    if mask is None:
        mask = find_tissue(slide, config.tissue, mpp=slide_mpp)
    share = tissue_share(mask, grid)
    ids_N = np.flatnonzero((share >= config.min_tissue - ROUNDING) & (share > ROUNDING)).astype(np.int64)
    if len(ids_N) > MOST_PATCHES:
        raise ConfigError(
            f"{slide.info.path}: {len(ids_N):,} patches hold tissue, more than {MOST_PATCHES:,}; "
            "check patch_px, patch_mpp and the slide's µm per pixel"
        )
    coords = PatchCoords.on_grid(
        grid,
        ids_N,
        slide_id=slide_id,
        l0_size=slide.info.l0_size,
        slide_mpp=slide_mpp,
        tiling=config,
        tissue_N=share[ids_N].astype(np.float32),
    )
    return replace(coords, note=joined_notes(other_mpp_note(slide.info, mpp), mask.note)), mask


def tissue_share(mask: TissueMask, grid: PatchGrid) -> NDArray[np.float64]:
    """Share of every patch's area that is tissue, (g_cols * g_rows,) float64 in 0..1, in the order of ids.

    The result is exact for footprints that are not whole pixels: a mask pixel that a patch covers in part counts
    in part. It is computed from the mask's integral image, which is linear between its nodes along each axis, so
    that sums over the grid are differences of interpolated values.
    """
    height, width = mask.mask_HW.shape
    integral = np.zeros((height + 1, width + 1))
    np.cumsum(mask.mask_HW, axis=1, dtype=np.float64, out=integral[1:, 1:])
    for above, row in pairwise(integral[1:]):
        row += above
    x_starts = np.arange(grid.g_cols) * grid.l0_step / mask.l0_per_px[0]
    y_starts = np.arange(grid.g_rows) * grid.l0_step / mask.l0_per_px[1]
    patch_x, patch_y = grid.l0_patch / mask.l0_per_px[0], grid.l0_patch / mask.l0_per_px[1]
    rows = _between(integral, y_starts, y_starts + patch_y)
    sums = _between(rows.T, x_starts, x_starts + patch_x).T
    return np.asarray(sums / (patch_x * patch_y)).clip(0, 1).ravel()


def _between(
    integral: NDArray[np.floating], starts: NDArray[np.floating], ends: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Differences of ``integral`` along its first axis, interpolated at fractional positions."""

    def at(positions: NDArray[np.floating]) -> NDArray[np.floating]:
        positions = positions.clip(0, len(integral) - 1)
        low = np.minimum(positions.astype(np.int64), max(len(integral) - 2, 0))
        part = (positions - low)[:, None]
        return np.asarray(
            integral[low] * (1 - part) + integral[np.minimum(low + 1, len(integral) - 1)] * part
        )

    return at(ends) - at(starts)


def no_patches(path: Location, coords: PatchCoords, mask: TissueMask, tiling: TilingConfig) -> NoTissue:
    """The error for a slide of which :func:`tile_slide` kept no patch; it names what left everything out.

    That is the pen, the smallest object, the share of a patch that has to be tissue, the segmenter or the
    contours; or nothing on the slide differs from the glass.
    """
    if mask.why_empty is not None:
        return NoTissue(str(path), *mask.why_empty)
    grid = PatchGrid.cover(coords.l0_size, slide_mpp=coords.slide_mpp, tiling=tiling)
    fullest = float(tissue_share(mask, grid).max())
    if not fullest:
        return NoTissue(
            str(path), "no tissue was found: its contours outline none", "outline it, or leave the slide out"
        )
    return NoTissue(
        str(path),
        f"no tissue was found: tiling.min_tissue asks for {tiling.min_tissue:.3g} of a patch, the fullest "
        f"patch has {fullest:.2g}",
        "lower tiling.min_tissue (in Python: min_tissue=), or take smaller patches",
    )


@dataclass(frozen=True, slots=True)
class StoredPatches:
    """Patches from a folder of stored coordinates, fitted to the tiling that a model was trained with.

    Each patch covers exactly the footprint that its file states and is read with ``tiling.patch_px`` pixels a
    side, or with the file's own number of pixels if ``own_px`` is set, because the encoder resizes them. Patches
    that lie on the grid that this package would lay become that grid's cells, in its order; any others keep the
    order and the numbers of the file. ``raster`` says that the model uses the cells' rows and columns as positions
    (``attention.positions: raster``), which are meaningless on another grid.
    """

    folder: Path
    tiling: TilingConfig
    raster: bool = False
    own_px: bool = False

    def __call__(self, slide: SlideReader, *, slide_id: str, mpp: Mpp | None) -> PatchCoords:
        """The slide's stored patches, as :class:`FindPatches` describes.

        Raises :class:`CoordsError` where the folder has no file of this slide, or the file does not fit the slide
        or the model, :class:`MissingResolution` where neither the slide nor ``mpp`` gives a resolution, and
        :class:`TooCoarse` for a slide that is coarser than the patches, unless ``tiling.allow_upsampling``.
        """
        path = find_coords(self.folder, slide_id)
        info = slide.info if mpp is None else slide.info.with_mpp(mpp)
        with timeline.span("plan"):
            coords = replace(read_coords(path, info=info), slide_id=slide_id)
        if not len(coords):
            raise CoordsError(path, "holds no patches", "leave the slide out")
        _check_corners(coords, path)
        fitted = coords if self.own_px else self._fitted(coords, path)
        check_upsampling(
            info.path,
            slide_mpp=fitted.slide_mpp,
            patch_mpp=fitted.patch_mpp,
            allowed=self.tiling.allow_upsampling,
        )
        if self.raster and not fitted.lies_on_grid:
            raise CoordsError(
                path,
                "lies on another grid than the model's, which counts its cells (attention.positions: raster)",
                "lay the patches out with wsi-ips tile, or train with positions: slide",
            )
        repeated = repeated_note(coords.l0_xy_N2, file="coordinates", done="read and counted")
        stated = (other_mpp_note(slide.info, mpp), repeated)
        new = (note for note in stated if note not in fitted.note)
        return replace(fitted, note=joined_notes(*new, fitted.note))

    def _fitted(self, coords: PatchCoords, path: Path) -> PatchCoords:
        """The patches with the model's pixels: cells of our grid if they lie on it, else with the file's own
        footprint.
        """
        on_grid = _on_our_grid(_as_read(coords, self.tiling, path, rounded=True), self.tiling)
        if on_grid is not None:
            return replace(on_grid, note=coords.note)
        read = _as_read(coords, self.tiling, path, rounded=False)
        return replace(read, ids_N=np.arange(len(read)), g_size=(len(read), 1))

    def read_from(self, slide_id: str) -> Sequence[Path]:
        """The slide's file of coordinates. Raises :class:`CoordsError` where there is none, or more than one."""
        return (find_coords(self.folder, slide_id),)


def find_coords(folder: Path, slide_id: str) -> Path:
    """The file of a slide's coordinates in a folder.

    It is called ``<slide_id>.h5`` (CLAM, AtlasPatch) or ``<slide_id>_patches.h5`` (TRIDENT) and lies in the folder
    itself or in its ``patches/``. Raises :class:`CoordsError` where there is no such file, or more than one.
    """
    names = (f"{slide_id}.h5", f"{slide_id}_patches.h5")
    found = [
        path for below in (folder, folder / "patches") for name in names if (path := below / name).is_file()
    ]
    if not found:
        raise CoordsError(
            folder,
            f"has no coordinates of {slide_id}",
            f"looked for as {' or '.join(names)} there and in patches/; lay the slide out, or leave it out",
        )
    if len(found) > 1:
        raise CoordsError(
            found[0], f"is one of two files of this slide, beside {found[1]}", "remove one of them"
        )
    return found[0]


def _check_corners(coords: PatchCoords, path: Path) -> None:
    """Raise :class:`CoordsError` if a patch begins outside the slide."""
    outside_N = ((coords.l0_xy_N2 < 0) | (coords.l0_xy_N2 >= np.array(coords.l0_size))).any(axis=1)
    if outside_N.any():
        row = int(outside_N.argmax())
        corner, size = tuple(coords.l0_xy_N2[row].tolist()), coords.l0_size
        raise CoordsError(
            path,
            f"has {outside_N.sum()} of {len(coords)} patches that begin outside the slide of {size[0]}x{size[1]} "
            f"px, the first in row {row} at {corner}",
            "give this slide's coordinates, in level-0 pixels",
        )


def _as_read(coords: PatchCoords, tiling: TilingConfig, path: Path, *, rounded: bool) -> PatchCoords:
    """The patches with the number of pixels that the model takes.

    With ``rounded``, the file's footprint is taken for the model's, written in whole pixels, where rounding
    explains the difference. Raises :class:`CoordsError` for patches whose size differs from the model's by more
    than ``SIZE_TOLERANCE``.
    """
    l0_wanted = tiling.patch_px * tiling.patch_mpp / coords.slide_mpp
    l0_off = abs(coords.l0_patch - l0_wanted)
    # Rounding: TRIDENT cuts off decimals of level-0 pixels; ours in CLAM's layout has whole pixels of a level.
    rounding = max(1.0, coords.l0_patch / coords.patch_px / 2)
    if l0_off > SIZE_TOLERANCE * l0_wanted and l0_off > rounding:
        raise CoordsError(
            path,
            f"holds patches of {coords.patch_px} px at {coords.patch_mpp:.4g} µm "
            f"({coords.patch_px * coords.patch_mpp:.4g} µm wide), the model was trained on {tiling.patch_px} px "
            f"at {tiling.patch_mpp:.4g} µm ({tiling.patch_px * tiling.patch_mpp:.4g} µm)",
            "lay the patches out at the model's resolution",
        )
    same = l0_off == 0 or (rounded and l0_off <= rounding)
    l0_patch = l0_wanted if same else coords.l0_patch
    overlap = round(coords.overlap_px * tiling.patch_px / coords.patch_px)
    return replace(
        coords,
        patch_px=tiling.patch_px,
        patch_mpp=Mpp(tiling.patch_mpp if same else l0_patch * coords.slide_mpp / tiling.patch_px),
        l0_patch=l0_patch,
        overlap_px=min(max(0, overlap), tiling.patch_px - 1),
    )


def _on_our_grid(coords: PatchCoords, tiling: TilingConfig) -> PatchCoords | None:
    """The patches as cells of our grid, in its order; None if they do not all lie on it."""
    if coords.patch_mpp != tiling.patch_mpp:
        return None
    grid = PatchGrid.cover(coords.l0_size, slide_mpp=coords.slide_mpp, tiling=tiling)
    g_xy_N2 = np.rint(coords.l0_xy_N2 / grid.l0_step).astype(np.int64)
    ids_N = g_xy_N2[:, 1] * grid.g_cols + g_xy_N2[:, 0]
    same_place = np.abs(g_xy_N2 * grid.l0_step - coords.l0_xy_N2).max() <= 0.5
    inside = (g_xy_N2 < (grid.g_cols, grid.g_rows)).all()
    if not (same_place and inside and len(np.unique(ids_N)) == len(ids_N)):
        return None
    order_N = ids_N.argsort()
    return PatchCoords.on_grid(
        grid,
        ids_N[order_N],
        slide_id=coords.slide_id,
        l0_size=coords.l0_size,
        slide_mpp=coords.slide_mpp,
        tiling=tiling,
        tissue_N=coords.tissue_N[order_N],
    )


def check_upsampling(path: Location, *, slide_mpp: Mpp, patch_mpp: Mpp, allowed: bool) -> None:
    """Refuse a slide that is more than 10 % coarser than its patches: detail that it does not have is not made up.

    ``slide_mpp`` and ``patch_mpp`` are µm per pixel. Raises :class:`TooCoarse`, which names ``path``, unless
    ``allowed``.
    """
    if not allowed and _is_coarser(slide_mpp, patch_mpp):
        raise TooCoarse(
            path,
            f"has {slide_mpp:.4g} µm per pixel and the patches are to have {patch_mpp:.4g} µm: they would be "
            f"enlarged {slide_mpp / patch_mpp:.3g} times",
            "give a coarser --patch-mpp (or a model that was trained on coarser patches), or the true --slide-mpp "
            "if the file's is wrong, or allow it with --set tiling.allow_upsampling=true (in Python: mpp=, "
            "slide_mpp=, allow_upsampling=True)",
        )


def note_of_patches(coords: PatchCoords) -> str:
    """What the row of a result has to say of its patches: that they are enlarged by more than 10 %, and the note
    that they have themselves. Empty where there is nothing to say.
    """
    return joined_notes(enlarged_note(slide_mpp=coords.slide_mpp, patch_mpp=coords.patch_mpp), coords.note)


def repeated_note(l0_xy_N2: NDArray[np.int64], *, file: str, done: str) -> str:
    """A note if several rows of a file name the same patch, else an empty text.

    ``l0_xy_N2`` (N, 2) int64 holds the top-left corners (x, y) of the rows in level-0 pixels, each less than 2^31
    in size. ``file`` is what the file holds and ``done`` what is done with every row, for the note.
    """
    repeated = len(l0_xy_N2) - len(np.unique(l0_xy_N2[:, 0] * 2**32 + l0_xy_N2[:, 1]))
    if not repeated:
        return ""
    rows = count(repeated, f"row of the {file} file repeats", f"rows of the {file} file repeat")
    return f"{rows} the patch of an earlier row: it is {done} again"


def other_mpp_note(info: SlideInfo, given: Mpp | None) -> str:
    """A note if the user gave a resolution that is not what the file states, by more than 2 %, else an empty text.

    ``given`` is µm per pixel, None where the file's own resolution is used.
    """
    if given is None or info.mpp_xy is None:
        return ""
    stated = sum(info.mpp_xy) / 2
    if abs(given / stated - 1) <= SAME_MPP:
        return ""
    return f"{given:.4g} µm per pixel were given, the file states {stated:.4g} µm"


def joined_notes(*notes: str) -> str:
    """The notes as one line."""
    return "; ".join(note for note in notes if note)


def enlarged_note(*, slide_mpp: Mpp, patch_mpp: Mpp) -> str:
    """A note if patches are enlarged by more than 10 % from a slide's resolution, else an empty text.

    Both resolutions are µm per pixel.
    """
    if not _is_coarser(slide_mpp, patch_mpp):
        return ""
    return f"patches of {patch_mpp:.4g} µm are enlarged {slide_mpp / patch_mpp:.3g} times from {slide_mpp:.4g} µm"


def _is_coarser(slide_mpp: Mpp, patch_mpp: Mpp) -> bool:
    return slide_mpp > patch_mpp * (1 + UPSAMPLING_TOLERANCE) * (1 + 1e-9)


def window_coords(coords: PatchCoords, coarse: CoarseConfig) -> tuple[PatchCoords, NDArray[np.int64]]:
    """Lay out the windows in which a coarse scorer sees the patches.

    Returns the windows as coordinates at ``coarse.mpp`` (ids count from 0) and, for each patch, the index of the
    window that shows it, (N,) int64.

    With the scorer ``conv``, each patch has a window of its own, centred on it: the patch's width in whole pixels
    plus ``context_px`` on every side. With ``encoder``, windows are those cells of a grid of patches at the coarse
    resolution that hold the centre of a patch.
    """
    mpp = Mpp(coarse.mpp)
    l0_per_px = mpp / coords.slide_mpp
    l0_centres_N2 = coords.l0_exact_corners() + coords.l0_patch / 2
    if coarse.scorer == "encoder":
        px = coords.patch_px
        g_xy_N2 = np.floor(l0_centres_N2 / (px * l0_per_px)).astype(np.int64)
        g_yx_W2, window_N = np.unique(g_xy_N2[:, ::-1], axis=0, return_inverse=True)
        l0_xy_W2 = g_yx_W2[:, ::-1] * (px * l0_per_px)
    else:
        px = max(1, round(coords.patch_px * coords.patch_mpp / mpp)) + 2 * coarse.context_px
        l0_xy_W2 = l0_centres_N2 - px * l0_per_px / 2
        window_N = np.arange(len(coords))
    windows = replace(
        coords,
        patch_px=px,
        patch_mpp=mpp,
        overlap_px=0,
        l0_patch=px * l0_per_px,
        ids_N=np.arange(len(l0_xy_W2), dtype=np.int64),
        l0_xy_N2=np.rint(l0_xy_W2).astype(np.int64),
        tissue_N=np.zeros(len(l0_xy_W2), np.float32),
    )
    return windows, window_N.reshape(-1).astype(np.int64)


def stored_patches(
    folder: Path, tiling: TilingConfig, *, raster: bool = False, own_px: bool = False
) -> StoredPatches:
    """The patches that ``--from-coords`` names, in a form that can go to other processes.

    :class:`StoredPatches` explains the arguments. Raises :class:`ConfigError` if the folder does not exist.
    """
    if not folder.is_dir():
        raise ConfigError(f"--from-coords {folder}: no such folder")
    return StoredPatches(folder.absolute(), tiling, raster=raster, own_px=own_px)


Preview = Callable[[Path, SlideReader, PatchCoords, TissueMask, Sequence[Polygon]], None]
"""Draws a slide with its tissue, contours and patches, and writes the picture to a path."""


@dataclass(frozen=True, slots=True)
class TilingFolder:
    """Where tiled slides are kept, and how they are tiled. It can be pickled: several processes share one folder.

    contours: a folder of outlines of tissue, ``<slide_id>.geojson``; None: our own segmentation. preview: what
    draws ``previews/<slide_id>.jpg``; None: nothing is drawn. alone: the slide that was given by itself, whose
    error is the caller's.
    """

    root: Path
    config: TilingConfig
    layout: Layout = "clam"
    contours: Path | None = None
    preview: Preview | None = None
    alone: Location | None = None

    def coords(self, slide_id: str) -> Path:
        """The HDF5 file of a slide's coordinates."""
        end = ".h5" if self.layout == "clam" else "_patches.h5"
        return self.root / "patches" / f"{slide_id}{end}"

    def outlines(self, slide_id: str) -> Path:
        """The GeoJSON file of the contours that our segmentation found."""
        return self.root / "contours_geojson" / f"{slide_id}.geojson"

    def picture(self, slide_id: str) -> Path:
        """The JPEG file of a slide's preview."""
        return self.root / "previews" / f"{slide_id}.jpg"

    def wanted(self, slide_id: str) -> Iterator[Path]:
        """The files that a slide has once it is tiled."""
        yield self.coords(slide_id)
        if self.contours is None:
            yield self.outlines(slide_id)
        if self.preview is not None:
            yield self.picture(slide_id)

    def given_outlines(self, slide_id: str) -> Path | None:
        """The file in which the user outlined a slide's tissue; None where our segmentation finds it."""
        return None if self.contours is None else ContourFolder(self.contours).file_of(slide_id)


def check_same_tiling(folder: TilingFolder, slide_ids: Collection[str]) -> None:
    """Check that the folder holds no other slides whose patches have another size or step: whoever reads it takes
    all of its patches for alike. Slides among ``slide_ids`` are tiled again anyhow.

    How tissue is found may differ: a slide on which the usual settings find none needs others.

    Raises:
        ConfigError: It holds such slides. One is named, with the first setting that differs.
    """
    here = _size_and_step(settings_in_words(folder.config))
    looked_at = 0
    for path in sorted((folder.root / "patches").glob("*.h5")):
        names = {path.stem, path.stem.removesuffix("_patches")}  # as CLAM and TRIDENT name it
        if not names.isdisjoint(slide_ids) or not path.is_file():
            continue
        made_from = stored_tiled_from(path)
        there = None if made_from is None else _size_and_step(made_from.tiling)
        if there and (differ := first_difference({"tiling": there}, {"tiling": here})):
            raise ConfigError(
                f"{folder.root}: slide {min(names, key=len)!r} was tiled with other settings ({differ}); "
                "write to another folder, or name that slide too, so that it is tiled again"
            )
        looked_at += 1
        if looked_at == MOST_LOOKED_AT:  # this very check has let in those that this package made
            return


def _size_and_step(tiling: str) -> dict[str, Any]:
    """What decides the size of patches and the step between them, of settings as :attr:`TiledFrom.tiling` holds
    them. Empty for any other text.
    """
    try:
        settings = json.loads(tiling)
        return {name: settings[name] for name in ("patch_px", "patch_mpp", "overlap_px")}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


@dataclass(frozen=True, slots=True)
class SlideToTile:
    """A slide, and its resolution where the user gave one."""

    slide_id: str
    path: Location
    mpp: Mpp | None


@dataclass(frozen=True, slots=True)
class TiledSlide:
    """What became of a slide.

    error: why it failed, else empty. raised: the exception itself, of a slide that was given alone. was_there: its
    coordinates were stored already.
    """

    n_patches: int
    error: str = ""
    note: str = ""
    was_there: bool = False
    raised: Exception | None = None

    @classmethod
    def failed(cls, slide: SlideToTile, why: str, raised: Exception | None = None) -> Self:
        return cls(0, named(slide.slide_id, why), raised=raised)


def tile_one(
    folder: TilingFolder, slide: SlideToTile, *, begin: Callable[[str], None] | None = None
) -> TiledSlide:
    """Tile a slide, unless that is done already. Whatever it raises is its own failure. ``begin`` is told the
    slide's id before it is read.

    What an earlier run stored stays until its successor is written. Only where the slide fails is it removed: else
    ``--from-coords`` would believe coordinates of other settings.
    """
    try:
        with timeline.slide(slide.slide_id):
            now = _tiled_from(folder, slide)
            stored = _stored(folder, slide, now)
            if stored is None and begin is not None:
                begin(slide.slide_id)
            coords = _tile(folder, slide, now) if stored is None else stored
    except Exception as error:  # noqa: BLE001 - whatever a decoder may raise is this slide's failure
        forget_stale(folder, slide)
        raised = error if slide.path == folder.alone else None
        return TiledSlide.failed(slide, failure_in_words(slide.slide_id, error), raised)
    return TiledSlide(len(coords), note=note_of_patches(coords), was_there=stored is not None)


def forget_stale(folder: TilingFolder, slide: SlideToTile) -> None:
    """Remove stored coordinates and contours, unless they are as they would be made today."""
    stored = stored_tiled_from(folder.coords(slide.slide_id))
    try:
        same = stored is not None and stored.may_be_same(_tiled_from(folder, slide))
    except Exception:  # noqa: BLE001 - nothing is known of a slide whose headers cannot even be looked at
        same = False
    if not same:
        folder.coords(slide.slide_id).unlink(missing_ok=True)
        _forget_contours(folder, slide)


def _forget_contours(folder: TilingFolder, slide: SlideToTile) -> None:
    """Remove the contours of our own segmentation; never those that the user gave, which may lie in ``out``."""
    path = folder.outlines(slide.slide_id)
    given = folder.given_outlines(slide.slide_id)
    if given is None or given.resolve() != path.resolve():
        path.unlink(missing_ok=True)


def _tiled_from(folder: TilingFolder, slide: SlideToTile) -> TiledFrom:
    outlines = folder.given_outlines(slide.slide_id)
    return TiledFrom.now(slide.path, mpp=slide.mpp, tiling=folder.config, outlines=outlines)


def _stored(folder: TilingFolder, slide: SlideToTile, now: TiledFrom) -> PatchCoords | None:
    """The coordinates that an earlier run made of the same; None where something has to be made."""
    if not all(path.is_file() for path in folder.wanted(slide.slide_id)):
        return None
    return read_coords_if_same(folder.coords(slide.slide_id), now)


def _tile(folder: TilingFolder, slide: SlideToTile, now: TiledFrom) -> PatchCoords:
    """Find the slide's patches and write all that belongs to it, the coordinates last."""
    with open_slide(slide.path) as opened:
        info = opened.info
        given = None if folder.contours is None else _given_tissue(folder.contours, folder, slide, info)
        coords, mask = tile_slide(opened, folder.config, slide_id=slide.slide_id, mpp=slide.mpp, mask=given)
        with timeline.span("contours"):
            contours = tissue_contours(mask) if given is None or folder.preview is not None else []
        if folder.preview is not None:
            # Before anything is said of missing tissue: then it is needed most.
            with timeline.span("draw preview"):
                folder.preview(folder.picture(slide.slide_id), opened, coords, mask, contours)
        else:
            folder.picture(slide.slide_id).unlink(missing_ok=True)  # it shows another mask
    if not len(coords):
        raise no_patches(slide.path, coords, mask, folder.config)
    if now.is_of_another(slide.path):
        raise replaced_meanwhile(slide.path)
    with timeline.span("write results"):
        if given is None:
            write_geojson(folder.outlines(slide.slide_id), contours)
        write_coords(folder.coords(slide.slide_id), coords, layout=folder.layout, info=info, made_from=now)
    if given is not None:
        _forget_contours(folder, slide)
    return coords


def replaced_meanwhile(slide: Location) -> SlideReadError:
    """The error of a slide whose file is another one than when its tissue was searched."""
    return SlideReadError(slide, "was replaced while it was read", "start again once nobody writes to it")


def _given_tissue(outlines: Path, folder: TilingFolder, slide: SlideToTile, info: SlideInfo) -> TissueMask:
    return outlined_tissue(
        ContourFolder(outlines).polygons(slide.slide_id, l0_size=info.l0_size, l0_origin=l0_origin(info)),
        l0_size=info.l0_size,
        slide_mpp=slide.mpp or info.known_mpp(),
        thumbnail_mpp=folder.config.tissue.thumbnail_mpp,
    )
