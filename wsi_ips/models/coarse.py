"""The coarse scorer: it scores windows in low resolution, to choose which patches are read in full resolution.

:class:`Coarse` is a scorer together with the share of the tissue that it lets through, and with the recall that
was measured for it.

Shape suffixes: n windows, C channels, D feature width, Q window side, S steps of the recall curve.
"""

import torch
from torch import Tensor, nn

from wsi_ips.models.encoders.ats_encoders import unit_range

STEPS = 101
"""Number of steps of the recall curve, which is measured at the shares 0, 0.01, ..., 1."""


class ConvScorer(nn.Module):
    """A few convolutions, then mean and maximum: windows (n, C, Q, Q), uint8 or float in 0..1, to logits (n,).

    Args:
        channels: Channels of each convolution. Between two of them the resolution is halved.
        in_channels: C, the channels of a pixel.
    """

    def __init__(self, channels: tuple[int, ...], *, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, width in enumerate(channels):
            layers += [nn.MaxPool2d(2, ceil_mode=True)] if number else []
            # GroupNorm and not BatchNorm, because the score of a window must not depend on the other windows.
            layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.GroupNorm(1, width), nn.ReLU()]
            in_channels = width
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(2 * in_channels, 1)
        # All windows get the same logit to begin with.
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, windows_nCQQ: Tensor) -> Tensor:
        x = self.layers(unit_range(windows_nCQQ) * 2 - 1)
        pooled = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        logits_n1: Tensor = self.last(pooled)
        return logits_n1[:, 0]


class EncoderScorer(nn.Module):
    """LayerNorm and a linear layer on the features (n, D) that the encoder of the patches makes of a window, to
    logits (n,).
    """

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
    """A scorer with the share of the tissue that it lets through, and the recall that was measured for each
    share.

    Both travel with the weights. The share is that of the configuration until :mod:`wsi_ips.training.cascade`
    chooses one that reaches a wanted recall.

    Args:
        scorer: Gives logits to windows.
        share: Share of the patches to let through, in 0..1.
    """

    share: Tensor
    recall_S: Tensor

    def __init__(self, scorer: ConvScorer | EncoderScorer, *, share: float) -> None:
        super().__init__()
        self.scorer = scorer
        # In float32, 0.2 of 660 patches would be 133, not 132.
        self.register_buffer("share", torch.tensor(share, dtype=torch.float64))
        # -1 means not measured; it is not NaN because the weights of a checkpoint have to be finite.
        self.register_buffer("recall_S", torch.full((STEPS,), -1.0))

    def recall_at(self, share: float) -> float | None:
        """The recall that was measured for this share, interpolated linearly. None if none was measured."""
        if self.recall_S.min() < 0:
            return None
        place = min(max(share, 0.0), 1.0) * (STEPS - 1)
        low = min(int(place), STEPS - 2)
        below, above = self.recall_S[low : low + 2].tolist()
        return float(below + (above - below) * (place - low))

    def calibrate(self, recall_S: Tensor, *, target: float | None) -> None:
        """Keep a measured recall curve. With a ``target``, also choose the smallest share whose recall reaches
        it.
        """
        self.recall_S.copy_(recall_S)
        if target is not None:
            # There always is one, since the recall at share 1 is 1.
            reached = (recall_S.cpu() >= target - 1e-9).nonzero()[0]
            self.share.fill_(max(1, int(reached)) / (STEPS - 1))
