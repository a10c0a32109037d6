"""What a task of survival learns from, and what it says: columns, times, and the form of its loss."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, PositiveFloat, model_validator

from wsi_ips.config.section import Fraction, Section

FEWEST_PER_STEP = 16
"""Slides of a step whose own risk sets are worth learning from (SURVIVAL.md section 2)."""


class SurvivalConfig(Section):
    """Of a task with ``kind: survival``. Every patient has a time and an event: 1 where the event happened at that
    time, 0 where the patient was last seen then without it. All slides of a patient have the same."""

    time: str
    """The manifest's column of follow-up times, numbers above 0."""
    event: str
    """The manifest's column of events, 1 or 0. Not of censorings, which are the opposite: a column whose name
    begins with ``censor`` is refused."""
    unit: Literal["days", "weeks", "months", "years"] = "months"
    """What times are counted in, for axes and tables. Nothing is converted."""
    at: Annotated[tuple[PositiveFloat, ...], Field(min_length=1, max_length=1000)]
    """Times, rising, at which the probability of survival is predicted and judged. None may lie beyond the
    longest follow-up of the training patients."""
    loss: Literal["cox", "hazards"] = "cox"
    """``cox``: the partial likelihood of who has the event before whom; one risk a slide. ``hazards``: the
    likelihood of a hazard in each of ``bins`` spans of time, of each slide by itself."""
    ties: Literal["efron", "breslow"] = "efron"
    """How events of equal time share their risk set (``cox``)."""
    risk_set: Literal["epoch", "step"] = "epoch"
    """Whom a slide of a step is compared with (``cox``). ``epoch``: all training slides, those outside the step
    with the risks that they were last seen with, at most an epoch ago; any ``training.slides_per_step`` will do.
    ``step``: the slides of the step alone, which must be 16 or more. With several ``training.devices`` a step's
    slides on one device are compared with those on the others as they were before the step, or not at all."""
    bins: Annotated[int, Field(ge=2, le=100)] = 4
    """Spans of time (``hazards``), cut at quantiles of the training patients' event times; fewer where those
    are equal."""
    alpha: Fraction = 0.0
    """How much less censored slides weigh (``hazards``); 0 is the likelihood."""
    edges: tuple[FiniteFloat, ...] | None = None
    """Edges of the spans of time (``hazards``); none: ``bins`` of them are found in the training patients' times,
    and the checkpoint has them here."""
    baseline: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """Cumulative hazard of a patient of risk 0 at each time of ``at`` (``cox``). Left out in a recipe: fine-tuning
    estimates it from the training patients when it is done, and the checkpoint has it here."""

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
            raise ValueError("two times of at read alike in six digits: leave one of them out")
        edges = self.edges
        if edges is not None and (len(edges) < 3 or any(b <= a for a, b in pairwise(edges))):
            raise ValueError("edges must be three or more, and rise")
        if self.baseline is not None and len(self.baseline) != len(self.at):
            raise ValueError(f"baseline has {len(self.baseline)} numbers for {len(self.at)} times")
        return self

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what is said of a slide: ``risk``, then ``survival_<time>`` for each time."""
        return ("risk", *(f"survival_{time:g}" for time in self.at))
