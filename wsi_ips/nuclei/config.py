"""Settings of detectors of nuclei: their architecture (:class:`DetectorConfig`) and their training."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from wsi_ips.config.section import Fraction, Section
from wsi_ips.config.specification import NamedSpecification


class DetectorConfig(Section):
    """A RetinaNet or Mask R-CNN on a timm backbone.

    SpineNet has outputs of its own; any other backbone gets a feature pyramid.
    """

    model: Literal["retinanet", "mask_rcnn"] = "retinanet"
    """``retinanet`` finds boxes; ``mask_rcnn`` finds outlines as well, and takes longer."""
    backbone: str = "spinenet49s"
    """A timm model with features of strides 8, 16 and 32.

    With ``specification``, the SpineNet whose size is meant.
    """
    specification: NamedSpecification | None = None
    """A table of blocks, or the file with it, which replaces that SpineNet's own."""
    act_layer: Literal["relu", "swish"] = "relu"
    """Activation of SpineNets and of the heads; other backbones have their own."""
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=1000)] = ("nucleus",)
    pyramid_channels: Annotated[PositiveInt, Field(le=4096)] = 256
    """Channels of the feature pyramid; SpineNet needs none."""
    head_channels: Annotated[PositiveInt, Field(le=4096)] = 256
    """Channels of RetinaNet's or Mask R-CNN's heads; Mask R-CNN's box head ends in four times as many."""
    head_convs: Annotated[NonNegativeInt, Field(le=16)] = 4
    """Convolutions of each head."""
    anchor_base: PositiveFloat = 3.0
    """Side of the smallest anchor of a level, in strides of the level; two more are a third of an octave apart
    each.
    """
    score_threshold: Fraction = 0.5
    """Score of a detection, at least."""
    overlap_threshold: Fraction = 0.4
    """Of two boxes of a class that overlap by more than this (IoU), the one with the lower score is dropped."""
    most_per_image: Annotated[PositiveInt, Field(le=100_000)] = 2000
    """The most detections in one image."""
    mpp: PositiveFloat = 0.25
    """µm per pixel of the training data."""


class DetectorTrainingConfig(Section):
    """How a detector is trained on outlined images."""

    steps: PositiveInt = 400
    crops_per_step: Annotated[int, Field(ge=2)] = 4
    """Crops per step. BatchNorm of the coarsest level has one value per crop, so it needs two."""
    crop_px: Annotated[PositiveInt, Field(multiple_of=128)] = 256
    lr: PositiveFloat = 1e-3
    warmup_share: Fraction = 0.1
    """Share of the steps in which the learning rate rises; afterwards it falls to zero as a cosine."""
    weight_decay: NonNegativeFloat = 1e-4
    gradient_clip: PositiveFloat = 10.0
    colour_jitter: Fraction = 0.15
    """Each channel is multiplied by a factor that differs from 1 by up to this."""
    seed: NonNegativeInt = 0
