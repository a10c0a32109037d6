"""Settings of the data sets of images."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from wsi_ips.config.section import Section


class MegapixelMnistConfig(Section):
    """Megapixel MNIST: what is drawn. The defaults are the paper's."""

    kind: Literal["megapixel_mnist"] = "megapixel_mnist"
    mnist: Path
    """Folder in which torchvision keeps MNIST, as ``MNIST/raw``."""
    download: bool = False
    """Let torchvision download MNIST where it is not there."""
    side_px: Annotated[PositiveInt, Field(ge=140, le=20_000)] = 1500
    train: PositiveInt = 5000
    val: NonNegativeInt = 0
    """Images to choose the epoch by, of training digits that no training image has; the paper has none."""
    test: PositiveInt = 1000
    noise: PositiveInt = 50
    """Line patterns in an image, and how many there are to draw them from."""
    small_scale: Annotated[float, Field(gt=0, le=1)] | None = None
    """Attention sampling's variant: noise is painted over the digits, and every image has a small view of so many
    times its side, for the attention network (the paper's: 0.12); none: IPS's."""
    seed: NonNegativeInt = 0


class TrafficSignsConfig(Section):
    """The Swedish traffic signs (STS): where they are. The defaults are the paper's."""

    kind: Literal["traffic_signs"] = "traffic_signs"
    root: Path
    """Folder that holds ``Set1`` and ``Set2``, each with ``annotations.txt`` and the images of its archive."""
    verify: bool = True
    """Refuse annotations that are not the published ones (MD5)."""
    height_px: PositiveInt = 1200
    width_px: PositiveInt = 1600
    """What images are resized to."""
    augment: bool = True
    """Jitter colours and shift training images, drawn anew for every epoch."""
    small_scale: Annotated[float, Field(gt=0, le=1)] | None = None
    """Attention sampling's variant: colours in the order blue, green, red, brightness changed instead of
    jitter, and a small view of so many times the sides for the attention network (the paper's: 0.3); none:
    IPS's."""
    val_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Part of the training images to choose the epoch by; the paper has none."""


ImageDataConfig = Annotated[MegapixelMnistConfig | TrafficSignsConfig, Field(discriminator="kind")]
