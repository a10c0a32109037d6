"""Patches land on the pixels whose centres they hold, to the far corner."""

from fractions import Fraction
from math import ceil
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_ips.config import TilingConfig
from wsi_ips.heatmaps.raster import canvas_size, patch_values_to_canvas
from wsi_ips.tiling.grid import PatchGrid
from wsi_ips.units import Mpp


def brute_force(
    l0_xy: list[tuple[Fraction, Fraction]],
    l0_patch: Fraction,
    values: list[float],
    l0_size: tuple[int, int],
    l0_per_px: Fraction,
) -> np.ndarray:
    """Pixel by pixel, in exact arithmetic."""
    width, height = (ceil(length / l0_per_px) for length in l0_size)
    canvas = np.full((height, width), np.nan, np.float32)
    half = Fraction(1, 2)
    for row in range(height):
        for column in range(width):
            x, y = (column + half) * l0_per_px, (row + half) * l0_per_px
            if x >= l0_size[0] or y >= l0_size[1]:
                continue
            held = [
                value
                for (left, top), value in zip(l0_xy, values, strict=True)
                if left <= x < left + l0_patch and top <= y < top + l0_patch
            ]
            if held:
                canvas[row, column] = sum(held) / len(held)
    return canvas


coordinates = st.fractions(-20, 130, max_denominator=7)


@settings(deadline=None)
@given(
    l0_xy=st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=8),
    l0_patch=st.fractions(Fraction(1, 2), 60, max_denominator=9),
    l0_size=st.tuples(st.integers(1, 100), st.integers(1, 100)),
    l0_per_px=st.fractions(4, 30, max_denominator=12),
)
def test_equals_brute_force(
    l0_xy: list[tuple[Fraction, Fraction]],
    l0_patch: Fraction,
    l0_size: tuple[int, int],
    l0_per_px: Fraction,
) -> None:
    """Odd sizes, overlaps, patches across the edge and beyond it. Edges that meet a pixel's centre exactly are
    what thirds and sevenths in floats get wrong."""
    values = [2.0**k for k in range(len(l0_xy))]
    canvas = patch_values_to_canvas(
        np.array(l0_xy, np.float64),
        float(l0_patch),
        np.array(values, np.float32),
        l0_size=l0_size,
        l0_per_px=float(l0_per_px),
    )
    assert canvas.dtype == np.float32
    np.testing.assert_array_equal(canvas, brute_force(l0_xy, l0_patch, values, l0_size, l0_per_px))


@settings(deadline=None)
@given(
    mpp=st.floats(0.1, 0.6),
    patch_px=st.integers(64, 300),
    l0_size=st.tuples(st.integers(500, 2000), st.integers(500, 2000)),
    l0_per_px=st.floats(3.0, 40.0),
)
def test_a_full_grid_leaves_no_seam_and_never_overlaps(
    mpp: float, patch_px: int, l0_size: tuple[int, int], l0_per_px: float
) -> None:
    """A stride that was rounded would drift by a patch over a large slide; a rounded corner leaves a hairline."""
    tiling = TilingConfig(patch_px=patch_px, patch_mpp=0.5)
    grid = PatchGrid.cover(l0_size, slide_mpp=Mpp(mpp), tiling=tiling)
    g_y, g_x = np.divmod(np.arange(grid.g_cols * grid.g_rows), grid.g_cols)
    canvas = patch_values_to_canvas(
        np.stack([g_x, g_y], axis=1) * grid.l0_step,
        grid.l0_patch,
        g_y * 1000.0 + g_x,
        l0_size=l0_size,
        l0_per_px=l0_per_px,
    )
    xs, ys = ((np.arange(n) + 0.5) * l0_per_px for n in canvas.shape[::-1])
    inside = canvas[np.ix_(ys < l0_size[1] - 1e-3, xs < l0_size[0] - 1e-3)]
    assert np.isfinite(inside).all(), "a seam"
    assert (inside == np.rint(inside)).all(), "a mean of neighbours"
    assert (np.diff(inside, axis=0) >= 0).all()
    assert (np.diff(inside, axis=1) >= 0).all()


def test_the_far_corner_of_a_large_slide() -> None:
    """At 0.243 um a patch has 526.75 level-0 pixels; a stride of 527 would be 95 px off here, 5 canvas pixels."""
    l0_patch, l0_size, l0_per_px = 526.75, (200_001, 150_003), 97.66
    corner = np.array([[379 * l0_patch, 284 * l0_patch]])
    canvas = patch_values_to_canvas(corner, l0_patch, np.array([3.0]), l0_size=l0_size, l0_per_px=l0_per_px)
    rows, columns = np.nonzero(np.isfinite(canvas))
    # 379 * 526.75 / 97.66 = 2044.2 and + 5.39 = 2049.6, cut at 200001 / 97.66 = 2047.93: centres 2044.5 - 2047.5
    assert (columns.min(), columns.max()) == (2044, 2047)
    # 284 * 526.75 / 97.66 = 1531.8 and + 5.39 = 1537.2, cut at 1535.97: centres 1532.5 - 1535.5
    assert (rows.min(), rows.max()) == (1532, 1535)
    assert len(rows) == 16
    assert canvas.shape == (1536, 2048)


def test_no_patches_is_an_empty_canvas() -> None:
    canvas = patch_values_to_canvas(
        np.empty((0, 2)), 5.0, np.empty(0, np.float32), l0_size=(10, 7), l0_per_px=2.0
    )
    assert canvas.shape == (4, 5)
    assert np.isnan(canvas).all()


def test_a_quarter_million_patches_take_seconds() -> None:
    g_y, g_x = np.divmod(np.arange(250_000), 500)
    values = np.random.default_rng(0).random(250_000).astype(np.float32)
    started = process_time()
    canvas = patch_values_to_canvas(
        np.stack([g_x, g_y], axis=1) * 256.3, 256.3, values, l0_size=(128_150, 128_150), l0_per_px=62.57
    )
    assert process_time() - started < 20
    assert canvas[-2, -2] == values[-1], "raw values come through exactly"


@pytest.mark.parametrize(
    ("length", "l0_per_px", "pixels"), [(2967, 2967 / 2048, 2048), (7, 2, 4), (6, 2, 3), (1, 50, 1)]
)
def test_the_canvas_covers_the_slide_and_no_more(length: int, l0_per_px: float, pixels: int) -> None:
    assert canvas_size((length, length), l0_per_px) == (pixels, pixels)
