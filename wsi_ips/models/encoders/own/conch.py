"""The image towers of CONCH: a ViT whose tokens are read by one learned query.

:func:`conch_v1` and :func:`conch_v1_5` build them. Source: mahmoodlab/CONCH, ``conch/open_clip_custom`` (v1);
the public code of the tower of v1.5. Sizes are those of the authors.

Shape suffixes: n patches, T tokens, C width of a token, D width of the embedding.
"""

import math
from collections.abc import Mapping

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

HEADS = 8
"""Heads of the attention of the query."""
PX = 448
"""Side in pixels of the picture that the towers take."""
PARTS = ("trunk.", "attn_pool_contrast.", "ln_contrast.")
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
            if inner.startswith(PARTS):
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
