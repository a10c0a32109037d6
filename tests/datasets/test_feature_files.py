from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.datasets.feature_folders import features_of, write_features
from wsi_ips.config import TilingConfig
from wsi_ips.datasets.feature_files import find_features, open_features, read_rows
from wsi_ips.errors import FeaturesError
from wsi_ips.tiling.coords import put_coords
from wsi_ips.tiling.grid import PatchCoords, PatchGrid
from wsi_ips.units import Mpp


def test_both_layouts_are_found_and_all_that_are_missing_are_named_at_once(tmp_path: Path) -> None:
    write_features(tmp_path / "h5_files" / "a.h5", features_of(3, 4))
    write_features(tmp_path / "b.h5", features_of(3, 4), trident=True)
    assert find_features(tmp_path, "ab") == {"a": tmp_path / "h5_files" / "a.h5", "b": tmp_path / "b.h5"}
    with pytest.raises(FeaturesError, match=r"no features of 2 of 4 slides \(c, d\)"):
        find_features(tmp_path, "abcd")
    with pytest.raises(FeaturesError, match="no such folder"):
        find_features(tmp_path / "none", "a")


def test_clam_s_files_say_corners_only_and_trident_s_say_micrometres(tmp_path: Path) -> None:
    write_features(tmp_path / "clam.h5", features_of(40, 4))
    write_features(tmp_path / "trident.h5", features_of(40, 4).astype(np.float16), trident=True)
    clam, trident = open_features(tmp_path / "clam.h5"), open_features(tmp_path / "trident.h5")
    assert (len(clam), clam.width, clam.coords) == (40, 4, None)
    assert clam.l0_xy_N2[31].tolist() == [512, 512]
    assert clam.l0_xy_N2.dtype == np.int64
    assert trident.coords is not None
    assert trident.coords.slide_mpp == 0.25
    assert trident.coords.um_centres(np.array([31])).tolist() == [[768 * 0.25, 768 * 0.25]]
    assert not trident.on_grid
    assert trident.ids_N.tolist() == list(range(40))


def write_with_our_coordinates(path: Path) -> None:
    tiling = TilingConfig(patch_px=100, patch_mpp=0.5)
    grid = PatchGrid.cover((1000, 500), slide_mpp=Mpp(0.5), tiling=tiling)
    ids = np.array([3, 17, 40])
    coords = PatchCoords.on_grid(
        grid, ids, slide_id="s", l0_size=(1000, 500), slide_mpp=Mpp(0.5), tiling=tiling,
        tissue_N=np.ones(3, np.float32),
    )  # fmt: skip
    with h5py.File(path, "w") as file:
        put_coords(file, coords, layout="trident")
        file["features"] = features_of(3, 4)


def test_our_own_coordinates_bring_their_raster_ids(tmp_path: Path) -> None:
    write_with_our_coordinates(tmp_path / "s.h5")
    held = open_features(tmp_path / "s.h5")
    assert held.on_grid
    assert held.ids_N.tolist() == [3, 17, 40]


def test_raster_ids_of_another_file_are_refused(tmp_path: Path) -> None:
    write_with_our_coordinates(tmp_path / "other.h5")
    write_with_our_coordinates(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "a") as file:
        del file["wsi_ips_patch_ids"]
        file["wsi_ips_patch_ids"] = h5py.ExternalLink("other.h5", "wsi_ips_patch_ids")
    with pytest.raises(FeaturesError, match="keeps wsi_ips_patch_ids in another file"):
        open_features(tmp_path / "s.h5")


@given(st.lists(st.integers(0, 99), min_size=1, max_size=30))
def test_rows_come_in_the_order_asked_for(tmp_path_factory: pytest.TempPathFactory, rows: list[int]) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.h5"
    features = features_of(100, 3)
    if not path.exists():
        write_features(path, features)
    with h5py.File(path) as file:
        assert np.array_equal(read_rows(file, path, np.array(rows)), features[rows])


def test_features_that_are_not_numbers_are_refused_when_they_are_read(tmp_path: Path) -> None:
    features = features_of(10, 3)
    features[7, 1] = np.nan
    write_features(tmp_path / "s.h5", features)
    with h5py.File(tmp_path / "s.h5") as file:
        read_rows(file, tmp_path / "s.h5", np.arange(5))
        with pytest.raises(FeaturesError, match=r"s.h5: holds features that are not finite"):
            read_rows(file, tmp_path / "s.h5", np.arange(10))


def spoilt(kind: str, path: Path) -> None:
    """A features file that is wrong in one way."""
    with h5py.File(path, "w") as file:
        features: Any = {
            "slide features": np.zeros(8, np.float32),
            "integers": np.zeros((4, 8), np.int64),
            "empty": np.zeros((0, 8), np.float32),
        }.get(kind, np.zeros((4, 8), np.float32))
        if kind == "huge":
            file.create_dataset("features", (10**12, 8), "f4", chunks=(32, 8))
        elif kind == "huge block":
            file.create_dataset("features", (10**9, 8), "f4", chunks=(10**8, 8))
        elif kind == "elsewhere":
            file["features"] = h5py.ExternalLink("/etc/passwd", "features")
        elif kind == "raw file":
            file.create_dataset("features", (4, 8), "f4", external=[("/etc/passwd", 0, 128)])
        elif kind != "no features":
            file["features"] = features
        length = 10**12 if kind == "huge" else 3 if kind == "too few coords" else len(features)
        if kind == "huge":
            file.create_dataset("coords", (length, 2), "i4", chunks=(32, 2))
        elif kind == "float coords":
            file["coords"] = np.zeros((length, 2))
        elif kind != "no coords":
            file["coords"] = np.zeros((length, 2), np.int32)
        if kind == "broken attributes":
            file["coords"].attrs.update({"patch_size": "None", "target_magnification": 20})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("slide features", "float32 of shape \\(8,\\)"),
        ("integers", "features are int64"),
        ("empty", "claims features of shape \\(0, 8\\)"),
        ("huge", "claims features of shape"),
        ("huge block", "claims blocks"),
        ("elsewhere", "keeps features in another file"),
        ("raw file", "features is not a plain dataset"),
        ("no features", "has no dataset features"),
        ("no coords", "has no dataset coords"),
        ("too few coords", "4 features and 3 coords"),
        ("float coords", "coords are float64"),
        ("broken attributes", "broken attributes"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_line(tmp_path: Path, kind: str, message: str) -> None:
    spoilt(kind, tmp_path / "s.h5")
    with pytest.raises(FeaturesError, match=message) as caught:
        open_features(tmp_path / "s.h5")
    assert "s.h5" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_hdf5_or_cut_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("features")
    write_features(tmp_path / "cut.h5", features_of(500, 8))
    whole = (tmp_path / "cut.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    for name in ("text", "cut", "absent"):
        with pytest.raises(FeaturesError, match=f"{name}.h5"):
            open_features(tmp_path / f"{name}.h5")
