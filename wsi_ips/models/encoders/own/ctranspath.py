"""CTransPath: a Swin-T whose patch embedding is a small stack of convolutions. :func:`ctranspath` builds it.

Source: Wang et al. 2022 and its public code (Xiyue-Wang/TransPath, ``ctran.py``).
"""

import re
from collections.abc import Mapping
from typing import Any

import timm
from timm.layers.helpers import to_2tuple
from torch import Tensor, nn

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
