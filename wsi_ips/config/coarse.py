"""Looking at the whole of a slide from afar, to read only some of it closely."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from wsi_ips.config.section import Fraction, Section


class SamplingConfig(Section):
    """Attention sampling (Katharopoulos and Fleuret 2019)."""

    samples: PositiveInt = 10
    """N, positions drawn; of a slide with fewer patches, all of them."""
    replacement: bool = False
    gradient: Literal["unbiased", "reference"] = "unbiased"
    """Of the attention, without replacement. ``reference``: as published, which is too short from two samples
    on."""
    entropy: NonNegativeFloat = 1e-4
    """Strength of the regulariser that keeps the attention from collapsing."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 1e-5
    """Share of the attention that is spread evenly, so that no position is out of reach."""


class CoarseConfig(Section):
    """What looks from afar, at which resolution, and what of the tissue it lets through."""

    scorer: Literal["conv", "encoder", "megapixel_mnist", "speed_limits"] = "conv"
    """``conv``: a small network of its own, a window a patch. ``encoder`` (cascade only): the patches' own
    encoder, shared, on patches of ``mpp``, each of which speaks for all fine ones below it. ``megapixel_mnist``,
    ``speed_limits`` (images only): the published attention networks."""
    mpp: PositiveFloat = 4.0
    """Resolution of what is seen, in µm per pixel; no finer than ``tiling.patch_mpp``. Of images: pixels."""
    context_px: NonNegativeInt = 0
    """``conv``: pixels of the surroundings that a window shows on each side of its patch."""
    channels: tuple[PositiveInt, ...] = (16, 32, 64)
    """``conv``: widths of its layers; each but the first sees half as many pixels a side."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Cascade: the share of the tissue's patches that is let through (rho)."""
    recall: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Cascade: instead, the smallest share that lets through so much of the full pass's attention, measured on the
    validation split after training. none: ``share``."""
    explore: Fraction = 0.25
    """Cascade, in training: part of the share that is drawn at random, so that what the scorer misses can be
    learned."""
    full_epochs: NonNegativeInt = 1
    """Cascade: epochs in which everything is let through, while the scorer learns what is looked for."""
