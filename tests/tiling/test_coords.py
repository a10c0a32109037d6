"""HDF5 coordinates, opened by code that knows CLAM's and TRIDENT's formats and nothing of ours."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import shapely

from tests.tiling.drawn import Drawing
from wsi_ips.config import TilingConfig, TissueConfig
from wsi_ips.errors import CoordsError
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.tiling.contours import tissue_contours, write_geojson
from wsi_ips.tiling.coords import Layout, read_coords, write_coords
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.patches import tile_slide
from wsi_ips.tiling.tissue import TissueMask, find_tissue


@pytest.fixture(scope="module")
def slide() -> MemoryReader:
    return Drawing((1600, 1200)).tissue(200, 300, 900, 700).reader(levels=(1, 2, 4))


@pytest.fixture(scope="module")
def coords(slide: MemoryReader) -> PatchCoords:
    return tile_slide(slide, TilingConfig(patch_px=50, patch_mpp=4.0, overlap_px=10), slide_id="drawn")[0]


def same(a: PatchCoords, b: PatchCoords) -> bool:
    arrays = ("ids_N", "l0_xy_N2", "tissue_N")
    fields = [name for name in PatchCoords.__slots__ if name not in arrays]
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays) and all(
        getattr(a, name) == getattr(b, name) for name in fields
    )


@pytest.mark.parametrize("layout", ["clam", "trident"])
def test_our_own_files_come_back_exactly(
    slide: MemoryReader, coords: PatchCoords, tmp_path: Path, layout: Layout
) -> None:
    path = tmp_path / "drawn.h5"
    write_coords(path, coords, layout=layout, info=slide.info)
    assert same(read_coords(path), coords)


def test_clam_reads_the_same_patches(slide: MemoryReader, coords: PatchCoords, tmp_path: Path) -> None:
    path = tmp_path / "drawn.h5"
    write_coords(path, coords, layout="clam", info=slide.info)
    with h5py.File(path) as file:
        dataset = file["coords"]
        assert dataset.dtype == np.int64
        assert dataset.maxshape == (None, 2)
        level, size = int(dataset.attrs["patch_level"]), int(dataset.attrs["patch_size"])
        assert dataset.attrs["downsample"].tolist() == [2.0, 2.0]
        assert dataset.attrs["name"] == "drawn"
        assert level == 1
        assert size * int(dataset.attrs["downsample"][0]) == round(coords.l0_patch)
        assert np.array_equal(dataset[:], coords.l0_xy_N2)


def test_trident_reads_the_same_patches(slide: MemoryReader, coords: PatchCoords, tmp_path: Path) -> None:
    path = tmp_path / "drawn_patches.h5"
    write_coords(path, coords, layout="trident", info=slide.info)
    with h5py.File(path) as file:
        attributes = dict(file["coords"].attrs)
        assert attributes["patch_size"] == 50
        assert attributes["patch_size_level0"] == round(coords.l0_patch) == 100
        assert attributes["level0_magnification"] / attributes["target_magnification"] == pytest.approx(2)
        assert (attributes["level0_width"], attributes["level0_height"]) == (1600, 1200)
        assert attributes["overlap"] == 10
        assert "patch_level" not in attributes


def test_no_tissue_gives_an_empty_dataset(slide: MemoryReader, coords: PatchCoords, tmp_path: Path) -> None:
    none = replace(coords, ids_N=coords.ids_N[:0], l0_xy_N2=coords.l0_xy_N2[:0], tissue_N=coords.tissue_N[:0])
    write_coords(tmp_path / "e.h5", none, layout="trident", info=slide.info)
    with h5py.File(tmp_path / "e.h5") as file:
        assert file["coords"].shape == (0, 2)
    assert len(read_coords(tmp_path / "e.h5")) == 0


def test_clam_s_and_trident_s_own_files_are_read(slide: MemoryReader, tmp_path: Path) -> None:
    corners = np.array([[0, 0], [512, 0], [0, 512]])
    with h5py.File(tmp_path / "clam.h5", "w") as file:
        dataset = file.create_dataset("coords", data=corners)
        dataset.attrs.update({"patch_size": 256, "patch_level": 1, "name": "clam"})
    with h5py.File(tmp_path / "t_patches.h5", "w") as file:
        dataset = file.create_dataset("coords", data=corners)
        dataset.attrs.update({"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40,
                              "target_magnification": 20, "overlap": 0, "level0_width": 1600,
                              "level0_height": 1200})  # fmt: skip
    clam = read_coords(tmp_path / "clam.h5", info=slide.info)
    trident = read_coords(tmp_path / "t_patches.h5")
    assert clam.l0_patch == trident.l0_patch == 512
    assert clam.patch_mpp == 4.0
    assert (trident.slide_id, trident.patch_mpp, trident.slide_mpp) == ("t", 0.5, 0.25)
    with pytest.raises(CoordsError, match="CLAM file"):
        read_coords(tmp_path / "clam.h5")


@pytest.mark.parametrize(
    ("shape", "attributes", "message"),
    [
        ((4, 3), {}, r"shape \(N, 2\)"),
        ((4, 2), {}, "broken attributes"),
        ((4, 2), {"patch_size": -1, "patch_level": 0}, "not a positive number"),
        ((4, 2), {"patch_size": 256, "patch_level": 9}, "not a level"),
        ((4, 2), {"patch_size": 256, "target_magnification": float("nan")}, "not a positive number"),
    ],
)
def test_broken_files_are_refused(
    slide: MemoryReader, tmp_path: Path, shape: tuple[int, int], attributes: dict[str, float], message: str
) -> None:
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("coords", data=np.zeros(shape, np.int64)).attrs.update(attributes)
    with pytest.raises(CoordsError, match=message):
        read_coords(tmp_path / "b.h5", info=slide.info)


def test_files_that_are_no_coordinates_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("hello")
    with h5py.File(tmp_path / "floats.h5", "w") as file:
        file["coords"] = np.zeros((3, 2))
    for name, message in (("text.h5", "not an HDF5"), ("floats.h5", "integers"), ("no.h5", "does not exist")):
        with pytest.raises(CoordsError, match=message):
            read_coords(tmp_path / name)


def test_contours_cover_the_mask_and_leave_its_holes() -> None:
    drawing = Drawing((1600, 1200)).tissue(200, 300, 700, 600).paint((244, 243, 246), 400, 500, 200, 200)
    mask = find_tissue(drawing.reader(), TissueConfig())
    (polygon,) = tissue_contours(mask)
    assert polygon.area == pytest.approx(700 * 600 - 200 * 200, rel=0.02)
    assert len(polygon.interiors) == 1
    assert np.array(polygon.bounds) == pytest.approx((200, 300, 900, 900), abs=8)


def test_contours_at_the_slide_s_edge_are_closed() -> None:
    (polygon,) = tissue_contours(TissueMask(np.ones((10, 20), bool), (4.0, 4.0)))
    assert np.array(polygon.bounds) == pytest.approx((0, 0, 80, 40), abs=0.01)


def test_geojson_opens_in_other_programs(tmp_path: Path) -> None:
    polygons = [
        shapely.box(0, 0, 100, 80).difference(shapely.box(20, 20, 40, 40)),
        shapely.box(200, 0, 250, 9),
    ]
    path = tmp_path / "s.geojson"
    write_geojson(path, polygons)
    first = path.read_bytes()
    content = json.loads(first)
    assert content["type"] == "FeatureCollection"
    assert "crs" not in content
    assert [feature["properties"]["tissue_id"] for feature in content["features"]] == [0, 1]
    assert all(feature["properties"]["objectType"] == "annotation" for feature in content["features"])
    for feature, polygon in zip(content["features"], polygons, strict=True):
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
        assert shapely.geometry.shape(feature["geometry"]).equals(polygon)
    write_geojson(path, polygons)
    assert path.read_bytes() == first
    write_geojson(path, [])
    assert json.loads(path.read_text())["features"] == []
