"""The settings of a survival task: which columns it learns from, for which times it predicts, and its loss."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, PositiveFloat, model_validator

from wsi_ips.config.section import Fraction, Section

RISK, SURVIVAL_AT = "risk", "survival_"
"""The name of the first output of a survival task, and what the names of the others begin with."""
FEWEST_PER_STEP = 16
"""Slides that a step needs for its own risk set to be worth learning from (SURVIVAL.md section 2)."""


class SurvivalConfig(Section):
    """The settings of a task with ``kind: survival``.

    Every patient has a time and an event: 1 if the event happened at that time, 0 if the patient was last seen
    then without it. All slides of a patient have the same.
    """

    time: str
    """The column of the manifest with follow-up times, numbers above 0."""
    event: str
    """The column of the manifest with events, 1 or 0. Not with censorings, which are the opposite: a column
    whose name begins with ``censor`` is refused.
    """
    unit: Literal["days", "weeks", "months", "years"] = "months"
    """The unit of the times, for axes and tables. Nothing is converted."""
    at: Annotated[tuple[PositiveFloat, ...], Field(min_length=1, max_length=1000)]
    """Times, rising, for which the probability of survival is predicted and judged. None may be beyond the
    longest follow-up of the training patients.
    """
    loss: Literal["cox", "hazards"] = "cox"
    """``cox``: the partial likelihood of who has the event before whom, with one risk per slide. ``hazards``:
    the likelihood of a hazard in each of ``bins`` spans of time, for each slide by itself.
    """
    ties: Literal["efron", "breslow"] = "efron"
    """How events of equal time share their risk set (``cox``)."""
    risk_set: Literal["epoch", "step"] = "epoch"
    """Which slides a slide of a step is compared with (``cox``). ``epoch``: all training slides, those outside
    the step with the risks that were last computed for them, at most an epoch ago; any
    ``training.slides_per_step`` will do. ``step``: only the slides of the step, which must be 16 or more. With
    several ``training.devices``, the slides of a step on one device are compared with those on the others as
    they were before the step, or not at all.
    """
    bins: Annotated[int, Field(ge=2, le=100)] = 4
    """Spans of time (``hazards``), cut at quantiles of the event times of the training patients. There are fewer
    if these are equal.
    """
    alpha: Fraction = 0.0
    """How much less censored slides weigh (``hazards``); 0 is the likelihood."""
    edges: tuple[FiniteFloat, ...] | None = None
    """Edges of the spans of time (``hazards``). None: ``bins`` of them are found in the times of the training
    patients, and the checkpoint keeps them here.
    """
    baseline: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """Cumulative hazard of a patient with risk 0 at each time of ``at`` (``cox``). Leave it out in a recipe: at
    its end, fine-tuning estimates it from the training patients, and the checkpoint keeps it here.
    """

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        if self.event.strip().lower().startswith("censor"):
            raise ValueError(
                f"event: {self.event} says who was censored, which is the opposite of an event: add a column with "
                "1 where the event happened, and name that"
            )
        if self.time == self.event:
            raise ValueError(f"time and event are two columns, not both {self.time}")
        return self

    @model_validator(mode="after")
    def _times_rise(self) -> Self:
        if any(later <= earlier for earlier, later in pairwise(self.at)):
            raise ValueError(f"at must rise, not {', '.join(f'{time:g}' for time in self.at)}")
        if len(set(self.outputs)) != len(self.outputs):
            raise ValueError("two times of at are the same in six digits: leave one of them out")
        edges = self.edges
        if edges is not None and (len(edges) < 3 or any(b <= a for a, b in pairwise(edges))):
            raise ValueError("edges must be three or more, and rise")
        if self.baseline is not None and len(self.baseline) != len(self.at):
            raise ValueError(f"baseline has {len(self.baseline)} numbers for {len(self.at)} times")
        return self

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs: ``risk``, then ``survival_<time>`` for each time."""
        return (RISK, *(f"{SURVIVAL_AT}{time:g}" for time in self.at))


def are_of_survival(outputs: Sequence[str]) -> bool:
    """Whether these names are the outputs of a survival task, and not classes of which one is the likeliest."""
    first, *others = outputs
    return first == RISK and bool(others) and all(name.startswith(SURVIVAL_AT) for name in others)
