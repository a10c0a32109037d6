"""torchvision's detectors on pyramids of ours, from config."""

from typing import Any

from torch import nn
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from wsi_ips.config import DetectorConfig
from wsi_ips.models.detection.heads import LevelNormHead, LevelNormRpnHead
from wsi_ips.models.detection.pyramid import STRIDES, Pyramid, build_pyramid

RATIOS = (0.5, 1.0, 2.0)
OCTAVE_STEPS = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
CANDIDATES = 4000
"""Best boxes of a level that go into non-maximum suppression."""
BOX_PX = 7
"""Side of the features of a region, from which its box is told."""
LOWEST_SCORE = 0.02
"""What training's own scoring looks at: the threshold is chosen above it."""

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class AsItIs(GeneralizedRCNNTransform):  # type: ignore[misc]
    """Normalises and pads, never resizes: patches have their resolution already.

    Padded to whole multiples of 128 px, where all anchors' strides are exact. torchvision's own ``_skip_resize``
    holds in training only. Masks stay as the network makes them, each over its own box (``box_masks``, (N, 1, 28,
    28) in 0..1): pasted into the image, as torchvision does, a thousand of them take gigabytes.
    """

    def __init__(self) -> None:
        super().__init__(1, 1, MEAN, STD, size_divisible=STRIDES[-1])

    def resize(self, image: Any, target: Any = None) -> Any:
        return image, target

    def postprocess(self, result: Any, image_shapes: Any, original_image_sizes: Any) -> Any:
        for found in result if not self.training else ():
            if "masks" in found:
                found["box_masks"] = found.pop("masks")
        return result


def build_detector(config: DetectorConfig) -> nn.Module:
    """The model that ``config`` names, untrained. Raises :class:`ConfigError`."""
    detector: nn.Module = build_mask_rcnn(config) if config.model == "mask_rcnn" else build_retinanet(config)
    return detector


def set_score_threshold(detector: nn.Module, threshold: float) -> None:
    """From which score on an object comes out. torchvision's models keep it in two places."""
    detector.get_submodule("roi_heads" if isinstance(detector, MaskRCNN) else "").score_thresh = threshold  # type: ignore[assignment]


def build_retinanet(config: DetectorConfig, pyramid: Pyramid | None = None) -> RetinaNet:
    """Untrained. Class 0 is background, ``config.classes`` are 1, 2, …; takes a list of (3, h, w) in 0..1.

    In eval mode boxes of at least ``config.score_threshold`` come out. pyramid: in place of the config's
    backbone. Raises :class:`ConfigError`.
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
    """Untrained. Region proposals have a BatchNorm for each level; box head (convolutions, then one layer over all
    of them) and mask head pool from P3 to P6, and normalise what they pooled together. Raises as above.

    In eval mode ``box_masks`` come out beside the boxes, see :class:`AsItIs`.
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


def retina_head(config: DetectorConfig, *, n_in: int, classes: int) -> LevelNormHead:
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
    """Nine a place: three scales of an octave, three ratios."""
    sizes = tuple(tuple(config.anchor_base * stride * step for step in OCTAVE_STEPS) for stride in STRIDES)
    return AnchorGenerator(sizes, (RATIOS,) * len(STRIDES))
