"""What every export must do, and what each says beside the values: see test_registration.py for those."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from tests.heatmaps.maps_of_slides import L0_SIZE, SLIDE_MPP, drawn, result_of
from tests.heatmaps.test_legend import drawn_words
from wsi_ips.config import HeatOptions
from wsi_ips.datasets.annotations import lesion_area
from wsi_ips.errors import ConfigError, ExportNotInstalled
from wsi_ips.heatmaps.export import EXPORTS, make_exporter
from wsi_ips.heatmaps.maps import Heat, choose_heat
from wsi_ips.heatmaps.pyramids import HeatPyramid, halved, natural_l0_per_px
from wsi_ips.slides.base import RgbImage
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.testing.exporters import ExporterContract, tree, white
from wsi_ips.units import L0Point, Size


class TestOmeTiff(ExporterContract):
    name = "ome-tiff"

    def test_is_a_pyramid_of_means(self, tmp_path: Path) -> None:
        """Reduced levels are SubIFDs, tiled, marked as reduced; a pixel is the mean of four, without holes."""
        heat = drawn(overlap_px=7, share=0.3).heat
        make_exporter("ome-tiff", {"um_per_px": 0.4}).write(tmp_path / "a.ome.tif", heat)
        with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
            assert file.is_ome
            assert len(file.pages) == 1
            page = file.pages[0]
            levels = [page, *page.pages]
            assert [each.subfiletype for each in levels] == [0, 1, 1]
            assert all(each.is_tiled and each.dtype == np.float32 for each in levels)
            images = [each.asarray() for each in levels]
        assert [image.shape for image in images] == [(606, 918), (303, 459), (152, 230)]
        for finer, coarser in pairwise(images):
            np.testing.assert_allclose(coarser, plain_halved(finer), rtol=1e-5)

    def test_names_and_scale_are_told(self, tmp_path: Path) -> None:
        heat = drawn(queries=2).heat
        make_exporter("ome-tiff", {}).write(tmp_path / "a.ome.tif", heat)
        with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
            text = file.ome_metadata
            resolution = file.pages[0].tags["XResolution"].value
        assert text is not None
        assert 'Name="slide_01"' in text
        assert "Attention, mean over queries, mean over 2 heads" in text
        assert resolution[0] / resolution[1] == pytest.approx(1e4 / (61.728395 * SLIDE_MPP))

    @pytest.mark.parametrize("um_per_px", [0.01, 0.0, -1.0, float("nan")])
    def test_pixels_that_cannot_be(self, um_per_px: float, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="too fine: slide_01 would be larger than 16384"):
            make_exporter("ome-tiff", {"um_per_px": um_per_px}).write(tmp_path / "a.ome.tif", drawn().heat)
        assert not tree(tmp_path)

    def test_pixels_larger_than_the_slide(self, tmp_path: Path) -> None:
        with pytest.raises(
            ConfigError, match=r"um_per_px 1e\+06 is coarser than all of slide_01, [0-9.]+ µm"
        ):
            make_exporter("ome-tiff", {"um_per_px": 1e6}).write(tmp_path / "a.ome.tif", drawn().heat)


class TestOmeZarr(ExporterContract):
    name = "ome-zarr"

    def test_metadata_is_valid_and_queries_are_channels(self, tmp_path: Path) -> None:
        from ome_zarr_models.v05 import Image as ValidImage

        heat = choose_heat(drawn(queries=3).heat.result, HeatOptions(query=1, head=0))
        make_exporter("ome-zarr", {"um_per_px": 0.4}).write(tmp_path / "a.ome.zarr", heat)
        group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
        ValidImage.from_zarr(group)
        omero: Any = group.attrs["ome"]
        labels = [channel["label"] for channel in omero["omero"]["channels"]]
        assert labels == [f"Attention, query {query}, head 0" for query in (1, 0, 2)]
        values: Any = group["0"]
        assert values.shape[0] == 3
        present = heat.coords.l0_exact_corners()[0] + 5
        column, row = (present * SLIDE_MPP / 0.4).astype(int)
        np.testing.assert_array_equal(values[:, row, column], heat.result.attention_NHT[0, 0, [1, 0, 2]])
        coarser: Any = group["1"]
        np.testing.assert_allclose(coarser[2], plain_halved(values[2]), rtol=1e-5)

    def test_levels_lie_over_each_other(self, tmp_path: Path) -> None:
        """The corner of every level is the slide's: half a pixel before its first centre."""
        make_exporter("ome-zarr", {"um_per_px": 0.4}).write(tmp_path / "a.ome.zarr", drawn().heat)
        text = json.loads((tmp_path / "a.ome.zarr" / "zarr.json").read_text())
        datasets = text["attributes"]["ome"]["multiscales"][0]["datasets"]
        assert len(datasets) == 3
        for dataset in datasets:
            scale, shift = dataset["coordinateTransformations"]
            corner = shift["translation"][2] - scale["scale"][2] / 2
            assert corner == pytest.approx(-SLIDE_MPP / 2)

    def test_without_zarr_one_line_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "zarr", None)
        monkeypatch.delitem(sys.modules, "wsi_ips.heatmaps.pyramids", raising=False)
        with pytest.raises(ExportNotInstalled, match=r"pip install 'wsi_ips\[zarr\]'"):
            make_exporter("ome-zarr", {})

    def test_other_exports_work_without_zarr(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "zarr", None)
        monkeypatch.delitem(sys.modules, "wsi_ips.heatmaps.pyramids", raising=False)
        make_exporter("ome-tiff", {}).write(tmp_path / "a.ome.tif", drawn().heat)
        assert (tmp_path / "a.ome.tif").exists()


class TestGeoJson(ExporterContract):
    name = "geojson"

    def features(self, heat: Heat, folder: Path, **options: object) -> list[dict[str, Any]]:
        make_exporter("geojson", options).write(folder / "a.geojson", heat, drawn().slide)
        collection = json.loads((folder / "a.geojson").read_text())
        assert collection["type"] == "FeatureCollection"
        features: list[dict[str, Any]] = collection["features"]
        return features

    def test_tiles_tell_every_map_and_the_prediction(self, tmp_path: Path) -> None:
        heat = drawn(queries=2).heat
        features = self.features(heat, tmp_path)
        assert len(features) == len(heat.values_N)
        assert len({feature["id"] for feature in features}) == len(features)
        percentiles = heat.values_N.argsort().argsort() / (len(heat.values_N) - 1) * 100
        for row in (0, 5, len(features) - 1):
            properties = features[row]["properties"]
            assert properties["classification"]["name"] == "tumor"
            assert len(properties["classification"]["color"]) == 3
            measured = properties["measurements"]
            assert (
                np.float32(measured["Attention, mean over queries, mean over 2 heads"]) == heat.values_N[row]
            )
            assert measured["Attention percentile"] == pytest.approx(percentiles[row], abs=1e-4)
            of_queries = heat.result.attention_NHT[row].mean(axis=0)
            assert measured["Attention, query 1, mean over 2 heads"] == pytest.approx(of_queries[1])
            assert measured["Attention, query 0, mean over 2 heads"] == pytest.approx(of_queries[0])

    def test_rings_are_closed_and_stay_in_the_slide(self, tmp_path: Path) -> None:
        features = self.features(drawn(share=1.0).heat, tmp_path)
        rings = np.array([feature["geometry"]["coordinates"][0] for feature in features])
        np.testing.assert_array_equal(rings[:, 0], rings[:, -1])
        assert rings.min() == 0
        assert rings.max(axis=(0, 1)).tolist() == list(L0_SIZE)

    def test_the_top_patches_alone(self, tmp_path: Path) -> None:
        heat = drawn().heat
        everything = self.features(heat, tmp_path)
        some = self.features(heat, tmp_path, top=7)
        best = np.sort(np.argsort(-heat.values_N, kind="stable")[:7])
        assert some == [everything[row] for row in best]
        assert len(self.features(heat, tmp_path, top=10**6)) == len(everything)


class TestDeepZoom(ExporterContract):
    name = "deepzoom"
    reads_pixels = True

    def test_levels_and_tiles_are_those_of_the_format(self, tmp_path: Path) -> None:
        make_exporter("deepzoom", {"options": HeatOptions(side_px=900)}).write(
            tmp_path / "a.dzi", drawn().heat, drawn().slide
        )
        width, height = 900, 594
        assert f'Width="{width}" Height="{height}"' in (tmp_path / "a.dzi").read_text()
        for level in range(10, -1, -1):
            columns, rows = -(-width // 254), -(-height // 254)
            tiles = tmp_path / "a_files" / str(level)
            assert {path.name for path in tiles.iterdir()} == {
                f"{column}_{row}.jpeg" for column in range(columns) for row in range(rows)
            }
            for column in range(columns):
                with Image.open(tiles / f"{column}_0.jpeg") as tile:
                    core = min((column + 1) * 254, width) - column * 254
                    assert tile.width == core + (column > 0) + (column < columns - 1)
            width, height = -(-width // 2), -(-height // 2)
        assert (width, height) == (1, 1)
        assert len(list((tmp_path / "a_files").iterdir())) == 11

    def test_the_heat_alone_needs_no_slide(self, tmp_path: Path) -> None:
        exporter = make_exporter("deepzoom", {"heat_only": True, "options": HeatOptions(alpha=1.0)})
        assert not exporter.needs_slide
        exporter.write(tmp_path / "a.dzi", drawn(share=0.5).heat)
        with Image.open(tmp_path / "a_files" / "11" / "0_0.png") as tile:
            assert tile.mode == "RGBA"
            assert set(np.unique(np.asarray(tile)[..., 3])) == {0, 255}

    def test_never_holds_the_slide(self, tmp_path: Path) -> None:
        """Blocks of four tiles a side are the most that is read at once."""
        sizes: list[Size] = []

        class Watched(MemoryReader):
            def read(self, l0_xy: L0Point, *, level: int, size_px: Size) -> RgbImage:
                sizes.append(size_px)
                return super().read(l0_xy, level=level, size_px=size_px)

        make_exporter("deepzoom", {}).write(tmp_path / "a.dzi", drawn().heat, white(*L0_SIZE, kind=Watched))
        assert max(map(max, sizes)) <= 1024


class TestPatchSheet(ExporterContract):
    name = "sheet"
    reads_pixels = True

    def test_patches_their_ranks_values_and_places(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each patch of the slide is painted in a colour of its own."""
        words = drawn_words(monkeypatch)
        each = drawn(share=1.0)
        image = np.zeros((L0_SIZE[1], L0_SIZE[0], 3), np.uint8)
        order = np.argsort(-each.heat.values_N, kind="stable")
        for rank, row in enumerate(order.tolist()):
            x, y = np.rint(each.l0_corners_N2[row]).astype(int)
            image[y : y + 62, x : x + 62] = (rank % 250, 40 + rank // 250, 90)
        make_exporter("sheet", {"top": 3}).write(tmp_path / "a.png", each.heat, MemoryReader(image))
        count = len(order)
        x, y = each.heat.coords.l0_xy_N2[order[1]]
        assert words[words.index("Most attention") + 3].startswith("#2   ")
        assert f"({x}, {y})" in words
        least = words[words.index("Least attention") + 1 :]
        assert [word.split()[0] for word in least[::2]] == [f"#{count}", f"#{count - 1}", f"#{count - 2}"]
        sheet = np.asarray(Image.open(tmp_path / "a.png"))
        for rank in (0, 1, 2, count - 1, count - 2, count - 3):
            found = (np.abs(sheet.astype(int) - (rank % 250, 40 + rank // 250, 90)).max(axis=2) <= 1).sum()
            assert found >= 30 * 100, rank

    def test_beyond_the_edge_is_white(self, tmp_path: Path) -> None:
        each = drawn(share=1.0)
        values = np.zeros_like(each.heat.result.attention_NHT)
        values[-1] = 1
        heat = choose_heat(result_of(each.heat.coords, values))
        make_exporter("sheet", {"top": 1}).write(tmp_path / "a.png", heat, each.slide)
        grey = (np.asarray(Image.open(tmp_path / "a.png")) == 200).all(axis=2)
        # The last patch has 1511 - 1481 of its 61.73 pixels in the slide, and 997 - 988.
        upper = grey[: grey.shape[0] // 2]
        assert (upper.sum(axis=0) > 20).sum() == pytest.approx(192 * 30 / 61.73, abs=2)
        assert (upper.sum(axis=1) > 80).sum() == pytest.approx(192 * 9 / 61.73, abs=2)

    @pytest.mark.parametrize("top", [0, 501])
    def test_how_many_can_be(self, top: int, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="top must be 1 to 500"):
            make_exporter("sheet", {"top": top}).write(tmp_path / "a.png", drawn().heat, drawn().slide)


class TestAsap(ExporterContract):
    name = "asap"

    def test_holes_are_kept(self, tmp_path: Path) -> None:
        """A ring of patches around a cold one reads back as one lesion with a hole."""
        each = drawn(share=1.0)
        values = np.full(each.heat.result.attention_NHT.shape, 0.001, np.float32)
        columns = each.heat.coords.g_size[0]
        ring = [row * columns + column for row in (3, 4, 5) for column in (3, 4, 5)]
        ring.remove(4 * columns + 4)
        values[ring] = 0.01
        heat = choose_heat(result_of(each.heat.coords, values))
        make_exporter("asap", {"threshold": 0.01}).write(tmp_path / "a.xml", heat)
        area = lesion_area(tmp_path / "a.xml", l0_size=L0_SIZE)
        assert len(area.geoms) == 1
        assert len(area.geoms[0].interiors) == 1
        assert area.area == pytest.approx(8 * 61.728395**2, rel=1e-3)

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"threshold": float("nan")}, "threshold must be a number"),
            ({"percentile": 101.0}, "percentile must be 0 to 100, not 101"),
            ({"percentile": float("nan")}, "percentile must be 0 to 100"),
            ({"threshold": 0.1, "percentile": 5.0}, "give one of them"),
        ],
    )
    def test_thresholds_that_cannot_be(self, options: dict[str, float], problem: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=problem):
            make_exporter("asap", options).write(tmp_path / "a.xml", drawn().heat)
        assert not tree(tmp_path)


def test_every_export_is_under_contract() -> None:
    assert {each.name for each in ExporterContract.__subclasses__()} == set(EXPORTS)


def test_unknown_exports_and_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="there is no export 'jpeg'; known are ome-tiff, "):
        make_exporter("jpeg", {})
    with pytest.raises(ConfigError, match="top is no option of ome-tiff, which has um_per_px"):
        make_exporter("ome-tiff", {"top": 3})


@pytest.mark.parametrize(
    ("patch_px", "overlap_px", "pixels"), [(30, 0, 30), (30, 10, 10), (256, 64, 64), (256, 128, 128)]
)
def test_a_pixel_is_as_large_as_it_can_be(patch_px: int, overlap_px: int, pixels: int) -> None:
    coords = drawn(patch_px=patch_px, overlap_px=overlap_px, share=1.0).heat.coords
    assert natural_l0_per_px(coords) == pytest.approx(pixels * 0.5 / SLIDE_MPP)


def plain_halved(values_HW: np.ndarray) -> np.ndarray:
    height, width = values_HW.shape
    padded = np.pad(values_HW, ((0, height % 2), (0, width % 2)), constant_values=np.nan)
    halves = np.full((padded.shape[0] // 2, padded.shape[1] // 2), np.nan)
    for row, column in np.ndindex(halves.shape):
        four = padded[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        if np.isfinite(four).any():
            halves[row, column] = np.nanmean(four)
    return halves


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.one_of(st.just(float("nan")), st.floats(0, 1, width=32)),
    )
)
def test_halves_are_means_of_what_is_there(values: np.ndarray) -> None:
    np.testing.assert_allclose(halved(values), plain_halved(values), rtol=1e-6)


@given(st.integers(0, 1000), st.integers(0, 29), st.floats(0.05, 30))
def test_bands_are_the_whole(seed: int, overlap_px: int, um_per_px: float) -> None:
    """However fine; levels halve until they fit a tile."""
    heat = drawn(seed=seed, overlap_px=overlap_px if overlap_px < 20 else 0, share=0.2).heat
    pyramid = HeatPyramid(heat.coords, heat.values_N, um_per_px=max(um_per_px, 0.2))
    whole = np.concatenate(list(pyramid.bands()))
    assert whole.shape == pyramid.sizes[0][::-1]
    assert max(pyramid.sizes[-1]) <= 256
    for level, size in zip(pyramid.coarser(), pyramid.sizes[1:], strict=True):
        assert level.shape == size[::-1]
        whole = halved(whole)
        np.testing.assert_array_equal(level, whole)
