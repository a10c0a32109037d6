"""The job that asks how far a model's probabilities can be believed."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, field_validator

from wsi_ips.config import Section


class CalibrateJob(Section):
    """Fit temperatures, and thresholds of sets of answers, on a prediction run of slides with known labels."""

    command: Literal["calibrate"] = "calibrate"
    run: Path
    """The folder that ``predict`` wrote, without a calibration."""
    manifest: Path
    out: Path | None = None
    """None: ``calibration.json`` in ``run``."""
    split: Literal["val", "test"] = "val"
    risk: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """How often a set may miss the true answer."""
    by_class: bool = False
    """The risk holds among the slides of every class, not only among all; takes enough slides of each."""
    task: str | None = None
    """Of a model with several tasks, the one to calibrate; none: all but those that tell numbers."""
    seed: NonNegativeInt = 0
    """Where a case has several slides, one is drawn for the sets' thresholds."""

    @field_validator("split", mode="before")
    @classmethod
    def _not_what_was_learned_from(cls, split: object) -> object:
        if isinstance(split, str) and "train" in split.split("+"):
            raise ValueError(
                f"split {split!r} holds slides that the network learned from, of which it is surer than of "
                "others: calibrate on val, or on test slides that nothing else is measured on"
            )
        return split
