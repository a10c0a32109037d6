"""Where a slide's patches lie: geometry only, no pixels and no mask.

Footprints stay floats: 256 px at 0.5 µm are 526.75 level-0 pixels of a 0.243-µm slide. Rounding that step
would move the patch at the far corner of a large slide by hundreds of pixels, so only corners are rounded,
each by itself.
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
"""The most cells that a slide's grid may have: 33.5 million, more than 32-px patches on the largest scans. Their
shares of tissue take a gigabyte."""
MOST_PATCHES = 20_000_000
"""The most patches of one slide, whether they are kept by a grid or stored in a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchGrid:
    """A grid that covers a slide. Ids run along rows from 0, ``g_cols * g_rows`` of them.

    g_: grid columns and rows. l0_patch: side of one patch's footprint, l0_step: distance between
    neighbours, both in level-0 pixels and not rounded.
    """

    g_cols: int
    g_rows: int
    l0_patch: float
    l0_step: float

    @classmethod
    def cover(cls, l0_size: Size, *, slide_mpp: Mpp, tiling: TilingConfig) -> Self:
        """The patches that cover the slide, its ragged right and bottom edges too.

        Raises :class:`ConfigError` for resolutions that would make more than ``MOST_CELLS`` patches.
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
        """Top-left corners of the patches, (N, 2) int64 (x, y), each rounded by itself."""
        g_rows_N, g_cols_N = np.divmod(ids_N, self.g_cols)
        return np.rint(np.stack([g_cols_N, g_rows_N], axis=1) * self.l0_step).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchCoords:
    """The patches of one slide that hold tissue, in grid order.

    l0_patch: side of one patch's footprint in level-0 pixels, not rounded. g_size: (columns, rows) of the
    grid. ids_N: (N,) int64, raster index in the grid, ascending. l0_xy_N2: (N, 2) int64, top-left corners
    (x, y). tissue_N: (N,) float32, share of the patch that is tissue.
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
        """These cells of a grid that was laid with the same resolution and ``tiling``."""
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
        """These of the patches, in the order given; the same object where they are all of them.

        Raises ``KeyError`` as :meth:`rows`.
        """
        if np.array_equal(ids_n, self.ids_N):
            return self
        rows_n = self.rows(ids_n)
        return replace(
            self, ids_N=self.ids_N[rows_n], l0_xy_N2=self.l0_xy_N2[rows_n], tissue_N=self.tissue_N[rows_n]
        )

    def rows(self, ids_n: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the patches with these grid ids stand in ``ids_N``.

        Raises ``KeyError`` for an id that is not among the slide's patches.
        """
        return rows_of(ids_n, self.ids_N, where="among the slide's coordinates")

    @property
    def lies_on_grid(self) -> bool:
        """Whether ``ids_N`` are raster indices: every patch lies where the grid has it, and in its order."""
        return bool(
            np.abs(self._on_grid(self.ids_N) - self.l0_xy_N2).max(initial=0) <= 0.5
            and (np.diff(self.ids_N) > 0).all()
        )

    def um_centres(self, ids_n: NDArray[np.int64]) -> NDArray[np.float64]:
        """Centres (n, 2) float64 (x, y) of the patches with these grid ids, in µm from the top-left corner.

        Of the footprint that the grid meant, where the patch lies on the grid: the same on every scan of the
        same glass, whatever its resolution. A patch that another program laid out has the centre that it has.
        Raises ``KeyError`` as :meth:`rows`.
        """
        l0_xy_n2 = self.l0_xy_N2[self.rows(ids_n)].astype(float)
        exact_n2 = self._on_grid(ids_n)
        # Each patch decides for itself, so that its place does not depend on which others are asked for.
        lies_on_grid_n1 = np.abs(exact_n2 - l0_xy_n2).max(axis=1, keepdims=True) <= 0.5
        l0_centres_n2 = np.where(lies_on_grid_n1, exact_n2, l0_xy_n2) + self.l0_patch / 2
        return l0_centres_n2 * self.slide_mpp

    def l0_exact_corners(self) -> NDArray[np.float64]:
        """(N, 2) float64: the grid's own corners where these patches lie on it, so that neighbours meet exactly.

        Pixels are read at the rounded corners, half a level-0 pixel away at most. Patches that another
        program laid out keep the corners that they have.
        """
        return self._on_grid(self.ids_N) if self.lies_on_grid else self.l0_xy_N2.astype(float)

    def _on_grid(self, ids_n: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, 2) float64: unrounded level-0 corners of these cells."""
        l0_step = (self.patch_px - self.overlap_px) * self.patch_mpp / self.slide_mpp
        g_rows_n, g_cols_n = np.divmod(ids_n, self.g_size[0])
        corners_n2: NDArray[np.float64] = np.stack([g_cols_n, g_rows_n], axis=1) * l0_step
        return corners_n2


def rows_of(ids_n: NDArray[np.int64], ids_N: NDArray[np.int64], *, where: str) -> NDArray[np.int64]:
    """Where these ids stand in the ascending ``ids_N``.

    Raises ``KeyError`` for an id that is not ``where`` it is looked for.
    """
    rows_n = np.searchsorted(ids_N, ids_n).clip(max=max(0, len(ids_N) - 1))
    strangers = ids_n[ids_N[rows_n] != ids_n] if len(ids_N) else ids_n
    if len(strangers):
        raise KeyError(f"patches {strangers[:5].tolist()} are not {where}")
    return rows_n
