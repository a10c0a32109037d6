"""Tiny encoders of every family, laid into a Hugging Face hub's cache as a download leaves them.

A look-alike has its family's architecture, output rule, transform and names of tensors in the file, but few and
narrow blocks: the entry of the family with other numbers.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wsi_ips.models.encoders.entry import EncoderEntry, OwnArchitecture, TimmArchitecture, resized
from wsi_ips.models.encoders.network import LAYER_ARGUMENTS, LAYERS
from wsi_ips.models.encoders.own import ConchTower, CTransPath, KeepTower, _QueryOfV1, _QueryOfV15
from wsi_ips.models.encoders.registry import ENCODERS

REVISION = "0123456789abcdef0123456789abcdef01234567"
PX = 112
SMALL: dict[str, Any] = {"img_size": PX, "embed_dim": 32, "depth": 2, "num_heads": 4}


def tiny_entry(name: str, **more: Any) -> EncoderEntry:
    """The listed encoder with two blocks 32 wide at 112 px."""
    entry = ENCODERS[name]
    architecture = entry.architecture
    assert isinstance(architecture, TimmArchitecture)
    arguments = {**architecture.arguments, **SMALL, **more}
    width = 64 if entry.output == "cls_mean" else 32
    small = replace(
        entry,
        architecture=TimmArchitecture(architecture.name, arguments),
        transform=resized(PX, interpolation=entry.transform.interpolation),
        width=width,
        parameters=1,
    )
    return replace(small, parameters=sum(each.numel() for each in plain_network(small).parameters()))


def plain_network(entry: EncoderEntry) -> Any:
    """The same network straight from timm, every tensor at random so that none can be left out unnoticed."""
    assert isinstance(entry.architecture, TimmArchitecture)
    arguments = dict(entry.architecture.arguments)
    for argument in LAYER_ARGUMENTS:
        if argument in arguments:
            arguments[argument] = LAYERS[arguments[argument]]
    return at_random(timm.create_model(entry.architecture.name, num_classes=0, **arguments))


def at_random(network: nn.Module, seed: int = 0) -> nn.Module:
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=chance) * 0.2
                tensor.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
    return network.eval()


def lay_into_cache(cache: Path, source: str, files: Mapping[str, Callable[[Path], object]]) -> Path:
    """Make ``source`` look downloaded. ``files``: by name, what writes each one. The snapshot's folder."""
    repository = cache / f"models--{source.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(REVISION)
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True, exist_ok=True)
    for name, write in files.items():
        write(snapshot / name)
    return snapshot


def as_file(
    tensors: Mapping[str, Tensor], *, wrapper: str = "", prefix: str = ""
) -> Callable[[Path], object]:
    """What writes these tensors: safetensors or a pickle, by the file's ending."""
    named = {prefix + name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}

    def write(path: Path) -> None:
        if path.suffix == ".safetensors":
            save_file(named, path)
        else:
            torch.save({wrapper: named} if wrapper else named, path)

    return write


def as_shards(tensors: Mapping[str, Tensor]) -> dict[str, Callable[[Path], object]]:
    """Two files and their index, as the hub's libraries cut large models."""
    names = sorted(tensors)
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    files: dict[str, Callable[[Path], object]] = {}
    places = {}
    for number, part in enumerate(parts, 1):
        file = f"model-0000{number}-of-00002.safetensors"
        files[file] = as_file({name: tensors[name] for name in part})
        places |= dict.fromkeys(part, file)
    files["model.safetensors.index.json"] = lambda path: path.write_text(json.dumps({"weight_map": places}))
    return files


def as_transformers_dinov2(network: Any) -> dict[str, Tensor]:
    """A timm DINOv2's tensors under transformers' names, written down from its model's source."""
    theirs = _transformers_ends(network)
    theirs["embeddings.mask_token"] = torch.zeros(1, 32)
    for name, tensor in network.state_dict().items():
        if not name.startswith("blocks."):
            continue
        _, number, *rest = name.split(".")
        inner, kind = ".".join(rest[:-1]), rest[-1]
        layer = f"encoder.layer.{number}."
        if inner == "attn.qkv":
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                theirs[f"{layer}attention.attention.{part}.{kind}"] = piece
        elif kind == "gamma":
            theirs[f"{layer}layer_scale{inner[-1]}.lambda1"] = tensor
        else:
            gated = hasattr(network.blocks[0].mlp, "gate_last")
            theirs[layer + _dinov2_name(inner, gated=gated) + "." + kind] = tensor
    return theirs


def _dinov2_name(inner: str, *, gated: bool) -> str:
    if inner == "attn.proj":
        return "attention.output.dense"
    if gated and inner.startswith("mlp."):
        return {"mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out"}[inner]
    return inner


def as_transformers_vit(network: Any) -> dict[str, Tensor]:
    """A timm ViT's tensors under the names of transformers' ViTModel."""
    theirs = _transformers_ends(network)
    names = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    for name, tensor in network.state_dict().items():
        if not name.startswith("blocks."):
            continue
        _, number, *rest = name.split(".")
        inner, kind = ".".join(rest[:-1]), rest[-1]
        layer = f"encoder.layer.{number}."
        if inner == "attn.qkv":
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                theirs[f"{layer}attention.attention.{part}.{kind}"] = piece
        else:
            theirs[f"{layer}{names[inner]}.{kind}"] = tensor
    theirs["pooler.dense.weight"] = torch.zeros(32, 32)
    return theirs


def _transformers_ends(network: Any) -> dict[str, Tensor]:
    state = network.state_dict()
    positions, token = state["pos_embed"], state["cls_token"]
    theirs = {}
    if network.no_embed_class:
        # There the class token has a position of its own: any two that add up to ours will do.
        first = torch.full_like(token, 0.25)
        positions, token = torch.cat([first, positions], dim=1), token - first
        theirs["embeddings.register_tokens"] = state["reg_token"]
    return {
        **theirs,
        "embeddings.cls_token": token,
        "embeddings.position_embeddings": positions,
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }


def as_meta_dinov2(network: Any) -> dict[str, Tensor]:
    """A timm DINOv2 with registers under Meta's names, in one chunk of blocks."""
    state = network.state_dict()
    first = torch.full_like(state["cls_token"], 0.25)
    theirs = {
        "mask_token": torch.zeros(1, 32),
        "register_tokens": state["reg_token"],
        "cls_token": state["cls_token"] - first,
        "pos_embed": torch.cat([first, state["pos_embed"]], dim=1),
    }
    for name, tensor in state.items():
        if name not in ("reg_token", "cls_token", "pos_embed"):
            name = name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
            theirs[name.replace("blocks.", "blocks.0.")] = tensor
    return theirs


def tiny_own(name: str) -> tuple[EncoderEntry, Callable[[], nn.Module]]:
    """A look-alike of an encoder whose network is ours, and what builds it."""
    small = {**SMALL, "num_classes": 0}
    builds: dict[str, tuple[int, Callable[[], nn.Module]]] = {
        "conch-v1": (
            16,
            lambda: ConchTower(timm.create_model("vit_base_patch16_224", **small), _QueryOfV1(16, 32), 16),
        ),
        "conch-v1.5": (
            16,
            lambda: ConchTower(
                timm.create_model("vit_large_patch16_224", init_values=1.0, **small), _QueryOfV15(16, 32), 16
            ),
        ),
        "keep": (
            8,
            lambda: KeepTower(timm.create_model("vit_large_patch16_224", init_values=1e-5, **small), 32, 8),
        ),
        "ctranspath": (
            128,
            lambda: CTransPath(img_size=PX, embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)),
        ),
    }
    width, build = builds[name]
    transform = resized(PX, interpolation=ENCODERS[name].transform.interpolation)
    entry = replace(ENCODERS[name], architecture=OwnArchitecture(build), transform=transform, width=width)
    return entry, build
