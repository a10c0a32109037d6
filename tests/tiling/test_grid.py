import tracemalloc
from dataclasses import replace
from math import floor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiling.drawn import Drawing
from wsi_ips.config import TilingConfig
from wsi_ips.errors import ConfigError
from wsi_ips.slides.base import Level
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.slides.registry import open_slide
from wsi_ips.tiling.grid import PatchCoords, PatchGrid
from wsi_ips.tiling.patches import tile_slide, tissue_share
from wsi_ips.tiling.tissue import TissueMask
from wsi_ips.units import Mpp

sides = st.integers(1, 120_000)
mpps = st.floats(0.1, 1.0)


@st.composite
def tilings(draw: st.DrawFn) -> TilingConfig:
    patch_px = draw(st.integers(128, 512))
    overlap_px = draw(st.integers(0, patch_px // 2))
    return TilingConfig(patch_px=patch_px, patch_mpp=draw(st.floats(0.5, 4.0)), overlap_px=overlap_px)


@given(sides, sides, mpps, tilings())
def test_the_grid_covers_the_slide_and_no_patch_lies_wholly_outside(
    width: int, height: int, mpp: float, tiling: TilingConfig
) -> None:
    grid = PatchGrid.cover((width, height), slide_mpp=Mpp(mpp), tiling=tiling)
    for count, side in ((grid.g_cols, width), (grid.g_rows, height)):
        assert (count - 1) * grid.l0_step < side
        assert (count - 1) * grid.l0_step + grid.l0_patch >= side - 1e-6


@given(sides, sides, mpps, tilings())
def test_no_corner_drifts(width: int, height: int, mpp: float, tiling: TilingConfig) -> None:
    """Slide by slide, the far corner's patch lies within half a level-0 pixel of its exact place."""
    grid = PatchGrid.cover((width, height), slide_mpp=Mpp(mpp), tiling=tiling)
    last = grid.g_cols * grid.g_rows - 1
    step = (tiling.patch_px - tiling.overlap_px) * tiling.patch_mpp / mpp
    exact = ((grid.g_cols - 1) * step, (grid.g_rows - 1) * step)
    corner = grid.l0_corners(np.array([last]))[0]
    assert np.abs(corner - exact).max() <= 0.5 + 1e-6


def test_ids_run_along_rows() -> None:
    grid = PatchGrid.cover((1000, 500), slide_mpp=Mpp(0.5), tiling=TilingConfig(patch_px=256))
    assert (grid.g_cols, grid.g_rows) == (4, 2)
    assert grid.l0_corners(np.array([0, 1, 4, 7])).tolist() == [[0, 0], [256, 0], [0, 256], [768, 256]]


def test_a_slide_smaller_than_a_patch_has_one() -> None:
    grid = PatchGrid.cover((10, 7), slide_mpp=Mpp(0.5), tiling=TilingConfig())
    assert (grid.g_cols, grid.g_rows) == (1, 1)


def test_absurd_resolutions_are_refused() -> None:
    with pytest.raises(ConfigError, match="µm per pixel"):
        PatchGrid.cover((2**31, 2**31), slide_mpp=Mpp(50.0), tiling=TilingConfig(patch_px=1, patch_mpp=0.01))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(5, 40), st.floats(0.3, 1.0))
def test_a_patch_s_share_of_tissue_is_exact(seed: int, patch: float, step: float) -> None:
    """Against counting points: each mask pixel split into 8 x 8."""
    rng = np.random.default_rng(seed)
    mask = TissueMask(rng.random((31, 43)) < 0.5, (2.0, 3.0))
    grid = PatchGrid(
        g_cols=floor(86 / (patch * step)) + 1,
        g_rows=floor(93 / (patch * step)) + 1,
        l0_patch=patch,
        l0_step=patch * step,
    )
    fine = mask.mask_HW.repeat(8, 0).repeat(8, 1)
    y = (np.arange(31 * 8) + 0.5) / 8 * 3.0
    x = (np.arange(43 * 8) + 0.5) / 8 * 2.0
    share = tissue_share(mask, grid)
    for patch_id in rng.integers(0, grid.g_cols * grid.g_rows, 5):
        row, column = divmod(int(patch_id), grid.g_cols)
        top, left = row * grid.l0_step, column * grid.l0_step
        inside = fine[(y >= top) & (y < top + patch)][:, (x >= left) & (x < left + patch)]
        expected = inside.sum() * (2.0 / 8) * (3.0 / 8) / patch**2
        assert share[patch_id] == pytest.approx(expected, abs=0.12)
    whole = tissue_share(TissueMask(np.ones((31, 43), bool), (2.0, 3.0)), grid)
    assert whole[0] == pytest.approx(1)


def test_only_patches_with_enough_tissue_are_kept() -> None:
    slide = Drawing((1600, 1200)).tissue(256, 256, 512, 512).reader()
    config = TilingConfig(patch_px=64, patch_mpp=4.0, min_tissue=0.6)
    coords, _ = tile_slide(slide, config, slide_id="drawn")
    assert coords.l0_patch == 128
    assert {tuple(corner) for corner in coords.l0_xy_N2.tolist()} == {
        (x, y) for x in range(256, 768, 128) for y in range(256, 768, 128)
    }
    assert (np.diff(coords.ids_N) > 0).all()
    assert (coords.tissue_N > 0.9).all()


def test_a_white_slide_has_no_patches_and_that_is_no_error() -> None:
    coords, mask = tile_slide(
        Drawing((900, 700)).reader(), TilingConfig(patch_mpp=2.0, min_tissue=0), slide_id="white"
    )
    assert len(coords) == 0
    assert not mask.mask_HW.any()


def test_exact_corners_are_the_grid_s_where_patches_lie_on_it() -> None:
    slide = Drawing((1601, 1203)).tissue(0, 0, 1601, 1203).reader()
    config = TilingConfig(patch_px=50, patch_mpp=2.37)
    coords, _ = tile_slide(slide, config, slide_id="drawn")
    exact = coords.l0_exact_corners()
    assert np.abs(exact - coords.l0_xy_N2).max() <= 0.5
    steps = np.diff(np.unique(exact[:, 0]))
    assert steps == pytest.approx(coords.l0_patch)


def some_cells(mpp: float, tiling: TilingConfig, ids: list[int]) -> PatchCoords:
    grid = PatchGrid.cover((9001, 7003), slide_mpp=Mpp(mpp), tiling=tiling)
    ids_N = np.array(ids, dtype=np.int64)
    tissue_N = np.ones(len(ids), np.float32)
    return PatchCoords.on_grid(grid, ids_N, slide_id="drawn", l0_size=(9001, 7003), slide_mpp=Mpp(mpp),
                               tiling=tiling, tissue_N=tissue_N)  # fmt: skip


@given(mpps, tilings(), st.sets(st.integers(0, 10**6), min_size=1, max_size=30))
def test_centres_are_those_of_the_cells_in_micrometres(
    mpp: float, tiling: TilingConfig, drawn: set[int]
) -> None:
    grid = PatchGrid.cover((9001, 7003), slide_mpp=Mpp(mpp), tiling=tiling)
    ids = sorted({number % (grid.g_cols * grid.g_rows) for number in drawn})
    step_um = (tiling.patch_px - tiling.overlap_px) * tiling.patch_mpp
    half_um = tiling.patch_px * tiling.patch_mpp / 2
    asked = ids[::-1]
    expected = [
        [number % grid.g_cols * step_um + half_um, number // grid.g_cols * step_um + half_um]
        for number in asked
    ]
    found = some_cells(mpp, tiling, ids).um_centres(np.array(asked))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_patch_that_lies_off_the_grid_has_its_own_centre() -> None:
    """Another program's coordinates: numbered in a grid of one row, which says nothing of where they are."""
    tiling = TilingConfig(patch_px=100, patch_mpp=1.0)
    coords = some_cells(0.5, tiling, [0, 1, 2])
    theirs = replace(coords, g_size=(3, 1), l0_xy_N2=np.array([[0, 0], [777, 41], [3000, 5000]]))
    expected = [[50.0, 50.0], [777 / 2 + 50, 41 / 2 + 50], [1550.0, 2550.0]]
    assert theirs.um_centres(np.array([0, 1, 2])).tolist() == expected
    assert theirs.um_centres(np.array([1])).tolist() == expected[1:2]


@pytest.mark.parametrize("strangers", [[4], [5, 6], [99999], [-1]])
def test_rows_of_ids_that_are_not_there_are_refused(strangers: list[int]) -> None:
    coords = some_cells(0.5, TilingConfig(), [3, 5, 9])
    assert coords.rows(np.array([9, 3, 5, 9])).tolist() == [2, 0, 1, 2]
    with pytest.raises(KeyError, match=str(strangers[-1])):
        coords.rows(np.array([3, *strangers]))
    with pytest.raises(KeyError):
        some_cells(0.5, TilingConfig(), []).rows(np.array([3]))


@pytest.mark.parametrize("patch_px", [100, 224, 256])
@pytest.mark.parametrize("slide_mpp", [0.243, 0.2525, 0.5])
def test_patches_that_are_all_tissue_are_kept_where_all_of_a_patch_has_to_be(patch_px, slide_mpp):
    """Sums of a large mask are rounded, and a share of 0.9999999999 is all."""
    slide = MemoryReader(np.zeros((1, 1, 3), np.uint8), mpp=Mpp(slide_mpp))
    slide._info = replace(slide.info, levels=(Level((40_000, 30_000), 1.0),))
    mask = TissueMask(np.ones((941, 1253), bool), (40_000 / 1253, 30_000 / 941))
    tiling = TilingConfig(patch_px=patch_px, min_tissue=1.0)
    coords, _ = tile_slide(slide, tiling, slide_id="a", mask=mask)
    side = patch_px * 0.5 / slide_mpp
    assert len(coords) == int(40_000 / side + 1e-9) * int(30_000 / side + 1e-9)


@pytest.mark.parametrize(
    ("mpp", "tiling"),
    [
        (84.67, TilingConfig(allow_upsampling=True)),
        (0.25, TilingConfig(patch_mpp=0.0005, allow_upsampling=True)),
        (0.25, TilingConfig(patch_px=1, patch_mpp=0.25)),
        (0.25, TilingConfig(patch_px=1000, overlap_px=999, patch_mpp=0.25)),
    ],
)
def test_more_patches_than_memory_holds_are_refused_before_anything_is_allocated(
    cases_folder: Path, mpp: float, tiling: TilingConfig
) -> None:
    path = cases_folder / "hostile" / "dpi300_30000px.tif"
    tracemalloc.start()
    with (
        open_slide(path) as slide,
        pytest.raises(ConfigError, match="patches is too large to be held") as caught,
    ):
        tile_slide(slide, tiling, slide_id="s", mpp=Mpp(mpp))
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: ")
