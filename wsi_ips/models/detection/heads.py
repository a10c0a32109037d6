"""RetinaNet's and the region proposals' heads with a BatchNorm of its own for every level (Du et al. 2020,
tensorflow/tpu ``heads.py``).

Shape suffixes: N images, F channels, h rows, w columns, K classes, A all anchors of all levels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import _utils as detection_utils
from torchvision.models.detection.retinanet import (
    RetinaNetClassificationHead,
    RetinaNetHead,
    RetinaNetRegressionHead,
)

from wsi_ips.models.spinenet.layers import activation

PRIOR = 0.01
"""Share of anchors that the classifier takes for an object before it has learned."""


class LevelNormTower(nn.Module):
    """3x3 convolutions that all levels share, each followed by the level's own BatchNorm; then the predictor.

    Gives (N, rows x columns x anchors, ``per_anchor``) of a level, as torchvision's heads do.
    """

    def __init__(
        self, n_in: int, channels: int, *, convs: int, levels: int, anchors: int, per_anchor: int, act: str
    ) -> None:
        super().__init__()
        widths = [n_in, *[channels] * convs]
        self.convs = nn.ModuleList(
            nn.Conv2d(width, channels, kernel_size=3, padding=1) for width in widths[:-1]
        )
        # Of each level, its norms in the order of the convolutions.
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(levels) for _ in self.convs)
        self.act = activation(act)
        self.predict = nn.Conv2d(widths[-1], anchors * per_anchor, kernel_size=3, padding=1)
        self.per_anchor = per_anchor
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps of all levels, finest first, to (N, A, ``per_anchor``)."""
        assert len(maps) * len(self.convs) == len(self.norms), "as many maps as levels"
        predicted = []
        norms = iter(self.norms)
        for x in maps:
            for conv in self.convs:
                x = self.act(next(norms)(conv(x)))
            out_Nchw = self.predict(x)
            predicted.append(out_Nchw.permute(0, 2, 3, 1).reshape(len(out_Nchw), -1, self.per_anchor))
        return torch.cat(predicted, dim=1)


class _ClassificationHead(RetinaNetClassificationHead):  # type: ignore[misc]
    """torchvision's loss on the tower's logits."""

    def __init__(self, tower: LevelNormTower) -> None:
        nn.Module.__init__(self)
        self.tower = tower
        self.BETWEEN_THRESHOLDS = detection_utils.Matcher.BETWEEN_THRESHOLDS
        assert tower.predict.bias is not None
        nn.init.constant_(tower.predict.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, x: Sequence[Tensor]) -> Tensor:
        logits_NAK: Tensor = self.tower(x)
        return logits_NAK


class _RegressionHead(RetinaNetRegressionHead):  # type: ignore[misc]
    """torchvision's loss on the tower's box offsets."""

    def __init__(self, tower: LevelNormTower) -> None:
        nn.Module.__init__(self)
        self.tower = tower
        self.box_coder = detection_utils.BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
        self._loss_type = "l1"

    def forward(self, x: Sequence[Tensor]) -> Tensor:
        offsets_NA4: Tensor = self.tower(x)
        return offsets_NA4


class LevelNormHead(RetinaNetHead):  # type: ignore[misc]
    """For torchvision's ``RetinaNet(head=...)``; classes are those that the loss sees, background among them."""

    def __init__(
        self,
        n_in: int,
        channels: int,
        *,
        convs: int,
        levels: int,
        anchors: int,
        classes: int,
        act: str = "relu",
    ) -> None:
        nn.Module.__init__(self)

        def tower(per_anchor: int) -> LevelNormTower:
            return LevelNormTower(
                n_in, channels, convs=convs, levels=levels, anchors=anchors, per_anchor=per_anchor, act=act
            )

        self.classification_head = _ClassificationHead(tower(classes))
        self.regression_head = _RegressionHead(tower(4))


class LevelNormRpnHead(nn.Module):
    """For torchvision's ``MaskRCNN(rpn_head=...)``: one 3x3 convolution that all levels share, then the level's
    own BatchNorm."""

    def __init__(self, channels: int, *, levels: int, anchors: int, act: str = "relu") -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(levels))
        self.act = activation(act)
        self.objectness = nn.Conv2d(channels, anchors, kernel_size=1)
        self.offsets = nn.Conv2d(channels, 4 * anchors, kernel_size=1)
        for layer in (self.conv, self.objectness, self.offsets):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps of all levels, finest first, to objectness (N, anchors, h, w) and offsets (N, 4 x anchors, h, w) of
        each."""
        seen = [self.act(norm(self.conv(x))) for norm, x in zip(self.norms, maps, strict=True)]
        return [self.objectness(x) for x in seen], [self.offsets(x) for x in seen]
