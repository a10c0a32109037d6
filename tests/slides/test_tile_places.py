"""Which tiles lie under a box, against counting and painting pixel by pixel."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_ips.errors import DamagedSlide
from wsi_ips.slides.tile_places import (
    MOST_LAYERS,
    Box,
    BucketIndex,
    Painting,
    PlacedTiles,
    RegularTiles,
    StoredGrid,
    TilePlaces,
)

side = st.integers(1, 40)
boxes = st.lists(
    st.tuples(st.integers(-50, 60), st.integers(-50, 60), st.integers(1, 30), st.integers(1, 30)),
    min_size=1,
    max_size=12,
)


@st.composite
def regular(draw: st.DrawFn) -> RegularTiles:
    (width, height), tile = (
        draw(st.tuples(side, side)),
        draw(st.tuples(st.integers(1, 16), st.integers(1, 16))),
    )
    return RegularTiles((width, height), tile, -(-width // tile[0]), -(-height // tile[1]))


def touched(tiles: RegularTiles, box: Box) -> set[int]:
    """Tiles under a box, pixel by pixel."""
    left, top, width, height = box
    return {
        (y // tiles.tile_size[1]) * tiles.cols + x // tiles.tile_size[0]
        for x in range(max(0, left), min(left + width, tiles.cols * tiles.tile_size[0]))
        for y in range(max(0, top), min(top + height, tiles.rows * tiles.tile_size[1]))
    }


@given(tiles=regular(), boxes=boxes)
def test_a_regular_grid_is_counted_as_by_hand(tiles: RegularTiles, boxes: list[Box]) -> None:
    boxes_n4 = np.array(boxes, np.int64)
    by_hand = [touched(tiles, box) for box in boxes]
    uses = tiles.uses([boxes_n4[:1], boxes_n4[1:]])
    assert uses.tolist() == [sum(n in under for under in by_hand) for n in range(tiles.n_tiles)]
    under = tiles.under(boxes_n4)
    assert under.numbers().tolist() == sorted(set().union(*by_hand))
    for exact, numbers, box in zip(under.exact().tolist(), by_hand, boxes, strict=True):
        corner = [box[0] % tiles.tile_size[0], box[1] % tiles.tile_size[1]]
        same = len(numbers) == 1 and box[2:] == tiles.tile_size and corner == [0, 0]
        assert exact == (next(iter(numbers)) if same else -1)
        assert (exact >= 0) == (
            box[2:] == tiles.tile_size and tiles.painting(box).is_one_whole_tile(tiles.tile_size)
        )


@dataclass(frozen=True)
class Pieces:
    """Random pieces of tiles whose pixels are all different, and the same painted into a plain array."""

    level_size: tuple[int, int]
    tile_size: tuple[int, int]
    missing: list[bool]
    pieces: list[tuple[int, int, int, int, int, int, int]]  # tile, x, y, left, top, width, height in the tile

    @property
    def tiles(self) -> np.ndarray:
        width, height = self.tile_size
        count = len(self.missing)
        return np.arange(count * width * height).reshape(count, height, width)

    @property
    def placed(self) -> PlacedTiles:
        table = np.array(self.pieces, np.int64).reshape(-1, 7)
        return PlacedTiles.place(
            Path("drawn"),
            level_size=self.level_size,
            tile_size=self.tile_size,
            missing=np.array(self.missing),
            numbers_P=table[:, 0],
            xy_P2=table[:, 1:3],
            sources_P4=table[:, 3:],
        )

    def painted(self, box: Box) -> np.ndarray:
        """The box out of the whole level, painted piece by piece on a field of -1 that reaches far beyond it."""
        far = 100
        width, height = self.level_size
        field = np.full((height + 2 * far, width + 2 * far), -1)
        for number, x, y, left, top, piece_width, piece_height in self.pieces:
            if not self.missing[number]:
                source = self.tiles[number, top : top + piece_height, left : left + piece_width]
                field[far + y : far + y + piece_height, far + x : far + x + piece_width] = source
        beyond = np.ones(field.shape, bool)
        beyond[far : far + height, far : far + width] = False
        field[beyond] = -1
        x, y, box_width, box_height = box
        return field[far + y : far + y + box_height, far + x : far + x + box_width]


@st.composite
def placed(draw: st.DrawFn) -> Pieces:
    tile_size = draw(st.tuples(st.integers(1, 16), st.integers(1, 16)))
    missing = draw(st.lists(st.booleans(), min_size=1, max_size=6))
    pieces = []
    for _ in range(draw(st.integers(0, 14))):
        number = draw(st.integers(0, len(missing) - 1))
        left, top = (draw(st.integers(0, length - 1)) for length in tile_size)
        width, height = draw(st.integers(1, tile_size[0] - left)), draw(st.integers(1, tile_size[1] - top))
        x, y = draw(st.integers(-20, 45)), draw(st.integers(-20, 45))
        if draw(st.booleans()):
            left, top, (width, height) = 0, 0, tile_size
        pieces.append((number, x, y, left, top, width, height))
    return Pieces(draw(st.tuples(side, side)), tile_size, missing, pieces)


def carried_out(painting: Painting, tiles: np.ndarray, box: Box) -> np.ndarray:
    into = np.full((box[3], box[2]), -2 if painting.filled else -1)
    for place, window, tile_window in painting.moves:
        into[window] = tiles[painting.numbers[place]][tile_window]
    return into


@given(drawn=placed(), boxes=boxes)
def test_placed_tiles_paint_what_painting_all_of_them_does(drawn: Pieces, boxes: list[Box]) -> None:
    places = drawn.placed
    boxes_n4 = np.array(boxes, np.int64)
    under = places.under(boxes_n4)
    for box, painting in zip(boxes, under.paintings(), strict=True):
        np.testing.assert_array_equal(carried_out(painting, drawn.tiles, box), drawn.painted(box))
        assert carried_out(places.painting(box), drawn.tiles, box).tolist() == drawn.painted(box).tolist()
        assert len(set(painting.numbers)) == len(painting.numbers)


@given(drawn=placed(), boxes=boxes, cut=st.integers(0, 12))
def test_placed_tiles_are_counted_as_they_are_painted(drawn: Pieces, boxes: list[Box], cut: int) -> None:
    places = drawn.placed
    boxes_n4 = np.array(boxes, np.int64)
    under = places.under(boxes_n4)
    taken = [painting.numbers for painting in under.paintings()]
    assert under.numbers().tolist() == sorted({number for numbers in taken for number in numbers})
    uses = places.uses([boxes_n4[:cut], boxes_n4[cut:]])
    assert uses.tolist() == [sum(n in numbers for numbers in taken) for n in range(len(drawn.missing))]
    some = np.arange(len(boxes))[::2]
    assert [p.numbers for p in under.rows(some).paintings()] == taken[::2]


@given(drawn=placed(), boxes=boxes)
def test_a_tile_is_exact_where_it_is_all_that_shows(drawn: Pieces, boxes: list[Box]) -> None:
    at_pieces = [(x, y, *drawn.tile_size) for _, x, y, *_ in drawn.pieces]
    boxes = boxes + at_pieces
    exact = drawn.placed.under(np.array(boxes, np.int64)).exact().tolist()
    for number, box in zip(exact, boxes, strict=True):
        if number >= 0:
            assert drawn.painted(box).tolist() == drawn.tiles[number].tolist()
        whole = drawn.placed.painting(box).is_one_whole_tile(drawn.tile_size)
        assert (number >= 0) == (box[2:] == drawn.tile_size and whole)


@given(
    size=st.tuples(side, side), tile=st.integers(1, 12), by=st.tuples(st.integers(-9, 20), st.integers(-9, 20)),
    left_out=st.sets(st.integers(0, 8)), boxes=boxes,
)  # fmt: skip
def test_tiles_that_do_not_overlap_need_no_white_beneath_where_they_fill_the_box(
    size: tuple[int, int], tile: int, by: tuple[int, int], left_out: set[int], boxes: list[Box]
) -> None:
    grid = StoredGrid.of(size, (tile, tile))
    count = len(grid.cols_P)
    xy_P2 = np.stack([grid.cols_P, grid.rows_P], axis=1) * tile + by
    pieces = [(n, *xy, *grid.sources_P4[n].tolist()) for n, xy in enumerate(xy_P2.tolist())]
    drawn = Pieces((40, 40), (tile, tile), [n in left_out for n in range(count)], pieces)
    places = replace(drawn.placed, disjoint=True)
    for box, painting in zip(boxes, places.under(np.array(boxes, np.int64)).paintings(), strict=True):
        painted = drawn.painted(box)
        assert painting.filled == (painted >= 0).all()
        np.testing.assert_array_equal(carried_out(painting, drawn.tiles, box), painted)


def alone(level_size: tuple[int, int], tile: int, xy: Sequence[tuple[int, int]]) -> PlacedTiles:
    """Whole square tiles at these places."""
    return PlacedTiles.place(
        Path("drawn"),
        level_size=level_size,
        tile_size=(tile, tile),
        missing=np.zeros(len(xy), bool),
        numbers_P=np.arange(len(xy)),
        xy_P2=np.array(xy, np.int64),
    )


def test_a_tile_apart_from_others_is_exact() -> None:
    places = alone((100, 100), 16, [(3, 5), (40, 50), (50, 50)])
    boxes_n4 = np.array([(3, 5, 16, 16), (3, 6, 16, 16), (40, 50, 16, 16), (3, 5, 15, 16)])
    assert places.under(boxes_n4).exact().tolist() == [0, -1, -1, -1]


@pytest.mark.parametrize(
    ("places", "scales"),
    [
        (RegularTiles((101, 99), (16, 16), 7, 7), [1, 2, 4, 8]),
        (RegularTiles((101, 99), (12, 16), 9, 7), [1, 2, 4]),
        (alone((100, 100), 16, [(8, 16), (24, 40)]), [1, 2, 4, 8]),
        (alone((100, 100), 16, [(8, 16), (24, 42)]), [1, 2]),
        (alone((100, 100), 16, [(3, 5), (40, 50)]), [1]),
        (alone((27, 30), 16, [(0, 0), (16, 16)]), [1, 2, 4, 8]),  # cut off by the level's edge
    ],
)
def test_which_scales_leave_tiles_on_whole_pixels(places: TilePlaces, scales: list[int]) -> None:
    assert [scale for scale in (1, 2, 4, 8) if places.divides(scale)] == scales


def test_smaller_tiles_lie_where_the_larger_ones_did() -> None:
    places = alone((27, 30), 16, [(0, 8), (16, 16)]).smaller(4)
    assert places.tile_size == (4, 4)
    tiles = np.arange(32).reshape(2, 4, 4)
    shown = carried_out(places.painting((0, 0, 8, 8)), tiles, (0, 0, 8, 8))
    wanted = np.full((8, 8), -1)
    wanted[2:6, :4] = tiles[0]
    wanted[4:8, 4:7] = tiles[1, :, :3]  # 27 px are 6.75 of these
    assert shown.tolist() == wanted.tolist()


def test_half_a_million_tiles_take_little_memory_and_are_found_at_once() -> None:
    cols, rows = 1000, 500
    xy_P2 = np.stack(np.divmod(np.arange(cols * rows), cols)[::-1], axis=1) * 240
    places = alone((cols * 240 + 16, rows * 240 + 16), 256, xy_P2)
    index = places.index
    held = (index.starts_B1, index.listed, places.boxes_P4, places.numbers_P, places.sources_P2)
    assert sum(array.nbytes for array in held) < 32 << 20
    assert len(places.painting((120_000, 60_000, 256, 256)).numbers) in (4, 6, 9)


def test_a_few_tiles_on_a_huge_level_take_little_memory() -> None:
    far = (1 << 24) - 20
    index = alone((1 << 24, 1 << 24), 16, [(0, 0), (far, far)]).index
    assert index.starts_B1.nbytes < 9 << 20
    assert index.hits(np.array([[far, far, 5, 5]]))[1].tolist() == [1]


def test_tiles_heaped_upon_each_other_are_refused() -> None:
    """Every patch there would take them all: a file of a megabyte could ask for days of decoding."""
    with pytest.raises(DamagedSlide, match="over each other"):
        alone((1000, 1000), 16, [(50, 60)] * (MOST_LAYERS * 4 + 1))
    alone((1000, 1000), 16, [(50 + 4 * (n % 4), 60 + 4 * (n // 4)) for n in range(16)])


@pytest.mark.parametrize("level_size", [(0, 5), (5, -1), (1 << 25, 5)])
def test_levels_that_no_slide_has_are_refused(level_size: tuple[int, int]) -> None:
    with pytest.raises(DamagedSlide, match="tiles on a level of"):
        alone(level_size, 16, [(0, 0)])


def test_places_far_beyond_the_level_show_nothing() -> None:
    places = alone((100, 100), 16, [(2**62, 0), (-(2**62), 0), (0, 2**63 - 1)])
    assert places.painting((0, 0, 100, 100)) == Painting([], [], filled=False)


def test_an_index_of_nothing_finds_nothing() -> None:
    index = BucketIndex.of(np.zeros((0, 4), np.int32))
    assert [found.tolist() for found in index.hits(np.array([[0, 0, 9, 9]]))] == [[], []]
    assert index.expected_hits(np.array([[0, 0, 9, 9]])) == 0
