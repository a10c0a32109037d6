"""Tiny look-alikes of every family, loaded by name and without a network, give what the plain model gives."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.models.encoders.look_alikes import (
    PX,
    as_file,
    as_meta_dinov2,
    as_shards,
    as_transformers_dinov2,
    as_transformers_vit,
    at_random,
    lay_into_cache,
    plain_network,
    tiny_entry,
    tiny_own,
)
from wsi_ips.config import EncoderConfig
from wsi_ips.errors import CheckpointError, ConfigError
from wsi_ips.models.encoders import registry
from wsi_ips.models.encoders.entry import HUB, EncoderEntry, TimmArchitecture
from wsi_ips.models.encoders.listing import cached_weights
from wsi_ips.models.encoders.registry import ENCODERS
from wsi_ips.models.encoders.timm_encoder import TimmEncoder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and a hub that may not be asked."""
    import huggingface_hub.constants
    import huggingface_hub.file_download

    for module in (huggingface_hub.constants, huggingface_hub.file_download):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path), raising=False)
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Puts a look-alike in its original's place."""

    def put(entry: EncoderEntry) -> None:
        monkeypatch.setattr(registry, "ENCODERS", {**ENCODERS, entry.name: entry})

    return put


def pixels() -> Tensor:
    return torch.randint(
        0, 256, (2, 3, PX, PX), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def normalised(entry: EncoderEntry) -> Tensor:
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (entry.mean, entry.std))
    return (pixels() / 255 - mean) / std


@torch.no_grad()
def expected(entry: EncoderEntry, network: Any) -> Tensor:
    """By the published rule, from the plain model's tokens."""
    tokens = network.forward_features(normalised(entry))
    if entry.output == "cls":
        return tokens[:, 0]
    return torch.cat([tokens[:, 0], tokens[:, entry.prefix_tokens :].mean(1)], dim=1)


TRANSFORMERS = [
    name
    for name, entry in ENCODERS.items()
    if isinstance(entry.architecture, TimmArchitecture) and entry.architecture.name.startswith("vit")
]
FILES = {
    "phikon": as_transformers_vit,
    "phikon-v2": as_transformers_dinov2,
    "hibou-b": as_transformers_dinov2,
    "hibou-l": as_transformers_dinov2,
    "midnight-12k": as_transformers_dinov2,
    "openmidnight": as_meta_dinov2,
}
"""How the file of a family names its tensors, where it is not as timm does."""
WRAPPED = {"openmidnight": "teacher", "gpfm": "state_dict"}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformer_loaded_by_name_gives_what_the_plain_model_gives(
    name: str, cache: Path, listed: Any
) -> None:
    entry = tiny_entry(name)
    network = plain_network(entry)
    tensors: Mapping[str, Tensor] = FILES.get(name, lambda each: each.state_dict())(network)
    write = as_file(tensors, wrapper=WRAPPED.get(name, ""), prefix="module." if name == "gpfm" else "")
    lay_into_cache(cache, entry.sources[0], {entry.files[0]: write})
    listed(entry)
    encoder = TimmEncoder(EncoderConfig(name=name)).eval()
    with torch.no_grad():
        found = encoder(pixels())
    assert found.shape == (2, entry.width)
    assert found.std() > 0.01
    assert (found - expected(entry, network)).abs().max() <= 1e-5


OWN_FILES = {
    "conch-v1": "visual.",
    "conch-v1.5": "",
    "keep": "",
    "ctranspath": "",
}


@pytest.mark.parametrize("name", OWN_FILES)
def test_an_encoder_with_parts_of_our_own(name: str, cache: Path, listed: Any) -> None:
    """What else the file holds (text towers, captions, old masks) is left out."""
    entry, build = tiny_own(name)
    network = at_random(build())
    tensors = {OWN_FILES[name] + key: tensor for key, tensor in network.state_dict().items()}
    if name == "keep":
        tensors = {re.sub(r"(ls[12])\.gamma", r"\1.weight", key): each for key, each in tensors.items()}
        tensors["text.embeddings.weight"] = torch.zeros(2)
    if name == "conch-v1":
        tensors |= {"visual.proj_contrast": torch.zeros(2), "text.cls_emb": torch.zeros(2)}
    if name == "ctranspath":
        old = {key.removeprefix("swin."): each for key, each in tensors.items()}
        tensors = {
            re.sub(r"layers\.(\d)\.downsample", lambda at: f"layers.{int(at[1]) - 1}.downsample", key): each
            for key, each in old.items()
        }
        tensors["layers.0.blocks.0.attn_mask"] = torch.zeros(2)
    lay_into_cache(cache, entry.sources[0], {entry.files[0]: as_file(tensors)})
    listed(entry)
    encoder = TimmEncoder(EncoderConfig(name=name)).eval()
    with torch.no_grad():
        found = encoder(pixels())
        assert (found - network(normalised(entry))).abs().max() <= 1e-5
    assert found.shape == (2, entry.width)
    if name == "keep":
        assert torch.allclose(found.norm(dim=1), torch.ones(2))


def test_a_resnet_with_a_head_of_its_own_is_loaded_without_it(cache: Path, listed: Any) -> None:
    entry = ENCODERS["resnet50-stage3"]
    network: Any = at_random(timm.create_model("resnet50", num_classes=3))
    lay_into_cache(cache, entry.sources[0], {"model.safetensors": as_file(network.state_dict())})
    encoder = TimmEncoder(EncoderConfig(name=entry.name, transform="none")).eval()
    with torch.no_grad():
        deep = network.forward_intermediates(normalised(entry), indices=[3], intermediates_only=True)[0]
        assert torch.allclose(encoder(pixels()), deep.mean(dim=(2, 3)), rtol=1e-3, atol=1e-4)
    assert encoder.dim == 1024


def test_conch_s_query_is_pytorch_s_attention() -> None:
    """v1.5's projections without biases, set side by side with ``nn.MultiheadAttention``."""
    _, build = tiny_own("conch-v1.5")
    pooler: Any = at_random(build()).attn_pool_contrast
    attention = nn.MultiheadAttention(16, 8, kdim=32, vdim=32, bias=False, batch_first=True)
    keys, values = pooler.to_kv.weight.chunk(2)
    attention.load_state_dict(
        {
            "q_proj_weight": pooler.to_q.weight,
            "k_proj_weight": keys,
            "v_proj_weight": values,
            "out_proj.weight": pooler.to_out.weight,
        }
    )
    tokens = torch.rand(2, 5, 32)
    normed = pooler.ln_k(tokens)
    (other,) = attention(pooler.ln_q(pooler.query).expand(2, 1, 16), normed, normed, need_weights=False)[:1]
    assert torch.allclose(pooler(tokens), other[:, 0], atol=1e-6)


def test_positions_for_another_size_are_fitted_as_transformers_fits_them(cache: Path, listed: Any) -> None:
    """Midnight's file has positions for 518 px: bicubic, without antialiasing."""
    entry = tiny_entry("midnight-12k")
    network = plain_network(entry)
    tensors = as_transformers_dinov2(network)
    stored = torch.randn(1, 1 + 10 * 10, 32, generator=torch.Generator().manual_seed(2))
    tensors["embeddings.position_embeddings"] = stored
    lay_into_cache(cache, entry.sources[0], {"model.safetensors": as_file(tensors)})
    listed(entry)
    encoder: Any = TimmEncoder(EncoderConfig(name="midnight-12k"))
    grid = stored[:, 1:].reshape(1, 10, 10, 32).permute(0, 3, 1, 2)
    fitted = nn.functional.interpolate(grid, (8, 8), mode="bicubic", align_corners=False)
    assert torch.allclose(
        encoder.backbone.pos_embed[:, 1:], fitted.permute(0, 2, 3, 1).reshape(1, 64, 32), atol=1e-6
    )
    assert torch.equal(encoder.backbone.pos_embed[:, :1], stored[:, :1])


@pytest.mark.parametrize("where", ["cache", "folder", "index", "file"])
def test_weights_in_shards_a_folder_or_a_file(where: str, cache: Path, listed: Any, tmp_path: Path) -> None:
    entry = tiny_entry("virchow2")
    network = plain_network(entry)
    listed(entry)
    folder = lay_into_cache(cache, entry.sources[0], as_shards(network.state_dict()))
    weights = {"cache": "timm", "folder": str(folder), "index": str(folder / "model.safetensors.index.json")}
    if where == "file":
        as_file(network.state_dict())(tmp_path / "other.pth")
        weights["file"] = str(tmp_path / "other.pth")
    encoder = TimmEncoder(EncoderConfig(name="virchow2", weights=weights[where])).eval()
    with torch.no_grad():
        assert (encoder(pixels()) - expected(entry, network)).abs().max() <= 1e-5


def test_any_repository_s_weights_go_into_any_network(cache: Path) -> None:
    plain: Any = at_random(timm.create_model("vit_large_patch16_224", img_size=PX, num_classes=0, **UNI_LIKE))
    lay_into_cache(cache, "someone/something", as_shards(plain.state_dict()))
    config = EncoderConfig(
        name="vit_large_patch16_224", weights="hf-hub:someone/something", args=UNI_LIKE, img_size=PX
    )
    for name, tensor in TimmEncoder(config).backbone.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name])
    for weights, message in (
        ("hf-hub:someone/else", "hf download someone/else"),
        ("hf-hub:a/b/c", "is not the name"),
    ):
        with pytest.raises(CheckpointError, match=message):
            TimmEncoder(config.model_copy(update={"weights": weights}))


def test_a_shard_that_is_missing_is_no_weights_in_the_cache(cache: Path) -> None:
    entry = tiny_entry("virchow2")
    folder = lay_into_cache(cache, entry.sources[0], as_shards(plain_network(entry).state_dict()))
    assert cached_weights(entry) == folder / "model.safetensors.index.json"
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert cached_weights(entry) is None


def test_an_alias_of_the_repository_is_found(cache: Path) -> None:
    lay_into_cache(cache, "MahmoodLab/uni", {"pytorch_model.bin": as_file({"a": torch.zeros(1)})})
    assert cached_weights(ENCODERS["uni"]) is not None


def test_weights_that_are_not_here_are_told_with_licence_page_and_file(cache: Path) -> None:
    with torch.device("meta"), pytest.raises(CheckpointError) as caught:
        TimmEncoder(EncoderConfig(name="uni2-h"))
    words = str(caught.value)
    for wanted in (
        HUB + "MahmoodLab/UNI2-h",
        "pytorch_model.bin",
        "CC-BY-NC-ND-4.0",
        "hf download",
    ):
        assert wanted in words


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("sprung"),))  # type: ignore[return-value]


def test_a_pickle_in_the_cache_that_would_run_code_does_not(
    cache: Path, listed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = tiny_entry("uni")
    lay_into_cache(
        cache, entry.sources[0], {"pytorch_model.bin": lambda path: torch.save({"a": _Trap()}, path)}
    )
    listed(entry)
    monkeypatch.chdir(cache)
    with pytest.raises(CheckpointError, match="read safely"):
        TimmEncoder(EncoderConfig(name="uni"))
    assert not (cache / "sprung").exists()


def test_weights_of_another_family_are_refused(cache: Path, listed: Any) -> None:
    entry = tiny_entry("uni")
    network = plain_network(tiny_entry("virchow"))
    lay_into_cache(cache, entry.sources[0], {"pytorch_model.bin": as_file(network.state_dict())})
    listed(entry)
    with pytest.raises(CheckpointError, match="another architecture"):
        TimmEncoder(EncoderConfig(name="uni"))


def test_a_folder_without_weights_or_with_several(tmp_path: Path) -> None:
    config = EncoderConfig(name="resnet10t", weights=str(tmp_path))
    with pytest.raises(CheckpointError, match="holds 0 files of weights"):
        TimmEncoder(config)
    network = timm.create_model("resnet10t")
    as_file(network.state_dict())(tmp_path / "a.pth")
    assert torch.equal(TimmEncoder(config).backbone.conv1[0].weight, network.conv1[0].weight)
    as_file({"a": torch.zeros(1)})(tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="holds 2 files of weights"):
        TimmEncoder(config)


UNI_LIKE = {
    "embed_dim": 32, "depth": 2, "num_heads": 4, "init_values": 1e-5, "dynamic_img_size": True,
}  # fmt: skip


@pytest.mark.parametrize("pooling", ["model", "cls", "cls_mean"])
def test_any_timm_model_takes_arguments(pooling: str, tmp_path: Path) -> None:
    """UNI's form under timm's own name: LayerScale, fitted to another size, its tokens pooled as asked."""
    plain: Any = at_random(timm.create_model("vit_large_patch16_224", img_size=PX, num_classes=0, **UNI_LIKE))
    torch.save(plain.state_dict(), tmp_path / "weights.pth")
    config = EncoderConfig(
        name="vit_large_patch16_224",
        weights=str(tmp_path / "weights.pth"),
        args=UNI_LIKE,
        img_size=PX,
        pooling=pooling,  # type: ignore[arg-type]
        normalise=False,
    )
    encoder = TimmEncoder(config).eval()
    with torch.no_grad():
        tokens = plain.forward_features(pixels() / 255)
        wanted = (
            tokens[:, 0] if pooling != "cls_mean" else torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1)
        )
        assert (encoder(pixels()) - wanted).abs().max() <= 1e-5


def test_a_model_that_gives_tokens_says_how_to_pool_them() -> None:
    settings: dict[str, Any] = {
        "name": "vit_tiny_patch16_224",
        "weights": "none",
        "img_size": 32,
        "args": {"global_pool": ""},
    }
    with pytest.raises(ConfigError, match=r"gives tokens: set encoder\.pooling: cls or cls_mean"):
        TimmEncoder(EncoderConfig(**settings))
    encoder = TimmEncoder(EncoderConfig(**settings, pooling="cls_mean"))
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, 2 * 192)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet10t", "pooling": "cls"}, "needs a class token"),
        (
            {"name": "vit_tiny_patch16_224", "pooling": "cls", "args": {"global_pool": "avg"}},
            "norms only its pooled",
        ),
        ({"name": "resnet10t", "args": {"init_values": 1e-5}}, r"does not take these encoder\.args"),
        ({"name": "vit_tiny_patch16_224", "args": {"mlp_layer": "Swiglu"}}, "is not one of SwiGLUPacked"),
        (
            {"name": "vit_tiny_patch16_224", "args": {"act_layer": "swush"}},
            r"does not take these encoder\.args",
        ),
        ({"name": "vit_tiny_patch16_224", "args": {"embed_dim": 0}}, r"does not take these encoder\.args"),
        ({"name": "vit_tiny_patch16_224", "args": {"patch_size": "x"}}, r"does not take these encoder\.args"),
        ({"name": "conch-v1", "img_size": 224}, "takes no arguments"),
        ({"name": "uni", "in_channels": 1}, "takes colours"),
        ({"name": "uni2h"}, "did you mean uni2-h"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        TimmEncoder(EncoderConfig(weights="none", **settings))


def test_transformers_own_models_are_read_from_what_it_saves(tmp_path: Path) -> None:
    """The names are not only as we wrote them down: transformers saves, we read, the tokens are the same."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": PX}
    dinov2, registers = transformers.Dinov2Config, transformers.Dinov2WithRegistersConfig
    vit = transformers.ViTConfig(**common, intermediate_size=128, patch_size=16)
    cases = {
        # The gated layer is 2/3 of 4 * 32 wide, rounded up to a multiple of 8.
        "midnight-12k": (
            transformers.Dinov2Model(dinov2(**common, patch_size=14, use_swiglu_ffn=True)),
            2 * 88 / 32,
        ),
        "phikon-v2": (transformers.Dinov2Model(dinov2(**common, patch_size=16)), 4.0),
        "hibou-b": (
            transformers.Dinov2WithRegistersModel(registers(**common, patch_size=14, num_register_tokens=4)),
            4.0,
        ),
        "phikon": (transformers.ViTModel(vit, add_pooling_layer=False), 4.0),
    }
    for name, (theirs, mlp_ratio) in cases.items():
        at_random(theirs).save_pretrained(tmp_path / name)
        arguments = {"embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": mlp_ratio}
        config = EncoderConfig(
            name=name,
            weights=str(tmp_path / name),
            args=arguments,
            img_size=PX,
            transform="none",
            normalise=False,
        )
        encoder = TimmEncoder(config).eval()
        drawn = torch.rand(2, 3, PX, PX)
        with torch.no_grad():
            tokens = theirs(drawn).last_hidden_state
            assert (encoder.backbone.forward_features(drawn) - tokens).abs().max() <= 1e-4, name
