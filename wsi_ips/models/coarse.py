"""The look from afar: a scorer of windows, and what is known of how well it lets through what matters.

Shape suffixes: n windows, C channels, Q window side, S steps of the recall curve.
"""

import torch
from torch import Tensor, nn

from wsi_ips.models.encoders.ats_encoders import unit_range

STEPS = 101
"""Of the recall curve: at shares 0, 0.01, ..., 1."""


class ConvScorer(nn.Module):
    """A few convolutions and a mean: windows (n, C, Q, Q), uint8 or float in 0..1, to logits (n,)."""

    def __init__(self, channels: tuple[int, ...], *, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, width in enumerate(channels):
            layers += [nn.MaxPool2d(2, ceil_mode=True)] if number else []
            # Groups, not batches: a window's score must not depend on its neighbours.
            layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.GroupNorm(1, width), nn.ReLU()]
            in_channels = width
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(2 * in_channels, 1)
        # Even attention to begin with.
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, windows_nCQQ: Tensor) -> Tensor:
        x = self.layers(unit_range(windows_nCQQ) * 2 - 1)
        pooled = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        logits_n1: Tensor = self.last(pooled)
        return logits_n1[:, 0]


class EncoderScorer(nn.Module):
    """A linear layer on what the patches' own encoder makes of a coarse patch: features (n, D) to logits (n,)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.last = nn.Linear(dim, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, features_nD: Tensor) -> Tensor:
        logits_n1: Tensor = self.last(self.norm(features_nD))
        return logits_n1[:, 0]


class Coarse(nn.Module):
    """A scorer with the share of the tissue that it lets through, and the recall that was measured for shares.

    The share is the config's until it is chosen for a recall (:mod:`wsi_ips.training.cascade`); both
    travel with the weights.
    """

    share: Tensor
    recall_S: Tensor

    def __init__(self, scorer: ConvScorer | EncoderScorer, *, share: float) -> None:
        super().__init__()
        self.scorer = scorer
        self.register_buffer("share", torch.tensor(share, dtype=torch.float64))
        # float64: 0.2 of 660 patches are 132, not 133. -1: not measured. A checkpoint's weights are all finite.
        self.register_buffer("recall_S", torch.full((STEPS,), -1.0))

    def recall_at(self, share: float) -> float | None:
        """The recall that was measured for this share, between its steps linearly; None where none was."""
        if self.recall_S.min() < 0:
            return None
        place = min(max(share, 0.0), 1.0) * (STEPS - 1)
        low = min(int(place), STEPS - 2)
        below, above = self.recall_S[low : low + 2].tolist()
        return float(below + (above - below) * (place - low))

    def calibrate(self, recall_S: Tensor, *, target: float | None) -> None:
        """Keep a measured curve, and with a ``target`` the smallest of its shares that reaches it."""
        self.recall_S.copy_(recall_S)
        if target is not None:
            # At share 1 the curve is 1.
            reached = (recall_S.cpu() >= target - 1e-9).nonzero()[0]
            self.share.fill_(max(1, int(reached)) / (STEPS - 1))
