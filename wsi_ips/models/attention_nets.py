"""Attention networks of attention sampling's two published models: a small view of an image to a map of logits.

Source: Katharopoulos and Fleuret 2019, reference code; initial weights are Keras's.

Shape suffixes: B images, C channels, H height, W width, h and w of the map.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from wsi_ips.models.encoders.ats_encoders import as_keras, unit_range


class AttentionNet(nn.Module):
    """(B, C, H, W), uint8 or float in 0..1, to logits (B, h, w). receptive_field: of a network without padding, in
    pixels of its input; 0 for one that pads."""

    receptive_field = 0

    def penalty(self) -> Tensor:
        """Scalar that training adds to its loss."""
        return torch.zeros(())


class MegapixelMnistAttention(AttentionNet):
    """Three padded convolutions, tanh between them: a logit a pixel; 737 weights for C = 1."""

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(8, 1, 3, padding=1),
        )
        as_keras(self)

    def forward(self, low_BCHW: Tensor) -> Tensor:
        logits_B1hw: Tensor = self.layers(unit_range(low_BCHW))
        return logits_B1hw[:, 0]


class SpeedLimitsAttention(AttentionNet):
    """Four convolutions without padding and the maximum over 8 x 8: 6,321 weights for C = 3."""

    receptive_field = 9
    L2 = 1e-5

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        channels = (in_channels, 8, 16, 32)
        hidden = [nn.Conv2d(i, o, 3) for i, o in pairwise(channels)]
        self.hidden = nn.ModuleList(hidden)
        self.last = nn.Conv2d(channels[-1], 1, 3)
        self.pool = nn.MaxPool2d(8)
        as_keras(self)

    def forward(self, low_BCHW: Tensor) -> Tensor:
        x = unit_range(low_BCHW)
        for layer in self.hidden:
            x = layer(x).relu()
        logits_B1hw: Tensor = self.pool(self.last(x))
        return logits_B1hw[:, 0]

    def penalty(self) -> Tensor:
        """The reference's L2 on the kernels of the three hidden convolutions."""
        kernels = [weight for name, weight in self.hidden.named_parameters() if name.endswith("weight")]
        return self.L2 * torch.stack([kernel.square().sum() for kernel in kernels]).sum()
