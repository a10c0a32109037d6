"""What a comparison of aggregators and selectors may be told."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from wsi_ips.config import FinetuneConfig
from wsi_ips.evaluation.run.config import MOST_RESAMPLES

SECTIONS = ("tiling", "selection", "model", "streaming", "training")
"""What an entry may change."""
MOST_ENTRIES = 100
MOST_SEEDS = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,59}")


class CompareConfig(FinetuneConfig):
    """Settings that all entries share, as those of a training, and what is compared."""

    manifest: Path
    slides_root: Path | None = None
    """Folder that the manifest's paths are below; none: the manifest's own."""
    features: Path | None = None
    """Folder of stored features (CLAM's, TRIDENT's or STAMP's), to read instead of the slides."""
    out: Path
    entries: Annotated[dict[str, dict[str, Any]], Field(min_length=1, max_length=MOST_ENTRIES)]
    """``{name: {setting: value}}``, a setting as ``--set`` has it: ``{model.aggregator: abmil}``. The others are
    compared with the first entry."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1, max_length=MOST_SEEDS)] = (0, 1, 2)
    """Each entry is trained once for each of them, as ``training.seed``."""
    split: Literal["val", "test"] = "test"
    """The slides that are predicted and scored. ``val`` flatters: the epoch is chosen on it."""
    pool: Literal["max", "mean", "noisy_or"] = "max"
    """How the slides' probabilities make a patient's."""
    bootstrap: Annotated[NonNegativeInt, Field(le=MOST_RESAMPLES)] = 2000
    """Resamples of cases and seeds, for the intervals; 0: none."""
    stratify: bool = True
    """Each resample has as many cases of a class as the split; of survival, as many events."""
    isolate: bool = True
    """Train and predict each entry and seed in a process of its own, so that its peak memory can be told. False:
    all in one process, which begins faster and cannot tell."""
    plots: bool | None = None
    """None: where matplotlib is installed."""
    device: str = "auto"
    restart: bool = False
    """Train everything anew, whatever ``out`` holds."""

    @field_validator("entries", mode="before")
    @classmethod
    def _an_entry_may_change_nothing(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: {} if settings is None else settings for name, settings in value.items()}

    @model_validator(mode="after")
    def _entries_can_be(self) -> Self:
        if self.bag == "case":
            raise ValueError("bag: case cannot be compared yet: use finetune and predict for each entry")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one occurs twice")
        if len({name.lower() for name in self.entries}) < len(self.entries):
            raise ValueError("entries: two names are the same but for their case, and name the same folder")
        for name, settings in self.entries.items():
            if not _NAME.fullmatch(name) or name.endswith((" ", ".")):
                raise ValueError(
                    f"entries: {name!r} also names a folder: take letters, digits, blanks and ._+- only"
                )
            for key in settings:
                if key.partition(".")[0] not in SECTIONS:
                    raise ValueError(
                        f"entries: {name}: {key!r} is no setting of an entry; they begin with "
                        f"{', '.join(f'{section}.' for section in SECTIONS)}"
                    )
                if key.startswith(("model.tasks", "training.seed")) or key in ("model", "training"):
                    raise ValueError(
                        f"entries: {name}: {key} is the same for all entries: set it beside entries"
                        + (", as seeds" if key == "training.seed" else "")
                    )
        return self
