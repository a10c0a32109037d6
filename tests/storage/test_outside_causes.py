"""A sound file is not called damaged where something else kept it from being read."""

import errno
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.conftest import SmallData
from wsi_ips.config import StreamingConfig, TilingConfig
from wsi_ips.datasets.feature_files import open_features
from wsi_ips.errors import FileError, SlideInterrupted, SlideReadError
from wsi_ips.inference.results import read_result
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.models.encoders.weights import read_state_dict
from wsi_ips.slides.base import SlideReader
from wsi_ips.slides.image_reader import ImageReader
from wsi_ips.slides.openslide_reader import OpenSlideReader
from wsi_ips.slides.registry import open_slide
from wsi_ips.slides.tile_layout import TileFile
from wsi_ips.storage.files import outside_cause, system_cause
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.streaming.telemetry import BadTiles
from wsi_ips.tiling.coords import read_coords
from wsi_ips.tiling.patches import PatchesInTissue


def caused_by(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(errno.EACCES, "x", "a.svs"), r"permission denied \(a\.svs\)"),
        (OSError("Can't synchronously read data (file read failed: errno = 5, error message = 'as told')"),
         "input/output error"),
        (RuntimeError("Couldn't open a.svs: Too many open files"), "too many open files"),
        (ValueError("could not be read: Stale file handle (os error 116)"), "stale file handle"),
        (caused_by(ValueError("broken"), OSError(errno.ESTALE, "x")), "stale file handle"),
        (MemoryError(), "does not fit into the memory"),
        (RuntimeError("Insufficient memory (case 4)"), "does not fit into the memory"),
    ],
    ids=str,
)  # fmt: skip
def test_the_system_s_errors_are_told_from_a_file_s(error: BaseException, told: str) -> None:
    for found in (system_cause(error), outside_cause(error)):
        assert found is not None
        assert re.search(told, found.problem)
        assert found.fix


@pytest.mark.parametrize("text", [
    "Can't synchronously read data (required filter 'blosc' is not registered)",
    "Unsupported TIFF compression: 34892",
    "Unsupported JPEG data precision 12", "<COMPRESSION.LERC: 34887> requires the 'imagecodecs' package",
    "decoder jpeg2k not available",
])  # fmt: skip
def test_what_is_not_supported_is_not_called_damaged(text: str) -> None:
    found = outside_cause(RuntimeError(text))
    assert found is not None
    assert text in found.problem
    assert system_cause(RuntimeError(text)) is None


@pytest.mark.parametrize("error", [
    ValueError("truncated"), OSError("image file is truncated"), OSError(errno.EINVAL, "x"), EOFError(),
    RuntimeError("Premature end of JPEG file"),
])  # fmt: skip
def test_damage_stays_damage(error: Exception) -> None:
    assert outside_cause(error) is None


@contextmanager
def no_more_files() -> Iterator[None]:
    """This process may open no further file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.open(os.devnull, os.O_RDONLY)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def hdf5(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["features"] = np.ones((3, 4), np.float32)
        file["coords"] = np.arange(6).reshape(3, 2)
    return path


@pytest.mark.parametrize("read", [read_result, read_coords, open_features])
def test_hdf5_that_cannot_be_opened_now(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = hdf5(tmp_path / "a.h5")
    with pytest.raises(FileError), no_more_files():  # whatever is imported late
        read(path)
    with (
        pytest.raises(FileError, match=r"cannot be read: too many open files .*ulimit -n") as caught,
        no_more_files(),
    ):
        read(path)
    assert "damaged" not in str(caught.value)


def test_models_that_cannot_be_opened_now(small_checkpoint: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(1)}, weights)
    for read, path in ((load_checkpoint, small_checkpoint), (read_state_dict, weights)):
        read(path)
        with pytest.raises(FileError, match="too many open files"), no_more_files():
            read(path)


def test_a_slide_that_cannot_be_opened_now(small_data: SmallData) -> None:
    slide = sorted(small_data.slides.glob("*.tif"))[0]
    open_slide(slide).close()
    with pytest.raises(FileError, match="too many open files") as caught, no_more_files():
        open_slide(slide)
    for wrong in ("damaged", "whole-slide image?", "no reader"):
        assert wrong not in str(caught.value)


@pytest.mark.parametrize("reader", [OpenSlideReader, ImageReader])
def test_a_slide_that_cannot_be_read_now(
    reader: Callable[[Path], SlideReader], small_data: SmallData, tmp_path: Path
) -> None:
    from PIL import Image

    path = sorted(small_data.slides.glob("*.tif"))[0]
    if reader is ImageReader:
        path = tmp_path / "a.png"
        Image.new("RGB", (64, 64)).save(path)
    with reader(path) as slide:
        slide.__setstate__(slide.__getstate__())  # type: ignore[attr-defined]
        with pytest.raises(SlideInterrupted, match="too many open files"), no_more_files():
            slide.read((0, 0), level=0, size_px=(8, 8))
        assert slide.read((0, 0), level=0, size_px=(8, 8)).shape == (8, 8, 3)


def test_a_drive_that_fails_is_no_bad_tile(small_data: SmallData, monkeypatch: pytest.MonkeyPatch) -> None:
    """White tiles, within what streaming.max_bad_tiles allows, would be a wrong result with exit code 0."""
    slide = open_slide(sorted(small_data.slides.glob("*.tif"))[1])
    tiling = TilingConfig(patch_px=32, patch_mpp=2.0)
    coords = PatchesInTissue(tiling)(slide, slide_id="a", mpp=None)

    def stale(*_: object) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(TileFile, "read", stale)
    stream = PatchStream(slide, coords, config=StreamingConfig(max_bad_tiles=1.0), device=torch.device("cpu"))
    with pytest.raises(SlideInterrupted, match="cannot be read: stale file handle"):
        list(stream)


def test_an_interruption_is_never_white() -> None:
    bad = BadTiles(Path("a.svs"), most_share=1.0)
    bad.expect(100)
    bad.add("tile 1", SlideReadError("a.svs", "torn"))
    with pytest.raises(SlideInterrupted, match="does not answer"):
        bad.add("tile 2", SlideInterrupted("https://host/a.svs", "the server does not answer in time"))
    assert bad.names == ("tile 1",)
