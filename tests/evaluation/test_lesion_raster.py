import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely import MultiPolygon, Polygon
from shapely.affinity import translate

from tests.evaluation import plain_froc
from wsi_ips.evaluation import lesion_raster as module
from wsi_ips.evaluation.froc import lesion_mask
from wsi_ips.evaluation.lesion_raster import lesion_raster


def by_points(lesions: MultiPolygon, per_px: float, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(inside, so near an outline that rounding decides), asked pixel by pixel."""
    x, y = np.meshgrid((np.arange(size[0]) + 0.5) * per_px, (np.arange(size[1]) + 0.5) * per_px)
    near = shapely.distance(shapely.points(x, y), lesions.boundary) < 1e-6
    return shapely.contains_xy(lesions, x, y), near


corner = st.tuples(st.integers(-40, 360), st.integers(-40, 300))


@given(st.lists(st.lists(corner, min_size=3, max_size=9), max_size=3), st.sampled_from([8.0, 32.0, 7.3]))
def test_a_pixel_is_lesion_where_its_centre_is(outlines: list[list[tuple[int, int]]], per_px: float) -> None:
    """Any outlines: made valid and united first, as lesion_area does; some lie beyond the mask."""
    united = shapely.union_all([shapely.make_valid(Polygon(points)) for points in outlines])
    parts = [part for part in shapely.get_parts(united) if isinstance(part, Polygon)]
    lesions, size = MultiPolygon(parts), (41, 33)
    inside, near = by_points(lesions, per_px, size)
    mask = lesion_raster(lesions, l0_per_px=per_px, size=size)
    assert mask.shape == (33, 41)
    assert ((mask == 255) == inside)[~near].all()
    assert set(np.unique(mask)) <= {0, 255}


def test_holes_stay_open_and_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = shapely.Point(500, 400).buffer(300).difference(shapely.Point(500, 400).buffer(150))
    lesions = MultiPolygon([ring, shapely.box(900, 0, 1000, 100)])
    whole = lesion_raster(lesions, l0_per_px=4, size=(250, 200))
    assert (whole[100, 125], whole[100, 60], whole[5, 240]) == (0, 255, 255)
    assert whole.astype(bool).sum() * 16 == pytest.approx(lesions.area, rel=0.01)
    monkeypatch.setattr(module, "CROSSINGS_AT_ONCE", 7)
    assert np.array_equal(lesion_raster(lesions, l0_per_px=4, size=(250, 200)), whole)


def test_no_lesion_is_an_empty_mask() -> None:
    assert not lesion_raster(MultiPolygon(), l0_per_px=32, size=(9, 5)).any()


def real_lesions(real_data: Path, name: str) -> MultiPolygon:
    """A CAMELYON16 slide's lesions, moved to the top left."""
    outlines = json.loads((real_data / "camelyon" / "lesion_polygons" / f"{name}.json").read_text())
    shapes = [Polygon(one["vertices"]) for one in outlines["positive"] if len(one["vertices"]) > 3]
    united = shapely.union_all([shapely.make_valid(shape) for shape in shapes])
    moved = translate(united, 900 - united.bounds[0], 300 - united.bounds[1])
    return MultiPolygon([part for part in shapely.get_parts(moved) if isinstance(part, Polygon)])


@pytest.mark.parametrize("name", ["Tumor_008", "Tumor_065", "Tumor_105"])
def test_real_lesions_keep_their_area_and_their_numbers(real_data: Path, name: str) -> None:
    lesions = real_lesions(real_data, name)
    width, height = (int(edge / 32) + 9 for edge in lesions.bounds[2:])
    mask = lesion_raster(lesions, l0_per_px=32, size=(width, height))
    # The rounding of one lesion's pixels goes as the root of its outline's length.
    spread = 4 * 32**2 * (lesions.length / 32) ** 0.5
    assert mask.astype(bool).sum() * 32**2 == pytest.approx(lesions.area, abs=spread + 32**2)
    labels, itc = plain_froc.number_lesions(mask)
    ours = lesion_mask(mask)
    assert np.array_equal(ours.label_HW, labels)
    assert sorted(ours.itc) == itc
    assert ours.numbers > len(itc) > 0
