"""A patch's way into an encoder, held against Pillow's own resizing."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from wsi_ips.config import EncoderConfig, TransformConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.models.encoders.transform import PatchTransform

PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def patches(side: int, n: int = 3) -> torch.Tensor:
    """Noise, whose overshoot a cubic kernel clips, and edges of black on white: (n, 3, side, side) uint8."""
    drawn = torch.randint(
        0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(side)
    )
    drawn[0] = 255
    drawn[0, :, :, side // 3 :] = 0
    return drawn


def with_pillow(pixels: torch.Tensor, side: int, interpolation: str) -> torch.Tensor:
    """The published rule: each patch as an 8-bit Pillow picture, resized by Pillow."""
    pictures = [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in pixels]
    resized = [np.asarray(picture.resize((side, side), PILLOW[interpolation])) for picture in pictures]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("side", "wanted"), [(256, 224), (512, 224), (100, 224), (37, 23), (224, 248)])
def test_every_grey_level_is_pillow_s(side: int, wanted: int, interpolation: str) -> None:
    pixels = patches(side)
    config = TransformConfig.model_validate({"resize": wanted, "interpolation": interpolation})
    resized = PatchTransform(config)(pixels.contiguous(memory_format=torch.channels_last))
    assert resized.dtype == torch.uint8
    assert torch.equal(resized, with_pillow(pixels, wanted, interpolation))


def test_many_patches_are_resized_as_one_is() -> None:
    transform, pixels = PatchTransform(TransformConfig(resize=20)), patches(32, n=40)
    assert torch.equal(transform(pixels)[-1:], transform(pixels[-1:]))
    assert transform(pixels[:0]).shape == (0, 3, 20, 20)


def test_a_patch_of_the_right_size_is_left_alone_bit_for_bit() -> None:
    pixels = torch.rand(2, 3, 24, 24)
    assert PatchTransform(TransformConfig(resize=24, crop=24))(pixels) is pixels


def test_floats_are_resized_as_the_grey_levels_that_they_stand_for() -> None:
    transform, pixels = PatchTransform(TransformConfig(resize=20)), patches(32)
    assert torch.equal(transform(pixels.float() / 255), transform(pixels))


def test_the_crop_is_the_centre() -> None:
    pixels = patches(256)
    cropped = PatchTransform(TransformConfig(resize=256, crop=224))(pixels)
    assert torch.equal(cropped, pixels[..., 16:240, 16:240])
    with pytest.raises(ConfigError, match="crop 224 is larger than the patches of 200 px"):
        PatchTransform(TransformConfig(crop=224))(patches(200))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_without_antialiasing_it_is_pytorch_s_rule(interpolation: str) -> None:
    pixels = patches(64)
    config = TransformConfig.model_validate(
        {"resize": 24, "interpolation": interpolation, "antialias": False}
    )
    expected = torch.nn.functional.interpolate(
        pixels.float(), (24, 24), mode=interpolation, align_corners=False
    )
    resized = PatchTransform(config)(pixels)
    assert torch.equal(resized, expected.round().clamp(0, 255).byte())
    assert not torch.equal(resized, with_pillow(pixels, 24, interpolation))


def test_vectors_at_256_px_are_those_of_the_published_rule() -> None:
    """Pillow's bilinear resize to 224, 1/255, mean and deviation, the network: what others store as features."""
    torch.manual_seed(0)
    config = EncoderConfig(
        name="vit_tiny_patch16_224",
        weights="none",
        transform=TransformConfig(resize=224),
        mean=[0.485, 0.456, 0.406],
        std=[0.229, 0.224, 0.225],
    )
    encoder, pixels = TimmEncoder(config).eval(), patches(256)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    plain.load_state_dict(encoder.backbone.state_dict())
    mean, std = (
        torch.tensor(each).view(1, 3, 1, 1) for each in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    with torch.no_grad():
        expected = plain((with_pillow(pixels, 224, "bilinear") / 255 - mean) / std)
        assert (encoder(pixels) - expected).abs().max() <= 1e-4
        small = with_pillow(pixels, 224, "bilinear")
        assert (encoder(small) - expected).abs().max() <= 1e-4


def test_a_plain_timm_model_sees_patches_as_they_are() -> None:
    config = EncoderConfig(name="resnet10t", weights="none")
    torch.manual_seed(0)
    encoder = TimmEncoder(config).eval()
    pixels = patches(40)
    with torch.no_grad():
        again = encoder.backbone((pixels / 255 - encoder.mean) / encoder.std)
        assert torch.allclose(encoder(pixels), again, atol=1e-5)


def test_settings_of_earlier_versions_are_written_as_they_were() -> None:
    """Fingerprints of runs and stored features are made of these words."""
    assert list(EncoderConfig().model_dump()) == [
        "name", "specification", "weights", "stage", "pooling", "features", "project", "batch_norm", "trainable",
        "in_channels", "normalise",
    ]  # fmt: skip
    changed = EncoderConfig(transform="none", args={"init_values": "1e-5"}, img_size=224)
    assert EncoderConfig.model_validate_json(changed.model_dump_json()) == changed
    assert changed.args == {"init_values": 1e-5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"args": {"checkpoint_path": "/etc/passwd"}}, "cannot be given here"),
        ({"args": {"pretrained": True}}, "cannot be given here"),
        ({"args": {"depth": 10**9}}, "is more than 256"),
        ({"args": {"embed_dim": 2**40}}, "is more than 1048576"),
        ({"args": {"mlp_ratio": float("nan")}}, "is more than"),
        ({"args": {"depths": [1] * 300}}, "is more than 256"),
        ({"pooling": "cls", "stage": 1}, "leave stage out"),
        ({"mean": [0.5]}, "go together"),
        ({"transform": {"resize": 0}}, "greater than or equal to 1"),
        ({"transform": {"resize": 100_000}}, "less than or equal to 4096"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig.model_validate(settings)
