"""Settings of the slides that are drawn, and of the demo."""

from typing import Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from wsi_ips.config.pipeline import FinetuneConfig
from wsi_ips.config.section import Section


class SyntheticConfig(Section):
    """The small CAMELYON-style data set that the demo draws."""

    train: PositiveInt = 28
    val: PositiveInt = 8
    test: PositiveInt = 16
    """Slides per split, half of them with lesions."""
    side_px: PositiveInt = 4096
    """Approximate level-0 side of a slide; sizes vary so that nothing divides evenly."""
    mpp: PositiveFloat = 0.5
    seed: int = 0


class DemoConfig(FinetuneConfig):
    """Settings of ``demo``: draw slides, fine-tune on them, predict, score."""

    data: SyntheticConfig = SyntheticConfig()

    @model_validator(mode="after")
    def _slides_are_bags(self) -> Self:
        if self.bag == "case":
            raise ValueError("bag: case: the demo's patients have slides of both labels; leave bag at slide")
        return self
