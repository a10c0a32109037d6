"""What an outline encloses, against ASAP's rule pixel by pixel, and the masks that CAMELYON comes with."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from shapely import LinearRing, Point

from wsi_ips.datasets import annotations as module
from wsi_ips.datasets.annotations import (
    Kind,
    Region,
    enclosed,
    lesion_mask,
    polygons_of,
    read_mask,
    winding_numbers,
)
from wsi_ips.errors import AnnotationError, UnsupportedSlide

Ring = Sequence[tuple[float, float]]

FIGURE_EIGHT = [(1, 1), (9, 9), (9, 1), (1, 9)]
DOUBLE_LOOP = [(1, 1), (11, 1), (11, 11), (3, 11), (3, 3), (9, 3), (9, 9), (1, 9)]
"""Around the middle twice: even-odd would leave a hole there."""
THERE_AND_BACK = [(1, 1), (9, 1), (9, 9), (1, 9), (1, 1), (1, 9), (9, 9), (9, 1)]
"""The same square both ways round: wound around once and back, so nothing is inside."""

rings = st.lists(st.tuples(st.integers(-2, 14), st.integers(-2, 14)), min_size=3, max_size=9)


def winding(x: float, y: float, ring: Ring) -> int:
    """The winding number as ASAP computes it, one edge at a time."""
    number = 0
    for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True):
        side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
        if y0 <= y < y1 and side > 0:
            number += 1
        if y1 <= y < y0 and side < 0:
            number -= 1
    return number


def asap_pixels(ring: Ring, *, downsample: float, size: tuple[int, int]) -> NDArray[np.bool_]:
    """ASAP's rule for one outline, one pixel at a time."""
    xs, ys = zip(*ring, strict=True)
    mask = np.zeros((size[1], size[0]), np.bool_)
    for row in range(size[1]):
        for col in range(size[0]):
            x, y = col * downsample, row * downsample
            boxed = min(xs) < x < max(xs) and min(ys) < y < max(ys)
            mask[row, col] = boxed and winding(x, y, ring) != 0
    return mask


def region(ring: Ring, kind: Kind = "tumor") -> Region:
    outline = LinearRing(ring)
    return Region("n", "_0", kind, outline, enclosed(outline))


@given(rings, st.sampled_from([1.0, 2.0, 0.5, 1.5, 1.9896]), st.integers(1, 5))
@example(FIGURE_EIGHT, 1.0, 5)
@example(DOUBLE_LOOP, 1.0, 5)
@example(THERE_AND_BACK, 1.0, 5)
def test_pixels_are_those_of_asap_s_rule(ring: Ring, downsample: float, rows_at_once: int) -> None:
    expected = asap_pixels(ring, downsample=downsample, size=(13, 12))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_CELLS_AT_ONCE", 20 * rows_at_once)
        drawn = lesion_mask([region(ring)], downsample=downsample, size=(13, 12))
    for row, col in np.argwhere(drawn != expected):
        # Only a pixel on the outline itself, whose place floats cannot tell from either side.
        assert downsample == 1.9896
        assert LinearRing(ring).distance(Point(col * downsample, row * downsample)) < 1e-9


@given(rings, st.sampled_from([1.0, 1.5, 1.9896, 1 / 3]))
def test_an_outline_drawn_there_and_back_encloses_nothing(ring: Ring, downsample: float) -> None:
    drawn = lesion_mask([region([*ring, *ring[::-1]])], downsample=downsample, size=(13, 12))
    assert not drawn.any()


@given(rings)
@example(FIGURE_EIGHT)
@example(DOUBLE_LOOP)
@example(THERE_AND_BACK)
def test_the_enclosed_area_is_where_the_winding_number_is_not_zero(ring: Ring) -> None:
    outline = LinearRing(ring)
    area = enclosed(outline)
    assert area.is_valid
    points = np.array([(x + 0.37, y + 0.61) for x in range(-3, 15) for y in range(-3, 15)])
    numbers = winding_numbers(points, np.array(outline.coords))
    for (x, y), number in zip(points, numbers, strict=True):
        if outline.distance(Point(x, y)) > 1e-6:
            assert winding(x, y, ring) == number
            assert area.contains(Point(x, y)) == (number != 0)


def test_what_even_odd_gets_wrong() -> None:
    assert enclosed(LinearRing(FIGURE_EIGHT)).area == 32
    double = enclosed(LinearRing(DOUBLE_LOOP))
    cells = [(x + 0.5, y + 0.5) for x in range(12) for y in range(12)]
    assert double.area == sum(winding(x, y, DOUBLE_LOOP) != 0 for x, y in cells)
    assert winding(6, 6, DOUBLE_LOOP) == 2
    assert double.contains(Point(6, 6))
    assert shapely.make_valid(shapely.Polygon(DOUBLE_LOOP)).contains(Point(6, 6)) is False
    assert enclosed(LinearRing(THERE_AND_BACK)).is_empty


def test_a_spike_does_not_cost_the_lesion() -> None:
    """Two lobes and a line without area between: the real Tumor_009 is drawn so, and was lost once."""
    left, right = (
        [(10, 20), (0, 20), (0, 0), (10, 0), (10, 10)],
        [(30, 10), (30, 0), (40, 0), (40, 20), (30, 20)],
    )
    lobes = [*left, *right, (30, 10), (10, 10)]
    assert enclosed(LinearRing(lobes)).area == 400
    mixed = shapely.GeometryCollection(
        [enclosed(LinearRing(lobes)), shapely.LineString([(10, 10), (30, 10)])]
    )
    assert polygons_of(mixed).area == 400


def test_holes_are_last_whatever_their_place_and_each_outline_is_filled_alone() -> None:
    outer, inner = [(0, 0), (10, 0), (10, 10), (0, 10)], [(3, 3), (7, 3), (7, 7), (3, 7)]
    mask = lesion_mask([region(inner, "hole"), region(outer), region(outer)], downsample=1, size=(12, 12))
    assert mask.sum() == 9 * 9 - 3 * 3
    assert not mask[4:7, 4:7].any()
    assert not mask[0].any()
    overlapping = [region(outer), region([(x + 5, y) for x, y in outer])]
    assert lesion_mask(overlapping, downsample=1, size=(20, 12)).sum() == 9 * 14


def test_outlines_beyond_the_mask_are_cut() -> None:
    square = [(-50, -50), (5, -50), (5, 5), (-50, 5)]
    assert lesion_mask([region(square)], downsample=1, size=(8, 8)).sum() == 25
    away = [(x + 100, y) for x, y in square]
    assert not lesion_mask([region(away)], downsample=1, size=(8, 8)).any()


@pytest.mark.slow
def test_real_lesions_at_level_5_cover_the_area_that_they_enclose(real_data: Path) -> None:
    shares = []
    for path in sorted((real_data / "camelyon" / "lesion_polygons").glob("*.json")):
        drawn = json.loads(path.read_text())["positive"]
        lesions = [region(each["vertices"]) for each in drawn if len(each["vertices"]) > 2]
        right = max(each.outline.bounds[2] for each in lesions)
        bottom = max(each.outline.bounds[3] for each in lesions)
        mask = lesion_mask(lesions, downsample=32, size=(int(right / 32) + 2, int(bottom / 32) + 2))
        area = shapely.union_all([each.area for each in lesions]).area
        if area > 1e6:
            shares.append(mask.sum() * 32**2 / area)
    assert len(shares) == 18
    assert np.abs(np.array(shares) - 1).max() < 0.02


def write_mask(path: Path, values: NDArray[np.uint8], *, levels: int = 3) -> list[NDArray[np.uint8]]:
    """As ASAP writes masks: one grey channel, LZW, 512-px tiles, every other pixel at the next level."""
    written = [values[:: 2**level, :: 2**level] for level in range(levels)]
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for number, level in enumerate(written):
            writer.write(level, tile=(512, 512), compression="lzw", photometric="minisblack",
                         subfiletype=int(number > 0), metadata=None)  # fmt: skip
    return written


@pytest.fixture
def codes() -> NDArray[np.uint8]:
    coarse = np.random.default_rng(3).integers(0, 3, (31, 41), np.uint8)
    return np.kron(coarse, np.ones((43, 47), np.uint8))


def test_a_mask_s_codes_at_every_level(tmp_path: Path, codes: NDArray[np.uint8]) -> None:
    for level, written in enumerate(write_mask(tmp_path / "t_mask.tif", codes)):
        mask = read_mask(tmp_path / "t_mask.tif", level=level)
        assert (mask.tumor == (written == 1)).all()
        assert (mask.excluded == (written == 2)).all()


def test_the_official_masks_have_255(tmp_path: Path, codes: NDArray[np.uint8]) -> None:
    white = np.where(codes == 1, 255, 0).astype(np.uint8)
    write_mask(tmp_path / "m.tif", white)
    mask = read_mask(tmp_path / "m.tif", level=0, tumor_value=255)
    assert (mask.tumor == (codes == 1)).all()
    assert not mask.excluded.any()
    with pytest.raises(AnnotationError, match="holds the value 255; a mask has 0, 1 for tumour, 2 for excl"):
        read_mask(tmp_path / "m.tif", level=0)


def test_a_mask_is_cut_or_filled_up_to_its_padded_slide(tmp_path: Path, codes: NDArray[np.uint8]) -> None:
    write_mask(tmp_path / "m.tif", codes)
    height, width = codes.shape
    mask = read_mask(tmp_path / "m.tif", level=0, size=(width + 100, height - 5))
    assert mask.tumor.shape == mask.excluded.shape == (height - 5, width + 100)
    assert (mask.tumor[:, :width] == (codes[:-5] == 1)).all()
    assert not mask.tumor[:, width:].any()
    with pytest.raises(AnnotationError, match=r"is 1927x1333 px where its slide is 4000x1333"):
        read_mask(tmp_path / "m.tif", level=0, size=(4000, height))


def test_what_is_no_mask_or_too_large_is_refused(
    tmp_path: Path, codes: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mask(tmp_path / "m.tif", codes)
    with pytest.raises(AnnotationError, match="has no level 7; it has levels 0 to 2"):
        read_mask(tmp_path / "m.tif", level=7)
    with pytest.raises(AnnotationError, match="has no level -1"):
        read_mask(tmp_path / "m.tif", level=-1)
    monkeypatch.setattr(module, "MOST_PIXELS", 1_000_000)
    with pytest.raises(AnnotationError, match="level 0 has 2568691 pixels; read a coarser level"):
        read_mask(tmp_path / "m.tif", level=0)
    assert read_mask(tmp_path / "m.tif", level=1).tumor.any()
    colour = np.zeros((600, 600, 3), np.uint8)
    colour[5, 5, 1] = 1
    tifffile.imwrite(tmp_path / "c.tif", colour, tile=(256, 256), photometric="rgb", compression="lzw")
    with pytest.raises(AnnotationError, match="has colours"):
        read_mask(tmp_path / "c.tif", level=0)
    (tmp_path / "t.tif").write_text("no slide")
    with pytest.raises(UnsupportedSlide):
        read_mask(tmp_path / "t.tif", level=0)
