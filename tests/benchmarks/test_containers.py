"""The benchmark of containers, on tiny files: what it writes, what it refuses to time, its keys."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image

from benchmarks.container_cases import CONTAINERS, Case, DrawnSlide, Placed, tiff
from benchmarks.containers import check_openslide, check_ours, measure, measure_containers
from wsi_ips.errors import ConfigError, ResultsError
from wsi_ips.slides.registry import open_slide
from wsi_ips.units import Mpp

ROOT = Path(__file__).resolve().parents[2]
SIDE_PX = 2048
CASES = {
    "philips": ["philips_aligned", "camelyon"],
    "dicom_jpeg": ["dicom_jpeg"],
    "ome_tiff": ["ome_tiff"],
    "scn": ["scn", "scn_two_areas"],
    "ndpi": ["ndpi"],
    "svs_j2k": ["svs_j2k"],
    "tiff": ["tiff"],
}
NUMBERS = ("vs_limit", "vs_openslide", "patches_per_s", "limit_patches_per_s", "openslide_patches_per_s")


@pytest.fixture(scope="module")
def large() -> Iterator[DrawnSlide]:
    with ThreadPoolExecutor(2) as pool:
        yield DrawnSlide(2 * SIDE_PX, block=2, pool=pool)


@pytest.fixture(scope="module")
def drawn(large: DrawnSlide) -> DrawnSlide:
    return large.smaller


@pytest.fixture(scope="module")
def plain(drawn: DrawnSlide, tmp_path_factory: pytest.TempPathFactory) -> Case:
    (case,) = tiff(drawn, tmp_path_factory.mktemp("plain"))
    return case


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_holds_the_drawn_pixels(
    name: str, large: DrawnSlide, drawn: DrawnSlide, tmp_path: Path
) -> None:
    if name == "ndpi":  # whose levels would be too small
        drawn = large
    cases = CONTAINERS[name](drawn, tmp_path)
    assert [case.name for case in cases] == CASES[name]
    for case in cases:
        with open_slide(case.path) as ours, openslide.OpenSlide(case.openslide_path) as theirs:
            check_openslide(case, theirs)
            few = replace(case, coords=case.coords.only(case.coords.ids_N[:: len(case.coords) // 8 + 1]))
            check_ours(few, ours)
            figures = measure(few, ours, theirs, repeats=1, round_s=0.0)
            assert set(figures) == {f"{case.name}_{ending}" for ending in (*NUMBERS, "reader")}
            assert float(theirs.properties["openslide.mpp-x"]) == pytest.approx(case.mpp, rel=1e-3)
        assert len(case.coords) > 1
        # The stored pixels are those that were drawn, but for what encoding does to them.
        mosaic = (drawn if name not in ("ndpi", "svs_j2k") else drawn.smaller).mosaic
        picture = Image.fromarray(mosaic.pixels()).reduce(case.downsample)
        x, y = case.placed[0].lv_xy
        stored = case.pixels((x + 512, y + 512), (512, 512)).astype(np.int16)
        drawn_there = np.asarray(picture)[512:1024, 512:1024]
        is_stored = ~(stored == 255).all(axis=2)  # a Philips slide has no tiles of glass
        assert is_stored.mean() > 0.2
        assert 0 < np.abs(stored - drawn_there)[is_stored].mean() < 6


def test_tiles_in_wrong_places_are_not_timed(plain: Case) -> None:
    tiles = list(plain.placed[0].stored.tiles)
    swapped = replace(plain, placed=[Placed(replace(plain.placed[0].stored, tiles=tiles[::-1]))])
    with openslide.OpenSlide(plain.path) as theirs, pytest.raises(ResultsError, match="OpenSlide differs"):
        check_openslide(swapped, theirs)
    with open_slide(plain.path) as ours, pytest.raises(ResultsError, match="tiff differs"):
        check_ours(swapped, ours)


def test_a_resampled_patch_in_a_wrong_place_is_not_timed(drawn: DrawnSlide, tmp_path: Path) -> None:
    _, camelyon = CONTAINERS["philips"](drawn, tmp_path)
    (placed,) = camelyon.placed
    moved = replace(camelyon, placed=[replace(placed, lv_xy=(3, 0))])
    with open_slide(camelyon.path) as ours, pytest.raises(ResultsError, match="differs"):
        check_ours(moved, ours)


def test_another_resolution_or_vendor_is_not_timed(plain: Case) -> None:
    with open_slide(plain.path) as ours, pytest.raises(ResultsError, match="states"):
        check_ours(replace(plain, mpp=Mpp(0.5)), ours)
    with openslide.OpenSlide(plain.path) as theirs, pytest.raises(ResultsError, match="opens it as"):
        check_openslide(replace(plain, vendor="philips"), theirs)


def test_the_limit_decodes_each_tile_under_the_patches_once(plain: Case) -> None:
    tiles, ids_N = plain.placed[0].stored.tiles, plain.coords.ids_N
    assert len(ids_N) < len(tiles)  # glass is not read
    assert plain.tiles_under_patches() == [tiles[number] for number in ids_N]
    one = replace(plain, coords=plain.coords.only(ids_N[[9]]))
    assert one.tiles_under_patches() == [tiles[ids_N[9]]]
    moved = replace(one, placed=[Placed(plain.placed[0].stored, (1, 0))])
    assert len(moved.tiles_under_patches()) == 2


@pytest.mark.slow
def test_every_key_is_answered() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "containers.py"), "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    numbers = {f"{case}_{ending}" for cases in CASES.values() for case in cases for ending in NUMBERS}
    readers = {f"{case}_reader" for cases in CASES.values() for case in cases}
    assert set(figures) == numbers | readers
    assert min(figures[name] for name in numbers) > 0
    assert figures["svs_j2k_reader"].startswith("tiff (aperio), ")


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="power of two"):
        measure_containers(tmp_path, ["tiff"], side_px=3000, block=2, repeats=1)
    (tmp_path / "slide").write_text("precious")
    with pytest.raises(ResultsError, match="not empty"):
        measure_containers(tmp_path, ["tiff"], side_px=4096, block=2, repeats=1)
