"""The value that an export has at a level-0 point is the stored attention of the patch there, in every format.

The slide is a multiple of nothing, patches have 61.73 level-0 pixels, overlap or are missing. Files are read by
code written from the formats' own words.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import shapely
import tifffile
import zarr
from PIL import Image

from tests.heatmaps.maps_of_slides import BOUNDS, GREY, L0_SIZE, SLIDE_MPP, Drawn, drawn, result_of
from wsi_ips.config import HeatOptions
from wsi_ips.heatmaps.display_scale import colour_table
from wsi_ips.heatmaps.maps import choose_heat
from wsi_ips.heatmaps.overlay import write_overlay
from wsi_ips.heatmaps.pyramids import DeepZoom, OmeTiff, OmeZarr
from wsi_ips.heatmaps.regions import AsapRegions, QuPathGeoJson

MAPS: dict[str, dict[str, Any]] = {
    "side by side": {"patch_px": 30},
    "all of them": {"patch_px": 30, "share": 1.0},
    "overlapping": {"patch_px": 30, "overlap_px": 10},
    "overlapping by a prime": {"patch_px": 37, "overlap_px": 9},
    "larger than the tile": {"patch_px": 300, "overlap_px": 150, "share": 1.0},
}


@pytest.fixture(params=MAPS)
def map_(request: pytest.FixtureRequest) -> Drawn:
    return drawn(**MAPS[request.param])


def random_points(number: int = 100) -> list[tuple[float, float]]:
    """(x, y) in level-0 pixels, a few of them at the far corner."""
    rng = np.random.default_rng(7)
    points = rng.random((number, 2)) * L0_SIZE
    points[:5] = np.array(L0_SIZE) - rng.random((5, 2)) * 20
    return [(x, y) for x, y in points.tolist()]


def check(found: list[float], map_: Drawn, points: list[tuple[float, float]]) -> None:
    expected = [map_.value_at(x, y) for x, y in points]
    assert np.isfinite(expected).sum() > 50
    np.testing.assert_allclose(found, np.float32(expected), rtol=1e-6)


def test_ome_tiff(map_: Drawn, tmp_path: Path) -> None:
    OmeTiff().write(tmp_path / "a.ome.tif", map_.heat)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        values = file.pages[0].asarray()
        description = file.pages[0].tags[270].value
    pixels = ElementTree.fromstring(description).find(".//{*}Pixels")
    assert pixels is not None
    assert pixels.get("PhysicalSizeXUnit", "µm") == "µm"
    um_x, um_y = float(pixels.get("PhysicalSizeX", "")), float(pixels.get("PhysicalSizeY", ""))
    points = random_points()
    found = [values[int(y * SLIDE_MPP / um_y), int(x * SLIDE_MPP / um_x)] for x, y in points]
    check(found, map_, points)
    facts = {each.get("K"): each.text for each in ElementTree.fromstring(description).iterfind(".//{*}M")}
    assert float(facts["l0_per_px"] or 0) * SLIDE_MPP == pytest.approx(um_x)
    assert (facts["l0_x"], facts["l0_y"]) == ("0", "0")


def test_ome_zarr(map_: Drawn, tmp_path: Path) -> None:
    OmeZarr().write(tmp_path / "a.ome.zarr", map_.heat)
    metadata = json.loads((tmp_path / "a.ome.zarr" / "zarr.json").read_text())["attributes"]["ome"]
    finest = metadata["multiscales"][0]["datasets"][0]
    (_, scale), (_, shift) = (each.values() for each in finest["coordinateTransformations"])
    assert [axis["name"] for axis in metadata["multiscales"][0]["axes"]] == ["c", "y", "x"]
    values: Any = zarr.open_array(tmp_path / "a.ome.zarr" / finest["path"], mode="r")[:]
    points = random_points()
    # Where the slide's first level-0 pixel has its centre at 0 um.
    um = [((x - 0.5) * SLIDE_MPP, (y - 0.5) * SLIDE_MPP) for x, y in points]
    found = [values[0, round((y - shift[1]) / scale[1]), round((x - shift[2]) / scale[2])] for x, y in um]
    check(found, map_, points)


@pytest.mark.parametrize("um_per_px", [1.0, 3.3, 20.0])
def test_a_resolution_that_was_asked_for(um_per_px: float, tmp_path: Path) -> None:
    """A pixel has the value at its centre, whatever its size: in both formats, to the far corner."""
    map_ = drawn(overlap_px=7)
    OmeTiff(um_per_px=um_per_px).write(tmp_path / "a.ome.tif", map_.heat)
    OmeZarr(um_per_px=um_per_px).write(tmp_path / "a.ome.zarr", map_.heat)
    values = tifffile.imread(tmp_path / "a.ome.tif")
    l0_per_px = um_per_px / SLIDE_MPP
    assert values.shape == (-(-L0_SIZE[1] // l0_per_px), -(-L0_SIZE[0] // l0_per_px))
    rows, columns = (np.random.default_rng(0).integers(0, side, 100) for side in values.shape)
    points = [
        ((column + 0.5) * l0_per_px, (row + 0.5) * l0_per_px)
        for row, column in zip(rows, columns, strict=True)
    ]
    check(values[rows, columns].tolist(), map_, points)
    array: Any = zarr.open_array(tmp_path / "a.ome.zarr" / "0", mode="r")[:]
    np.testing.assert_array_equal(array[0], values)


def test_patches_of_no_grid(tmp_path: Path) -> None:
    """Another program laid them out: a pixel still has the mean of the patches that hold its centre."""
    on_grid = drawn(share=0.3)
    coords = on_grid.heat.coords
    l0_xy = np.random.default_rng(3).integers(0, np.array(L0_SIZE) - 40, (len(coords), 2))
    foreign = replace(coords, g_size=(len(coords), 1), ids_N=np.arange(len(coords)), l0_xy_N2=l0_xy)
    heat = choose_heat(result_of(foreign, on_grid.heat.result.attention_NHT))
    map_ = Drawn(on_grid.slide, heat, l0_xy.astype(float), on_grid.l0_patch)
    OmeTiff().write(tmp_path / "a.ome.tif", heat)
    values = tifffile.imread(tmp_path / "a.ome.tif")
    l0_per_px = on_grid.l0_patch / 8
    places = [(int(x / l0_per_px), int(y / l0_per_px)) for x, y in random_points(400)]
    centres = [((column + 0.5) * l0_per_px, (row + 0.5) * l0_per_px) for column, row in places]
    check([values[row, column] for column, row in places], map_, centres)


@pytest.mark.parametrize("bounds", [None, BOUNDS])
def test_geojson(map_: Drawn, bounds: Any, tmp_path: Path) -> None:
    """QuPath counts from the bounds' corner."""
    slide = drawn(bounds=bounds).slide
    QuPathGeoJson().write(tmp_path / "a.geojson", map_.heat, slide)
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    outlines = [shapely.geometry.shape(feature["geometry"]) for feature in features]
    measured = np.array(
        [
            feature["properties"]["measurements"]["Attention, task label, mean over 2 heads"]
            for feature in features
        ]
    )
    assert all(feature["properties"]["objectType"] == "tile" for feature in features)
    left, top = (bounds.l0_x, bounds.l0_y) if bounds else (0, 0)
    points, tree = random_points(), shapely.STRtree(outlines)
    found = []
    for x, y in points:
        held = measured[tree.query(shapely.Point(x - left, y - top), predicate="intersects")]
        found.append(held.mean() if len(held) else np.nan)
    check(found, map_, points)


@pytest.mark.parametrize("percentile", [50.0, 75.0])
def test_asap(map_: Drawn, percentile: float, tmp_path: Path) -> None:
    AsapRegions(percentile=percentile).write(tmp_path / "a.xml", map_.heat)
    areas: dict[str, list[shapely.Polygon]] = {"_0": [], "_2": []}
    root = ElementTree.parse(tmp_path / "a.xml").getroot()
    for annotation in root.iterfind("Annotations/Annotation"):
        ring = [(float(p.get("X", "")), float(p.get("Y", ""))) for p in annotation.iterfind(".//Coordinate")]
        areas[annotation.get("PartOfGroup", "")].append(shapely.Polygon(ring))
    regions = shapely.union_all(areas["_0"]).difference(shapely.union_all(areas["_2"]))
    least = np.percentile(map_.heat.values_N, percentile)
    points = random_points(300)
    found = [bool(regions.intersects(shapely.Point(point))) for point in points]
    expected = [map_.value_at(x, y) >= least for x, y in points]
    assert any(expected)
    assert not all(expected)
    assert found == expected


def colour_of(value: float, map_: Drawn) -> np.ndarray:
    """On an absolute scale, from the smallest to the largest value."""
    low, high = float(map_.heat.values_N.min()), float(map_.heat.values_N.max())
    return colour_table("blue_yellow")[round((value - low) / (high - low) * 255)].astype(int)


def deep_zoom_pixel(dzi: Path, x: int, y: int) -> np.ndarray:
    """Of the finest level: the tile is the one whose core holds the pixel."""
    root = ElementTree.parse(dzi).getroot()
    size = root.find("{http://schemas.microsoft.com/deepzoom/2008}Size")
    assert size is not None
    width, height = int(size.get("Width", "")), int(size.get("Height", ""))
    side, overlap, form = int(root.get("TileSize", "")), int(root.get("Overlap", "")), root.get("Format")
    level = int(np.ceil(np.log2(max(width, height))))
    column, row = x // side, y // side
    with Image.open(dzi.with_name(f"{dzi.stem}_files") / str(level) / f"{column}_{row}.{form}") as tile:
        left, top = (overlap if column else 0), (overlap if row else 0)
        return np.asarray(tile.convert("RGBA"))[y - row * side + top, x - column * side + left].astype(int)


def test_deep_zoom_of_the_heat(map_: Drawn, tmp_path: Path) -> None:
    DeepZoom(HeatOptions(scale="absolute"), heat_only=True).write(tmp_path / "a.dzi", map_.heat)
    shown = 0
    for x, y in random_points():
        found = deep_zoom_pixel(tmp_path / "a.dzi", int(x), int(y))
        value = map_.value_at(int(x) + 0.5, int(y) + 0.5)
        if np.isnan(value):
            assert found[3] == 0
        else:
            shown += 1
            assert found[3] == 128
            assert np.abs(found[:3] - colour_of(value, map_)).max() <= 3, "a step of the table, at a rounding"
    assert shown > 50


def test_deep_zoom_of_the_slide(map_: Drawn, tmp_path: Path) -> None:
    """Away from edges, where JPEG rings."""
    DeepZoom(HeatOptions(scale="absolute", alpha=0.5)).write(tmp_path / "a.dzi", map_.heat, map_.slide)
    compared = 0
    for x, y in random_points(300):
        around = [map_.value_at(x + dx, y + dy) for dx in (-9, 0, 9) for dy in (-9, 0, 9)]
        if len(set(map(str, around))) == 1:
            value, compared = around[0], compared + 1
            heat = np.array([GREY] * 3) if np.isnan(value) else colour_of(value, map_)
            found = deep_zoom_pixel(tmp_path / "a.dzi", int(x), int(y))
            assert np.abs(found[:3] - (GREY + heat) / 2).max() < 8
    assert compared > 20


@pytest.mark.parametrize("side_px", [1511, 700])
def test_overlay(map_: Drawn, side_px: int, tmp_path: Path) -> None:
    write_overlay(
        tmp_path / "a.png",
        map_.slide,
        map_.heat.result,
        HeatOptions(side_px=side_px, alpha=1, scale="absolute"),
    )
    l0_per_px = 1511 / side_px
    with Image.open(tmp_path / "a.png") as image:
        picture = np.asarray(image).astype(int)
    for x, y in random_points():
        column, row = int(x / l0_per_px), int(y / l0_per_px)
        centre = (column + 0.5) * l0_per_px, (row + 0.5) * l0_per_px
        if max(centre[0] - L0_SIZE[0], centre[1] - L0_SIZE[1]) >= 0:
            continue
        value = map_.value_at(*centre)
        expected = np.array([GREY] * 3) if np.isnan(value) else colour_of(value, map_)
        assert np.abs(picture[row, column] - expected).max() <= 3
