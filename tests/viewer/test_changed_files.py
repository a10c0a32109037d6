"""A slide of several files: when one of them changes, the viewer shows what is in it now."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.slides.dicom_files import write_series
from tests.slides.zarr_files import write_zarr
from tests.viewer.made_run import WAITING, MadeRun, drawn_slide
from tests.viewer.test_app import client_of, picture

Written = Callable[[Path, NDArray[np.uint8]], Path]
"""Writes a picture as a slide into a folder, and returns the slide."""


def as_zarr(folder: Path, image: NDArray[np.uint8]) -> Path:
    write_zarr(folder / "s.zarr", image, chunk=1024)
    return folder / "s.zarr"


def as_dicom(folder: Path, image: NDArray[np.uint8]) -> Path:
    write_series(folder / "s", image)
    return folder / "s"


def as_hamamatsu(folder: Path, image: NDArray[np.uint8]) -> Path:
    """A JPEG with a restart marker after every eight blocks, its map, and an index that names them."""
    folder.mkdir()
    for name, pixels in {"s.jpg": image, "map.jpg": image[::16, ::16]}.items():
        Image.fromarray(pixels).save(folder / name, quality=95, subsampling=0, restart_marker_blocks=8)
    (folder / "s.vms").write_text(
        "[Virtual Microscope Specimen]\nNoLayers=1\nNoJpegColumns=1\nNoJpegRows=1\nImageFile=s.jpg\n"
        "MapFile=map.jpg\nMacroImage=map.jpg\nSourceLens=20\n"
        f"PhysicalWidth={image.shape[1] * 500}\nPhysicalHeight={image.shape[0] * 500}\n"
    )
    return folder / "s.vms"


@pytest.mark.parametrize("write", [as_zarr, as_dicom, as_hamamatsu])
def test_a_changed_file_inside_a_slide_is_seen(
    made_run: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Written
) -> None:
    monkeypatch.setattr("wsi_ips.viewer.viewed_run.LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr("wsi_ips.viewer.app.LOOK_AGAIN_S", 0.0)
    slide = write(tmp_path / "now", drawn_slide()[:1024, :2048])
    other = write(tmp_path / "other", 255 - drawn_slide()[:1024, :2048])
    client = client_of(made_run, elsewhere={WAITING: slide})
    address = f"/runs/0/slides/{WAITING}/slide/8/0_0.jpg"
    before, stamp = picture(client, address), client.get(f"/api/runs/0/slides/{WAITING}").json()["v"]
    assert before.mean() > 150
    folders = [path for path in (slide, *slide.rglob("*")) if path.is_dir()]
    times = {path: path.stat() for path in folders}
    for path in (file for file in other.parent.rglob("*") if file.is_file() and file != other):
        shutil.copyfile(path, slide.parent / path.relative_to(other.parent))
    for path, about in times.items():
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert client.get(f"/api/runs/0/slides/{WAITING}").json()["v"] != stamp
    assert picture(client, address).mean() < 110
