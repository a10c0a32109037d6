"""GeoJSON that we write, by the rules of QuPath's importer; and what QuPath exports, read as outlines."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from tests.heatmaps.maps_of_slides import BOUNDS, L0_SIZE, drawn, telling
from tests.interop.qupath_rules import imported
from wsi_ips.errors import AnnotationError
from wsi_ips.heatmaps.export import make_exporter
from wsi_ips.heatmaps.maps import choose_heat
from wsi_ips.nuclei.detect import FoundObjects
from wsi_ips.nuclei.found_files import write_found_geojson
from wsi_ips.tiling.contours import ContourFolder, write_geojson

SQUARE = [[100, 100], [500, 100], [500, 400], [100, 400], [100, 100]]
HOLE = [[200, 200], [200, 300], [300, 300], [300, 200], [200, 200]]


def test_patches_are_tiles_with_measurements_and_a_class(tmp_path: Path) -> None:
    each = drawn(queries=2, share=0.4)
    make_exporter("geojson", {}).write(tmp_path / "a.geojson", each.heat, each.slide)
    objects = imported(tmp_path / "a.geojson")
    assert {(one.kind, one.class_name) for one in objects} == {("tile", "tumor")}
    assert all(one.class_colour is not None for one in objects)
    names = {frozenset(one.measurements) for one in objects}
    assert len(names) == 1, "a measurement map needs the same names in every object"
    assert {"Attention, mean over queries, mean over 2 heads", "Attention percentile"} <= set(*names)
    assert shapely.unary_union([one.roi for one in objects]).bounds[2] <= L0_SIZE[0]


def test_contributions_are_numbers_in_every_patch(tmp_path: Path) -> None:
    """Patches that were not kept have 0, not NaN, which is no JSON."""
    each = drawn()
    result = telling(each.heat.result, {3: 0.5, 9: -0.25})
    make_exporter("geojson", {}).write(tmp_path / "a.geojson", choose_heat(result), each.slide)
    objects = imported(tmp_path / "a.geojson")
    assert len(objects) == len(each.heat.coords)
    (shown,) = {name for name in objects[0].measurements if "ontribution" in name and "tumor" in name}
    told = [one.measurements[shown] for one in objects]
    assert {0.0, 0.5, -0.25} <= set(told)


def test_tissue_is_annotations_with_holes(tmp_path: Path) -> None:
    """Islands in holes are polygons of their own; a region too small for QuPath's precision is in none."""
    ring = shapely.Polygon(SQUARE, [HOLE])
    island = shapely.box(230, 230, 270, 270)
    write_geojson(tmp_path / "s.geojson", [ring, island])
    objects = imported(tmp_path / "s.geojson")
    assert [(one.kind, one.class_name, one.name) for one in objects] == [
        ("annotation", "Tissue", "tissue 0"),
        ("annotation", "Tissue", "tissue 1"),
    ]
    assert [one.roi.area for one in objects] == [400 * 300 - 100 * 100, 40 * 40]
    assert len(objects[0].roi.interiors) == 1


@pytest.mark.parametrize("shape", ["box", "outline", "point"])
def test_nuclei_are_detections_of_a_class_with_a_colour(tmp_path: Path, shape: Any) -> None:
    """A class without a colour ends the import of the whole file."""
    found = FoundObjects(
        np.array([[10, 20, 30, 44], [50, 60, 70.5, 80]], np.float64),
        np.array([0.9, 0.4]),
        np.array([0, 1], np.int64),
    )
    info = drawn().slide.info
    write_found_geojson(tmp_path / "n.geojson", found, info, slide_id="s", classes=["nucleus", "mitosis"],
                        shape=shape)  # fmt: skip
    objects = imported(tmp_path / "n.geojson")
    assert [(one.kind, one.class_name) for one in objects] == [
        ("detection", "nucleus"),
        ("detection", "mitosis"),
    ]
    assert len({one.class_colour for one in objects}) == 2
    assert [one.measurements for one in objects] == [{"Detection score": 0.9}, {"Detection score": 0.4}]


def annotation(geometry: Any, **properties: Any) -> dict[str, Any]:
    """As QuPath 0.5 writes an annotation."""
    return {
        "type": "Feature",
        "id": "4b2b3f0c-1b9c-4f0d-9a59-1d1d3d0f7a11",
        "geometry": geometry,
        "properties": {
            "objectType": "annotation",
            "classification": {"name": "Tumor", "color": [200, 0, 0]},
            "isLocked": True,
            **properties,
        },
    }


POLYGON = {"type": "Polygon", "coordinates": [SQUARE, HOLE]}
MULTI = {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE], [[[600, 0], [700, 0], [700, 50], [600, 0]]]]}
AREA = 400 * 300 - 100 * 100


@pytest.mark.parametrize(
    ("content", "area"),
    [
        pytest.param({"type": "FeatureCollection", "features": [annotation(POLYGON)]}, AREA, id="collection"),
        pytest.param([annotation(POLYGON), annotation(MULTI)], AREA * 2 + 2500, id="list of features"),
        pytest.param(annotation(MULTI), AREA + 2500, id="a single object"),
        pytest.param(POLYGON, AREA, id="a bare geometry"),
        pytest.param([POLYGON], AREA, id="a list of geometries"),
        pytest.param(
            annotation({**POLYGON, "plane": {"c": -1, "z": 0, "t": 0}}, name="a"), AREA, id="with a plane"
        ),
        pytest.param(
            annotation({**POLYGON, "coordinates": [SQUARE[::-1], HOLE[::-1]]}), AREA, id="wound otherwise"
        ),
        pytest.param(annotation({**POLYGON, "coordinates": [SQUARE[:-1], HOLE[:-1]]}), AREA, id="open rings"),
        pytest.param(
            {**annotation(POLYGON), "properties": {"objectType": "annotation", "classification": None}},
            AREA,
            id="unclassified",
        ),
    ],
)
def test_outlines_that_qupath_exports_are_tissue(tmp_path: Path, content: Any, area: float) -> None:
    (tmp_path / "s.geojson").write_text(json.dumps(content))
    polygons = ContourFolder(tmp_path).polygons("s", l0_size=(1000, 800))
    assert sum(polygon.area for polygon in polygons) == area


@pytest.mark.parametrize(
    "content", [{"type": "Feature"}, {}, {"type": "Topology"}, [1], ["Feature"], 3, None]
)
def test_what_is_no_geojson_is_one_line(tmp_path: Path, content: Any) -> None:
    (tmp_path / "s.geojson").write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=r"s.geojson: is no GeoJSON of polygons") as caught:
        ContourFolder(tmp_path).polygons("s", l0_size=(1000, 800))
    assert "\n" not in str(caught.value)


def test_qupath_counts_from_the_corner_of_the_bounds(tmp_path: Path) -> None:
    """Of a slide with OpenSlide's bounds (MIRAX) it shows nothing else. TRIDENT and we count level-0 pixels."""
    origin = (BOUNDS.l0_x, BOUNDS.l0_y)
    assert origin != (0, 0)
    folder, size = ContourFolder(tmp_path), (2000, 2000)
    (tmp_path / "q.geojson").write_text(json.dumps([annotation(POLYGON)]))
    (drawn_there,) = folder.polygons("q", l0_size=size, l0_origin=origin)
    assert drawn_there.bounds[:2] == (100 + origin[0], 100 + origin[1])
    assert drawn_there.area == AREA
    write_geojson(tmp_path / "ours.geojson", [shapely.Polygon(SQUARE, [HOLE])])
    dummy = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}}
    tissue = {"type": "Feature", "properties": {"tissue_id": 0}, "geometry": POLYGON}
    trident = {"type": "FeatureCollection", "crs": dummy, "features": [tissue]}
    (tmp_path / "trident.geojson").write_text(json.dumps(trident))
    for name in ("ours", "trident"):
        (outline,) = folder.polygons(name, l0_size=size, l0_origin=origin)
        assert outline.bounds == (100, 100, 500, 400), name
