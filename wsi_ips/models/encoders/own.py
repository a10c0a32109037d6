"""Encoders whose networks timm does not have: CTransPath, CONCH and KEEP.

CTransPath: a Swin-T whose patch embedding is a small stack of convolutions. :func:`ctranspath` builds it.

Source: Wang et al. 2022 and its public code (Xiyue-Wang/TransPath, ``ctran.py``).

The image towers of CONCH: a ViT whose tokens are read by one learned query.

:func:`conch_v1` and :func:`conch_v1_5` build them. Source: mahmoodlab/CONCH, ``conch/open_clip_custom`` (v1);
the public code of the tower of v1.5. Sizes are those of the authors.

The image tower of KEEP: the ViT-L/16 of UNI and two linear layers, L2-normalised. :func:`keep` builds it.

Source: Astaxanthin/KEEP on the hub, as other loaders describe it. None of its own code is run.

Shape suffixes: n patches, T tokens, C width of a token, D width of the embedding.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers.helpers import to_2tuple
from torch import Tensor, nn
from torch.nn import functional

from wsi_ips.models.encoders.families.uni import UNI_ARGUMENTS

BUFFERS = ("attn_mask", "relative_position_index")
"""Tensors of a published file that timm computes itself."""
STEM_PATCH = 4
"""Side in pixels of the patches that become tokens."""


def ctranspath() -> nn.Module:
    """The network as published."""
    return CTransPath(img_size=224)


class CTransPath(nn.Module):
    """Map normalised pixels (n, 3, 224, 224) to embeddings (n, 768), the mean of the last map."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        swin: Any = timm.create_model(
            "swin_tiny_patch4_window7_224", embed_layer=ConvStem, num_classes=0, **arguments
        )
        self.swin = swin
        self.dim = int(swin.num_features)

    def forward(self, pixels_n3PP: Tensor) -> Tensor:
        """The embeddings (n, 768). Raises ``AssertionError`` for pictures of another size than that of the
        network.
        """
        assert pixels_n3PP.shape[-1] == self.swin.patch_embed.img_size[0], "the network's size is fixed"
        embedding: Tensor = self.swin(pixels_n3PP)
        return embedding

    def renamed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a published file, or of today's timm, under the names of this module.

        timm has since moved the downsampling of a stage to the stage behind it. Masks are computed, not read.
        """
        plain = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
        old = "layers.0.downsample.reduction.weight" in plain
        found = {}
        for name, tensor in plain.items():
            if name.startswith("head.") or name.rpartition(".")[2] in BUFFERS:
                continue
            if old:
                name = re.sub(
                    r"^layers\.(\d+)\.downsample", lambda at: f"layers.{int(at[1]) + 1}.downsample", name
                )
            found[f"swin.{name.removeprefix('swin.')}"] = tensor
        return found


class ConvStem(nn.Module):
    """Two convolutions of stride 2 with BatchNorm and ReLU, then one of 1x1: (n, 3, P, P) to (n, P/4, P/4, D)."""

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = STEM_PATCH,
        in_chans: int = 3,
        embed_dim: int = 96,
        norm_layer: Any = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.img_size, self.patch_size = to_2tuple(img_size), to_2tuple(patch_size)
        self.grid_size = tuple(side // patch_size for side in self.img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        layers: list[nn.Module] = []
        channels = in_chans
        for width in (embed_dim // 8, embed_dim // 4):
            layers += [
                nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        self.proj = nn.Sequential(*layers, nn.Conv2d(channels, embed_dim, 1))
        self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()

    def forward(self, pixels_n3PP: Tensor) -> Tensor:
        """Embed the patches of pictures, channels last as timm's Swin takes them."""
        normed: Tensor = self.norm(self.proj(pixels_n3PP).permute(0, 2, 3, 1))
        return normed


HEADS = 8
"""Heads of the attention of the query."""
PX = 448
"""Side in pixels of the picture that the towers take."""
CONCH_PARTS = ("trunk.", "attn_pool_contrast.", "ln_contrast.")
"""What the tensors of the image tower begin with in a file. Captions, text, and the projection to the space of
the text do not belong to it.
"""


def conch_v1() -> nn.Module:
    """The tower of v1: ViT-B/16 at 448 px, embeddings 512 wide."""
    trunk = timm.create_model(
        "vit_base_patch16_224", img_size=PX, global_pool="", num_classes=0, dynamic_img_size=True
    )
    return ConchTower(trunk, _QueryOfV1(512, 768), 512)


def conch_v1_5() -> nn.Module:
    """The tower of v1.5: ViT-L/16 with LayerScale at 448 px, embeddings 768 wide."""
    trunk = timm.create_model(
        "vit_large_patch16_224", img_size=PX, init_values=1.0, global_pool="", num_classes=0
    )
    return ConchTower(trunk, _QueryOfV15(768, 1024), 768)


class ConchTower(nn.Module):
    """Map normalised pixels (n, 3, 448, 448) to embeddings (n, D): tokens, attention of the query, LayerNorm."""

    def __init__(self, trunk: nn.Module, pooler: nn.Module, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.trunk = trunk
        self.attn_pool_contrast = pooler
        self.ln_contrast = nn.LayerNorm(dim)

    def forward(self, pixels_n3PP: Tensor) -> Tensor:
        """The embeddings (n, D), before the projection to the space of the text and not L2-normalised."""
        tokens_nTC = self.trunk.forward_features(pixels_n3PP)  # type: ignore[operator]
        embedding_nD: Tensor = self.ln_contrast(self.attn_pool_contrast(tokens_nTC))
        return embedding_nD

    def renamed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the image tower in a published file, under the names of this module."""
        found = {}
        for name, tensor in tensors.items():
            inner = name.removeprefix("module.").removeprefix("visual.")
            if inner.startswith(CONCH_PARTS):
                found[inner] = tensor
        grid = getattr(getattr(self.trunk, "patch_embed", None), "grid_size", None)
        if grid is not None and "trunk.pos_embed" in found:
            found["trunk.pos_embed"] = _positions_for(found["trunk.pos_embed"], grid[0])
        return found


class _QueryOfV1(nn.Module):
    """PyTorch's multi-head attention of one query to the normalised tokens."""

    def __init__(self, dim: int, context: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, dim))
        self.attn = nn.MultiheadAttention(dim, HEADS, kdim=context, vdim=context, batch_first=True)
        self.ln_q, self.ln_k = nn.LayerNorm(dim), nn.LayerNorm(context)

    def forward(self, tokens_nTC: Tensor) -> Tensor:
        keys_nTC = self.ln_k(tokens_nTC)
        query_n1D = self.ln_q(self.query).expand(len(keys_nTC), 1, -1)
        found: Tensor = self.attn(query_n1D, keys_nTC, keys_nTC, need_weights=False)[0]
        return found[:, 0]


class _QueryOfV15(nn.Module):
    """Multi-head attention of one query to the normalised tokens, without biases, with keys and values in one
    projection.
    """

    def __init__(self, dim: int, context: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, dim))
        self.ln_q, self.ln_k = nn.LayerNorm(dim), nn.LayerNorm(context)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(context, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, tokens_nTC: Tensor) -> Tensor:
        n = len(tokens_nTC)
        query_n1D = self.to_q(self.ln_q(self.query)).expand(n, 1, -1)
        keys_nTD, values_nTD = self.to_kv(self.ln_k(tokens_nTC)).chunk(2, dim=-1)
        query, keys, values = (
            each.unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in (query_n1D, keys_nTD, values_nTD)
        )
        found = functional.scaled_dot_product_attention(query, keys, values)
        out: Tensor = self.to_out(found.transpose(1, 2).flatten(2))
        return out[:, 0]


def _positions_for(positions_1NC: Tensor, side: int) -> Tensor:
    """Positions of the class token and a square grid, resampled to a grid of ``side``.

    As the authors of v1.5 resample them: bicubic, by the factor (side + 0.1) / stored side.
    """
    stored = math.isqrt(positions_1NC.shape[1] - 1)
    if stored == side or stored * stored != positions_1NC.shape[1] - 1:
        return positions_1NC
    grid = positions_1NC[:, 1:].unflatten(1, (stored, stored)).permute(0, 3, 1, 2)
    scale = (side + 0.1) / stored
    resampled = functional.interpolate(grid.float(), scale_factor=(scale, scale), mode="bicubic")
    flat = resampled.permute(0, 2, 3, 1).flatten(1, 2).to(positions_1NC.dtype)
    return torch.cat([positions_1NC[:, :1], flat], dim=1)


DIM = 768
"""Width of the embeddings."""
KEEP_PARTS = ("visual.", "visual_head.")
"""What the tensors of the image tower begin with in a published file."""


def keep() -> nn.Module:
    """The tower as published."""
    visual: Any = timm.create_model("vit_large_patch16_224", num_classes=0, **UNI_ARGUMENTS)
    return KeepTower(visual, 1024, DIM)


class KeepTower(nn.Module):
    """Map normalised pixels (n, 3, 224, 224) to embeddings (n, 768) of length 1."""

    def __init__(self, visual: nn.Module, width: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.visual = visual
        self.visual_head = nn.Sequential(nn.Linear(width, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, pixels_n3PP: Tensor) -> Tensor:
        """The embeddings (n, 768)."""
        return functional.normalize(self.visual_head(self.visual(pixels_n3PP)), dim=-1)

    def renamed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the image tower in a published file. The text tower is left out."""
        found = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
        return {
            re.sub(r"\.(ls[12])\.weight$", r".\1.gamma", name): tensor
            for name, tensor in found.items()
            if name.startswith(KEEP_PARTS)
        }
