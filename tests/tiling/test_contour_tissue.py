"""Tissue that others outlined: which pixels, which patches, and files that are no outlines."""

import csv
import json
import pickle
from pathlib import Path
from time import process_time
from typing import Any

import h5py
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from tests.commands.console import Console, make_console
from tests.conftest import SmallData
from wsi_ips.config import TilingConfig
from wsi_ips.errors import AnnotationError
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.tiling.contours import ContourFolder, outlined_tissue
from wsi_ips.tiling.patches import tile_slide
from wsi_ips.units import Mpp

SIZE = (1000, 800)
SQUARE = [[100, 100], [500, 100], [500, 500], [100, 500], [100, 100]]
HOLE = [[200, 200], [200, 300], [300, 300], [300, 200], [200, 200]]


def trident(folder: Path, *geometries: dict[str, Any] | None, slide_id: str = "s") -> Path:
    """As geopandas writes it for TRIDENT."""
    path = folder / f"{slide_id}.geojson"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({
        "type": "FeatureCollection",
        "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}},
        "features": [
            {"type": "Feature", "properties": {"tissue_id": number}, "geometry": geometry}
            for number, geometry in enumerate(geometries)
        ],
    }))  # fmt: skip
    return path


def polygon(*rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def mask_of(polygons: list[shapely.Polygon], *, size: tuple[int, int] = SIZE, l0_per_px: float = 4.0) -> Any:
    return outlined_tissue(polygons, l0_size=size, slide_mpp=Mpp(1.0), thumbnail_mpp=l0_per_px).mask_HW


def test_polygons_with_holes_and_islands_are_read(tmp_path: Path) -> None:
    island = [[240, 240], [260, 240], [260, 260], [240, 260], [240, 240]]
    far = [[[[700, 0], [720, 0], [720, 20], [700, 0]]], [[[800, 0], [820, 0], [820, 20], [800, 0]]]]
    trident(tmp_path / "contours_geojson", polygon(SQUARE, HOLE), polygon(island),
            {"type": "MultiPolygon", "coordinates": far})  # fmt: skip
    found = ContourFolder(tmp_path).polygons("s", l0_size=SIZE)
    assert [each.area for each in found] == [400**2 - 100**2, 400, 200, 200]
    mask = mask_of(found[:2])
    assert mask.sum() * 16 == 400**2 - 100**2 + 400
    assert not mask[60, 55]
    assert mask[62, 62]


def test_no_features_are_no_tissue(tmp_path: Path) -> None:
    trident(tmp_path)
    assert ContourFolder(tmp_path).polygons("s", l0_size=SIZE) == []
    assert not mask_of([]).any()


def eighths(low: int, high: int) -> st.SearchStrategy[float]:
    """Not any float: shapely warns of numbers around 1e-300."""
    return st.integers(8 * low, 8 * high).map(lambda number: number / 8)


@given(
    points=st.lists(st.tuples(eighths(-10, 70), eighths(-10, 50)), min_size=3, max_size=12),
    hole=st.lists(st.tuples(eighths(0, 60), eighths(0, 40)), min_size=3, max_size=6),
    l0_per_px=st.sampled_from([1.0, 1.7, 4.0]),
)
def test_a_pixel_is_tissue_where_its_centre_is_inside(
    points: list[tuple[float, float]], hole: list[tuple[float, float]], l0_per_px: float
) -> None:
    """Against shapely, point by point, for shapes that reach beyond the slide."""
    size = (60, 40)
    shape = shapely.make_valid(shapely.Polygon(points)).difference(shapely.make_valid(shapely.Polygon(hole)))
    polygons = [part for part in shapely.get_parts(shape) if part.geom_type == "Polygon" and part.area]
    mask = mask_of(polygons, size=size, l0_per_px=l0_per_px)
    x, y = np.meshgrid(*((np.arange(n) + 0.5) * l0_per_px for n in reversed(mask.shape)))
    inside = np.zeros(mask.shape, bool)
    doubtful = np.zeros(mask.shape, bool)
    for each in polygons:
        inside |= shapely.contains_xy(each, x, y)
        doubtful |= shapely.distance(each.boundary, shapely.points(x, y)) < 1e-6
    assert np.array_equal(mask[~doubtful], inside[~doubtful])


def test_outlines_with_many_corners_are_cut_into_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    circle = shapely.Point(500, 400).buffer(350, quad_segs=500)
    whole = mask_of([circle])
    monkeypatch.setattr("wsi_ips.tiling.contours._CROSSINGS_AT_ONCE", 1)
    assert np.array_equal(mask_of([circle]), whole)
    assert whole.sum() * 16 == pytest.approx(circle.area, rel=0.005)


def test_patches_are_those_in_the_outline(tmp_path: Path) -> None:
    """Not those that our own segmentation would take: this slide is white all over."""
    slide = MemoryReader(np.full((800, 1000, 3), 245, np.uint8), mpp=Mpp(1.0))
    trident(tmp_path, polygon(SQUARE, HOLE))
    tiling = TilingConfig(patch_px=100, patch_mpp=1.0, min_tissue=0.5)
    mask = mask_of(ContourFolder(tmp_path).polygons("s", l0_size=SIZE))
    coords, _ = tile_slide(slide, tiling, slide_id="s", mask=mask_tissue(mask))
    expected = {(x, y) for x in range(100, 500, 100) for y in range(100, 500, 100)} - {(200, 200)}
    assert set(map(tuple, coords.l0_xy_N2.tolist())) == expected
    assert coords.tissue_N.tolist() == [1.0] * 15


def mask_tissue(mask: Any) -> Any:
    from wsi_ips.tiling.tissue import TissueMask

    return TissueMask(mask, (4.0, 4.0))


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "7", "{}", '{"features": 3}', '[{"geometry": null}]', "[{}]", "[3]", "[" * 100_000,
        '[{"geometry": {"type": "Point", "coordinates": [1, 2]}}]',
        '[{"geometry": {"type": "Polygon", "coordinates": []}}]',
        '[{"geometry": {"type": "Polygon", "coordinates": [[[1, 2], [3, 4]]]}}]',
        '[{"geometry": {"type": "Polygon", "coordinates": [[[1, 2], [3, 4], [5]]]}}]',
        '[{"geometry": {"type": "Polygon", "coordinates": [[[1, 2], [3, 4], [5, NaN]]]}}]',
        '[{"geometry": {"type": "Polygon", "coordinates": [[[1, 2], [3, 4], ["x", "y"]]]}}]',
        '[{"geometry": {"type": "Polygon", "coordinates": [[[1, 2], [3, 4], [1e999, 6]]]}}]',
        '[{"geometry": {"type": "Polygon", "coordinates": 5}}]',
    ],
)  # fmt: skip
def test_files_that_are_no_outlines_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "s.geojson").write_text(content)
    with pytest.raises(AnnotationError, match=r"s\.geojson: is no GeoJSON of polygons"):
        ContourFolder(tmp_path).polygons("s", l0_size=SIZE)


def test_other_slides_missing_and_huge_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AnnotationError, match="no such contours"):
        ContourFolder(tmp_path).polygons("s", l0_size=SIZE)
    trident(tmp_path, polygon([[1.5 * x, y] for x, y in SQUARE]))
    assert ContourFolder(tmp_path).polygons("s", l0_size=(740, 800))  # half a pixel of the thumbnail beyond
    with pytest.raises(AnnotationError, match=r"\(750, 500\), the slide has 700x800 px"):
        ContourFolder(tmp_path).polygons("s", l0_size=(700, 800))
    monkeypatch.setattr("wsi_ips.tiling.contours.LARGEST_FILE_BYTES", 10)
    with pytest.raises(AnnotationError, match="larger than 10 bytes"):
        ContourFolder(tmp_path).polygons("s", l0_size=SIZE)


def test_outlines_that_cross_themselves_keep_their_area(tmp_path: Path) -> None:
    trident(tmp_path, polygon([[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]]))
    found = ContourFolder(tmp_path).polygons("s", l0_size=SIZE)
    assert sum(each.area for each in found) == pytest.approx(5000)


def test_it_goes_to_a_worker(tmp_path: Path) -> None:
    assert pickle.loads(pickle.dumps(ContourFolder(tmp_path))) == ContourFolder(tmp_path)


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Console:
    return make_console(monkeypatch, capsys)


def test_tile_takes_contours(console: Console, small_data: SmallData, tmp_path: Path) -> None:
    """One slide is outlined, one has no tissue, one has another frame, the others have no file; our own contours
    of a run give its patches again, but for those that the outline's corners touch."""
    names = [path.stem for path in sorted(small_data.slides.iterdir())]
    size = ("--patch-px", "32", "--patch-mpp", "2")
    trident(tmp_path / "c", polygon([[2 * x for x in point] for point in SQUARE]), slide_id=names[0])
    trident(tmp_path / "c", slide_id=names[1])
    trident(tmp_path / "c", polygon([[x - 900, y] for x, y in SQUARE]), slide_id=names[2])
    said = console("tile", small_data.slides, "--out", tmp_path / "t", "--contours", tmp_path / "c", *size)
    assert said.code == 3
    with (tmp_path / "t" / "tiles.csv").open(newline="") as file:
        rows = {row["slide_id"]: row for row in csv.DictReader(file)}
    assert [rows[name]["status"] for name in names] == ["ok", *["failed"] * 5]
    for name, part in zip(names[1:4], ("no tissue", "outlines (-800", "no such"), strict=True):
        assert part in rows[name]["error"]
    with h5py.File(tmp_path / "t" / "patches" / f"{names[0]}.h5") as file:
        corners = file["coords"][:]
    assert len(corners) == 49
    assert corners.min() == 128
    assert corners.max() < 1000
    assert not (tmp_path / "t" / "contours_geojson").exists()
    console("tile", small_data.slides, "--out", tmp_path / "own", *size)
    console("tile", small_data.slides, "--out", tmp_path / "again", "--contours", tmp_path / "own", *size)
    for name in names:
        with (
            h5py.File(tmp_path / "own" / "patches" / f"{name}.h5") as own,
            h5py.File(tmp_path / "again" / "patches" / f"{name}.h5") as again,
        ):
            ours, theirs = (set(map(tuple, each["coords"][:].tolist())) for each in (own, again))
        assert len(ours ^ theirs) <= 0.03 * len(ours)
    said = console("tile", small_data.slides, "--out", tmp_path / "x", "--contours", tmp_path / "nowhere")
    assert said.code == 2
    assert "no such folder" in said.complaint


@pytest.mark.parametrize("case", ["null_geometry", "with_point_and_line", "bom"])
def test_what_is_no_area_is_passed_over_and_counted(
    cases_folder: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    (found,) = ContourFolder(cases_folder / "geojson" / case).polygons("he", l0_size=(2048, 2048))
    assert found.area == 1024**2 - 256**2
    counted = {
        "null_geometry": "1 of its features are no areas and are passed over: no geometry (1)",
        "with_point_and_line": "2 of its features are no areas and are passed over: LineString (1), Point (1)",
    }
    assert caplog.messages == (
        [] if case == "bom" else [f"{cases_folder / 'geojson' / case / 'he.geojson'}: {counted[case]}"]
    )


def test_siblings_of_what_is_no_area(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    points, lines = (
        {"type": "MultiPoint", "coordinates": [[1, 2]]},
        {"type": "MultiLineString", "coordinates": []},
    )
    mixed = {"type": "GeometryCollection", "geometries": [points, polygon(SQUARE), lines]}
    flat = polygon([[1, 1], [5, 5], [1, 1]])
    trident(tmp_path, mixed, flat, {"type": "Polygon", "coordinates": []}, None)
    (found,) = ContourFolder(tmp_path).polygons("s", l0_size=SIZE)
    assert found.area == 400**2
    assert "5 of its features are no areas" in caplog.text


@pytest.mark.parametrize("geometry", [None, {"type": "Point", "coordinates": [1, 2]}])
def test_a_file_without_any_area_is_not_taken_for_a_slide_without_tissue(
    tmp_path: Path, geometry: Any
) -> None:
    path = trident(tmp_path, geometry)
    with pytest.raises(AnnotationError, match="outlines no area, only") as caught:
        ContourFolder(tmp_path).polygons("s", l0_size=SIZE)
    assert str(path) in str(caught.value)


def test_collections_within_each_other(tmp_path: Path) -> None:
    deep = polygon(SQUARE)
    for _ in range(20):
        deep = {"type": "GeometryCollection", "geometries": [deep]}
    trident(tmp_path, deep)
    with pytest.raises(AnnotationError, match="collections lie more than"):
        ContourFolder(tmp_path).polygons("s", l0_size=SIZE)


@pytest.mark.parametrize("points", [300, 3000])
def test_a_scribble_is_refused_soon(tmp_path: Path, points: int) -> None:
    ring = (np.random.default_rng(3).random((points, 2)) * SIZE).round(3).tolist()
    trident(tmp_path, polygon([*ring, ring[0]]))
    began = process_time()
    with pytest.raises(AnnotationError, match="crosses itself more than 1000 times: a scribble"):
        ContourFolder(tmp_path).polygons("s", l0_size=SIZE)
    assert process_time() - began < 2


def test_an_outline_that_crosses_itself_a_few_times_is_mended(tmp_path: Path) -> None:
    trident(tmp_path, polygon([[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]]))
    assert sum(each.area for each in ContourFolder(tmp_path).polygons("s", l0_size=SIZE)) == 5000


@pytest.mark.parametrize("far", [2.0**32, -1e300, float("nan"), float("inf")])
def test_a_point_beyond_any_slide_is_refused(tmp_path: Path, far: float) -> None:
    trident(tmp_path, polygon([[0, 0], [far, 0], [10, 10], [0, 0]]))
    with pytest.raises(AnnotationError, match=r"s\.geojson"):
        ContourFolder(tmp_path).polygons("s", l0_size=SIZE)
