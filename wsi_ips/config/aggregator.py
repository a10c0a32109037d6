"""The settings of what reads the patches of a bag, and of what keeps its attention from collapsing."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field, PositiveInt, model_validator

from wsi_ips.config.section import Fraction, Section

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""How much a part of the loss counts."""


class AggregatorConfig(Section):
    """An aggregator by its name, with its settings beside it; ``aggregator: abmil`` alone is the name.

    ``docs/aggregators.md`` lists the aggregators and their settings. The settings are checked when the network
    is built, because another package may add aggregators that a configuration does not know.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that are given beside the name."""
        return dict(self.model_extra or {})

    @model_validator(mode="before")
    @classmethod
    def _a_name_alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, dict | AggregatorConfig):
            raise ValueError("write a name, such as abmil, or {name: abmil, hidden: 128}")
        return value


class AgainstCollapseConfig(Section):
    """Keeps attention from settling on a few patches early, for any aggregator with a softmax over patches."""

    entropy: Weight = 0.0
    """Weight of the negative entropy of the attention in the loss (AEM; its authors take 0.1). 0: none."""
    entropy_by_size: bool = False
    """Divide the entropy by the logarithm of the number of patches, so that one weight suits bags of any size."""
    hide_share: Fraction = 0.0
    """Share of the highest-scored patches that are hidden at random in each training step (STKIM; its authors
    take 0.6). 0: none.
    """
    hide_top: PositiveInt = 10
    """How many of the highest-scored patches these are drawn from."""
    anchor: Weight = 0.0
    """Weight of the cross entropy between the attention and that of a slowly moving copy (ASMIL); 0: none."""
    anchor_momentum: Fraction = 0.999
    """How much of the copy is kept in each step."""
    anchor_temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """The attention logits of the copy are divided by it."""

    @property
    def is_on(self) -> bool:
        """Whether anything is switched on."""
        return self.entropy > 0 or self.hide_share > 0 or self.anchor > 0
