"""Settings of the data sets of images."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from wsi_ips.config.section import Section


class MegapixelMnistConfig(Section):
    """Megapixel MNIST: what is drawn. The defaults are the paper's."""

    kind: Literal["megapixel_mnist"] = "megapixel_mnist"
    mnist: Path
    """Folder in which torchvision keeps MNIST, in ``MNIST/raw``."""
    download: bool = False
    """Let torchvision download MNIST if it is missing."""
    side_px: Annotated[PositiveInt, Field(ge=140, le=20_000)] = 1500
    train: PositiveInt = 5000
    val: NonNegativeInt = 0
    """Images on which the epoch is chosen, made of training digits that no training image has; the paper has
    none.
    """
    test: PositiveInt = 1000
    noise: PositiveInt = 50
    """Line patterns in an image, and the number of different ones to draw them from."""
    small_scale: Annotated[float, Field(gt=0, le=1)] | None = None
    """Side of the small view that the attention network sees, as a share of the image's; None: no such view.

    With a value (the paper's is 0.12) this is attention sampling's variant, in which noise is painted over the
    digits; without, it is IPS's.
    """
    seed: NonNegativeInt = 0


class TrafficSignsConfig(Section):
    """The Swedish traffic signs (STS). The defaults are the paper's."""

    kind: Literal["traffic_signs"] = "traffic_signs"
    root: Path
    """Folder with ``Set1`` and ``Set2``, each with ``annotations.txt`` and the images of its archive."""
    verify: bool = True
    """Refuse annotations that are not the published ones (MD5)."""
    height_px: PositiveInt = 1200
    """Height to which images are resized."""
    width_px: PositiveInt = 1600
    """Width to which images are resized."""
    augment: bool = True
    """Change colours and shift training images at random, anew in every epoch."""
    small_scale: Annotated[float, Field(gt=0, le=1)] | None = None
    """Sides of the small view that the attention network sees, as a share of the image's; None: no such view.

    With a value (the paper's is 0.3) this is attention sampling's variant, with colours in the order blue, green,
    red and brightness changed instead of colour jitter; without, it is IPS's.
    """
    val_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training images on which the epoch is chosen; the paper has none."""


ImageDataConfig = Annotated[MegapixelMnistConfig | TrafficSignsConfig, Field(discriminator="kind")]
"""Settings of any data set of images."""
