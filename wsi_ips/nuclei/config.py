"""Detectors of nuclei: their shape, and how they learn."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from wsi_ips.config.model import NamedSpecification
from wsi_ips.config.section import Fraction, Section


class DetectorConfig(Section):
    """A RetinaNet or Mask R-CNN on a timm backbone: SpineNet's own outputs, or a feature pyramid over any
    other's."""

    model: Literal["retinanet", "mask_rcnn"] = "retinanet"
    """retinanet finds boxes; mask_rcnn outlines as well, and takes longer."""
    backbone: str = "spinenet49s"
    """A timm model with features of strides 8, 16 and 32; with ``specification``, a SpineNet of the size meant."""
    specification: NamedSpecification | None = None
    """A table of blocks, or the file with it, in place of that SpineNet's own."""
    act_layer: Literal["relu", "swish"] = "relu"
    """Of SpineNets and of the heads; other backbones have their own."""
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=1000)] = ("nucleus",)
    pyramid_channels: Annotated[PositiveInt, Field(le=4096)] = 256
    """Of the feature pyramid; SpineNet needs none."""
    head_channels: Annotated[PositiveInt, Field(le=4096)] = 256
    """Of RetinaNet's heads, or of Mask R-CNN's, whose box head ends in four times as many."""
    head_convs: Annotated[NonNegativeInt, Field(le=16)] = 4
    anchor_base: PositiveFloat = 3.0
    """Side of the smallest anchor of a level, in strides of the level; two more lie a third of an octave apart."""
    score_threshold: Fraction = 0.5
    """What is detected has at least this score."""
    overlap_threshold: Fraction = 0.4
    """Of two boxes of a class that overlap by more than this (IoU), the one with the lower score goes."""
    most_per_image: Annotated[PositiveInt, Field(le=100_000)] = 2000
    mpp: PositiveFloat = 0.25
    """µm per pixel of what it was trained on."""


class DetectorTrainingConfig(Section):
    """How a detector learns from outlined images."""

    steps: PositiveInt = 400
    crops_per_step: Annotated[int, Field(ge=2)] = 4
    """BatchNorm of the coarsest level has a value a crop: it needs two."""
    crop_px: Annotated[PositiveInt, Field(multiple_of=128)] = 256
    lr: PositiveFloat = 1e-3
    warmup_share: Fraction = 0.1
    """Of the steps; then the rate falls to zero as a cosine."""
    weight_decay: NonNegativeFloat = 1e-4
    gradient_clip: PositiveFloat = 10.0
    colour_jitter: Fraction = 0.15
    """Each channel is multiplied by 1 plus or minus up to this."""
    seed: NonNegativeInt = 0
