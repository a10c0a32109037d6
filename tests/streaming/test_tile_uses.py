"""The planner's geometry against counting by hand."""

from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wsi_ips.streaming.patch_region import PatchRegion
from wsi_ips.streaming.tile_uses import TileSpans, tile_uses


@dataclass(frozen=True)
class Grid:
    level_size: tuple[int, int]
    tile_size: tuple[int, int]

    @property
    def cols(self) -> int:
        return -(-self.level_size[0] // self.tile_size[0])

    @property
    def rows(self) -> int:
        return -(-self.level_size[1] // self.tile_size[1])


side = st.integers(1, 40)
grids = st.builds(Grid, st.tuples(side, side), st.tuples(st.integers(1, 16), st.integers(1, 16)))
corners = st.lists(st.tuples(st.integers(-50, 60), st.integers(-50, 60)), min_size=1, max_size=12)


def touched(grid: Grid, box: list[int]) -> set[int]:
    """Tiles under a box, pixel by pixel."""
    left, top, width, height = box
    return {
        (y // grid.tile_size[1]) * grid.cols + x // grid.tile_size[0]
        for x in range(max(0, left), min(left + width, grid.cols * grid.tile_size[0]))
        for y in range(max(0, top), min(top + height, grid.rows * grid.tile_size[1]))
    }


@given(grid=grids, l0_xy=corners, patch_px=st.integers(1, 20), per_px=st.sampled_from([1.0, 1.3, 2.0]))
def test_uses_are_counted_as_by_hand(
    grid: Grid, l0_xy: list[tuple[int, int]], patch_px: int, per_px: float
) -> None:
    region = PatchRegion(patch_px, level=0, lv_downsample=1.0, lv_per_px=per_px)
    l0_xy_N2 = np.array(l0_xy, np.int64)
    boxes_n4 = region.lv_boxes(l0_xy_N2)
    by_hand = [touched(grid, box) for box in boxes_n4.tolist()]
    uses = tile_uses(region, l0_xy_N2, grid)
    assert uses.tolist() == [sum(n in tiles for tiles in by_hand) for n in range(grid.rows * grid.cols)]
    spans = TileSpans.under(boxes_n4, grid)
    assert spans.numbers(grid).tolist() == sorted(set().union(*by_hand))
    for exact, tiles, box in zip(
        spans.exact(boxes_n4, grid).tolist(), by_hand, boxes_n4.tolist(), strict=True
    ):
        corner = [box[0] % grid.tile_size[0], box[1] % grid.tile_size[1]]
        same = len(tiles) == 1 and box[2:] == list(grid.tile_size) and corner == [0, 0]
        assert exact == (next(iter(tiles)) if same else -1)
