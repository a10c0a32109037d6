"""Which colour a raw value has: against the even share, by rank, or by itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_ips.errors import ConfigError
from wsi_ips.heatmaps.display_scale import DisplayScale, display_values, is_flat


def softmax(logits_N: np.ndarray) -> np.ndarray:
    weights_N = np.exp(logits_N - logits_N.max())
    return np.asarray(weights_N / weights_N.sum(), np.float32)


def test_flat_attention_is_one_colour_and_not_half_hot() -> None:
    values_N = softmax(np.random.default_rng(0).normal(0, 0.05, 1000))
    assert is_flat(values_N, 1 / len(values_N))
    shown_N = display_values(values_N)
    np.testing.assert_allclose(shown_N, 0.25, atol=0.04)
    assert display_values(values_N, scale="rank").max() == 1  # the colours of the warm end, for nothing


@pytest.mark.parametrize("patches", [64, 1000, 100_000])
def test_a_multiple_of_the_even_share_has_one_colour_on_every_slide(patches: int) -> None:
    times = np.array([0, 1e-30, 0.25, 0.5, 1, 2, 4, 16, 64, 1000])
    wanted = [0, 0, 0, 0.125, 0.25, 0.375, 0.5, 0.75, 1, 1]
    scale = DisplayScale(np.full(patches, 1 / patches, np.float32))
    np.testing.assert_allclose(scale((times / patches).astype(np.float32)), wanted, atol=1e-6)
    assert np.isnan(scale(np.array([np.nan], np.float32))).all()


def test_the_ends_are_multiples_that_can_be_chosen() -> None:
    values_N = softmax(np.log([1.0, 2, 4, 8, 16, 32, 64, 128]))
    shown_N = display_values(values_N, low=1 / 8, high=8)
    np.testing.assert_allclose(shown_N, np.log2(values_N * 8 * 8).clip(0, 6) / 6, atol=1e-6)


@pytest.mark.parametrize(
    ("times", "flat"),
    [
        ([1.0], True),
        ([1.5, 0.75, 0.75], True),
        ([1.51, 0.745, 0.745], False),
        ([1.2, 1.2, 0.6], False),
        ([], False),
    ],
)
def test_flat_is_what_has_no_patch_beyond_half_as_much_again(times: list[float], flat: bool) -> None:
    count = max(1, len(times))
    assert is_flat(np.array(times, np.float32) / count, 1 / count) is flat


@pytest.mark.parametrize("scale", ["even", "rank", "absolute"])
def test_places_on_the_scale_have_the_values_that_lie_there(scale: str) -> None:
    values_N = softmax(np.random.default_rng(1).normal(0, 1, 50))
    display = DisplayScale(values_N, scale=scale)  # type: ignore[arg-type]
    places = np.array([0.0, 0.1, 0.25, 0.5, 1.0])
    np.testing.assert_allclose(display(display.values_at(places)), places, atol=1e-6)


def test_percentiles_are_ranks_and_ties_share_theirs() -> None:
    values = np.array([0.5, 0.1, 0.1, 9.0, 0.5, 0.5], np.float32)
    shown = display_values(values, scale="rank")
    np.testing.assert_allclose(shown, [0.6, 0.1, 0.1, 1.0, 0.6, 0.6])
    np.testing.assert_array_equal(values, np.array([0.5, 0.1, 0.1, 9.0, 0.5, 0.5], np.float32))


@settings(deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=50, unique=True))
def test_percentiles_are_the_inverse_of_quantiles(values: list[float]) -> None:
    shown = display_values(np.array(values), scale="rank")
    np.testing.assert_allclose(np.quantile(values, shown.astype(float)), values, atol=1e-5)


def test_a_window_of_percentiles_fills_the_scale() -> None:
    shown = display_values(np.arange(101.0), scale="rank", low=50, high=90)
    assert shown[50] == 0
    assert shown[70] == pytest.approx(0.5)
    assert (shown[90:] == 1).all()


def test_absolute_is_linear_between_the_ends() -> None:
    values = np.array([0.2, 0.4, 1.0])
    np.testing.assert_allclose(display_values(values, scale="absolute"), [0, 0.25, 1])
    np.testing.assert_allclose(display_values(values, scale="absolute", low=0, high=0.8), [0.25, 0.5, 1])


@pytest.mark.parametrize("scale", ["rank", "absolute"])
@pytest.mark.parametrize("values", [[0.3, 0.3, 0.3], [7.0], []])
def test_equal_values_lie_in_the_middle(scale: str, values: list[float]) -> None:
    assert (display_values(np.array(values), scale=scale) == 0.5).all()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scale", "low", "high"),
    [("rank", 90, 10), ("rank", -1, 50), ("rank", 0, 101), ("absolute", 2, 1),
     ("absolute", float("nan"), 1), ("even", 0, 4), ("even", 4, 4),
     ("even", 1, float("inf")), ("even", 100, None)],
)  # fmt: skip
def test_a_scale_that_cannot_be_is_refused(scale: str, low: float, high: float | None) -> None:
    with pytest.raises(ConfigError, match="cannot go from"):
        display_values(np.arange(3.0), scale=scale, low=low, high=high)  # type: ignore[arg-type]
