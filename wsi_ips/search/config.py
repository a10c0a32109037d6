"""Settings of a search for scale-permuted networks: the space, the proxy task, the strategies."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from wsi_ips.config.section import Fraction, Section

Level = Annotated[int, Field(ge=2, le=7)]
"""A level of a feature pyramid: its stride is 2 to this power."""
StrategyName = Literal["random", "evolution", "controller"]
"""Names of the strategies."""


class SearchSpaceConfig(Section):
    """What can be chosen (Du et al. 2020, section 3.4). The default is R0-SP53's blocks, adjusted."""

    stem: Annotated[tuple[Level, ...], Field(min_length=2, max_length=50)] = (2, 2)
    """Levels of the fixed blocks that come first."""
    intermediate: dict[Level, Annotated[NonNegativeInt, Field(le=50)]] = Field(
        default_factory=lambda: {2: 1, 3: 3, 4: 5, 5: 1}
    )
    """Number of permuted blocks of each level, beside the outputs."""
    outputs: Annotated[tuple[Level, ...], Field(min_length=1)] = (3, 4, 5, 6, 7)
    window: Annotated[int, Field(ge=2)] | None = 5
    """Intermediate blocks choose two parents among the last so many blocks; None, and outputs: among all blocks
    before.
    """
    adjust_levels: bool = True
    """Whether an intermediate block may be moved by -1, 0, 1 or 2 levels (within 2 to 7)."""
    adjust_kinds: bool = True
    """Whether each block may be a bottleneck or a residual block; otherwise all are bottlenecks."""

    @model_validator(mode="after")
    def _can_be_decoded(self) -> Self:
        steps = [here - before for before, here in zip((2, *self.stem), self.stem, strict=False)]
        if steps[0] or any(step not in (0, 1) for step in steps):
            raise ValueError(f"no network has the stem {list(self.stem)}: it starts at 2 and rises by 0 or 1")
        if len(set(self.outputs)) != len(self.outputs):
            raise ValueError(f"no network has the outputs {list(self.outputs)}: name each level once")
        return self


class ProxyConfig(Section):
    """What a candidate is trained on, and how small it is made for that."""

    data: Literal["textures", "nuclei"]
    """``textures``: classify pictures (score: mean log-likelihood of held-back ones).

    ``nuclei``: find outlined nuclei (score: F1 at an IoU of 0.5, at the best threshold, in held-back images).
    """
    folder: Path
    """Folder of textures with ``manifest.csv`` (``path,class,source_group``), or of nuclei as PNG and Aperio
    XML.
    """
    classes: Annotated[tuple[str, ...], Field(min_length=2)] = ("adenocarcinoma", "benign", "squamous")
    """Classes of textures."""
    held_back: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the textures' sources, or of the images, that candidates are scored on."""
    side_px: Annotated[PositiveInt, Field(ge=32, le=2048)] = 64
    """Textures are shrunk to this side; of images of nuclei, crops of this side are the training data."""
    grey: bool = False
    """Remove the colours of textures, which by themselves reveal much of what they show."""
    steps: PositiveInt = 60
    batch: Annotated[int, Field(ge=2)] = 32
    """Pictures, or crops, per step."""
    lr: PositiveFloat = 3e-3
    width: PositiveFloat = 0.25
    alpha: PositiveFloat = 0.25
    endpoint_channels: PositiveInt = 64
    head_channels: PositiveInt = 64
    """Channels of the detector's heads."""
    head_convs: NonNegativeInt = 4
    anchor_base: PositiveFloat = 2.0
    seed: NonNegativeInt = 0
    """Seed of every candidate's weights and batches: two candidates with the same blocks have the same score."""
    threads: PositiveInt = 1
    """Threads on a CPU; the last digits of a score depend on it."""

    @model_validator(mode="after")
    def _crops_fit_the_strides(self) -> Self:
        if self.data == "nuclei" and self.side_px % 128:
            raise ValueError(f"side_px {self.side_px}: crops of nuclei are multiples of 128 px")
        return self


class EvolutionConfig(Section):
    """Regularised evolution (Real et al. 2019, algorithm 1)."""

    population: Annotated[int, Field(ge=2)] = 20
    """P; the oldest member makes room for the newest."""
    sample: PositiveInt = 6
    """S, the number drawn (with replacement) from the population; the best of them is mutated."""


class ControllerConfig(Section):
    """The recurrent network that draws candidates, and how rewards train it (Zoph et al. 2018)."""

    hidden: PositiveInt = 64
    lr: PositiveFloat = 5e-3
    batch: PositiveInt = 5
    """Candidates between two updates."""
    baseline_decay: Fraction = 0.9
    """Decay of the moving mean and deviation against which a score is measured."""
    entropy: NonNegativeFloat = 1e-3
    """Weight of the decisions' mean entropy beside the reward: how much the controller keeps on exploring."""


class SearchConfig(Section):
    """A search. Every strategy has the same budget."""

    space: SearchSpaceConfig = SearchSpaceConfig()
    proxy: ProxyConfig
    strategies: Annotated[tuple[StrategyName, ...], Field(min_length=1)] = ("evolution",)
    candidates: Annotated[PositiveInt, Field(le=100_000)] = 100
    """Candidates of each strategy."""
    evolution: EvolutionConfig = EvolutionConfig()
    controller: ControllerConfig = ControllerConfig()
    seed: NonNegativeInt = 0
    """Seed of the strategies."""
    timeout_s: PositiveFloat = 3600
    """Seconds after which a candidate has failed."""

    @model_validator(mode="after")
    def _outputs_are_the_detector_s(self) -> Self:
        outputs = sorted(self.space.outputs)
        if self.proxy.data == "nuclei" and outputs != [3, 4, 5, 6, 7]:
            raise ValueError(f"a detector of nuclei has outputs 3 to 7, not {', '.join(map(str, outputs))}")
        return self

    @model_validator(mode="after")
    def _strategies_once(self) -> Self:
        if len(set(self.strategies)) != len(self.strategies):
            raise ValueError("strategies: name each one once")
        return self
