"""TRIDENT's, CLAM's and STAMP's own readers on our files, and ours on theirs.

``WSI_IPS_TRIDENT``, ``WSI_IPS_CLAM`` and ``WSI_IPS_STAMP`` name folders from which Python imports ``trident``,
``dataset_modules`` and ``stamp`` (a clone; STAMP's ``src``). ``WSI_IPS_PEERS_PYTHON`` names an interpreter that
has what they import (geopandas, opencv, pandas, …), by default that of the tests.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.commands.console import Console
from tests.interop import peers
from tests.slides.tiff_files import tissue_like, write_pyramid
from wsi_ips.config import TilingConfig
from wsi_ips.datasets.feature_files import open_features
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.slides.registry import open_slide
from wsi_ips.streaming.region_source import PatchRegion
from wsi_ips.tiling.coords import read_coords
from wsi_ips.tiling.patches import StoredPatches
from wsi_ips.units import Mpp

Ask = Callable[..., Mapping[str, Any]]

APERIO = "Aperio Image Library v11.2.1 \r\n1304x976 (256x256) JPEG/RGB Q=90|AppMag = 20|MPP = 0.5"


@pytest.fixture
def ask(program: Callable[[str], Path], tmp_path: Path) -> Ask:
    """``ask("trident", "trident_coords", path)``: what the function of :mod:`tests.interop.peers` returned."""

    def answer(name: str, job: str, *arguments: Path | str) -> Mapping[str, Any]:
        out = tmp_path / f"{job}.npz"
        python = os.environ.get("WSI_IPS_PEERS_PYTHON", sys.executable)
        path = os.pathsep.join([str(program(name)), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [python, "-W", "ignore", peers.__file__, job, *map(str, arguments), str(out)]
        said = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120
        )
        if said.returncode == peers.MISSING:
            missing = said.stderr.strip().splitlines()[-1]
            pytest.skip(
                f"{python} has no {missing}, which {name} imports; name one with WSI_IPS_PEERS_PYTHON"
            )
        assert said.returncode == 0, said.stderr[-3000:]
        with np.load(out) as held:
            return dict(held)

    return answer


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """A slide of 0.5 µm in Aperio's container, which all of them open with OpenSlide."""
    (tmp_path / "slides").mkdir()
    path = tmp_path / "slides" / "s1.svs"
    write_pyramid(
        path, tissue_like(1304, 976), levels=2, compression="lzw", description=APERIO, mpp=None, tile=256
    )
    return path


PATCHES = ("--patch-px", "64", "--patch-mpp", "1", "--set", "tiling.min_tissue=0")
ENCODER = ("--encoder", "test_convnext", "--weights", "none")


def tiled(console: Console, slide: Path, out: Path, layout: str) -> Path:
    """The file of coordinates that ``tile`` writes: 64 px at 1 µm, 128 level-0 pixels."""
    said = console("tile", slide, "--out", out, "--layout", layout, *PATCHES)
    assert said.code == 0, said.err
    return out / "patches" / ("s1.h5" if layout == "clam" else "s1_patches.h5")


def our_pixels(slide: Path, corners: Any) -> Any:
    """(n, 64, 64, 3) uint8: what our encoder would see at these corners."""
    with open_slide(slide) as reader:
        region = PatchRegion.of(
            reader.info, patch_px=64, patch_mpp=Mpp(1.0), slide_mpp=reader.info.known_mpp()
        )
        return np.stack([region.read(reader, (int(x), int(y))) for x, y in corners])


def told_of(console: Console, ask: Ask, slide: Path, layout: str, question: str, out: Path) -> Any:
    """The file that we write in a layout, what its program says of it, and our patches, whose corners it reads."""
    path = tiled(console, slide, out, layout)
    said, coords = ask("trident", question, path), read_coords(path)
    np.testing.assert_array_equal(said["coords"], coords.l0_xy_N2)
    return path, said, coords


def test_trident_reads_our_coordinates_and_extracts_the_same_patches(
    console: Console, ask: Ask, slide: Path, tmp_path: Path
) -> None:
    path, said, coords = told_of(console, ask, slide, "trident", "trident_coords", tmp_path / "t")
    assert (said["of_patch_size"], said["of_patch_size_level0"], said["of_overlap"]) == (64, 128, 0)
    assert (said["of_level0_width"], said["of_level0_height"]) == (1304, 976)
    made = ask("trident", "trident_features", slide, path, tmp_path / "theirs")
    assert made["mpp"] == 0.5
    with h5py.File(str(made["path"])) as file:
        means, corners = file["features"][:], file["coords"][:]
    np.testing.assert_array_equal(corners, coords.l0_xy_N2)
    ours = our_pixels(slide, corners).mean(axis=(1, 2))
    inside = (corners + 128 <= (1304, 976)).all(axis=1)
    assert np.abs(means - ours)[inside].max() < 1.0
    assert np.abs(means[1:] - ours[:-1]).mean() > 10
    # Beyond the slide's edge there is black for TRIDENT, as OpenSlide says it, and white for us.
    assert 0 < (~inside).sum() < inside.sum()
    assert (means < ours)[~inside].all()
    # What TRIDENT stored of our patches is read by us, with what it says of them.
    held = open_features(Path(str(made["path"])))
    assert held.coords is not None
    assert held.on_grid, "TRIDENT copies our attributes, but not the ids beside the coordinates"
    np.testing.assert_array_equal(held.ids_N, coords.ids_N)
    assert (held.width, held.coords.patch_px, held.coords.l0_patch) == (3, 64, 128.0)
    assert held.coords.um_centres(held.ids_N[:1]).tolist() == [((corners[0] + 64) * 0.5).tolist()]


def test_trident_reads_our_features(console: Console, ask: Ask, slide: Path, tmp_path: Path) -> None:
    said = console("features", slide, "--out", tmp_path / "f", "--layout", "trident", *ENCODER, *PATCHES)
    assert said.code == 0, said.err
    path = tmp_path / "f" / "features_test_convnext" / "s1.h5"
    told = ask("trident", "trident_slide", slide, path, tmp_path / "theirs")["features"]
    with h5py.File(path) as file:
        np.testing.assert_allclose(told[:-2], file["features"][:].mean(axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(told[-2:], file["coords"][:].max(axis=0) + 128)


def test_trident_reads_our_contours_and_clam_s_coordinates(
    console: Console, ask: Ask, slide: Path, tmp_path: Path
) -> None:
    _, said, _ = told_of(console, ask, slide, "clam", "trident_legacy", tmp_path / "c")
    assert (said["patch_size"], said["patch_level"], said["custom_downsample"]) == (64, 1, 1)
    outlines = ask("trident", "trident_contours", tmp_path / "c" / "contours_geojson" / "s1.geojson")
    assert outlines["tissue_id"].tolist() == list(range(len(outlines["area"])))
    assert 0 < outlines["area"].sum() <= 1304 * 976 * 1.02


def test_we_read_what_trident_writes(ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "patches" / "s9_patches.h5"
    path.parent.mkdir()
    corners = ask("trident", "trident_writes", path, "s9")["coords"]
    slide = MemoryReader(tissue_like(3000, 2500), mpp=Mpp(0.25))
    coords = StoredPatches(tmp_path, TilingConfig(patch_px=256, patch_mpp=0.5))(
        slide, slide_id="s9", mpp=None
    )
    np.testing.assert_array_equal(coords.l0_xy_N2, corners)
    assert (coords.patch_px, coords.patch_mpp, coords.l0_patch, coords.slide_mpp) == (256, 0.5, 512.0, 0.25)


def test_clam_reads_our_coordinates_and_the_same_pixels(
    console: Console, ask: Ask, slide: Path, tmp_path: Path
) -> None:
    path = tiled(console, slide, tmp_path / "c", "clam")
    said, coords = ask("clam", "clam_patches", slide, path), read_coords(path)
    assert said["length"] == len(coords)
    np.testing.assert_array_equal(said["coords"], coords.l0_xy_N2[:4])
    np.testing.assert_array_equal(said["pixels"], our_pixels(slide, coords.l0_xy_N2[:4]))


def test_clam_reads_our_features(console: Console, ask: Ask, slide: Path, tmp_path: Path) -> None:
    said = console("features", slide, "--out", tmp_path / "f", "--layout", "clam", *ENCODER, *PATCHES)
    assert said.code == 0, said.err
    (tmp_path / "table.csv").write_text("case_id,slide_id,label\nc1,s1,1\n")
    told = ask("clam", "clam_bags", tmp_path / "f", tmp_path / "table.csv")
    held = open_features(tmp_path / "f" / "h5_files" / "s1.h5")
    np.testing.assert_array_equal(told["tensor"], told["features"])
    np.testing.assert_array_equal(told["coords"], held.l0_xy_N2)
    assert told["labels"].tolist() == [1, 1]


def test_stamp_reads_our_features(console: Console, ask: Ask, slide: Path, tmp_path: Path) -> None:
    said = console("features", slide, "--out", tmp_path / "f", "--layout", "stamp", *ENCODER, *PATCHES)
    assert said.code == 0, said.err
    path = tmp_path / "f" / "test_convnext" / "s1.h5"
    told, held = ask("stamp", "stamp_bag", path), open_features(path)
    assert (str(told["kind"]), told["size"], told["side_um"], told["side_px"]) == (
        "tile",
        len(held),
        64.0,
        64,
    )
    # As its heatmaps find the pixels: µm divided by the slide's µm per pixel.
    np.testing.assert_array_equal(np.rint(told["um"] / 0.5), held.l0_xy_N2)
    np.testing.assert_array_equal(told["um"], told["bag_um"])
    with h5py.File(path) as file:
        np.testing.assert_array_equal(told["features"], file["feats"][:])
