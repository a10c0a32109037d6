"""Where a slide's patches are seen from afar: geometry only.

Shape suffixes: N patches, W windows.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import CoarseConfig
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.units import Mpp


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
