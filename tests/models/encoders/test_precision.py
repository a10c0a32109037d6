"""What an encoder computes in: float32 as ever, half precision close to it, and one compiled program."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wsi_ips.config import EncoderConfig, ModelConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.build import build_net
from wsi_ips.models.encoders import network as precision
from wsi_ips.models.encoders.ats_encoders import MegapixelMnistEncoder, SpeedLimitsEncoder
from wsi_ips.models.encoders.network import Compute, check_compiles, compute_in, float32_behind, settled
from wsi_ips.models.encoders.timm_encoder import TimmEncoder

VIT: dict[str, Any] = {
    "name": "vit_tiny_patch16_224",
    "img_size": 64,
    "args": {"depth": 4, "embed_dim": 96, "num_heads": 3},
}
RESNET = {"name": "resnet10t"}


def encoder_of(**settings: Any) -> TimmEncoder:
    torch.manual_seed(0)
    return TimmEncoder(EncoderConfig(weights="none", **settings)).eval()


def pixels_of(n: int, px: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, px, px), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("half", ["bf16", "fp16"])
@pytest.mark.parametrize("settings", [VIT, RESNET], ids=["vit", "resnet"])
@torch.no_grad()
def test_half_precision_features_point_the_same_way(half: Any, settings: dict[str, Any]) -> None:
    encoder, pixels = encoder_of(**settings), pixels_of(12)
    exact = encoder(pixels)
    compute_in(encoder, Compute(half))
    features = encoder(pixels)
    assert features.dtype == torch.float32
    assert not torch.equal(features, exact), "nothing was computed in half precision"
    assert torch.cosine_similarity(features, exact).min() >= 0.999


@pytest.mark.parametrize("kind", [MegapixelMnistEncoder, SpeedLimitsEncoder])
@torch.no_grad()
def test_the_published_small_encoders_compute_in_it_too(kind: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    encoder, pixels = kind(3).eval(), pixels_of(4)
    exact = encoder(pixels)
    compute_in(encoder, Compute("bf16"))
    features = encoder(pixels)
    assert features.dtype == torch.float32
    assert torch.cosine_similarity(features, exact).min() > 0.999
    assert not torch.equal(features, exact)


@torch.no_grad()
def test_float32_is_what_the_network_itself_gives_to_the_bit() -> None:
    encoder, pixels = encoder_of(**VIT), pixels_of(5)
    by_itself = encoder.backbone(encoder._normalised(pixels))
    assert torch.equal(encoder(pixels), by_itself)
    compute_in(encoder, Compute("bf16"))
    encoder(pixels)
    compute_in(encoder, Compute())
    assert torch.equal(encoder(pixels), by_itself)


def test_auto_is_the_listed_precision_on_cuda_and_float32_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    native = True
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: native)
    assert [settled("auto", name, "cuda") for name in ("uni2-h", "virchow2", "uni", "resnet18")] == [
        "bf16", "fp16", "32", "32",
    ]  # fmt: skip
    assert settled("auto", "uni2-h", "cpu") == settled("auto", "uni2-h", "mps") == "32"
    assert settled("fp16", "uni", "cpu") == "fp16"
    native = False
    assert settled("auto", "uni2-h", "cuda") == "32"
    assert settled("bf16", "uni2-h", "cuda") == "bf16"


@pytest.mark.parametrize(("half", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_on_cuda_only_the_encoder_computes_in_half_precision(
    half: Any, dtype: torch.dtype, fake_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On simulated CUDA tensors, within an autocast as a training engine switches it on."""
    monkeypatch.setattr(nn.Module, "to", lambda module, *_, **__: module)  # simulated weights cannot be moved
    settings = {**RESNET, "weights": "none", "project": 16}
    config = ModelConfig.model_validate({"encoder": settings, "attention": {"heads": 2, "key_dim": 4}})
    with torch.device("cuda"):
        net = build_net(config).eval()
        pixels = torch.zeros(6, 3, 64, 64, dtype=torch.uint8)
        places = torch.arange(6)
    compute_in(net, Compute(half))
    inside: list[torch.dtype] = []
    net.encoder.backbone.register_forward_hook(lambda *call: inside.append(call[2].dtype))
    with torch.no_grad(), torch.autocast("cuda", dtype=dtype), float32_behind("cuda"):
        reading = net(pixels, places, [4, 2])
        logits = net.logits(net.encode(pixels), places)
    assert inside == [dtype, dtype]
    seen = [reading.tokens_BTD, reading.attention_BHTM, *reading.logits.values(), logits]
    assert {each.dtype for each in seen} == {torch.float32}
    assert all(each.is_cuda for each in seen)


@torch.no_grad()
def test_a_compiled_encoder_sees_batches_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller batches are filled up, larger ones cut: one graph, whatever comes."""
    sizes: list[int] = []

    def compiled(network: Callable[[Tensor], Tensor], **options: Any) -> Callable[[Tensor], Tensor]:
        assert options == {"dynamic": False}

        def run(x: Tensor) -> Tensor:
            sizes.append(len(x))
            return network(x)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    encoder, pixels = encoder_of(**VIT), pixels_of(11)
    expected = encoder(pixels)
    compute_in(encoder, Compute(compiled_batch=8))
    for count in (8, 3, 11, 1):
        features = encoder(pixels[:count])
        assert torch.allclose(features, expected[:count], atol=1e-5)
    assert sizes == [8, 8, 8, 8, 8]
    assert encoder(pixels[:0]).shape == (0, 96)


@pytest.mark.slow
@torch.no_grad()
def test_a_really_compiled_encoder_gives_the_same_and_compiles_once() -> None:
    from torch._dynamo.utils import counters

    encoder, pixels = encoder_of(**VIT), pixels_of(11)
    expected = encoder(pixels)
    counters.clear()
    compute_in(encoder, Compute(compiled_batch=8))
    got = [encoder(pixels[:count]) for count in (8, 3, 11, 1)]
    assert torch.allclose(got[2], expected, atol=1e-4)
    assert torch.allclose(got[1], expected[:3], atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1
    compute_in(encoder, Compute("bf16", compiled_batch=8))
    assert torch.cosine_similarity(encoder(pixels), expected).min() >= 0.999


def test_a_missing_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    def compiled(*_: Any, **__: Any) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            raise BackendCompilerFailed(lambda: None, RuntimeError("no g++\nanywhere"), "")

        return run

    monkeypatch.setattr(precision.torch, "compile", compiled)
    with pytest.raises(ConfigError, match=r"cannot compile for cpu here.*leave compile out") as told:
        check_compiles(torch.device("cpu"))
    assert "\n" not in str(told.value)
