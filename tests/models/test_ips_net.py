import pytest
import torch
from torch import nn

from wsi_ips.config import TaskConfig
from wsi_ips.models.attention import CrossAttention
from wsi_ips.models.encoders.projectors import Projector
from wsi_ips.models.heads import Heads
from wsi_ips.models.ips_net import IPSNet, RasterSinusoid, scoring


def net(*, positions: bool = False) -> IPSNet:
    torch.manual_seed(0)
    attention = CrossAttention(16, queries=2, heads=4, key_dim=4, value_dim=4, inner_dim=32,
                               attention_dropout=0.1, dropout=0.1)  # fmt: skip
    tasks = [TaskConfig(name="a"), TaskConfig(name="b", classes=("x", "y", "z"), activation="sigmoid")]
    place = RasterSinusoid(16) if positions else None
    heads, projector = Heads(16, tasks), Projector(12, 16)
    return IPSNet(nn.Flatten(), attention, heads, projector=projector, positions=place).double()


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("dim", "queries", "key_dim", "inner", "published"),
    [(512, 1, 64, 2048, 3_150_848), (128, 4, 16, 512, 198_272)],
)
def test_the_transformer_has_the_published_number_of_parameters(
    dim: int, queries: int, key_dim: int, inner: int, published: int
) -> None:
    attention = CrossAttention(dim, queries=queries, heads=8, key_dim=key_dim, value_dim=key_dim,
                               inner_dim=inner, attention_dropout=0.1, dropout=0.1)  # fmt: skip
    assert count(attention) == published


def test_the_projector_and_heads_have_the_published_number_of_parameters() -> None:
    assert count(Projector(2048, 512)) == 1_050_112
    assert count(Heads(512, [TaskConfig(classes=("tumor",), activation="sigmoid")])) == 513
    digits = tuple(map(str, range(10)))
    tasks = [TaskConfig(name=name, classes=digits) for name in ("majority", "max", "top", "multi")]
    assert count(Heads(128, tasks)) == 5_160


@pytest.mark.parametrize("positions", [False, True])
def test_a_small_bag_reads_the_same_beside_a_large_one_as_alone(positions: bool) -> None:
    """No padding is ever attended to."""
    model = net(positions=positions).eval()
    pixels, ids = torch.randn(9, 3, 2, 2).double(), torch.arange(9) * 7
    together = model(pixels, ids, [7, 2])
    alone = model(pixels[7:], ids[7:], [2])
    assert torch.allclose(together.tokens_BTD[1], alone.tokens_BTD[0], atol=1e-12)
    assert together.attention_BHTM[1, ..., 2:].abs().max() == 0
    assert torch.allclose(together.attention_BHTM.sum(-1), torch.ones(2, 4, 2).double())


@pytest.mark.parametrize("counts", [[4, 0], []])
def test_a_bag_without_patches_is_refused(counts: list[int]) -> None:
    """Its attention would be a softmax over nothing: NaN, and then a NaN loss for the whole batch."""
    with pytest.raises(ValueError, match="every bag needs a patch"):
        net().eval()(torch.randn(sum(counts), 3, 2, 2).double(), torch.arange(sum(counts)), counts)


def test_batch_norm_sees_real_patches_only() -> None:
    model = net().train()
    pixels = torch.randn(9, 3, 2, 2).double() + 3
    model(pixels, torch.arange(9), [7, 2])
    projector = model.projector
    with torch.no_grad():
        seen = projector.linear(projector.norm(pixels.flatten(1))).mean(0)
    assert torch.allclose(projector.batch_norm.running_mean, 0.1 * seen, atol=1e-12)


def test_probabilities_follow_each_task_s_activation() -> None:
    reading = net().eval()(torch.randn(4, 3, 2, 2).double(), torch.arange(4), [4])
    assert reading.probabilities["a"].sum().item() == pytest.approx(1)
    assert torch.equal(reading.probabilities["b"], reading.logits["b"].sigmoid())


def test_a_task_may_read_another_s_token() -> None:
    tasks = [TaskConfig(name="a", token=1), TaskConfig(name="b", token=1)]
    heads = Heads(4, tasks)
    assert heads.queries == 2
    tokens = torch.randn(3, 2, 4)
    changed = tokens.clone()
    changed[:, 0] += 1
    assert torch.equal(heads(tokens)["a"], heads(changed)["a"])


def test_scoring_puts_every_module_s_mode_back_after_an_error() -> None:
    model = net().train()
    model.heads.eval()

    def fail_while_scoring() -> None:
        with scoring(model):
            assert not any(module.training for module in model.modules())
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fail_while_scoring()
    assert model.encoder.training
    assert not model.heads.training


def test_positions_tell_patches_apart() -> None:
    model = net(positions=True).eval()
    same = torch.randn(1, 3, 2, 2).double().expand(2, -1, -1, -1)
    here, there = (model(same, ids, [2]).tokens_BTD for ids in (torch.tensor([0, 1]), torch.tensor([5, 900])))
    assert not torch.allclose(here, there)
