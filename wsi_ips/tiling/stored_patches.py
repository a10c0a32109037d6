"""Patches that somebody laid out before: CLAM, TRIDENT, AtlasPatch or ``wsi-ips tile``."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wsi_ips.config import TilingConfig
from wsi_ips.errors import CoordsError
from wsi_ips.slides.base import SlideReader
from wsi_ips.tiling.coords import read_coords
from wsi_ips.tiling.grid import PatchCoords, PatchGrid
from wsi_ips.tiling.upsampling import check_upsampling
from wsi_ips.units import Mpp

TOLERANCE = 0.1
"""How much larger or smaller than the model's a patch may be."""


@dataclass(frozen=True, slots=True)
class StoredPatches:
    """The patches in a folder of coordinates, as a model of this tiling reads them.

    A patch covers what its file says, with ``tiling.patch_px`` pixels. Those that lie on the grid that we would
    lay are that grid's cells, in its order; any others keep the file's order and numbers. ``raster``: the model
    counts cells (``attention.positions: raster``), which means nothing on another grid.
    """

    folder: Path
    tiling: TilingConfig
    raster: bool = False

    def __call__(self, slide: SlideReader, *, slide_id: str, mpp: Mpp | None) -> PatchCoords:
        """See :class:`wsi_ips.tiling.find_patches.FindPatches`.

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
        fitted = _on_our_grid(_as_read(coords, self.tiling, path), self.tiling)
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


def _as_read(coords: PatchCoords, tiling: TilingConfig, path: Path) -> PatchCoords:
    """With the pixels that the model takes of a patch. Raises :class:`CoordsError` for one of another size."""
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
    l0_patch = l0_wanted if l0_off <= rounding else coords.l0_patch
    overlap = round(coords.overlap_px * tiling.patch_px / coords.patch_px)
    return replace(
        coords,
        patch_px=tiling.patch_px,
        patch_mpp=Mpp(
            tiling.patch_mpp if l0_off <= rounding else l0_patch * coords.slide_mpp / tiling.patch_px
        ),
        l0_patch=l0_patch,
        overlap_px=min(max(0, overlap), tiling.patch_px - 1),
    )


def _on_our_grid(coords: PatchCoords, tiling: TilingConfig) -> PatchCoords:
    """The same patches as cells of our grid, in its order, where they are; else in file order, each its own."""
    apart = replace(coords, ids_N=np.arange(len(coords)), g_size=(len(coords), 1))
    if coords.patch_mpp != tiling.patch_mpp:
        return apart
    grid = PatchGrid.cover(coords.l0_size, slide_mpp=coords.slide_mpp, tiling=tiling)
    g_xy_N2 = np.rint(coords.l0_xy_N2 / grid.l0_step).astype(np.int64)
    ids_N = g_xy_N2[:, 1] * grid.g_cols + g_xy_N2[:, 0]
    same_place = np.abs(g_xy_N2 * grid.l0_step - coords.l0_xy_N2).max() <= 0.5
    inside = (g_xy_N2 < (grid.g_cols, grid.g_rows)).all()
    if not (same_place and inside and len(np.unique(ids_N)) == len(ids_N)):
        return apart
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
