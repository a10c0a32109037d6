"""Contributions add up to the logit, and gradient times input is what it is said to be, for every aggregator."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.models.aggregators.test_aggregators import SMALL
from wsi_ips.config import TaskConfig
from wsi_ips.config.survival import SurvivalConfig
from wsi_ips.models.aggregators.base import Aggregator
from wsi_ips.models.aggregators.registry import AGGREGATORS
from wsi_ips.models.attention import CrossAttention, DirectAttention
from wsi_ips.models.heads import Heads
from wsi_ips.models.ips_net import IPSNet, RasterSinusoid
from wsi_ips.testing.aggregators import DIM, TASKS, build

LINEAR = {
    "direct": {},
    "mean": {},
    "max": {},
    "max one_patch": {"rule": "one_patch"},
    "abmil": {},
    "abmil plain": {"gated": False},
    "clam_sb": {},
    "clam_mb": {},
    "dsmil": {},
    "dsmil values": {"values": True},
}
"""Aggregators whose logits are a sum over patches, with their settings."""
ALL = [*LINEAR, "paper", *(name for name in AGGREGATORS.members if name not in LINEAR)]


def made(name: str) -> Aggregator:
    if name in ("direct", "paper"):
        torch.manual_seed(0)
        kind = (
            DirectAttention
            if name == "direct"
            else partial(CrossAttention, value_dim=4, inner_dim=8, dropout=0.2)
        )
        return kind(DIM, queries=2, heads=2, key_dim=4, attention_dropout=0.2).double().eval()
    short = name.split()[0]
    return build(short, {**SMALL.get(short, {}), **LINEAR.get(name, {})})


def net_of(name: str, *, positions: bool = False) -> IPSNet:
    aggregator = made(name)
    heads = Heads(aggregator.token_dim, TASKS).double()
    encoding = RasterSinusoid(DIM) if positions else None
    return IPSNet(nn.Identity(), aggregator, heads, positions=encoding).eval()


def bag(patches: int = 9) -> tuple[Tensor, Tensor]:
    emb = torch.randn(patches, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return emb, torch.arange(patches) * 3


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("name", LINEAR)
def test_contributions_and_the_bias_of_the_classifier_sum_to_the_logit(name: str, positions: bool) -> None:
    net = net_of(name, positions=positions)
    reading = net.read_bag(*bag())
    assert reading.contributions is not None
    layers = net.heads.layers or net.attention.layers
    for task, layer in zip(TASKS, layers, strict=True):
        total = reading.contributions[task.name].sum(dim=0) + layer.bias
        torch.testing.assert_close(total, reading.logits[task.name][0], rtol=0, atol=1e-6)
        assert reading.contributions[task.name].std() > 1e-4


@pytest.mark.parametrize("name", ["paper", "transmil", "abmilx"])
def test_what_is_no_sum_over_patches_has_no_contributions(name: str) -> None:
    assert net_of(name).read_bag(*bag()).contributions is None


@pytest.mark.parametrize("name", ALL)
def test_gradient_times_input_is_the_change_of_the_logit_when_a_patch_is_made_longer(name: str) -> None:
    """Gradient times input is how fast the logit changes while this patch's embedding is scaled."""
    net, (emb, places) = net_of(name), bag()
    with torch.no_grad():
        told = net.gradients(emb, places)
    for task in TASKS:
        assert told[task.name].shape == (len(emb), len(task.classes))
        assert not told[task.name].requires_grad
    step = 1e-5
    for patch in (0, 4, 8):
        longer, shorter = emb.clone(), emb.clone()
        longer[patch] *= 1 + step
        shorter[patch] *= 1 - step
        ends = [net.read_bag(each, places).logits for each in (longer, shorter)]
        for task in TASKS:
            slope = (ends[0][task.name] - ends[1][task.name])[0] / (2 * step)
            torch.testing.assert_close(told[task.name][patch], slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["mean", "max"])
def test_where_attention_has_no_gradient_both_maps_are_the_same(name: str) -> None:
    net = net_of(name)
    told, reading = net.gradients(*bag()), net.read_bag(*bag())
    assert reading.contributions is not None
    for task in TASKS:
        torch.testing.assert_close(told[task.name], reading.contributions[task.name])


def test_through_learned_attention_they_differ_and_with_attention_held_they_are_the_same() -> None:
    net = net_of("abmil")
    told, reading = net.gradients(*bag()), net.read_bag(*bag())
    assert reading.contributions is not None
    assert any((told[t.name] - reading.contributions[t.name]).abs().max() > 1e-3 for t in TASKS)
    attended = net.attention.attended

    def held(logits: Tensor, empty: Tensor | None) -> tuple[Tensor, Tensor]:
        return attended(logits.detach(), empty)

    net.attention.attended = held  # type: ignore[method-assign]
    for task, values in net.gradients(*bag()).items():
        torch.testing.assert_close(values, reading.contributions[task])


def test_gradients_leave_nothing_behind_and_the_second_call_gives_the_same() -> None:
    net, (emb, places) = net_of("abmil", positions=True), bag()
    first, second = net.gradients(emb, places), net.gradients(emb, places)
    for task in first:
        torch.testing.assert_close(first[task], second[task], rtol=0, atol=0)
    assert all(weight.grad is None for weight in net.parameters())
    assert not emb.requires_grad


@pytest.mark.parametrize("loss", ["cox", "hazards"])
def test_a_survival_task_explains_its_log_hazard(loss: str) -> None:
    survival = SurvivalConfig(time="t", event="e", unit="days", at=(100, 200), loss=loss)
    task = TaskConfig(name="os", kind="survival", survival=survival)
    torch.manual_seed(0)
    heads = Heads(DIM, [task]).double()
    net = IPSNet(nn.Identity(), build("mean", {}), heads).eval()
    net.attention.queries = 1  # type: ignore[assignment]
    reading, told = net.read_bag(*bag()), net.gradients(*bag())["os"]
    assert reading.contributions is not None
    torch.testing.assert_close(told, reading.contributions["os"])
    assert told.shape == (9, 3)
    torch.testing.assert_close(told[:, 1], -told[:, 0])
