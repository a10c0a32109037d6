"""Detectors of nuclei: RetinaNet and Mask R-CNN on SpineNet or any timm backbone, and their checkpoints.

Start with :func:`build_detector` and :func:`load_detector`. :class:`Pyramid` gives features of strides 8 to 128
with equal channels, as torchvision's detectors take them. The heads have a BatchNorm of their own for every level
(Du et al. 2020, tensorflow/tpu ``heads.py``). A checkpoint is a safetensors file with the config in its metadata,
like those of the IPS networks.

Shape suffixes: N images, F channels, h rows, w columns, K classes, A all anchors of all levels.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection import _utils as detection_utils
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import (
    RetinaNetClassificationHead,
    RetinaNetHead,
    RetinaNetRegressionHead,
)
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from wsi_ips.config import READ_NO_FILE
from wsi_ips.errors import ConfigError
from wsi_ips.models.checkpoint import WeightsFile
from wsi_ips.models.spinenet import MEMBERS, SpineNet
from wsi_ips.models.spinenet.backbone import activation
from wsi_ips.models.spinenet.specification import specification_of
from wsi_ips.nuclei.config import DetectorConfig

STRIDES = (8, 16, 32, 64, 128)
"""Strides of a pyramid's levels."""

PRIOR = 0.01
"""Share of anchors that the classifier takes for an object before it is trained."""

RATIOS = (0.5, 1.0, 2.0)
"""Ratios of height to width of anchors."""

OCTAVE_STEPS = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
"""Sizes of RetinaNet's anchors within an octave."""

CANDIDATES = 4000
"""Best boxes of a level that go into non-maximum suppression."""

BOX_PX = 7
"""Side of the features of a region from which its box is predicted."""

LOWEST_SCORE = 0.02
"""Lowest score that scoring after training looks at; the threshold is chosen above it."""

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
"""Mean and standard deviation of ImageNet's pixels in 0..1, with which images are normalised."""

METADATA_KEY = "wsi_ips_detector"
"""Key of the config in a checkpoint's metadata."""

HOW_TO_FIX = "name a detector that train-detector wrote"
"""What to do about a file that is no detector."""


class Pyramid(nn.Module):
    """Backbone and feature pyramid, which turn images into five maps.

    Images are (N, 3, h, w); maps have ``out_channels`` channels each.
    """

    def __init__(self, features: nn.Module, *, fpn: nn.Module | None, out_channels: int) -> None:
        super().__init__()
        self.features = features
        self.fpn = fpn
        self.out_channels = out_channels

    def forward(self, x_N3hw: Tensor) -> "OrderedDict[str, Tensor]":
        """Maps by name, finest first."""
        found: OrderedDict[str, Tensor] = OrderedDict(
            (str(place), x) for place, x in enumerate(self.features(x_N3hw))
        )
        return found if self.fpn is None else self.fpn(found)


def build_detector(config: DetectorConfig) -> nn.Module:
    """The untrained detector that ``config`` names.

    Raises :class:`ConfigError` for a backbone that cannot be used.
    """
    detector: nn.Module = build_mask_rcnn(config) if config.model == "mask_rcnn" else build_retinanet(config)
    return detector


def save_detector(
    path: Path, detector: nn.Module, config: DetectorConfig, *, notes: Mapping[str, str] | None = None
) -> None:
    """Write a detector's weights and config. ``notes`` are for people."""
    _FILE.write(path, detector, config, notes=dict(notes or {}))


def load_detector(path: Path) -> tuple[nn.Module, DetectorConfig]:
    """The detector in eval mode on the CPU, and its config.

    Raises :class:`CheckpointError` for a file that is missing, damaged, or no detector of this package.
    """
    return _FILE.read(path)


def _config_of(path: Path, held: Mapping[str, Any]) -> DetectorConfig:
    return DetectorConfig.model_validate(held["config"], context=READ_NO_FILE)


_FILE = WeightsFile(
    key=METADATA_KEY, name="detector", fix=HOW_TO_FIX, config_of=_config_of, build=build_detector
)


def build_retinanet(config: DetectorConfig, pyramid: Pyramid | None = None) -> RetinaNet:
    """An untrained RetinaNet; ``pyramid`` replaces the config's backbone.

    It takes a list of images (3, h, w) in 0..1. Class 0 is background, ``config.classes`` are 1, 2, ... In eval
    mode, boxes with a score of at least ``config.score_threshold`` are returned. Raises :class:`ConfigError` for a
    backbone that cannot be used.
    """
    pyramid = pyramid or build_pyramid(config)
    head = retina_head(config, n_in=pyramid.out_channels, classes=len(config.classes) + 1)
    detector = RetinaNet(
        pyramid,
        num_classes=len(config.classes) + 1,
        anchor_generator=anchors(config),
        head=head,
        score_thresh=config.score_threshold,
        nms_thresh=config.overlap_threshold,
        detections_per_img=config.most_per_image,
        topk_candidates=CANDIDATES,
    )
    detector.transform = AsItIs()
    return detector


def build_mask_rcnn(config: DetectorConfig) -> MaskRCNN:
    """An untrained Mask R-CNN.

    Region proposals have a BatchNorm for each level. The box head (convolutions, then one dense layer) and the
    mask head pool from P3 to P6 and normalise what they pooled together. In eval mode, ``box_masks`` are returned
    beside the boxes (:class:`AsItIs`). Raises :class:`ConfigError` for a backbone that cannot be used.
    """
    pyramid = build_pyramid(config)
    classes, width = len(config.classes) + 1, config.head_channels
    levels = ["0", "1", "2", "3"]
    convs, norm = [width] * config.head_convs, nn.BatchNorm2d
    box_size = (pyramid.out_channels, BOX_PX, BOX_PX)
    detector = MaskRCNN(
        pyramid,
        rpn_anchor_generator=AnchorGenerator(
            tuple((config.anchor_base * stride,) for stride in STRIDES), (RATIOS,) * len(STRIDES)
        ),
        rpn_head=LevelNormRpnHead(
            pyramid.out_channels, levels=len(STRIDES), anchors=len(RATIOS), act=config.act_layer
        ),
        box_roi_pool=MultiScaleRoIAlign(levels, output_size=BOX_PX, sampling_ratio=2),
        box_head=FastRCNNConvFCHead(box_size, convs, [4 * width], norm_layer=norm),
        box_predictor=FastRCNNPredictor(4 * width, classes),
        mask_roi_pool=MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=2),
        mask_head=MaskRCNNHeads(pyramid.out_channels, convs, 1, norm_layer=norm),
        mask_predictor=MaskRCNNPredictor(
            width if config.head_convs else pyramid.out_channels, width, classes
        ),
        box_score_thresh=config.score_threshold,
        box_nms_thresh=config.overlap_threshold,
        box_detections_per_img=config.most_per_image,
        rpn_pre_nms_top_n_test=max(CANDIDATES, config.most_per_image),
        rpn_post_nms_top_n_test=max(1000, config.most_per_image),
    )
    detector.transform = AsItIs()
    return detector


def set_score_threshold(detector: nn.Module, threshold: float) -> None:
    """Set the score from which on detections are returned. torchvision's models keep it in two places."""
    detector.get_submodule("roi_heads" if isinstance(detector, MaskRCNN) else "").score_thresh = threshold  # type: ignore[assignment]


class AsItIs(GeneralizedRCNNTransform):  # type: ignore[misc]
    """Normalises and pads images but never resizes them: patches already have their resolution.

    Images are padded to multiples of 128 px, where the strides of all anchors are exact. torchvision's own
    ``_skip_resize`` only works in training. Masks are left as the network makes them, each over its own box
    (``box_masks``, (N, 1, 28, 28) in 0..1): pasted into the image, as torchvision does it, a thousand masks take
    gigabytes.
    """

    def __init__(self) -> None:
        super().__init__(1, 1, MEAN, STD, size_divisible=STRIDES[-1])

    def resize(self, image: Any, target: Any = None) -> Any:
        """Leave the image at its size."""
        return image, target

    def postprocess(self, result: Any, image_shapes: Any, original_image_sizes: Any) -> Any:
        """Leave boxes and masks as the network makes them; masks are renamed to ``box_masks``."""
        for found in result if not self.training else ():
            if "masks" in found:
                found["box_masks"] = found.pop("masks")
        return result


def build_pyramid(config: DetectorConfig) -> Pyramid:
    """An untrained pyramid for the config's backbone.

    It is SpineNet's own outputs, or a feature pyramid (Lin et al. 2017) with P6 and P7 over another model.

    Raises :class:`ConfigError` for a model that timm does not know, or without features of strides 8, 16 and 32.
    """
    if config.backbone.startswith("hf-hub:") or not timm.is_model(config.backbone):
        raise ConfigError(f"detector.backbone: timm has no model {config.backbone!r}")
    # timm's types are those of any attribute of a module.
    create: Any = partial(timm.create_model, config.backbone, features_only=True, pretrained=False)
    if _is_spinenet(config.backbone):
        create = partial(create, act_layer=config.act_layer)
    if config.specification is not None:
        if config.backbone not in MEMBERS:
            raise ConfigError(f"detector.specification goes with a SpineNet's name, not {config.backbone!r}")
        create = partial(create, specification=specification_of(config.specification))
    try:
        features = create()
        strides, channels = features.feature_info.reduction(), features.feature_info.channels()
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ConfigError(f"detector.backbone: {config.backbone} gives no feature maps ({error})") from None
    if tuple(strides) == STRIDES and len(set(channels)) == 1:
        return Pyramid(features, fpn=None, out_channels=channels[0])
    if not {8, 16, 32} <= set(strides):
        raise ConfigError(f"detector.backbone: {config.backbone} has strides {strides}, not 8, 16 and 32")
    # Of equal strides the last, deepest one.
    wanted = [max(i for i, stride in enumerate(strides) if stride == needed) for needed in (8, 16, 32)]
    features = create(out_indices=wanted)
    n_out = config.pyramid_channels
    fpn = FeaturePyramidNetwork(features.feature_info.channels(), n_out, LastLevelP6P7(n_out, n_out))
    return Pyramid(features, fpn=fpn, out_channels=n_out)


def _is_spinenet(name: str) -> bool:
    return timm.model_entrypoint(name).__module__.startswith(SpineNet.__module__.rpartition(".")[0])


class LevelNormHead(RetinaNetHead):  # type: ignore[misc]
    """RetinaNet's head, for torchvision's ``RetinaNet(head=...)``. ``classes`` includes the background."""

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


def retina_head(config: DetectorConfig, *, n_in: int, classes: int) -> LevelNormHead:
    """RetinaNet's untrained head for maps of ``n_in`` channels."""
    return LevelNormHead(
        n_in,
        config.head_channels,
        convs=config.head_convs,
        levels=len(STRIDES),
        anchors=len(RATIOS) * len(OCTAVE_STEPS),
        classes=classes,
        act=config.act_layer,
    )


def anchors(config: DetectorConfig) -> AnchorGenerator:
    """RetinaNet's anchors: nine per place, three sizes of an octave with three ratios."""
    sizes = tuple(tuple(config.anchor_base * stride * step for step in OCTAVE_STEPS) for stride in STRIDES)
    return AnchorGenerator(sizes, (RATIOS,) * len(STRIDES))


class LevelNormRpnHead(nn.Module):
    """Mask R-CNN's region proposals, for torchvision's ``MaskRCNN(rpn_head=...)``.

    One 3x3 convolution is shared by all levels and followed by the level's own BatchNorm.
    """

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
        """Maps of all levels, finest first, to objectness and offsets of each.

        They are (N, anchors, h, w) and (N, 4 * anchors, h, w).
        """
        seen = [self.act(norm(self.conv(x))) for norm, x in zip(self.norms, maps, strict=True)]
        return [self.objectness(x) for x in seen], [self.offsets(x) for x in seen]


class LevelNormTower(nn.Module):
    """3x3 convolutions that all levels share, each followed by the level's own BatchNorm; then the predictor."""

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
        """Maps of all levels, finest first, to (N, A, ``per_anchor``), as torchvision's heads give it."""
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
    """torchvision's classification loss on the tower's logits."""

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
    """torchvision's regression loss on the tower's box offsets."""

    def __init__(self, tower: LevelNormTower) -> None:
        nn.Module.__init__(self)
        self.tower = tower
        self.box_coder = detection_utils.BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
        self._loss_type = "l1"

    def forward(self, x: Sequence[Tensor]) -> Tensor:
        offsets_NA4: Tensor = self.tower(x)
        return offsets_NA4
