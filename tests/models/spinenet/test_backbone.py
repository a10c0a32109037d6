"""The models as timm's, and resampling at sizes that divide and that do not."""

from functools import partial

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from wsi_ips.errors import ConfigError
from wsi_ips.models.spinenet import MEMBERS, SpineNet, create_spinenet
from wsi_ips.models.spinenet.backbone import Resample, max_pool_same, pool_towards
from wsi_ips.models.spinenet.specification import SPINENET_49, Specification

SMALL = partial(create_spinenet, SPINENET_49, width=0.1, endpoint_channels=8)


def resampled(x: Tensor, size: tuple[int, int], *, steps: int) -> Tensor:
    """Through a resampling whose convolutions pass a map of one positive channel on (3x3: its centre)."""
    layer = Resample(1, 1, 1, steps=steps, norm=lambda _: nn.Identity(), act="relu")
    for convolution in layer.modules():
        if isinstance(convolution, nn.Conv2d):
            nn.init.dirac_(convolution.weight)
    with torch.no_grad():
        return layer(x, size)


def numbered(rows: int, columns: int) -> Tensor:
    return torch.arange(1.0, 1 + rows * columns).view(1, 1, rows, columns)


def test_up_by_whole_factors_repeats_pixels() -> None:
    x = numbered(3, 2)
    assert torch.equal(resampled(x, (12, 8), steps=-2), x.repeat_interleave(4, 2).repeat_interleave(4, 3))


def test_up_by_another_factor_takes_the_nearest_below() -> None:
    """4 to 7, as levels 6 and 5 of 224 px: floor(i * 4 / 7)."""
    assert resampled(numbered(1, 4), (1, 7), steps=-1).flatten().tolist() == [1, 1, 2, 2, 3, 3, 4]


def test_down_by_two_is_a_strided_convolution_alone() -> None:
    x = numbered(6, 7)
    assert torch.equal(resampled(x, (3, 4), steps=1), x[:, :, ::2, ::2])


@pytest.mark.parametrize(
    ("width", "steps", "stride", "window"), [(16, 2, 2, 3), (32, 3, 4, 5), (64, 5, 16, 5)]
)
def test_down_by_more_pools_once(width: int, steps: int, stride: int, window: int) -> None:
    x = torch.rand(1, 1, width, width)
    target = width // 2**steps
    halved = x[:, :, ::2, ::2]
    whole = max((target - 1) * stride + window - width // 2, 0)
    padded = functional.pad(halved, (whole // 2, whole - whole // 2) * 2, value=float("-inf"))
    expected = functional.max_pool2d(padded, window, stride)
    assert torch.equal(resampled(x, (target, target), steps=steps), expected)


def test_down_at_a_size_that_does_not_divide() -> None:
    """7 to 2, as levels 5 and 7 of 224 px: halved to 4, pooled by 2 with a window of 3 and padding at the end."""
    x = numbered(1, 7)
    # Columns 1 3 5 7; windows (1 3 5) and (5 7 -).
    assert resampled(x, (1, 2), steps=2).flatten().tolist() == [5, 7]
    # 14 to 2: halved to 7, pooled by 14 // 2 // 2 = 3 with a window of 5 to 3, and then the nearest two of three.
    pooled = pool_towards(numbered(1, 14)[..., ::2], before=(1, 14), size=(1, 2))
    assert pooled.shape[-1] == 3
    assert resampled(numbered(1, 14), (1, 2), steps=3).flatten().tolist() == pooled.flatten()[[0, 1]].tolist()


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4))
def test_pooling_gives_the_rounded_up_size(length: int, window: int, stride: int) -> None:
    x = torch.rand(1, 1, length, 2 * length)
    out = max_pool_same(x, windows=(window, window), strides=(stride, stride))
    assert out.shape[-2:] == (-(-length // stride), -(-2 * length // stride))


@given(st.integers(1, 150), st.integers(1, 150))
def test_outputs_have_their_level_s_size_whatever_the_input_s(rows: int, columns: int) -> None:
    maps = FEATURES(torch.rand(1, 3, rows, columns))
    for level, found in zip(range(3, 8), maps, strict=True):
        assert found.shape == (1, 8, -(-rows // 2**level), -(-columns // 2**level))


FEATURES = SMALL(features_only=True).eval().requires_grad_(False)


def test_the_members_are_timm_s() -> None:
    assert set(MEMBERS) <= set(timm.list_models())
    with torch.device("meta"):
        features = timm.create_model("spinenet49", features_only=True)
        assert features.feature_info.channels() == [256] * 5
        assert features.feature_info.reduction() == [8, 16, 32, 64, 128]
        shapes = [tuple(found.shape) for found in features(torch.empty(1, 3, 256, 256))]
        assert shapes == [(1, 256, side, side) for side in (32, 16, 8, 4, 2)]
        two = timm.create_model("spinenet49", features_only=True, out_indices=(0, 2))
        assert [tuple(found.shape) for found in two(torch.empty(1, 3, 256, 256))] == [shapes[0], shapes[2]]
        swish = timm.create_model("spinenet49s", act_layer="swish", num_classes=7)
        assert not any(isinstance(module, nn.ReLU) for module in swish.modules())
        assert swish(torch.empty(2, 3, 64, 64)).shape == (2, 7)


def test_the_classifier_sees_the_average_of_all_outputs() -> None:
    """At 128 px every output divides: each pixel of P3 has the mean of the five pixels that cover it."""
    model = SMALL(num_classes=4).eval()
    pixels = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        maps = model.forward_intermediates(pixels, intermediates_only=True)
        mean = torch.stack([found.mean(dim=(2, 3)) for found in maps]).mean(dim=0)
        assert torch.allclose(
            model.forward_head(model.forward_features(pixels), pre_logits=True), mean, atol=1e-5
        )
        assert torch.allclose(model(pixels), model.fc(mean), atol=1e-5)


def test_without_classes_pooled_features_come_out() -> None:
    model = SMALL(num_classes=0)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, model.num_features)
    model.reset_classifier(3)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 3)


def test_what_an_output_does_not_need_is_dropped() -> None:
    torch.manual_seed(0)
    whole = SMALL().eval()
    pixels = torch.rand(1, 3, 64, 64)
    expected = whole.forward_intermediates(pixels, [1], intermediates_only=True)[0]
    whole.prune_intermediate_layers([1])
    assert sorted(map(int, whole.blocks)) == sorted(SPINENET_49.needed([4])) == [*range(11), 12]
    assert torch.equal(whole.forward_intermediates(pixels, [1], intermediates_only=True)[0], expected)


def test_drop_path_grows_with_the_place_and_spares_the_stem() -> None:
    """rate_i = rate * (i + 1) / 15."""
    model = SMALL(drop_path_rate=0.3)
    rates = [getattr(model.blocks[str(n)].group[0].drop_path, "drop_prob", 0.0) for n in range(2, 17)]
    assert rates == pytest.approx([0.3 * (place + 1) / 15 for place in range(15)])
    assert all(isinstance(model.blocks[name][0].drop_path, nn.Identity) for name in "01")


def test_repeats_and_alpha_reach_every_block() -> None:
    model = SpineNet(SPINENET_49, width=0.65, alpha=0.5, repeats=3, num_classes=0)
    assert {len(getattr(block, "group", block)) for block in model.blocks.values()} == {3}
    # int(64 * 0.65) = 41, half of it is 20; the block gives four times 41.
    squeeze = model.blocks["2"].resamples["0"].squeeze[0]
    assert (squeeze.in_channels, squeeze.out_channels) == (164, 20)


def test_every_weight_learns() -> None:
    model = SMALL(num_classes=2)
    functional.cross_entropy(model(torch.rand(2, 3, 64, 64)), torch.tensor([0, 1])).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize(
    "options", [{"act_layer": "gelu"}, {"global_pool": "max"}, {"width": 0.001}, {"repeats": 0}]
)
def test_options_that_cannot_be_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        SpineNet(Specification("s", (2,)), **options)  # type: ignore[arg-type]
