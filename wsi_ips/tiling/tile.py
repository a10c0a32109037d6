"""A slide cut into the patches that hold tissue."""

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import TilingConfig
from wsi_ips.errors import ConfigError
from wsi_ips.slides.base import SlideReader
from wsi_ips.tiling.grid import MOST_PATCHES, PatchCoords, PatchGrid
from wsi_ips.tiling.tissue import TissueMask, find_tissue
from wsi_ips.tiling.upsampling import check_upsampling
from wsi_ips.units import Mpp

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
