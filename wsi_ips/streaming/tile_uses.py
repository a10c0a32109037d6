"""Which stored tiles patches touch, and how often each is still needed. Geometry only."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsi_ips.slides.base import TileGrid
from wsi_ips.streaming.patch_region import PatchRegion

BLOCK = 4096
"""Patches whose tiles are counted at a time, so that a long list takes no memory of its own."""


@dataclass(frozen=True, slots=True)
class TileSpans:
    """Per patch the half-open ranges of tile columns and rows under it, (n,) int64 each; empty off the level."""

    first_col_n: NDArray[np.int64]
    end_col_n: NDArray[np.int64]
    first_row_n: NDArray[np.int64]
    end_row_n: NDArray[np.int64]

    @classmethod
    def under(cls, lv_boxes_n4: NDArray[np.int64], grid: TileGrid) -> Self:
        """``lv_boxes_n4``: (n, 4) left, top, width, height in pixels of the level."""
        left, top, width, height = lv_boxes_n4.T
        tile_width, tile_height = grid.tile_size
        first_col = np.clip(left // tile_width, 0, grid.cols)
        first_row = np.clip(top // tile_height, 0, grid.rows)
        end_col = np.clip((left + width - 1) // tile_width + 1, first_col, grid.cols)
        end_row = np.clip((top + height - 1) // tile_height + 1, first_row, grid.rows)
        return cls(first_col, end_col, first_row, end_row)

    def rows(self, rows: NDArray[np.int64]) -> "TileSpans":
        """Those of some of the patches."""
        return TileSpans(
            self.first_col_n[rows], self.end_col_n[rows], self.first_row_n[rows], self.end_row_n[rows]
        )

    def numbers(self, grid: TileGrid) -> NDArray[np.int64]:
        """The tiles under any of the patches, ascending, each once."""
        cols_nk = self.first_col_n[:, None] + np.arange((self.end_col_n - self.first_col_n).max(initial=0))
        rows_nk = self.first_row_n[:, None] + np.arange((self.end_row_n - self.first_row_n).max(initial=0))
        inside = (cols_nk < self.end_col_n[:, None])[:, None, :] & (rows_nk < self.end_row_n[:, None])[
            :, :, None
        ]
        return np.unique((rows_nk[:, :, None] * grid.cols + cols_nk[:, None, :])[inside])

    def exact(self, lv_boxes_n4: NDArray[np.int64], grid: TileGrid) -> NDArray[np.int64]:
        """(n,) the number of the one tile that is exactly the patch, or -1."""
        tile_width, tile_height = grid.tile_size
        wanted_n4 = np.stack(
            [
                self.first_col_n * tile_width,
                self.first_row_n * tile_height,
                np.full_like(self.first_col_n, tile_width),
                np.full_like(self.first_row_n, tile_height),
            ],
            axis=1,
        )
        one = (self.end_col_n - self.first_col_n == 1) & (self.end_row_n - self.first_row_n == 1)
        same = one & (lv_boxes_n4 == wanted_n4).all(axis=1)
        return np.where(same, self.first_row_n * grid.cols + self.first_col_n, -1)

    def ranges(self) -> list[tuple[int, int, int, int]]:
        """Per patch (first column, end column, first row, end row)."""
        table = np.stack([self.first_col_n, self.end_col_n, self.first_row_n, self.end_row_n], axis=1)
        return [tuple(row) for row in table.tolist()]


def tile_uses(region: PatchRegion, l0_xy_N2: NDArray[np.int64], grid: TileGrid) -> NDArray[np.int32]:
    """How many of the patches touch each tile: (rows * cols,) int32.

    Each patch adds a rectangle of ones, as four corners of a table of differences.
    """
    corners = np.zeros((grid.rows + 1, grid.cols + 1), np.int32)
    flat, width = corners.ravel(), grid.cols + 1  # one index into a view is much faster than two
    for start in range(0, len(l0_xy_N2), BLOCK):
        spans = TileSpans.under(region.lv_boxes(l0_xy_N2[start : start + BLOCK]), grid)
        np.add.at(flat, spans.first_row_n * width + spans.first_col_n, 1)
        np.add.at(flat, spans.first_row_n * width + spans.end_col_n, -1)
        np.add.at(flat, spans.end_row_n * width + spans.first_col_n, -1)
        np.add.at(flat, spans.end_row_n * width + spans.end_col_n, 1)
    np.cumsum(corners, axis=0, out=corners)
    np.cumsum(corners, axis=1, out=corners)
    return np.ascontiguousarray(corners[:-1, :-1]).ravel()
