"""Adapters on the look-alike of a large encoder, and the checkpoints that hold them alone."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.models.encoders.look_alikes import PX, as_file, at_random, plain_network, tiny_entry
from wsi_ips.config import EncoderConfig, FinetuneConfig, LoraConfig, ModelConfig
from wsi_ips.errors import CheckpointError, ConfigError
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import (
    begin_from,
    load_checkpoint,
    merge_checkpoint,
    named_base,
    save_checkpoint,
)
from wsi_ips.models.encoders import registry
from wsi_ips.models.encoders.lora import (
    BASE_WEIGHTS,
    LoraConv1x1,
    LoraLinear,
    adapters_of,
    add_adapters,
    check_reached,
    fingerprint_of_base,
    merge_adapters,
    stored_state,
)
from wsi_ips.models.encoders.registry import ENCODERS
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.models.ips_net import BagNet

NAME = "uni2-h"


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny network in the place of UNI2-h, and the file of its weights."""
    entry = tiny_entry(NAME)
    path = tmp_path / "base.safetensors"
    as_file(plain_network(entry).state_dict())(path)
    monkeypatch.setattr(registry, "ENCODERS", {**ENCODERS, NAME: entry})
    return path


def pixels(n: int = 2) -> Tensor:
    drawn = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, PX, PX), dtype=torch.uint8, generator=drawn)


def encoder(weights: Path, **more: Any) -> TimmEncoder:
    return TimmEncoder(EncoderConfig.model_validate({"name": NAME, "weights": str(weights), **more}))


def learned(module: nn.Module) -> nn.Module:
    """As if the adapters and norms had learned something."""
    drawn = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape, generator=drawn))
    return module


def small_net(weights: Path, **lora: Any) -> tuple[BagNet, FinetuneConfig]:
    encoder = {"name": NAME, "weights": str(weights), "lora": {"rank": 2, "targets": ["qkv", "fc1"], **lora}}
    config = FinetuneConfig.model_validate({"tiling": {"patch_px": PX}, "model": {"encoder": encoder}})
    torch.manual_seed(0)
    net = build_net(config.model)
    config = config.model_copy(update={"model": named_base(config.model, net)})
    learned(net)
    return net.eval(), config


@torch.no_grad()
def test_the_first_features_are_the_encoder_s_to_the_bit_and_only_adapters_learn(weights: Path) -> None:
    plain, adapted = encoder(weights).eval(), encoder(weights, lora={"rank": 3}).eval()
    assert torch.equal(plain(pixels()), adapted(pixels()))
    learn = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert learn == {
        f"backbone.blocks.{block}.attn.{layer}.lora_{part}"
        for block in (0, 1)
        for layer in ("qkv", "proj")
        for part in "ab"
    }
    learned(adapted)
    assert (plain(pixels()) - adapted(pixels())).abs().max() > 1e-3
    with_norms = encoder(weights, lora={"rank": 3, "norms": True})
    more = {name for name, weight in with_norms.named_parameters() if weight.requires_grad} - learn
    assert more
    assert all("norm" in name for name in more)


@pytest.mark.parametrize("alpha", [None, 7.0])
def test_an_adapter_adds_alpha_over_rank_times_b_a(alpha: float | None) -> None:
    layer, x = nn.Linear(6, 5), torch.randn(4, 6)
    adapted = LoraLinear(layer, LoraConfig(rank=2, alpha=alpha))
    nn.init.normal_(adapted.lora_b)
    scale = 1.0 if alpha is None else alpha / 2
    weight = layer.weight + scale * adapted.lora_b @ adapted.lora_a
    expected = nn.functional.linear(x, weight, layer.bias)
    assert torch.allclose(adapted(x), expected, atol=1e-6)
    assert torch.allclose(adapted.merged()(x), expected, atol=1e-6)


def test_dropout_is_of_training_alone() -> None:
    adapted = LoraLinear(nn.Linear(64, 5), LoraConfig(rank=2, dropout=0.5))
    nn.init.normal_(adapted.lora_b)
    x = torch.randn(4, 64)
    assert not torch.equal(adapted(x), adapted(x))
    adapted.eval()
    assert torch.equal(adapted(x), adapted(x))


def test_1x1_convolutions_have_adapters_and_merge_with_their_stride() -> None:
    network = at_random(timm.create_model("resnet26", num_classes=0))
    x = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        before = network(x)
        add_adapters(network, LoraConfig(rank=2, targets=("conv1", "conv3", "downsample.*")), name="resnet26")
        assert torch.equal(network(x), before)
        assert all(isinstance(layer, LoraConv1x1) for layer in adapters_of(network))
        assert type(network.get_submodule("conv1")) is nn.Conv2d, "7x7 has none"
        assert any(layer.stride == (2, 2) for layer in adapters_of(network))
        learned(network)
        adapted = network(x)
        assert merge_adapters(network) > 0
        assert (network(x) - adapted).abs().max() <= 1e-5 * adapted.abs().max()
    assert not list(adapters_of(network))
    assert network.state_dict().keys() == timm.create_model("resnet26", num_classes=0).state_dict().keys()


def test_targets_are_ends_of_names_and_one_that_is_no_layer_is_told(weights: Path) -> None:
    def adapted(*targets: str) -> set[str]:
        module = encoder(weights, lora={"targets": targets})
        return {name for name, layer in module.backbone.named_modules() if isinstance(layer, LoraLinear)}

    assert adapted("attn.proj") == {"blocks.0.attn.proj", "blocks.1.attn.proj"}
    assert adapted("proj") == adapted("attn.proj"), "the convolution that cuts the picture has none"
    assert adapted("blocks.1.mlp.fc*") == {"blocks.1.mlp.fc1", "blocks.1.mlp.fc2"}
    with pytest.raises(ConfigError, match=r"uni2-h has no linear layer.*'query'; it has qkv, proj, fc1, fc2"):
        adapted("qkv", "query")


def test_a_network_that_reads_a_layer_s_weight_without_calling_it_is_refused() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.proj(nn.functional.linear(x, self.qkv.weight))

    network = Reads()
    add_adapters(network, LoraConfig(), name="mine")
    network(torch.rand(1, 3))
    with pytest.raises(
        ConfigError, match="mine does not call its layer qkv, so an adapter there would do nothing"
    ):
        check_reached(network, name="mine")


def test_an_encoder_checks_that_its_adapters_are_reached(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = encoder(weights, lora={"rank": 2})
    layer = next(adapters_of(adapted))
    monkeypatch.setattr(layer, "forward", lambda x: nn.functional.linear(x, layer.weight, layer.bias))
    with pytest.raises(ConfigError, match="does not call its layer"):
        adapted(pixels())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weights": "none", "lora": {}}, "lora leaves the weights of the encoder as they are"),
        ({"trainable": False, "lora": {}}, "lora learns, and trainable: false learns nothing"),
        ({"name": "features", "features": 8, "lora": {}}, "stored features have no encoder"),
        ({"lora": {"rank": 0}}, "greater than or equal to 1"),
        ({"lora": {"targets": []}}, "at least 1 item"),
        ({"lora": {"targets": ["attn."]}}, "is not the name of a layer"),
        ({"drop_path": 0.1, "args": {"drop_path_rate": 0.1}}, "are the same setting"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EncoderConfig.model_validate(settings)


def test_settings_without_adapters_are_stored_as_before() -> None:
    assert not {"lora", "drop_path"} & EncoderConfig().model_dump().keys()


def test_drop_path_rises_to_its_rate_in_training_alone_and_is_refused_where_there_is_none(
    weights: Path,
) -> None:
    dropping = encoder(weights, drop_path=0.5)
    rates = [block.drop_path1.drop_prob for block in dropping.backbone.blocks[1:]]  # type: ignore[union-attr, index]
    assert rates == [0.5]
    assert torch.equal(dropping.eval()(pixels()), encoder(weights).eval()(pixels()))
    dropping.train()
    assert not torch.equal(dropping(pixels(8)), dropping(pixels(8)))
    with pytest.raises(ConfigError, match=r"vgg11 does not take these .* or drop_path"):
        TimmEncoder(EncoderConfig(name="vgg11", weights="none", drop_path=0.1))
    with pytest.raises(ConfigError, match="drop_path: test_vit has no drop path"):
        TimmEncoder(EncoderConfig(name="test_vit", weights="none", drop_path=0.1, args={"depth": 1}))


@torch.no_grad()
def test_a_checkpoint_holds_the_adapters_alone_and_reads_the_same(weights: Path, tmp_path: Path) -> None:
    net, config = small_net(weights)
    path, whole = tmp_path / "model.safetensors", tmp_path / "whole.safetensors"
    save_checkpoint(path, net, config.pipeline)
    again, pipeline = load_checkpoint(path)
    assert torch.equal(again.encode(pixels()), net.encode(pixels()))
    stored = stored_state(net)
    assert all("lora_" in name for name in stored if name.startswith("encoder."))
    assert sum("lora_" in name for name in stored) == 8
    assert pipeline.model.encoder.lora is not None
    assert pipeline.model.encoder.lora.base_sha256 == fingerprint_of_base(encoder(weights).backbone)
    as_file(net.state_dict())(whole)
    assert path.stat().st_size < whole.stat().st_size


def test_statistics_that_learn_and_norms_are_stored_beside_the_adapters(tmp_path: Path) -> None:
    path = tmp_path / "resnet.safetensors"
    as_file(at_random(timm.create_model("resnet26", num_classes=0)).state_dict())(path)
    settings = {"name": "resnet26", "weights": str(path), "batch_norm": "batch",
                "lora": {"targets": ["conv1"], "norms": True}}  # fmt: skip
    names = stored_state(TimmEncoder(EncoderConfig.model_validate(settings))).keys()
    assert {"backbone.bn1.weight", "backbone.bn1.running_mean", "backbone.layer1.0.conv1.lora_a"} <= names
    assert not {"backbone.conv1.weight", "backbone.layer1.0.conv1.weight"} & names


def test_other_weights_below_the_adapters_are_refused_by_name(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, config = small_net(weights)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, net, config.pipeline)
    network = plain_network(tiny_entry(NAME))
    other = tmp_path / "other.safetensors"
    with torch.no_grad():
        network.blocks[1].mlp.fc2.bias[3] += 1e-6
    as_file(network.state_dict())(other)
    monkeypatch.setenv(BASE_WEIGHTS, str(other))
    with pytest.raises(
        CheckpointError, match=r"other\.safetensors: holds other weights than the adapters"
    ) as caught:
        load_checkpoint(path)
    assert str(config.model.encoder.lora and config.model.encoder.lora.base_sha256) in str(caught.value)
    assert "give the weights of uni2-h" in str(caught.value)


def test_weights_are_found_in_a_file_of_another_kind_and_place(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, config = small_net(weights)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, net, config.pipeline)
    moved = tmp_path / "moved" / "pytorch_model.bin"
    moved.parent.mkdir()
    as_file(plain_network(tiny_entry(NAME)).state_dict(), wrapper="state_dict")(moved)
    weights.unlink()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: holds adapters alone, and the weights of uni2-h")
    assert f"there is no file or folder {weights}" in message
    assert BASE_WEIGHTS in message
    assert "\n" not in message
    monkeypatch.setenv(BASE_WEIGHTS, str(moved.parent))
    with torch.no_grad():
        assert torch.equal(load_checkpoint(path)[0].encode(pixels()), net.encode(pixels()))


@pytest.mark.parametrize(
    "named", ["/dev/zero", "x" * 5000, "\0", "hf-hub:no/such", "hf-hub:../../x", "none of these"]
)
def test_a_checkpoint_that_names_odd_weights_is_one_line(
    named: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    net, config = small_net(weights)
    encoder = config.model.encoder.model_copy(update={"weights": named})
    model = config.model.model_copy(update={"encoder": encoder})
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, net, config.pipeline.model_copy(update={"model": model}))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_a_checkpoint_that_asks_for_more_than_its_weights_can_fill_is_refused(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, config = small_net(weights)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, net, config.pipeline)
    monkeypatch.setattr("wsi_ips.models.encoders.lora.SMALL_BYTES", 0)
    monkeypatch.setattr("wsi_ips.models.encoders.lora.MOST_TIMES_ITS_FILE", 0.5)
    with pytest.raises(
        CheckpointError, match=r"asks for a network of .* MiB, more than the weights of uni2-h"
    ):
        load_checkpoint(path)


def test_a_checkpoint_that_does_not_say_which_weights_is_refused(weights: Path, tmp_path: Path) -> None:
    net, config = small_net(weights)
    assert config.model.encoder.lora is not None
    lora = config.model.encoder.lora.model_copy(update={"base_sha256": None})
    encoder = config.model.encoder.model_copy(update={"lora": lora})
    model = config.model.model_copy(update={"encoder": encoder})
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, net, config.pipeline.model_copy(update={"model": model}))
    with pytest.raises(CheckpointError, match="does not say which weights they belong to"):
        load_checkpoint(path)


def test_a_training_begins_from_adapters_on_the_same_weights_alone(weights: Path, tmp_path: Path) -> None:
    net, config = small_net(weights)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, net, config.pipeline)
    fresh = build_net(config.model)
    begin_from(fresh, path)
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in fresh.state_dict().items())
    plain = config.model.encoder.model_copy(update={"lora": None})
    whole = build_net(config.model.model_copy(update={"encoder": plain}))
    with pytest.raises(CheckpointError, match="only one of them has adapters"):
        begin_from(whole, path)


@torch.no_grad()
def test_a_merged_checkpoint_gives_the_same_and_its_encoder_can_be_trained_on(
    weights: Path, tmp_path: Path
) -> None:
    net, config = small_net(weights)
    path, merged = tmp_path / "model.safetensors", tmp_path / "merged.safetensors"
    save_checkpoint(path, net, config.pipeline)
    assert 0 < merge_checkpoint(path, merged) <= 1e-5
    weights.unlink()
    whole, pipeline = load_checkpoint(merged)
    assert pipeline.model.encoder.lora is None
    assert whole.state_dict().keys() == {name for name in net.state_dict() if "lora_" not in name}
    expected = net.encoder(pixels())
    assert (whole.encoder(pixels()) - expected).abs().max() <= 1e-5 * expected.abs().max()
    further = encoder(merged, lora={"rank": 2}).eval()
    assert torch.equal(further(pixels()), whole.encoder(pixels()))


def test_adapters_that_do_not_merge_write_nothing(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, config = small_net(weights)
    path, merged = tmp_path / "model.safetensors", tmp_path / "merged.safetensors"
    save_checkpoint(path, net, config.pipeline)
    monkeypatch.setattr(LoraLinear, "merged", lambda self: nn.Linear(self.in_features, self.out_features))
    with pytest.raises(CheckpointError, match="computes something else when its adapters are merged"):
        merge_checkpoint(path, merged)
    assert not merged.exists()


def test_a_checkpoint_of_uni2_h_is_a_third_of_a_percent_of_its_weights() -> None:
    """docs/encoders.md says so. On the meta device, where tensors have a size and no memory."""
    encoder = EncoderConfig.model_validate({"name": NAME, "lora": {"rank": 8}})
    config = ModelConfig().model_copy(update={"encoder": encoder.model_copy(update={"weights": "none"})})
    with torch.device("meta"):
        net = build_net(config)
    sizes = [
        {name: tensor.numel() * tensor.element_size() for name, tensor in state.items()}
        for state in (stored_state(net), net.state_dict())
    ]
    adapters = [size for name, size in sizes[0].items() if name.startswith("encoder.")]
    assert sum(adapters) == 4 * 1_769_472
    assert 8.5e6 < sum(sizes[0].values()) < 9.5e6
    assert 0.0032 < sum(sizes[0].values()) / sum(sizes[1].values()) < 0.0034
