"""Slides that are coarser than the patches wanted of them: detail that they do not have is not made up.

Patches that somebody laid out before: CLAM, TRIDENT, AtlasPatch or ``wsi-ips tile``.

Where a slide's patches are seen from afar: geometry only.

Shape suffixes: N patches, W windows.

A slide cut into the patches that hold tissue.

Why a slide has no patches, and which setting decided it.

Which patches of a slide are looked at: those in its tissue, unless somebody else has laid them out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import CoarseConfig, TilingConfig
from wsi_ips.errors import ConfigError, CoordsError, NoTissue, TooCoarse
from wsi_ips.slides.base import SlideReader
from wsi_ips.storage.location import Location
from wsi_ips.tiling.coords import read_coords
from wsi_ips.tiling.grid import MOST_PATCHES, PatchCoords, PatchGrid
from wsi_ips.tiling.tissue import TissueMask, find_tissue
from wsi_ips.units import Mpp

TOLERANCE = 0.1
"""How much coarser than its patches a slide may be without a word: scanners' 0.5 µm are 0.45 to 0.55."""


def check_upsampling(path: Location, *, slide_mpp: Mpp, patch_mpp: Mpp, allowed: bool) -> None:
    """Raise :class:`TooCoarse` for a slide more than 10 % coarser than its patches, unless that is ``allowed``."""
    if not allowed and _is_coarser(slide_mpp, patch_mpp):
        raise TooCoarse(
            path,
            f"has {slide_mpp:.4g} µm per pixel and the patches are to have {patch_mpp:.4g} µm: they would be "
            f"enlarged {slide_mpp / patch_mpp:.3g} times",
            "give a coarser --patch-mpp (or a model that learned coarser patches), or the true --slide-mpp if the "
            "file's is wrong, or allow it with --set tiling.allow_upsampling=true",
        )


def upsampling_note(coords: PatchCoords) -> str:
    """What a result's row says of patches that are enlarged by more than 10 %; of all others nothing."""
    return note_of(slide_mpp=coords.slide_mpp, patch_mpp=coords.patch_mpp)


def note_of(*, slide_mpp: Mpp, patch_mpp: Mpp) -> str:
    """The same of two resolutions."""
    if not _is_coarser(slide_mpp, patch_mpp):
        return ""
    return f"patches of {patch_mpp:.4g} µm are enlarged {slide_mpp / patch_mpp:.3g} times from {slide_mpp:.4g} µm"


def _is_coarser(slide_mpp: Mpp, patch_mpp: Mpp) -> bool:
    return slide_mpp > patch_mpp * (1 + TOLERANCE) * (1 + 1e-9)


"""How much larger or smaller than the model's a patch may be."""


@dataclass(frozen=True, slots=True)
class StoredPatches:
    """The patches in a folder of coordinates, as a model of this tiling reads them.

    A patch covers what its file says, to the pixel, with ``tiling.patch_px`` pixels. Those that lie on the grid
    that we would lay are that grid's cells, in its order; any others keep the file's order and numbers.
    ``raster``: the model counts cells (``attention.positions: raster``), which means nothing on another grid.
    ``own_px``: a patch has the file's own pixels, not ``tiling``'s: the encoder resizes them.
    """

    folder: Path
    tiling: TilingConfig
    raster: bool = False
    own_px: bool = False

    def __call__(self, slide: SlideReader, *, slide_id: str, mpp: Mpp | None) -> PatchCoords:
        """See :class:`wsi_ips.tiling.patches.FindPatches`.

        Raises :class:`CoordsError` where there is no file of this slide, or none that fits it and the model;
        :class:`MissingResolution` where nobody says the slide's; :class:`TooCoarse` for a slide that is coarser
        than the patches, unless ``tiling.allow_upsampling``.
        """
        path = find_coords(self.folder, slide_id)
        info = slide.info if mpp is None else slide.info.with_mpp(mpp)
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
        return fitted

    def _fitted(self, coords: PatchCoords, path: Path) -> PatchCoords:
        """With the model's pixels: as cells of our grid where they are, else with the file's own footprint."""
        on_grid = _on_our_grid(_as_read(coords, self.tiling, path, rounded=True), self.tiling)
        if on_grid is not None:
            return on_grid
        read = _as_read(coords, self.tiling, path, rounded=False)
        return replace(read, ids_N=np.arange(len(read)), g_size=(len(read), 1))

    def read_from(self, slide_id: str) -> Sequence[Path]:
        """The slide's file of coordinates. Raises :class:`CoordsError` as a call does."""
        return (find_coords(self.folder, slide_id),)


def find_coords(folder: Path, slide_id: str) -> Path:
    """``<slide_id>.h5`` (CLAM, AtlasPatch) or ``<slide_id>_patches.h5`` (TRIDENT), there or in ``patches/``.

    Raises :class:`CoordsError` where there is none, or more than one.
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
    outside_N = ((coords.l0_xy_N2 < 0) | (coords.l0_xy_N2 >= np.array(coords.l0_size))).any(axis=1)
    if outside_N.any():
        row = int(outside_N.argmax())
        corner, size = tuple(coords.l0_xy_N2[row].tolist()), coords.l0_size
        raise CoordsError(
            path,
            f"has {outside_N.sum()} of {len(coords)} patches that begin outside the slide of {size[0]}x{size[1]} "
            f"px, the first in row {row} at {corner}",
            "are they this slide's, in level-0 pixels?",
        )


def _as_read(coords: PatchCoords, tiling: TilingConfig, path: Path, *, rounded: bool) -> PatchCoords:
    """With the pixels that the model takes of a patch. ``rounded``: the file's footprint is the model's, written
    down in whole pixels, where that can be. Raises :class:`CoordsError` for a patch of another size."""
    l0_wanted = tiling.patch_px * tiling.patch_mpp / coords.slide_mpp
    l0_off = abs(coords.l0_patch - l0_wanted)
    # Rounding: TRIDENT cuts off decimals of level-0 pixels; ours in CLAM's layout has whole pixels of a level.
    rounding = max(1.0, coords.l0_patch / coords.patch_px / 2)
    if l0_off > TOLERANCE * l0_wanted and l0_off > rounding:
        raise CoordsError(
            path,
            f"holds patches of {coords.patch_px} px at {coords.patch_mpp:.4g} µm "
            f"({coords.patch_px * coords.patch_mpp:.4g} µm wide), the model learned {tiling.patch_px} px at "
            f"{tiling.patch_mpp:.4g} µm ({tiling.patch_px * tiling.patch_mpp:.4g} µm)",
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
    """The same patches as cells of our grid, in its order; None where they lie elsewhere."""
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


def window_coords(coords: PatchCoords, coarse: CoarseConfig) -> tuple[PatchCoords, NDArray[np.int64]]:
    """The windows as coordinates (ids from 0 on), and which of them each patch lies in, (N,) int64.

    ``conv``: a window a patch, in the patches' order, centred on it, as many whole pixels as its side is long and
    ``context_px`` more on every side. ``encoder``: a grid of patches of the coarse resolution, those of them that
    hold the centre of a patch.
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


ROUNDING = 1e-6
"""Shares this close to each other are equal: sums of a whole mask in float64 are not exact."""


def tile_slide(
    slide: SlideReader,
    config: TilingConfig,
    *,
    slide_id: str,
    mpp: Mpp | None = None,
    mask: TissueMask | None = None,
) -> tuple[PatchCoords, TissueMask]:
    """Find tissue, lay the grid, keep the patches with enough of it; none at all is no error.

    ``mpp`` is used instead of the file's own resolution. ``mask``: tissue that is known; none: it is looked for.
    Raises :class:`MissingResolution` where neither says the resolution, and :class:`TooCoarse` before anything is
    read of a slide that is coarser than the patches, unless ``config.allow_upsampling``. Raises
    :class:`ConfigError` for more patches than memory should hold, before anything is allocated for them.
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
    return coords, mask


def tissue_share(mask: TissueMask, grid: PatchGrid) -> NDArray[np.float64]:
    """Share of every patch's whole area that is tissue, (g_cols * g_rows,), in id order.

    Exact for the float footprint: a mask pixel that a patch covers in part counts in part. Computed from
    the integral image, which is linear between its nodes along each axis, so a grid's sums are differences
    of it interpolated at the grid's lines.
    """
    height, width = mask.mask_HW.shape
    integral = np.zeros((height + 1, width + 1))
    integral[1:, 1:] = mask.mask_HW.cumsum(0, dtype=np.float64).cumsum(1)
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
    """The error for a slide of which :func:`wsi_ips.tiling.patches.tile_slide` kept no patch.

    It names what left everything out: the pen, the smallest object, the share of a patch that has to be tissue,
    the segmenter, the contours; or that nothing on the slide differs from the glass.
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
        "lower tiling.min_tissue, or take smaller patches",
    )


class FindPatches(Protocol):
    """Gives an open slide's patches. Goes to other processes: it can be pickled."""

    def __call__(self, slide: SlideReader, *, slide_id: str, mpp: Mpp | None) -> PatchCoords:
        """At least one patch; ``mpp`` is used instead of the file's own resolution.

        Raises the slide's own error, :class:`wsi_ips.errors.NoTissue`, :class:`wsi_ips.errors.TooCoarse`, or
        :class:`CoordsError`.
        """
        ...

    def read_from(self, slide_id: str) -> Sequence[Path]:
        """The files beside the slide that its patches are found by. Raises :class:`CoordsError`."""
        ...


@dataclass(frozen=True, slots=True)
class PatchesInTissue:
    """The cells of the slide's grid with enough tissue, by our own segmentation."""

    tiling: TilingConfig

    def __call__(self, slide: SlideReader, *, slide_id: str, mpp: Mpp | None) -> PatchCoords:
        """See :class:`FindPatches`."""
        coords, mask = tile_slide(slide, self.tiling, slide_id=slide_id, mpp=mpp)
        if not len(coords):
            raise no_patches(slide.info.path, coords, mask, self.tiling)
        return coords

    def read_from(self, slide_id: str) -> Sequence[Path]:
        """See :class:`FindPatches`: none."""
        return ()


def stored_patches(
    folder: Path, tiling: TilingConfig, *, raster: bool = False, own_px: bool = False
) -> StoredPatches:
    """The patches that ``--from-coords`` names, for any process; see :class:`StoredPatches`.

    Raises :class:`ConfigError` for no folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"--from-coords {folder}: no such folder")
    return StoredPatches(folder.absolute(), tiling, raster=raster, own_px=own_px)
