"""Maps, draws and patches: what the golden arrays do not show."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsi_ips.models.sampling import (
    entropy_regulariser,
    expectation,
    extract_patches,
    l2_normalised,
    patch_corners,
    rows_and_columns,
    sample,
    sample_softmax,
    sample_with_replacement,
    sample_without_replacement,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_positions_without_tissue_get_nothing_and_the_others_share_the_smoothing() -> None:
    logits = torch.tensor([[[50.0, 0.0], [0.0, 99.0]]])
    empty = torch.tensor([[[False, False], [False, True]]])
    attention = sample_softmax(logits, smoothing=0.3, empty=empty)
    torch.testing.assert_close(attention, torch.tensor([[[0.8, 0.1], [0.1, 0.0]]]))


def test_an_empty_mask_and_wrong_smoothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no position"):
        sample_softmax(torch.zeros(2, 3), empty=torch.tensor([[False] * 3, [True] * 3]))
    with pytest.raises(ValueError, match="no positions"):
        sample_softmax(torch.zeros(2, 0))
    with pytest.raises(ValueError, match="smoothing"):
        sample_softmax(torch.zeros(2, 3), smoothing=1.0)


def test_a_positive_strength_raises_the_entropy() -> None:
    logits = torch.tensor([[3.0, 0.0, -1.0]], requires_grad=True)
    before = sample_softmax(logits)
    entropy_regulariser(before, strength=1.0).backward()
    after = sample_softmax(logits.detach() - 0.1 * logits.grad)  # type: ignore[operator]

    def entropy(a: torch.Tensor) -> float:
        return float(-(a * a.log()).sum().detach())

    assert entropy(after) > entropy(before)


def test_more_samples_than_positions_are_refused_with_both_numbers() -> None:
    attention_BK = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    with pytest.raises(ValueError, match=r"3 samples without replacement of 2 positions; take fewer"):
        sample(attention_BK, 3, replacement=False)
    with pytest.raises(ValueError, match="1 sample or more"):
        sample(attention_BK, 0, replacement=True)
    assert sample(attention_BK, 5, replacement=True, generator=generator()).index_BN.shape == (2, 5)


def test_draws_without_replacement_follow_the_attention() -> None:
    """Ordered pairs of three positions, 40,000 times, against a_i a_j / (1 - a_i): 5 sigma."""
    a = [0.6, 0.3, 0.1]
    samples = sample(torch.tensor([a]).expand(40_000, 3), 2, replacement=False, generator=generator())
    pairs = samples.index_BN[:, 0] * 3 + samples.index_BN[:, 1]
    for first in range(3):
        for second in range(3):
            p = 0.0 if first == second else a[first] * a[second] / (1 - a[first])
            share = float((pairs == first * 3 + second).float().mean())
            assert share == pytest.approx(p, abs=5 * (max(p, 1e-9) / 40_000) ** 0.5)


def test_draws_with_replacement_follow_the_attention() -> None:
    attention_BK = torch.tensor([[0.7, 0.2, 0.1]])
    index_BN = sample_with_replacement(attention_BK, 30_000, generator=generator()).index_BN
    shares = index_BN[0].bincount(minlength=3) / 30_000
    torch.testing.assert_close(shares, attention_BK[0], atol=0.015, rtol=0)


@given(st.integers(1, 12), st.integers(0, 1000))
def test_all_positions_in_any_order_give_finite_gradients(n: int, seed: int) -> None:
    """Nothing is left after the last draw: rounding must not take the logarithm of nothing, or of less."""
    logits = torch.randn(1, n, generator=generator(seed)).mul(8).requires_grad_()
    attention = sample_softmax(logits, smoothing=1e-5)
    samples = sample_without_replacement(attention, n, uniform_BK=torch.rand(1, n, generator=generator(seed)))
    for gradient in ("unbiased", "reference"):
        features = torch.randn(1, n, 3, generator=generator(seed)).requires_grad_()
        expectation(
            samples.attention_BN,
            features,
            replacement=False,
            gradient=gradient,  # type: ignore[arg-type]
        ).sum().backward(retain_graph=True)
        assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]
        assert torch.isfinite(features.grad).all()  # type: ignore[arg-type]


def test_features_and_attention_must_fit() -> None:
    with pytest.raises(
        ValueError, match=r"attention of shape \(1, 2\) does not fit features of shape \(1, 3, 4\)"
    ):
        expectation(torch.ones(1, 2), torch.ones(1, 3, 4), replacement=True)


@pytest.mark.parametrize(
    ("map_px", "low_px", "high_px", "patch_px", "index", "corner"),
    [
        (25, 100, 1000, 50, 12, 475),
        (25, 100, 1000, 50, 0, -5),
        (100, 100, 1000, 50, 0, -20),
        (1000, 1000, 1000, 50, 55, 30),
    ],
)
def test_corners_of_the_reference_s_own_tests(
    map_px: int, low_px: int, high_px: int, patch_px: int, index: int, corner: int
) -> None:
    """(ATS.md, section 4)"""
    found = patch_corners(
        torch.tensor([[[index, index]]]),
        map_size=(map_px, map_px),
        low_size=(low_px, low_px),
        high_size=(high_px, high_px),
        patch_size=(patch_px, patch_px),
    )
    assert found.tolist() == [[[corner, corner]]]


@given(st.integers(-8, 12), st.integers(-8, 14))
def test_a_patch_is_the_image_there_and_zero_outside(row: int, column: int) -> None:
    image = torch.arange(1, 10 * 12 + 1, dtype=torch.uint8).view(1, 1, 10, 12)
    patch = extract_patches(image, torch.tensor([[[row, column]]]), (4, 3))
    assert patch.dtype == torch.uint8
    for y in range(4):
        for x in range(3):
            inside = 0 <= row + y < 10 and 0 <= column + x < 12
            expected = int(image[0, 0, row + y, column + x]) if inside else 0
            assert int(patch[0, 0, 0, y, x]) == expected


def test_rows_and_columns_are_raster_order() -> None:
    assert rows_and_columns(torch.tensor([[0, 6, 7]]), 7).tolist() == [[[0, 0], [0, 6], [1, 0]]]


def test_zero_stays_zero_when_normalised() -> None:
    x = l2_normalised(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    torch.testing.assert_close(x, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
