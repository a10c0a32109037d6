"""Patches made smaller are the means of the areas that their pixels cover, whoever computes them."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.streaming.exact_means import exact_means
from wsi_ips.streaming import area_means as module
from wsi_ips.streaming.area_means import ONE, area_means, axis_weights, near_columns, plain_means
from wsi_ips.streaming.region_source import resample


def smaller(region: np.ndarray, *, inset: tuple[float, float], side: float, patch_px: int) -> np.ndarray:
    patch = np.zeros((patch_px, patch_px, 3), np.uint8)
    area_means(region, patch, inset=inset, side=side)
    return patch


def region_for(inset: tuple[float, float], side: float, *, seed: int = 0, channels: int = 3) -> np.ndarray:
    width, height = (int(np.ceil(start + side)) for start in inset)
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


fractions = st.one_of(st.sampled_from([0.0, 0.25, 0.5]), st.floats(0, 0.999))
factors = st.one_of(st.sampled_from([1.0288, 1.5, 2.0, 2.06, 3.3]), st.floats(1, 1.4), st.floats(1, 12))


@pytest.fixture(params=["compiled", "plain"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With numba, and as if it were not installed."""
    if request.param == "plain":
        monkeypatch.setattr(module, "compiled_kernel", lambda: None)
    else:
        pytest.importorskip("numba")


@settings(max_examples=120, deadline=None)
@given(
    inset=st.tuples(fractions, fractions),
    factor=factors,
    patch_px=st.integers(1, 70),
    seed=st.integers(0, 99),
)
def test_pixels_are_means_of_areas_and_the_same_with_and_without_numba(
    inset: tuple[float, float], factor: float, patch_px: int, seed: int
) -> None:
    side = factor * patch_px
    region = region_for(inset, side, seed=seed)
    patch = smaller(region, inset=inset, side=side, patch_px=patch_px)
    wanted = exact_means(region, inset=inset, side=side, patch_px=patch_px)
    assert np.abs(patch - wanted).max() < 0.51
    plain = np.zeros_like(patch)
    flat, flat_patch = region.reshape(len(region), -1), plain.reshape(patch_px, -1)
    plain_means(flat, flat_patch, inset=inset, side=side)
    assert np.array_equal(patch, plain)


def test_the_row_of_the_definition(either_way: None) -> None:
    row = np.array([0, 0, 100, 100, 200, 200, 50, 50], np.uint8)
    region = np.repeat(np.tile(row, (8, 1))[..., None], 3, axis=2)
    assert smaller(region, inset=(0.5, 0.5), side=4.0, patch_px=2)[:, :, 0].tolist() == [[25, 125], [25, 125]]
    turned = np.ascontiguousarray(region.transpose(1, 0, 2))
    assert smaller(turned, inset=(0.5, 0.5), side=4.0, patch_px=2)[:, :, 0].tolist() == [[25, 25], [125, 125]]


@pytest.mark.parametrize("factor", [1.0, 1.0288, 1.37, 2.06, 3.3, 11.7])
@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_what_is_of_one_colour_stays_so(either_way: None, factor: float, value: int) -> None:
    inset, side = (0.37, 0.81), 50 * factor
    region = np.full_like(region_for(inset, side), value)
    assert (smaller(region, inset=inset, side=side, patch_px=50) == value).all()


@pytest.mark.parametrize("factor", [1.0288, 2.06, 3.3])
def test_errors_have_no_preferred_sign(factor: float) -> None:
    inset, side = (0.3, 0.6), 256 * factor
    region = region_for(inset, side)
    errors = smaller(region, inset=inset, side=side, patch_px=256) - exact_means(
        region, inset=inset, side=side, patch_px=256
    )
    # 0.29 is the spread of a value that is rounded; there are 196,608 of them.
    assert abs(errors.mean()) < 4 * 0.29 / np.sqrt(errors.size)


@pytest.mark.parametrize(("factor", "bound"), [(40.0, 0.55), (200.3, 1.0)])
def test_far_smaller(factor: float, bound: float) -> None:
    inset, side = (0.2, 0.7), 3 * factor
    worst = np.zeros_like(region_for(inset, side))
    worst[:, ::2] = 255
    for region in (region_for(inset, side), worst):
        wanted = exact_means(region, inset=inset, side=side, patch_px=3)
        assert np.abs(smaller(region, inset=inset, side=side, patch_px=3) - wanted).max() < bound


@settings(max_examples=100, deadline=None)
@given(inset=fractions, factor=factors, patch_px=st.integers(1, 300))
def test_weights_add_up_to_one(inset: float, factor: float, patch_px: int) -> None:
    weights = axis_weights(inset, factor * patch_px, patch_px)
    assert (weights.weights_NT.sum(axis=1) == ONE).all()
    assert weights.end <= int(np.ceil(inset + factor * patch_px))
    assert weights.weights_NT.max() <= ONE


def test_both_kernels_are_used() -> None:
    """Else the tests above would compare one of them with itself."""
    assert near_columns(0.3, 70 * 1.0288, 70) is not None
    assert near_columns(0.3, 70 * 2.06, 70) is None


def test_threads_give_the_same_patch() -> None:
    inset, side = (0.3, 0.6), 256 * 1.0288
    region = region_for(inset, side)
    patches = [np.zeros((256, 256, 3), np.uint8) for _ in range(4)]
    threads = [
        threading.Thread(target=area_means, args=(region, patch), kwargs={"inset": inset, "side": side})
        for patch in patches
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert patches[0].any()
    assert all(np.array_equal(patch, patches[0]) for patch in patches)


@pytest.mark.parametrize(
    ("inset", "side"), [((0.5, 0.0), 20.0), ((0.0, 0.5), 20.0), ((0.0, 0.0), 9.0), ((-0.5, 0.0), 19.0)]
)
def test_a_square_that_is_not_inside_the_region_is_refused(inset: tuple[float, float], side: float) -> None:
    region = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(ValueError, match="not inside"):
        smaller(region, inset=inset, side=side, patch_px=10)


@pytest.mark.parametrize("factor", [2.0, 3.0, 4.0, 5.0, 8.0, 16.0])
def test_whole_factors(factor: float) -> None:
    inset, side = (0.0, 0.0), 20 * factor
    region = region_for(inset, side)
    patch, plain = np.zeros((2, 20, 20, 3), np.uint8)
    resample(region, patch, inset=inset, side=side)
    assert np.abs(patch - exact_means(region, inset=inset, side=side, patch_px=20)).max() < 0.501
    plain_means(region.reshape(len(region), -1), plain.reshape(20, -1), inset=inset, side=side)
    assert np.array_equal(patch, plain)


def test_enlarging_interpolates() -> None:
    region = np.repeat(np.array([[0, 100]], np.uint8), 2, axis=0)[..., None].repeat(3, axis=2)
    patch = np.zeros((4, 4, 3), np.uint8)
    resample(region, patch, inset=(0.0, 0.0), side=2.0)
    assert patch[:, :, 0].tolist() == [[0, 25, 75, 100]] * 4
