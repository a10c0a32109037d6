"""HDF5 that claims more than it holds: refused before anything of that size is allocated, soon."""

import fcntl
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import process_time
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from wsi_ips.datasets.feature_files import open_features
from wsi_ips.errors import CoordsError, FeaturesError, ResultsError
from wsi_ips.storage.hdf5 import check_stored, opened_hdf5, streamed_hdf5
from wsi_ips.tiling.coords import read_coords
from wsi_ips.training.feature_bags import open_source

TEN_MILLION = 10_000_000


def claim(path: Path, n: int, *, width: int = 4, **options: Any) -> None:
    """Features and CLAM's coordinates of ``n`` patches, none of which was written."""
    with h5py.File(path, "w") as file:
        for name, shape, dtype in (("features", (n, width), "f4"), ("coords", (n, 2), "i8")):
            file.create_dataset(name, shape=shape, dtype=dtype, **options)
        file["coords"].attrs.update({"patch_size": 256, "patch_level": 0, "downsample": [1.0, 1.0]})


@pytest.mark.parametrize("n", [100, TEN_MILLION])
@pytest.mark.parametrize(
    "options", [{}, {"chunks": (4096, 2)}, {"chunks": (4096, 1), "compression": "gzip", "fillvalue": 1}]
)
def test_patches_that_no_file_holds(tmp_path: Path, n: int, options: dict[str, Any]) -> None:
    path = tmp_path / "a.h5"
    claim(path, n, **{**options, **({"chunks": (50, 1)} if n == 100 and options else {})})
    began = process_time()
    tracemalloc.start()
    for read, error in ((open_features, FeaturesError), (read_coords, CoordsError)):
        with pytest.raises(error, match=r"of which the file holds|was not written to its end") as caught:
            read(path)
        assert str(path) in str(caught.value)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    assert process_time() - began < 2


def test_zeros_that_were_zipped_a_thousandfold(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "coords", data=np.zeros((500_000, 2), np.int64), compression="gzip", chunks=(65_536, 2)
        )
    with pytest.raises(CoordsError, match="coords claims 8,000,000 bytes, of which the file holds"):
        read_coords(path)


def test_a_file_whose_last_block_is_missing(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("x", shape=(100, 3), chunks=(40, 3), dtype="f4")
        dataset[:80] = 1
        with pytest.raises(ResultsError, match="x was not written to its end"):
            check_stored(dataset, tmp_path, error=ResultsError)
        dataset[80:] = 1
        check_stored(dataset, tmp_path, error=ResultsError)


def test_a_regular_grid_that_is_stored_as_small_as_can_be_is_read(tmp_path: Path) -> None:
    y, x = np.divmod(np.arange(1_000_000), 1000)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = np.stack([x * 256, y * 256], axis=1)
        dataset = file.create_dataset(
            "coords", data=data, compression="gzip", compression_opts=9, shuffle=True
        )
        check_stored(dataset, tmp_path, error=CoordsError)


@contextmanager
def locked_by_another(path: Path) -> Iterator[None]:
    """HDF5's lock on the file is refused: as of a file that is being written, or on a mount without locks."""
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="lock"):
            h5py.File(path, "r")
        yield


def test_features_and_coordinates_are_read_without_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["features"] = np.ones((3, 4), np.float32)
        file["coords"] = np.arange(6).reshape(3, 2)
        trident = {"patch_size": 256, "patch_size_level0": 512, "target_magnification": 20, "overlap": 0,
                   "level0_magnification": 40, "level0_width": 9000, "level0_height": 9000}  # fmt: skip
        file["coords"].attrs.update(trident)
    with locked_by_another(path):
        held = open_features(path)
        assert len(held) == len(read_coords(path)) == 3
        with open_source(held, batch=2, device=torch.device("cpu")):
            pass


def test_a_file_is_written_without_a_lock(tmp_path: Path) -> None:
    with streamed_hdf5(tmp_path / "a.h5") as file:
        (partial,) = tmp_path.iterdir()
        with partial.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file["x"] = np.arange(3)
    with opened_hdf5(tmp_path / "a.h5") as file:
        assert list(file["x"]) == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
