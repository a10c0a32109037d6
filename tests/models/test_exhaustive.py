"""All ordered samples of six positions, each with its probability: what the estimators are in expectation.

In float64, against the exact expectation of features and its gradients through the softmax.
"""

from collections.abc import Iterator
from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from wsi_ips.models.sampling import Gradient, expectation, sample_softmax

K, D = 6, 4


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """logits_K, features_KD and the loss's gradient grad_D."""
    generator = torch.Generator().manual_seed(3)
    logits_K, features_KD, grad_D = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((K,), (K, D), (D,))
    )
    return logits_K, features_KD, grad_D


def draws(attention_K: Tensor, n: int, *, replacement: bool) -> Iterator[tuple[list[int], float]]:
    """Every ordered sample and how probable it is."""
    a = attention_K.tolist()
    for drawn in product(range(K), repeat=n) if replacement else permutations(range(K), n):
        probability, left = 1.0, 1.0
        for index in drawn:
            probability *= a[index] / left
            left -= 0 if replacement else a[index]
        yield list(drawn), probability


def expected(
    inputs: tuple[Tensor, Tensor, Tensor],
    n: int,
    *,
    replacement: bool,
    gradient: Gradient = "unbiased",
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(value_D, gradient to logits_K, gradient to features_KD), over all samples."""
    given_K, given_KD, grad_D = inputs
    total = (torch.zeros(D).double(), torch.zeros(K).double(), torch.zeros(K, D).double())
    with torch.no_grad():
        attention_K = given_K.softmax(dim=0)
    for drawn, probability in draws(attention_K, n, replacement=replacement):
        logits_K, features_KD = given_K.clone().requires_grad_(), given_KD.clone().requires_grad_()
        a_BK = sample_softmax(logits_K[None])
        value_BD = expectation(
            a_BK[:, drawn],
            features_KD[drawn][None],
            replacement=replacement,
            gradient=gradient,
            weights_BN=None if weights is None else weights[None],
        )
        value_BD.backward(grad_D[None])
        assert logits_K.grad is not None
        assert features_KD.grad is not None
        for sum_, part in zip(total, (value_BD[0].detach(), logits_K.grad, features_KD.grad), strict=True):
            sum_ += probability * part
    return total


def exact(inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    given_K, given_KD, grad_D = inputs
    logits_K, features_KD = given_K.clone().requires_grad_(), given_KD.clone().requires_grad_()
    value_D = logits_K.softmax(dim=0) @ features_KD
    value_D.backward(grad_D)
    assert logits_K.grad is not None
    assert features_KD.grad is not None
    return value_D.detach(), logits_K.grad, features_KD.grad


@pytest.mark.parametrize("weights", [None, [0.5, 0.3, 0.2]], ids=["equal", "weighted"])
@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_value_and_all_gradients_are_unbiased(
    inputs: tuple[Tensor, Tensor, Tensor], n: int, replacement: bool, weights: list[float] | None
) -> None:
    weights_N = None if weights is None else torch.tensor(weights[:n], dtype=torch.float64) / sum(weights[:n])
    found = expected(inputs, n, replacement=replacement, weights=weights_N)
    for ours, wanted in zip(found, exact(inputs), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_reference_s_attention_gradient_is_too_short(
    inputs: tuple[Tensor, Tensor, Tensor], n: int
) -> None:
    """Its value and its features' gradient are unbiased; its attention gradient from two samples on is not: nearly
    the right direction, and much shorter."""
    value_D, grad_K, grad_KD = expected(inputs, n, replacement=False, gradient="reference")
    wanted_D, wanted_K, wanted_KD = exact(inputs)
    torch.testing.assert_close(value_D, wanted_D, rtol=0, atol=1e-10)
    torch.testing.assert_close(grad_KD, wanted_KD, rtol=0, atol=1e-10)
    ratio = float(grad_K.norm() / wanted_K.norm())
    assert float(torch.cosine_similarity(grad_K, wanted_K, dim=0)) > 0.9
    if n == 1:
        assert ratio == pytest.approx(1, abs=1e-10)
    else:
        assert ratio < {2: 0.85, 3: 0.6}[n]
