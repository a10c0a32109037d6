"""TransMIL's approximate attention and its positions, against the published formulas written out."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from wsi_ips.models.aggregators.transmil import NystromAttention, PseudoInverse, SquarePositions

LANDMARKS, HEADS, DIM = 8, 2, 12


def published_inverse(x_HLL: Tensor, iterations: int) -> Tensor:
    """Razavi's iteration as the reference writes it."""
    z_HLL = x_HLL.mT / (x_HLL.abs().sum(dim=-1).max() * x_HLL.abs().sum(dim=-2).max())
    identity = torch.eye(x_HLL.shape[-1], dtype=x_HLL.dtype)
    for _ in range(iterations):
        x_z = x_HLL @ z_HLL
        z_HLL = z_HLL @ (13 * identity - x_z @ (15 * identity - x_z @ (7 * identity - x_z))) / 4
    return z_HLL


def published(layer: NystromAttention, x_TD: Tensor, iterations: int = 6) -> tuple[Tensor, Tensor]:
    """The layer as the reference computes it: with all of its zero rows."""
    padding = -len(x_TD) % LANDMARKS
    x_PD = pad(x_TD, (0, 0, padding, 0))
    query, key, value = (
        part.unflatten(1, (HEADS, -1)).transpose(0, 1) for part in layer.query_key_value(x_PD).chunk(3, dim=1)
    )
    query = query / query.shape[2] ** 0.5
    query_l, key_l = (part.unflatten(1, (LANDMARKS, -1)).mean(dim=2) for part in (query, key))
    to, among, back = (
        (one @ other.mT).softmax(dim=-1) for one, other in ((query, key_l), (query_l, key_l), (query_l, key))
    )
    weights = to @ published_inverse(among, iterations) @ back
    read = weights @ value + layer.residual(value[None])[0]
    return layer.out(read.transpose(0, 1).flatten(1))[padding:], weights[:, padding, padding:]


def layer_of(*, spread: float = 4.0) -> NystromAttention:
    torch.manual_seed(0)
    layer = NystromAttention(DIM, heads=HEADS, landmarks=LANDMARKS, dropout=0).double()
    with torch.no_grad():
        layer.query_key_value.weight.mul_(spread)  # so that attention is far from even
    return layer


@pytest.mark.parametrize("tokens", [1, 2, 5, 8, 9, 11, 12, 16, 17, 20, 25, 41, 63, 64])
@pytest.mark.parametrize("first_only", [False, True])
def test_zero_rows_count_as_if_they_were_there(tokens: int, first_only: bool) -> None:
    layer = layer_of()
    x_TD = torch.randn(tokens, DIM, dtype=torch.float64)
    results = []
    for read in (published, NystromAttention.forward):
        layer.zero_grad()
        given = x_TD.clone().requires_grad_()
        out_RD, first_HT = (
            read(layer, given) if read is published else read(layer, given, first_only=first_only)
        )
        out_RD = out_RD[:1] if first_only else out_RD
        (out_RD * torch.arange(1, DIM + 1)).sum().backward()
        gradients = [weight.grad for weight in layer.parameters()]
        results.append([out_RD.detach(), first_HT.detach(), given.grad, *gradients])
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("iterations", [0, 1, 2, 3, 6])
def test_the_inverse_is_the_published_one_from_both_sides(iterations: int) -> None:
    torch.manual_seed(0)
    x_HLL = (3 * torch.randn(HEADS, 7, 7, dtype=torch.float64)).softmax(dim=-1)
    inverse, wanted_HLL = PseudoInverse(x_HLL, iterations=iterations), published_inverse(x_HLL, iterations)
    identity = torch.eye(7, dtype=torch.float64).expand(HEADS, -1, -1)
    torch.testing.assert_close(inverse.before(identity), wanted_HLL, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(inverse.after(identity), wanted_HLL, rtol=1e-10, atol=1e-11)


def test_in_single_precision_it_is_as_close_as_the_published_formula() -> None:
    layer, x_TD = layer_of().requires_grad_(False), torch.randn(41, DIM, dtype=torch.float64)
    exact, _ = published(layer, x_TD)
    layer.float()
    ours, theirs = (
        float((read(layer, x_TD.float())[0].double() - exact).abs().max())
        for read in (NystromAttention.forward, published)
    )
    assert ours < max(2 * theirs, 1e-6)


def test_no_zero_row_is_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 512 rows that the reference reads, 300 tokens and 151 landmarks are left."""
    layer, sizes = NystromAttention(64, heads=2, landmarks=256), []
    inverse = PseudoInverse.__init__
    monkeypatch.setattr(
        PseudoInverse,
        "__init__",
        lambda self, x, **more: sizes.append(x.shape[-1]) or inverse(self, x, **more),
    )
    layer(torch.randn(300, 64))
    assert layer.padding(300) == 212
    assert sizes == [256 - 106 + 1]


def test_one_convolution_stands_for_three() -> None:
    torch.manual_seed(0)
    positions = SquarePositions(6).double()
    x_ND = torch.randn(1 + 25, 6, dtype=torch.float64)
    square = x_ND[1:].T.unflatten(1, (5, 5))[None]
    wanted = square + sum(convolution(square) for convolution in positions.convolutions)
    placed_ND = positions(x_ND, 5)
    torch.testing.assert_close(placed_ND[1:], wanted[0].flatten(1).T)
    assert torch.equal(placed_ND[0], x_ND[0])
