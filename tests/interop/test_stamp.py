"""STAMP's features, read and written: its three versions, and every way to take µm for pixels or pixels for µm."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.commands.console import Console
from tests.datasets.feature_folders import features_of, write_features, write_recipe, write_stamp
from tests.slides.tiff_files import tissue_like, write_pyramid
from wsi_ips.config import StreamingConfig, TilingConfig
from wsi_ips.datasets.feature_files import find_features, list_features, open_features, read_rows
from wsi_ips.errors import CoordsError, FeaturesError
from wsi_ips.inference.results import read_result
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.slides.registry import open_slide
from wsi_ips.tiling.patches import StoredPatches
from wsi_ips.training.feature_bags import open_source
from wsi_ips.units import Mpp

WIDTH, SIDE = 12, 256.0


def grid(columns: int = 6, rows: int = 5, *, side: float = SIDE) -> NDArray[np.float64]:
    """Corners in µm, as STAMP finds tissue: side by side, some places without any."""
    every = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=2).reshape(-1, 2) * side
    return np.delete(every, [3, 7, 8], axis=0)


@pytest.mark.parametrize(("version", "tolerance"), [("2.5.0", 0), ("2.1.0", 0), ("2.0.0", 0), ("1.1.1", 0.6)])
def test_the_places_of_every_version_are_micrometres(tmp_path: Path, version: str, tolerance: float) -> None:
    corners, features = grid(), features_of(27, WIDTH)
    write_stamp(tmp_path / "s.h5", features, corners, version=version)
    held = open_features(tmp_path / "s.h5")
    assert (len(held), held.width, held.coords, held.on_grid) == (27, WIDTH, None, False)
    assert (held.l0_xy_N2 == -1).all(), "which pixels these are, nobody has said"
    with open_source(held, batch=8, device=torch.device("cpu")) as source:
        centres = source.places(torch.tensor([26, 0, 5]), "um").numpy()
        np.testing.assert_allclose(centres, corners[[26, 0, 5]] + 128, atol=tolerance)
        with pytest.raises(FeaturesError, match="positions: raster"):
            source.places(torch.tensor([0]), "ids")
    with h5py.File(tmp_path / "s.h5") as file:
        np.testing.assert_allclose(
            read_rows(file, tmp_path / "s.h5", np.array([4, 1])), features[[4, 1]], rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize(
    ("coords", "attributes", "problem"),
    [
        pytest.param(grid() / 0.25, {}, "the nearest two lie 1024 apart", id="pixels of a 40x scan"),
        pytest.param(grid() / 0.5, {}, "the nearest two lie 512 apart", id="pixels of a 20x scan"),
        pytest.param(grid() * 224 / 256, {}, "lie 224 apart", id="pixels of version 1"),
        pytest.param(grid() / SIDE, {}, "lie 1 apart", id="rows and columns"),
        pytest.param(grid() / 1000, {}, "lie 0.256 apart", id="millimetres"),
        pytest.param(grid() * 1000, {}, "not within 0 to 300000 µm", id="nanometres"),
        pytest.param(grid() - 1, {}, "not within 0 to", id="beyond the slide"),
        pytest.param(np.full((27, 2), np.nan), {}, "not within 0 to", id="NaN"),
        pytest.param(grid(), {"tile_size_um": 0.0}, "states tile_size_um 0.0, which cannot be", id="no size"),
        pytest.param(grid(), {"tile_size_um": float("nan")}, "which cannot be", id="size NaN"),
        pytest.param(grid(), {"tile_size_um": "256"}, "tile_size_um is object", id="size as text"),
        pytest.param(grid(), {"tile_size_um": None}, "or in which unit", id="size unknown"),
        pytest.param(grid()[:, :1], {}, "coords are float32 of shape", id="one column"),
        pytest.param(grid()[:-1], {}, "27 features and 26 coords", id="too few"),
        pytest.param(None, {}, "a feature of a whole slide or patient", id="slide feature"),
    ],
)
def test_one_unit_is_never_taken_for_another(
    tmp_path: Path, coords: NDArray[Any] | None, attributes: dict[str, Any], problem: str
) -> None:
    path = tmp_path / "s.h5"
    write_stamp(path, features_of(27, WIDTH), grid())
    with h5py.File(path, "a") as file:
        del file["coords"]
        if coords is not None:
            file["coords"] = coords.astype(np.float32)
        for name, value in attributes.items():
            del file.attrs[name]
            if value is not None:
                file.attrs[name] = value
    with pytest.raises(FeaturesError) as caught:
        open_features(path)
    assert problem in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pixels_in_a_file_of_few_patches_are_found_by_the_slide(tmp_path: Path) -> None:
    """Nine patches need not be neighbours; but 1024 µm are outside of a slide of 800."""
    corners = grid(3, 4, side=25.0)[:9]
    slide = MemoryReader(tissue_like(400, 300), mpp=Mpp(0.5))
    write_stamp(tmp_path / "s.h5", features_of(9, 3), corners, um_patch=25, patch_px=50)
    coords = StoredPatches(tmp_path, TilingConfig(patch_px=50, patch_mpp=0.5))(slide, slide_id="s", mpp=None)
    assert coords.l0_xy_N2.tolist() == np.rint(corners / 0.5).astype(int).tolist()
    assert (coords.patch_px, coords.patch_mpp, coords.l0_patch, coords.l0_size) == (50, 0.5, 50.0, (400, 300))
    write_stamp(tmp_path / "s.h5", features_of(9, 3), corners / 0.125, um_patch=25, patch_px=50)
    with pytest.raises(CoordsError, match=r"outside the slide of 200x150 µm.*pixels, not µm"):
        StoredPatches(tmp_path, TilingConfig(patch_px=50, patch_mpp=0.5))(slide, slide_id="s", mpp=None)
    with pytest.raises(FeaturesError, match="outside the slide"):
        open_features(tmp_path / "s.h5", info=slide.info)


def test_micrometres_in_the_files_of_others_are_refused(tmp_path: Path) -> None:
    write_features(tmp_path / "s.h5", features_of(27, WIDTH))
    with h5py.File(tmp_path / "s.h5", "a") as file:
        del file["coords"]
        file["coords"] = grid().astype(np.float32)
    with pytest.raises(FeaturesError, match=r"coords are float32 of shape .*expected integers"):
        open_features(tmp_path / "s.h5")


def test_folders_of_slides_are_kept_and_two_encoders_are_not_mixed(tmp_path: Path) -> None:
    """``stamp preprocess`` keeps TCGA's folder a slide: ``<extractor>/<folder>/<slide>.h5``."""
    for name in ("1a2b/a", "3c4d/b"):
        write_stamp(tmp_path / "uni2-89ab" / f"{name}.h5", features_of(27, WIDTH), grid())
    (tmp_path / "patches").mkdir()
    write_stamp(tmp_path / "patches" / "a_patches.h5", features_of(27, WIDTH), grid())
    there = {
        name: tmp_path / "uni2-89ab" / below / f"{name}.h5" for name, below in (("a", "1a2b"), ("b", "3c4d"))
    }
    assert list_features(tmp_path) == list_features(tmp_path / "uni2-89ab") == there
    assert find_features(tmp_path / "uni2-89ab", "b") == {"b": there["b"]}
    write_stamp(tmp_path / "virchow2-0123" / "a.h5", features_of(27, 9), grid())
    for find in (lambda: list_features(tmp_path), lambda: find_features(tmp_path, "a")):
        with pytest.raises(
            FeaturesError, match=r"two files of features of a: .*uni2-89ab.* and .*virchow2-0123"
        ):
            find()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Six slides of 0.5 µm, and STAMP's features of their patches of 25 µm; in a tumour they differ."""
    lines = ["slide_id,case_id,label,split,path"]
    (tmp_path / "slides").mkdir()
    for number in range(6):
        name, corners = f"s{number}", grid(6, 5, side=25.0)
        write_pyramid(tmp_path / "slides" / f"{name}.tif", tissue_like(400, 300, seed=number), mpp=0.5)
        features = features_of(27, WIDTH, seed=number)
        features[:20, :2] += 6 * (number % 2)
        write_stamp(tmp_path / "feats" / f"{name}.h5", features, corners, um_patch=25.0, patch_px=50)
        lines.append(
            f"{name},c{number},{('normal', 'tumor')[number % 2]},{'train' if number < 4 else 'val'},x.tif"
        )
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    write_recipe(tmp_path / "recipe.yaml", width=WIDTH, positions="slide")
    return tmp_path


def test_stamp_s_users_train_label_and_draw(console: Console, study: Path) -> None:
    """Places in µm are learned from; the slides, given beside the features, say which pixels these are."""
    said = console("finetune", study / "manifest.csv", "--features", study / "feats", "--recipe",
                   study / "recipe.yaml", "--out", study / "model")  # fmt: skip
    assert said.code == 0, said.err
    predict = (
        "predict",
        "--features",
        study / "feats",
        "--checkpoint",
        study / "model" / "model.safetensors",
    )
    said = console(*predict, "--out", study / "alone")
    assert said.code == 0, said.err
    assert "6 files do not say how large" in said.out
    with h5py.File(study / "alone" / "attention" / "s1.h5") as file:
        assert "coords" not in file, "µm are not written where pixels are looked for"
        np.testing.assert_array_equal(file["coords_um"], grid(side=25.0))
    said = console(*predict, study / "slides", "--out", study / "run")
    assert said.code == 0, said.err
    assert "do not say" not in said.out
    assert (study / "run" / "predictions.csv").read_bytes() == (
        study / "alone" / "predictions.csv"
    ).read_bytes()
    result = read_result(study / "run" / "attention" / "s1.h5")
    np.testing.assert_array_equal(result.coords.l0_xy_N2, grid(side=50.0))
    assert (result.coords.slide_mpp, result.coords.l0_size) == (0.5, (400, 300))
    said = console("export", study / "run", "--format", "geojson", "--slides", study / "slides")
    assert said.code == 0, said.err
    shown = json.loads((study / "run" / "exports" / "geojson" / "s1.geojson").read_text())["features"]
    corners = [feature["geometry"]["coordinates"][0][0] for feature in shown]
    np.testing.assert_array_equal(corners, grid(side=50.0))

    said = console(*predict, study / "slides", "--slide-mpp", "2", "--out", study / "coarse")
    assert said.code == 0, said.err
    assert read_result(study / "coarse" / "attention" / "s1.h5").coords.l0_patch == 12.5
    (study / "slides" / "s5.tif").unlink()
    said = console(*predict, study / "slides", "--out", study / "less")
    assert said.code == 3
    assert "s5.h5: is of s5, which is not among the slides given" in said.out
    said = console(*predict, "--slide-mpp", "2", "--out", study / "none")
    assert said.code == 2
    assert "slide_mpp and mpp_csv go with slides" in said.complaint


def test_our_features_are_read_by_stamp_s_rules_and_come_back_exactly(
    console: Console, study: Path, stamp_reader: Any
) -> None:
    store = ("features", study / "slides" / "s2.tif", "--encoder", "test_convnext", "--weights", "none", "--half",
             "--patch-px", "32", "--patch-mpp", "0.77", "--layout", "stamp", "--out", study / "out")  # fmt: skip
    said = console(*store)
    assert said.code == 0, said.err
    folder = study / "out" / "test_convnext"
    held = open_features(folder / "s2.h5")
    assert held.on_grid
    assert held.coords is not None
    with open_slide(study / "slides" / "s2.tif") as slide:
        info = slide.info
    with h5py.File(folder / "s2.h5") as file:
        feats, um_xy_N2, um_side, px_side = stamp_reader(file)
        assert file["feats"].dtype == np.float16
        assert file.attrs["extractor"] == "test_convnext"
        assert file.attrs["feat_type"] == "tile"
    assert feats.shape == (len(held), held.width)
    assert (um_side, px_side) == (pytest.approx(32 * 0.77), 32)
    # STAMP's heatmaps find level-0 pixels by this division.
    np.testing.assert_array_equal(np.rint(um_xy_N2 / info.known_mpp()), held.coords.l0_xy_N2)
    again = StoredPatches(folder, TilingConfig(patch_px=32, patch_mpp=0.77))
    with open_slide(study / "slides" / "s2.tif") as slide:
        np.testing.assert_array_equal(again(slide, slide_id="s2", mpp=None).l0_xy_N2, held.coords.l0_xy_N2)
    said = console(*store)
    assert said.code == 0, said.err
    with h5py.File(folder / "s2.h5", "a") as file:
        file["coords"][0] += 1.0
    with pytest.raises(FeaturesError, match="coords that are not those of its group"):
        open_features(folder / "s2.h5")


@pytest.fixture
def stamp_reader() -> Any:
    """Features (N, C), corners in µm (N, 2), µm and pixels of a patch, as STAMP's ``get_coords`` tells them."""

    def read(file: Any) -> tuple[NDArray[Any], NDArray[Any], float, int]:
        assert file.attrs["unit"] == "um"
        assert "stamp_version" not in file.attrs, "STAMP refuses files of a version that it has not reached"
        um, px = float(file.attrs["tile_size_um"]), int(file.attrs["tile_size_px"])
        return file["feats"][()], file["coords"][:], um, px

    return read


def test_the_bags_are_read_in_chunks(tmp_path: Path) -> None:
    features = features_of(27, WIDTH)
    write_stamp(tmp_path / "s.h5", features, grid())
    with open_source(
        open_features(tmp_path / "s.h5"), batch=StreamingConfig(batch=8).batch, device=torch.device("cpu")
    ) as source:
        read = torch.cat([chunk.pixels_n3PP for chunk in source])
    assert read.dtype == torch.float32
    np.testing.assert_array_equal(read, features.astype(np.float16).astype(np.float32))
