"""A map of raw values as a pyramid of pixels, registered with its slide; made band by band.

Pixel (i, j) of level k is the level-0 area [i, i + 1) * l0_per_px * 2^k by [j, j + 1) * l0_per_px * 2^k: it begins
at the slide's corner. Level 0 has the value of the patches that hold a pixel's centre; each level below has the
means of four, without what is NaN (no patch).
"""

from collections.abc import Iterator
from math import gcd

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import LARGEST_OVERLAY_PX
from wsi_ips.errors import ConfigError
from wsi_ips.heatmaps.raster import PatchRaster, canvas_size
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.units import Size

TILE_PX = 256
MOST_CHOSEN_PX = 8192
"""Longest side that is chosen where none was asked for: a quarter of a gigabyte of floats."""
STRANGE_PER_PATCH = 8
"""Pixels along a patch of no grid."""
ON_A_LINE = 1e-4
"""Of a pixel: how near an edge has to be to a pixel's edge to lie on it."""


def natural_l0_per_px(coords: PatchCoords) -> float:
    """The largest pixel with all edges of patches on edges of pixels: a patch, where patches do not overlap.

    Then every place of the slide has its own patches' value exactly. Patches that lie on no grid have eight
    pixels along a side. Not finer than 8192 pixels along the slide.
    """
    common_px = gcd(coords.patch_px, coords.overlap_px)
    l0_per_px = coords.l0_patch * common_px / coords.patch_px
    if not _on_lines(coords, l0_per_px):
        l0_per_px = coords.l0_patch / STRANGE_PER_PATCH
    return max(l0_per_px, max(coords.l0_size) / MOST_CHOSEN_PX)


def _on_lines(coords: PatchCoords, l0_per_px: float) -> bool:
    places_N2 = coords.l0_exact_corners() / l0_per_px
    return bool((np.abs(places_N2 - np.rint(places_N2)) < ON_A_LINE).all())


class HeatPyramid:
    """``HeatPyramid(coords, values_N)``: read :meth:`bands` to their end, then :meth:`coarser`.

    um_per_px: of level 0; None: :func:`natural_l0_per_px`. sizes: (width, height) of the levels. Raises
    :class:`ConfigError` for pixels so small that the map would be larger than 16,384 along a side, and for such
    as are larger than the slide, when they are asked for.
    """

    def __init__(
        self, coords: PatchCoords, values_N: NDArray[np.floating], *, um_per_px: float | None = None
    ) -> None:
        self.l0_per_px = natural_l0_per_px(coords) if um_per_px is None else um_per_px / coords.slide_mpp
        least = max(coords.l0_size) / LARGEST_OVERLAY_PX
        if not self.l0_per_px >= least:
            raise ConfigError(
                f"um_per_px {um_per_px:g} is too fine: {coords.slide_id} would be larger than "
                f"{LARGEST_OVERLAY_PX} pixels; from {least * coords.slide_mpp:.4g} on it fits"
            )
        if um_per_px is not None and self.l0_per_px > max(coords.l0_size):
            raise ConfigError(
                f"um_per_px {um_per_px:g} is coarser than all of {coords.slide_id}, "
                f"{max(coords.l0_size) * coords.slide_mpp:.4g} µm"
            )
        self.um_per_px = self.l0_per_px * coords.slide_mpp
        width, height = canvas_size(coords.l0_size, self.l0_per_px)
        self.sizes: list[Size] = [(width, height)]
        while max(self.sizes[-1]) > TILE_PX:
            self.sizes.append((-(-self.sizes[-1][0] // 2), -(-self.sizes[-1][1] // 2)))
        # The last pixels stick out of the slide: with their centres outside, they are still their patches'.
        l0_ends = (np.array([width, height]) * self.l0_per_px).tolist()
        self._raster = PatchRaster.of(
            coords.l0_exact_corners(),
            coords.l0_patch,
            values_N,
            l0_size=(l0_ends[0], l0_ends[1]),
            l0_per_px=self.l0_per_px,
        )
        self._half = np.empty(self.sizes[1][::-1] if len(self.sizes) > 1 else (0, 0), np.float32)

    def bands(self) -> Iterator[NDArray[np.float32]]:
        """Level 0 from top to bottom, (256, width) float32 each, the last as high as there are rows."""
        width, height = self.sizes[0]
        for top in range(0, height, TILE_PX):
            cells = self._raster.window((0, top), (width, min(TILE_PX, height - top)))
            band = cells.spread(cells.values_RC)
            if len(self.sizes) > 1:
                half = halved(band)
                self._half[top // 2 : top // 2 + len(half)] = half
            yield band

    def coarser(self) -> Iterator[NDArray[np.float32]]:
        """The levels below 0, each (height, width) float32."""
        level = self._half
        for number in range(1, len(self.sizes)):
            yield level
            level = halved(level) if number + 1 < len(self.sizes) else level


def halved(values_HW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of two by two without NaN; NaN where all are."""
    height, width = values_HW.shape
    sum_hw = np.zeros((-(-height // 2), -(-width // 2)))
    count_hw = np.zeros(sum_hw.shape, np.int8)
    for row in (0, 1):
        for column in (0, 1):
            quarter = values_HW[row::2, column::2]
            held = np.isfinite(quarter)
            into = np.s_[: quarter.shape[0], : quarter.shape[1]]
            sum_hw[into] += np.where(held, quarter, 0)
            count_hw[into] += held
    sum_hw[count_hw == 0] = np.nan
    return (sum_hw / np.maximum(count_hw, 1)).astype(np.float32)


def registration(coords: PatchCoords, pyramid: HeatPyramid) -> dict[str, str]:
    """Where the map lies on its slide, in words and numbers."""
    return {
        "slide_id": coords.slide_id,
        "l0_x": "0",
        "l0_y": "0",
        "l0_width": str(coords.l0_size[0]),
        "l0_height": str(coords.l0_size[1]),
        "l0_per_px": repr(float(pyramid.l0_per_px)),
        "slide_mpp": repr(float(coords.slide_mpp)),
        "l0_patch": repr(float(coords.l0_patch)),
        "n_patches": str(len(coords)),
        "overlaps": "mean",
        "outside": "NaN",
    }
