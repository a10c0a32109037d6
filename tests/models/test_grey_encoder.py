"""Encoders of grey images, and the sizes of the three networks that the paper trained."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from wsi_ips.config import EncoderConfig, TaskConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.attention import CrossAttention
from wsi_ips.models.encoders.projectors import Projector
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.models.heads import Heads
from wsi_ips.models.ips_net import IPSNet


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_a_grey_encoder_from_scratch_sees_pixels_from_0_to_1(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = timm.create_model("resnet18", in_chans=1, num_classes=0).eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    config = EncoderConfig(
        name="resnet18", weights=str(tmp_path / "weights.pth"), stage=2, in_channels=1, normalise=False
    )
    encoder = TimmEncoder(config).eval()
    pixels = torch.randint(0, 256, (3, 1, 50, 50), dtype=torch.uint8)
    with torch.no_grad():
        (expected,) = whole.forward_intermediates(pixels / 255, indices=[2], intermediates_only=True)
        assert torch.allclose(encoder(pixels), expected.mean(dim=(2, 3)), atol=1e-4)
    assert encoder.dim == 128


def test_normalised_grey_pixels_use_the_mean_of_the_channels_statistics() -> None:
    encoder = TimmEncoder(EncoderConfig(name="resnet10t", weights="none", in_channels=1))
    assert encoder.mean.item() == pytest.approx((0.485 + 0.456 + 0.406) / 3)
    assert encoder.std.item() == pytest.approx((0.229 + 0.224 + 0.225) / 3)
    grey = torch.full((1, 1, 4, 4), 100, dtype=torch.uint8)
    assert torch.allclose(encoder._normalised(grey), (grey / 255 - encoder.mean) / encoder.std, atol=1e-5)
    with pytest.raises(ConfigError, match=r"set encoder\.normalise=false"):
        TimmEncoder(EncoderConfig(name="resnet10t", weights="none", in_channels=2))


def test_the_paper_s_mnist_encoder_is_torchvision_s_resnet18_cut_after_layer2() -> None:
    from torchvision.models import resnet18

    encoder = TimmEncoder(
        EncoderConfig(name="resnet18", weights="none", stage=2, in_channels=1, normalise=False)
    ).eval()
    theirs = resnet18(weights=None).eval()
    theirs.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    kept = ("conv1", "bn1", "layer1", "layer2")
    theirs.load_state_dict(dict(encoder.backbone.state_dict()), strict=False)
    cut = nn.Sequential(theirs.conv1, theirs.bn1, theirs.relu, theirs.maxpool, theirs.layer1, theirs.layer2)
    assert {name.split(".")[0] for name in encoder.backbone.state_dict()} == set(kept)
    pixels = torch.rand(2, 1, 50, 50)
    with torch.no_grad():
        assert torch.allclose(encoder(pixels), cut(pixels).mean(dim=(2, 3)), atol=1e-5)
    assert count(encoder) == 676_800


def test_the_paper_s_camelyon_network_has_its_size() -> None:
    """Built of the same parts: projector of stored 2048-d features, cross-attention, one sigmoid."""
    attention = CrossAttention(512, queries=1, heads=8, key_dim=64, value_dim=64, inner_dim=2048,
                               attention_dropout=0.1, dropout=0.1)  # fmt: skip
    task = TaskConfig(name="metastases", classes=("tumor",), activation="sigmoid")
    net = IPSNet(nn.Identity(), attention, Heads(512, [task]), projector=Projector(2048, 512))
    assert count(net) == 4_201_473
