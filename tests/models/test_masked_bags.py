"""Bags with fewer than M patches: each is read as if it were alone, and nothing learns from padding.

The reference attends to zero padding and lets BatchNorm see it (IPS specification, known weaknesses).
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from wsi_ips.config import TaskConfig
from wsi_ips.models.attention import CrossAttention
from wsi_ips.models.encoders.projectors import Projector
from wsi_ips.models.heads import Heads
from wsi_ips.models.ips_net import BagReading, IPSNet, RasterSinusoid

DIM = 8
EXACT = {"rtol": 0, "atol": 1e-12}

counts_of_bags = st.lists(st.integers(1, 9), min_size=1, max_size=5)
seeds = st.integers(0, 10**6)


def attention(seed: int) -> CrossAttention:
    torch.manual_seed(seed)
    return CrossAttention(DIM, queries=2, heads=2, key_dim=3, value_dim=4, inner_dim=16,
                          attention_dropout=0.0, dropout=0.0).double()  # fmt: skip


def net(seed: int) -> IPSNet:
    torch.manual_seed(seed)
    heads = Heads(DIM, [TaskConfig(name="a"), TaskConfig(name="b", classes=("x", "y", "z"))])
    encoder = nn.Sequential(nn.Flatten(), Projector(12, DIM))
    return IPSNet(encoder, attention(seed), heads, positions=RasterSinusoid(DIM)).double().train()


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None
    }


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@settings(max_examples=40)
@given(counts_of_bags, seeds, st.sampled_from([0.0, 1e6, torch.nan, torch.inf]))
def test_a_padded_bag_is_read_as_if_it_were_alone(counts: list[int], seed: int, padding: float) -> None:
    """Tokens, attention, gradients of the weights and of the patches; whatever stands in empty places."""
    block, alone = attention(seed), attention(seed)
    bags = [torch.randn(count, DIM, dtype=torch.float64) for count in counts]
    padded_BMD = torch.full((len(bags), max(counts), DIM), padding, dtype=torch.float64)
    for number, bag in enumerate(bags):
        padded_BMD[number, : len(bag)] = bag
    padded_BMD.requires_grad_()
    empty_BM = torch.arange(max(counts)) >= torch.tensor(counts)[:, None]
    weights_BTD = torch.randn(len(bags), 2, DIM, dtype=torch.float64)
    tokens_BTD, attention_BHTM = block(padded_BMD, empty_BM)
    (tokens_BTD * weights_BTD).sum().backward()
    for number, bag in enumerate(bags):
        x_1MD = bag[None].clone().requires_grad_()
        tokens_1TD, attention_1HTM = alone(x_1MD)
        (tokens_1TD * weights_BTD[number]).sum().backward()
        torch.testing.assert_close(tokens_BTD[number], tokens_1TD[0], **EXACT)
        torch.testing.assert_close(attention_BHTM[number, ..., : len(bag)], attention_1HTM[0], **EXACT)
        assert not attention_BHTM[number, ..., len(bag) :].any()
        torch.testing.assert_close(padded_BMD.grad[number, : len(bag)], x_1MD.grad[0], rtol=1e-9, atol=1e-12)
        assert not padded_BMD.grad[number, len(bag) :].any()
    assert_same(gradients(block), gradients(alone))


def by_hand(model: IPSNet, pixels: Tensor, ids: Tensor, counts: list[int]) -> list[BagReading]:
    """All real patches through the encoder together, then every bag by itself: no padding anywhere."""
    emb = model.encode(pixels)
    return [model.read_bag(e, i) for e, i in zip(emb.split(counts), ids.split(counts), strict=True)]


@settings(max_examples=40)
@given(counts_of_bags.filter(lambda counts: sum(counts) > 1), seeds)
def test_a_training_step_over_bags_of_different_sizes_never_sees_padding(
    counts: list[int], seed: int
) -> None:
    """BatchNorm with batch statistics: outputs, running statistics and every gradient."""
    pixels = torch.randn(sum(counts), 3, 2, 2, dtype=torch.float64) + 3
    ids = torch.randint(0, 500, (sum(counts),))
    ours, theirs = net(seed), net(seed)
    together = ours(pixels, ids, counts)
    alone = by_hand(theirs, pixels, ids, counts)
    for task, logits_BC in together.logits.items():
        torch.testing.assert_close(logits_BC, torch.cat([bag.logits[task] for bag in alone]), **EXACT)
    sum(logits_BC.square().sum() for logits_BC in together.logits.values()).backward()
    sum(logits.square().sum() for bag in alone for logits in bag.logits.values()).backward()
    assert_same(gradients(ours), gradients(theirs))
    for name, buffer in theirs.named_buffers():
        assert torch.equal(ours.get_buffer(name), buffer), name


@pytest.mark.parametrize("counts", [[3, 3], [4]])
def test_bags_of_one_size_need_no_mask(counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """And no look at the device's memory to find that out."""
    model = net(0)
    masks = []
    read = model.attention.read
    monkeypatch.setattr(
        model.attention, "read", lambda x, empty, places: masks.append(empty) or read(x, empty)
    )
    model(torch.randn(sum(counts), 3, 2, 2).double(), torch.arange(sum(counts)), counts)
    assert masks == [None]
