import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from wsi_ips.nuclei.data import OutlinedImage
from wsi_ips.nuclei.scores import (
    Matches,
    best_threshold,
    box_ious,
    match_boxes,
    match_outlines,
    outlines_of,
    summed,
)


def boxes(*rows: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


def test_iou_is_shared_area_over_all_area() -> None:
    a, b = boxes((0, 0, 10, 10), (0, 0, 0, 0)), boxes((5, 0, 15, 10), (0, 0, 10, 10), (20, 20, 30, 30))
    assert box_ious(a, b)[0] == pytest.approx([50 / 150, 1, 0])
    assert box_ious(a, b)[1].tolist() == [0, 0, 0]


def test_one_box_is_not_matched_twice() -> None:
    found = match_boxes(boxes((0, 0, 10, 10), (0, 0, 10, 11)), boxes((0, 0, 10, 10)), rule="iou", limit=0.5)
    assert found == Matches(hits=1, false=1, missed=0)
    assert found.f1 == pytest.approx(2 / 3)


def test_as_many_as_can_be_are_matched() -> None:
    """The first prediction is close to both; greedy by distance would leave the second without."""
    predicted = boxes((0, 0, 10, 10), (-11, 0, -1, 10))
    true = boxes((-2, 0, 8, 10), (11, 0, 21, 10))
    assert match_boxes(predicted, true, rule="distance", limit=12).hits == 2


def test_distance_is_between_centres() -> None:
    for apart, hits in ((12, 1), (12.5, 0)):
        found = match_boxes(
            boxes((0, 0, 10, 10)), boxes((apart - 5, -5, apart + 15, 15)), rule="distance", limit=12
        )
        assert found.hits == hits


def test_nothing_there_and_nothing_found() -> None:
    none = match_boxes(boxes(), boxes(), rule="iou", limit=0.5)
    assert (none.f1, match_boxes(boxes(), boxes((0, 0, 1, 1)), rule="iou", limit=0.5).f1) == (1.0, 0.0)
    assert summed([none, Matches(2, 1, 0)]) == Matches(2, 1, 0)


def test_the_best_threshold_leaves_the_false_ones_out() -> None:
    predicted = [(boxes((0, 0, 9, 9), (50, 50, 59, 59)), np.array([0.8, 0.3], np.float32))]
    threshold = best_threshold(predicted, [boxes((0, 0, 9, 9))], rule="iou", limit=0.5)
    assert 0.3 < threshold <= 0.8


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 2**16))
def test_hits_false_and_missed_add_up(predicted: int, true: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 40, (predicted + true, 2)).astype(np.float32)
    every = np.concatenate([corners, corners + 10], axis=1)
    found = match_boxes(every[:predicted], every[predicted:], rule="iou", limit=0.3)
    assert (found.hits + found.false, found.hits + found.missed) == (predicted, true)
    assert found.hits <= min(predicted, true)


def polygons(*rings: list[tuple[float, float]]) -> np.ndarray:
    return np.array([shapely.Polygon(ring) for ring in rings], object)


def square(left: float, top: float, side: float = 10) -> list[tuple[float, float]]:
    return [(left, top), (left + side, top), (left + side, top + side), (left, top + side)]


def test_outlines_are_matched_by_what_they_share_and_not_by_their_boxes() -> None:
    triangle = [(0.0, 0.0), (10.0, 0.0), (0.0, 10.0)]
    other_half = [(10.0, 10.0), (10.0, 0.0), (0.0, 10.0)]
    assert match_outlines(polygons(triangle), polygons(other_half), limit=0.5)[0] == Matches(0, 1, 1)
    matches, iou = match_outlines(polygons(triangle, square(50, 50)), polygons(square(0, 0)), limit=0.5)
    assert (matches, iou) == (Matches(1, 1, 0), pytest.approx(0.5))
    # 10 x 10 against 8 x 10 within it, and one that is the same.
    inner = [(0.0, 0.0), (8.0, 0.0), (8.0, 10.0), (0.0, 10.0)]
    matches, iou = match_outlines(
        polygons(inner, square(20, 0)), polygons(square(20, 0), square(0, 0)), limit=0.5
    )
    assert (matches, iou) == (Matches(2, 0, 0), pytest.approx((0.8 + 1) / 2))


def test_no_outlines_match_nothing() -> None:
    none = np.array([], object)
    for predicted, true, wanted in (
        (none, none, Matches(0, 0, 0)),
        (none, polygons(square(0, 0)), Matches(0, 0, 1)),
    ):
        matches, iou = match_outlines(predicted, true, limit=0.5)
        assert matches == wanted
        assert np.isnan(iou)


def test_outlines_that_are_there_end_at_the_image_and_may_cross_themselves() -> None:
    crossed = np.array([(0, 0), (10, 10), (10, 0), (0, 10)], float)
    outlines = (np.array(square(-5, 2)), crossed, np.array(square(50, 50)))
    image = OutlinedImage("drawn", np.zeros((40, 40, 3), np.uint8), outlines)
    half, bow = outlines_of(image)
    assert half.area == pytest.approx(50)
    assert (bow.is_valid, bow.area) == (True, pytest.approx(50))
