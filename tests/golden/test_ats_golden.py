"""Every ``ats_*.npz`` of the golden folder: outputs of the reference code under TensorFlow (see its README)."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import SHARED
from wsi_ips.models.sampling import (
    Gradient,
    entropy_regulariser,
    expectation,
    extract_patches,
    l2_normalised,
    patch_corners,
    rows_and_columns,
    sample_softmax,
    sample_without_replacement,
)

FOLDER = Path(os.environ.get("WSI_IPS_GOLDEN", SHARED / "golden"))
FILES = [pytest.param(path, id=path.stem) for path in sorted(FOLDER.glob("ats_*.npz"))] or [
    pytest.param(
        None,
        marks=pytest.mark.skip(reason=f"no golden arrays at {FOLDER}; name their folder with WSI_IPS_GOLDEN"),
    )
]
EXACT = {"rtol": 0, "atol": 1e-10}
SINGLE = {"rtol": 1e-5, "atol": 1e-7}
Case = Mapping[str, np.ndarray]


@pytest.fixture(params=FILES)
def case(request: pytest.FixtureRequest) -> Case:
    with np.load(request.param) as arrays:
        return dict(arrays)


def attention_of(case: Case) -> Tensor:
    logits_BhwC = torch.from_numpy(case["in_attention_logits"])
    return sample_softmax(logits_BhwC, smoothing=float(case["cfg_smooth"])).squeeze(-1)


def test_attention_and_its_regulariser(case: Case) -> None:
    attention_Bhw = attention_of(case)
    np.testing.assert_allclose(attention_Bhw, case["out_attention"], **SINGLE)
    strength = 0.01
    found = entropy_regulariser(attention_Bhw, strength=strength)
    np.testing.assert_allclose(found, case["out_entropy_reg_strength_0.01"], rtol=1e-5)


def test_positions_in_the_order_of_their_draw(case: Case) -> None:
    expected_BN2 = case["out_sampled_position_no_replacement"]
    attention_Bhw = torch.from_numpy(case["out_attention"])
    samples = sample_without_replacement(
        attention_Bhw.flatten(1),
        expected_BN2.shape[1],
        uniform_BK=torch.from_numpy(case["in_gumbel_uniform"]),
    )
    positions_BN2 = rows_and_columns(samples.index_BN, attention_Bhw.shape[2])
    assert np.array_equal(positions_BN2, expected_BN2)
    assert np.array_equal(samples.attention_BN, case["out_sampled_attention_no_replacement"])


def test_corners_and_patches(case: Case) -> None:
    image_BCHW = torch.from_numpy(case["in_image_high"]).permute(0, 3, 1, 2)
    patch_size = tuple(case["cfg_patch_size"].tolist())
    corners_BN2 = patch_corners(
        torch.from_numpy(case["out_sampled_position_no_replacement"]),
        map_size=case["out_attention"].shape[1:],
        low_size=tuple(case["cfg_low_shape"].tolist()),
        high_size=tuple(image_BCHW.shape[-2:]),
        patch_size=patch_size,
        receptive_field=int(case["cfg_receptive_field"]),
    )
    assert np.array_equal(corners_BN2, case["out_patch_offsets"])
    patches_BNCPP = extract_patches(image_BCHW, corners_BN2, patch_size)
    assert np.array_equal(patches_BNCPP.permute(0, 1, 3, 4, 2), case["out_patches"])


@pytest.mark.parametrize("weighted", ["", "_weighted"])
@pytest.mark.parametrize(
    ("method", "gradient", "expected"),
    [
        ("no_replacement", "reference", "ref_grad_attention_no_replacement"),
        ("no_replacement", "unbiased", "derived_unbiased_grad_attention_no_replacement"),
        ("replacement", "unbiased", "ref_grad_attention_replacement"),
        ("replacement", "reference", "ref_grad_attention_replacement"),
    ],
)
def test_estimators_and_their_gradients(
    case: Case, method: str, gradient: Gradient, expected: str, weighted: str
) -> None:
    attention_BN = torch.from_numpy(case["in_sampled_attention_f64"]).requires_grad_()
    features_BND = torch.from_numpy(case["in_features"]).requires_grad_()
    found_BD = expectation(
        attention_BN,
        features_BND,
        replacement=method == "replacement",
        gradient=gradient,
        weights_BN=torch.from_numpy(case["in_custom_weights"]) if weighted else None,
    )
    found_BD.backward(torch.from_numpy(case["in_grad_output"]))
    np.testing.assert_allclose(found_BD.detach(), case[f"out_expected_{method}{weighted}"], **EXACT)
    np.testing.assert_allclose(attention_BN.grad, case[expected + weighted], **EXACT)
    if gradient == "unbiased" and method == "no_replacement" and weighted:
        return  # the reference's own factor holds for equal weights only; see test_exhaustive.py
    np.testing.assert_allclose(features_BND.grad, case[f"out_grad_features_{method}{weighted}"], **EXACT)


def test_l2_normalisation(case: Case) -> None:
    np.testing.assert_allclose(l2_normalised(torch.from_numpy(case["in_l2"])), case["out_l2"], **SINGLE)
