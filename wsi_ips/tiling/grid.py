"""The grid of patches over a slide (:class:`PatchGrid`) and the patches kept of it (:class:`PatchCoords`).

This is geometry only, without pixels and masks. Footprints stay floats: 256 px at 0.5 µm are 526.75 level-0 pixels
of a slide of 0.243 µm per pixel. Rounding that step would move the patch at the far corner of a large slide by
hundreds of pixels, so only the corners are rounded, each by itself.

Names begin with their frame of reference: ``l0_`` level-0 pixels, ``g_`` columns and rows of the grid. Shape
suffixes: N patches of the slide, n some of them.
"""

from dataclasses import dataclass, replace
from math import ceil
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import TilingConfig
from wsi_ips.errors import ConfigError
from wsi_ips.units import Mpp, Size

MOST_CELLS = 2**25
"""The most cells that a slide's grid may have: 33.5 million, more than 32-px patches on the largest scans.

Computing their shares of tissue takes about a gigabyte.
"""
MOST_PATCHES = 20_000_000
"""The most patches of one slide, whether they are kept by a grid or stored in a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchGrid:
    """A grid of patches that covers a slide.

    Patches have ids from 0 to ``g_cols * g_rows - 1`` along rows. ``l0_patch`` is the side of a patch's footprint
    and ``l0_step`` the distance between neighbours, both in level-0 pixels and not rounded.
    """

    g_cols: int
    g_rows: int
    l0_patch: float
    l0_step: float

    @classmethod
    def cover(cls, l0_size: Size, *, slide_mpp: Mpp, tiling: TilingConfig) -> Self:
        """The grid that covers the whole slide, including its ragged right and bottom edges.

        ``l0_size`` is the slide's (width, height) in level-0 pixels, ``slide_mpp`` its µm per pixel. Raises
        :class:`ConfigError` for settings that would make more than ``MOST_CELLS`` cells.
        """
        l0_patch = tiling.patch_px * tiling.patch_mpp / slide_mpp
        l0_step = (tiling.patch_px - tiling.overlap_px) * tiling.patch_mpp / slide_mpp
        g_cols, g_rows = (max(1, ceil((length - (l0_patch - l0_step)) / l0_step)) for length in l0_size)
        if g_cols * g_rows > MOST_CELLS:
            raise ConfigError(
                f"a grid of {g_cols}x{g_rows} patches is too large to be held: "
                f"check patch_px ({tiling.patch_px}), "
                f"patch_mpp ({tiling.patch_mpp}) and the slide's µm per pixel "
                f"({slide_mpp})"
            )
        return cls(g_cols=g_cols, g_rows=g_rows, l0_patch=l0_patch, l0_step=l0_step)

    def l0_corners(self, ids_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Top-left corners (x, y) of the patches with these ids, (N, 2) int64 level-0 pixels, rounded."""
        g_rows_N, g_cols_N = np.divmod(ids_N, self.g_cols)
        return np.rint(np.stack([g_cols_N, g_rows_N], axis=1) * self.l0_step).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchCoords:
    """The patches of one slide that are read, in grid order.

    ``l0_size`` is the slide's (width, height) in level-0 pixels, ``slide_mpp`` its µm per pixel. A patch has
    ``patch_px`` pixels a side at ``patch_mpp`` µm per pixel and shares ``overlap_px`` of them with its neighbour;
    its footprint has a side of ``l0_patch`` level-0 pixels, not rounded. ``g_size`` is (columns, rows) of the
    grid.

    ``ids_N``, (N,) int64, are the patches' raster indices in the grid, ascending. ``l0_xy_N2``, (N, 2) int64, are
    their top-left corners (x, y) in level-0 pixels. ``tissue_N``, (N,) float32, is the share of each patch that is
    tissue. ``note`` is what a user has to know of how they were found, in words; empty where there is nothing.
    """

    slide_id: str
    l0_size: Size
    slide_mpp: Mpp
    patch_px: int
    patch_mpp: Mpp
    overlap_px: int
    l0_patch: float
    g_size: tuple[int, int]
    ids_N: NDArray[np.int64]
    l0_xy_N2: NDArray[np.int64]
    tissue_N: NDArray[np.float32]
    note: str = ""

    @classmethod
    def on_grid(
        cls,
        grid: PatchGrid,
        ids_N: NDArray[np.int64],
        *,
        slide_id: str,
        l0_size: Size,
        slide_mpp: Mpp,
        tiling: TilingConfig,
        tissue_N: NDArray[np.float32],
    ) -> Self:
        """The patches with the ids ``ids_N`` of a grid that was laid with the same resolution and ``tiling``."""
        return cls(
            slide_id=slide_id,
            l0_size=l0_size,
            slide_mpp=slide_mpp,
            patch_px=tiling.patch_px,
            patch_mpp=Mpp(tiling.patch_mpp),
            overlap_px=tiling.overlap_px,
            l0_patch=grid.l0_patch,
            g_size=(grid.g_cols, grid.g_rows),
            ids_N=ids_N,
            l0_xy_N2=grid.l0_corners(ids_N),
            tissue_N=tissue_N,
        )

    def __len__(self) -> int:
        return len(self.ids_N)

    def only(self, ids_n: NDArray[np.int64]) -> Self:
        """The patches with these ids, in the order given. Returns this very object if they are all of them.

        Raises ``KeyError`` for an id that is not among the slide's patches.
        """
        if np.array_equal(ids_n, self.ids_N):
            return self
        rows_n = self.rows(ids_n)
        return replace(
            self, ids_N=self.ids_N[rows_n], l0_xy_N2=self.l0_xy_N2[rows_n], tissue_N=self.tissue_N[rows_n]
        )

    def rows(self, ids_n: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of ``ids_N`` at which the patches with these grid ids stand, (n,) int64.

        Raises ``KeyError`` for an id that is not among the slide's patches.
        """
        return rows_of(ids_n, self.ids_N, where="among the slide's coordinates")

    @property
    def lies_on_grid(self) -> bool:
        """Whether the patches are cells of a regular grid: each lies where the grid has it, and ids ascend."""
        return bool(
            np.abs(self._on_grid(self.ids_N) - self.l0_xy_N2).max(initial=0) <= 0.5
            and (np.diff(self.ids_N) > 0).all()
        )

    def um_centres(self, ids_n: NDArray[np.int64]) -> NDArray[np.float64]:
        """Centres (x, y) of the patches with these ids, (n, 2) float64 in µm from the slide's top-left corner.

        Where a patch lies on the grid, this is the centre of the footprint that the grid meant: the same on every
        scan of the same glass, whatever its resolution. A patch that another program laid out has the centre of
        the footprint that it was given.

        Raises ``KeyError`` for an id that is not among the slide's patches.
        """
        l0_xy_n2 = self.l0_xy_N2[self.rows(ids_n)].astype(float)
        exact_n2 = self._on_grid(ids_n)
        # Each patch decides for itself, so that its place does not depend on which others are asked for.
        lies_on_grid_n1 = np.abs(exact_n2 - l0_xy_n2).max(axis=1, keepdims=True) <= 0.5
        l0_centres_n2 = np.where(lies_on_grid_n1, exact_n2, l0_xy_n2) + self.l0_patch / 2
        return l0_centres_n2 * self.slide_mpp

    def l0_exact_corners(self) -> NDArray[np.float64]:
        """Unrounded top-left corners, (N, 2) float64 level-0 pixels, at which neighbouring patches meet exactly.

        Pixels are read at the rounded corners, which are at most half a level-0 pixel away. Patches that another
        program laid out keep the corners that they have.
        """
        return self._on_grid(self.ids_N) if self.lies_on_grid else self.l0_xy_N2.astype(float)

    def _on_grid(self, ids_n: NDArray[np.int64]) -> NDArray[np.float64]:
        """Unrounded level-0 corners of these cells of the grid, (n, 2) float64."""
        l0_step = (self.patch_px - self.overlap_px) * self.patch_mpp / self.slide_mpp
        g_rows_n, g_cols_n = np.divmod(ids_n, self.g_size[0])
        corners_n2: NDArray[np.float64] = np.stack([g_cols_n, g_rows_n], axis=1) * l0_step
        return corners_n2


def rows_of(ids_n: NDArray[np.int64], ids_N: NDArray[np.int64], *, where: str) -> NDArray[np.int64]:
    """The rows of the ascending ``ids_N`` at which ``ids_n`` stand, (n,) int64.

    Raises ``KeyError`` for an id that is missing; ``where`` completes its message: "patches [7] are not
    ``where``".
    """
    rows_n = np.searchsorted(ids_N, ids_n).clip(max=max(0, len(ids_N) - 1))
    strangers = ids_n[ids_N[rows_n] != ids_n] if len(ids_N) else ids_n
    if len(strangers):
        raise KeyError(f"patches {strangers[:5].tolist()} are not {where}")
    return rows_n
