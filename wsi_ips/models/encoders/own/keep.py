"""The image tower of KEEP: the ViT-L/16 of UNI and two linear layers, L2-normalised. :func:`keep` builds it.

Source: Astaxanthin/KEEP on the hub, as other loaders describe it. None of its own code is run.
"""

import re
from collections.abc import Mapping
from typing import Any

import timm
from torch import Tensor, nn
from torch.nn import functional

from wsi_ips.models.encoders.families.uni import UNI_ARGUMENTS

DIM = 768
"""Width of the embeddings."""
PARTS = ("visual.", "visual_head.")
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
            if name.startswith(PARTS)
        }
