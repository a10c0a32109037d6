"""Renames the tensors of transformers that other programs wrote to the names of timm: :func:`as_timm`.

Three ways of naming are recognised by the names themselves: that of timm, that of Meta's DINOv2, and those of
the ViT and DINOv2 of the package transformers (with and without registers). Sources: ``vision_transformer`` of
timm; facebookresearch/dinov2; ``modeling_vit`` and ``modeling_dinov2`` of transformers, as ``save_pretrained``
writes them.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

HF_MARK = "embeddings.patch_embeddings.projection.weight"
"""A tensor that only files of transformers have."""
DINO_MARK = "patch_embed.proj.weight"
"""A tensor that files of DINOv2 and of timm have."""
_HF_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
_CHUNKED = re.compile(r"^blocks\.\d+\.(\d+)\.")

HF_NAMES = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "norm1": "norm1",
    "norm2": "norm2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
"""Layers in transformers, and what timm calls them."""
HF_SCALES = {"layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma"}
"""The layer scales in transformers, and what timm calls them."""
QKV = ("query", "key", "value")
"""Layers that transformers keeps apart and timm stacks."""
_EMBEDDINGS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "reg_token",
}
"""Embeddings in transformers, and what timm calls them."""


def as_timm(tensors: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """The tensors ``{name: tensor}`` under the names of timm for ``model``, a transformer of timm. Others stay
    as they are.

    Positions that transformers stores for another size are fitted to the grid of the model, bicubic without
    antialiasing, as transformers does in each call. Nothing else is resampled.
    """
    for name in tensors:
        if name.endswith(HF_MARK):
            return _from_transformers(below_prefix(tensors, name.removesuffix(HF_MARK)), model)
    for name in tensors:
        if name.endswith(DINO_MARK):
            prefix = name.removesuffix(DINO_MARK)
            if {f"{prefix}mask_token", f"{prefix}register_tokens"} & tensors.keys():
                return _from_dinov2(below_prefix(tensors, prefix), model)
    return dict(tensors)


def below_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, under the rest of their names."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _from_dinov2(tensors: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        name = _CHUNKED.sub(r"blocks.\1.", name)
        name = name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")
        if name != "mask_token" and not name.startswith(("head.", "dino_head.", "ibot_head.")):
            found["reg_token" if name == "register_tokens" else name] = tensor
    return _without_embedded_class(found, model)


def _from_transformers(tensors: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    stacked: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name == "embeddings.mask_token" or name.startswith(("pooler.", "classifier.")):
            continue
        block = _HF_BLOCK.fullmatch(name)
        stem, _, kind = (block[2] if block else name).rpartition(".")
        prefix = f"blocks.{block[1]}." if block else ""
        if block and stem.startswith("attention.attention.") and stem.rpartition(".")[2] in QKV:
            stacked.setdefault(f"{prefix}attn.qkv.{kind}", {})[stem.rpartition(".")[2]] = tensor
        elif block and block[2] in HF_SCALES:
            found[prefix + HF_SCALES[block[2]]] = tensor
        elif stem in HF_NAMES:
            found[f"{prefix}{HF_NAMES[stem]}.{kind}"] = tensor
        else:
            found[_EMBEDDINGS.get(name, name)] = tensor
    for name, parts in stacked.items():
        if parts.keys() == set(QKV):
            found[name] = torch.cat([parts[part] for part in QKV])
    if "pos_embed" in found:
        found["pos_embed"] = _on_grid(found["pos_embed"], model)
    return _without_embedded_class(found, model)


def _on_grid(positions_1NC: Tensor, model: Any) -> Tensor:
    """Positions of the class token and a square grid, resampled to the grid of the model."""
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    n = positions_1NC.shape[1] - 1
    if grid is None or n == grid[0] * grid[1] or math.isqrt(n) ** 2 != n:
        return positions_1NC
    resampled: Tensor = resample_abs_pos_embed(
        positions_1NC, new_size=list(grid), num_prefix_tokens=1, antialias=False
    )
    return resampled


def _without_embedded_class(tensors: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Where the model has no position for the class token, add that position to the token itself."""
    if getattr(model, "no_embed_class", False) and {"cls_token", "pos_embed"} <= tensors.keys():
        positions_1NC = tensors["pos_embed"]
        if positions_1NC.shape[1] == model.pos_embed.shape[1] + 1:
            tensors["cls_token"] = tensors["cls_token"] + positions_1NC[:, :1]
            tensors["pos_embed"] = positions_1NC[:, 1:]
    return tensors
