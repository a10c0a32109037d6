"""torchvision's detectors on pyramids of ours, from config."""

from typing import Any

from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from wsi_ips.config import DetectorConfig
from wsi_ips.models.detection.heads import LevelNormHead
from wsi_ips.models.detection.pyramid import STRIDES, Pyramid, build_pyramid

RATIOS = (0.5, 1.0, 2.0)
OCTAVE_STEPS = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
CANDIDATES = 4000
"""Best boxes of a level that go into non-maximum suppression."""
LOWEST_SCORE = 0.02
"""What training's own scoring looks at: the threshold is chosen above it."""

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class AsItIs(GeneralizedRCNNTransform):  # type: ignore[misc]
    """Normalises and pads, never resizes: patches have their resolution already.

    Padded to whole multiples of 128 px, where all anchors' strides are exact. torchvision's own ``_skip_resize``
    holds in training only.
    """

    def __init__(self) -> None:
        super().__init__(1, 1, MEAN, STD, size_divisible=STRIDES[-1])

    def resize(self, image: Any, target: Any = None) -> Any:
        return image, target


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
    """Untrained; torchvision's heads, of which box and mask heads pool from P3 to P6. Raises as above."""
    pyramid = build_pyramid(config)
    sizes = tuple((config.anchor_base * stride,) for stride in STRIDES)
    levels = ["0", "1", "2", "3"]
    detector = MaskRCNN(
        pyramid,
        num_classes=len(config.classes) + 1,
        rpn_anchor_generator=AnchorGenerator(sizes, (RATIOS,) * len(STRIDES)),
        box_roi_pool=MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
        mask_roi_pool=MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=2),
        box_score_thresh=config.score_threshold,
        box_nms_thresh=config.overlap_threshold,
        box_detections_per_img=config.most_per_image,
        rpn_post_nms_top_n_test=config.most_per_image,
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
