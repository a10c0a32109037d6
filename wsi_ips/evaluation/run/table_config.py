"""What the table of a public data set may be told: :class:`TableConfig`."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from wsi_ips.config import FinetuneConfig, Section
from wsi_ips.evaluation.run.compare_config import MOST_SEEDS, SECTIONS
from wsi_ips.evaluation.run.config import MOST_RESAMPLES

MOST_ROWS = 50
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,59}")


class RowConfig(Section):
    """A row: one way to train."""

    settings: dict[str, Any] = Field(default={})
    """What it changes, as ``--set`` has it: ``{model.aggregator: abmil}``."""
    frozen: bool = False
    """The encoder does not learn: its features are stored once and learned from. Rows with the same encoder and
    tiling share them."""

    @model_validator(mode="after")
    def _settings_are_of_a_training(self) -> Self:
        for key in self.settings:
            if key.partition(".")[0] not in SECTIONS:
                raise ValueError(
                    f"settings: {key!r} is no setting of a row; they begin with "
                    f"{', '.join(f'{section}.' for section in SECTIONS)}"
                )
            if key.startswith(("model.tasks", "training.seed")) or key in ("model", "training"):
                raise ValueError(f"settings: {key} is the same for all rows: set it beside rows, or as seeds")
        return self


class TableConfig(FinetuneConfig):
    """Settings that all rows share, as those of a training, and which rows and seeds there are."""

    data_set: Literal["camelyon16", "camelyon17", "camelyon_plus", "panda", "tcga_brca"]
    data: Path
    """The downloaded folder, or the one above it."""
    labels: Path | None = None
    """The table of labels, where it is not in the folder under its own name."""
    splits: Path | None = None
    """Folder of train.csv, val.csv and test.csv, where no split is official (PANDA, TCGA)."""
    out: Path
    rows: Annotated[dict[str, RowConfig], Field(min_length=1, max_length=MOST_ROWS)]
    """``{name: row}``."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1, max_length=MOST_SEEDS)] = (0, 1, 2, 3, 4)
    """Each row is trained once for each of them, as ``training.seed``."""
    held_out: Literal["test", "val"] = "test"
    """The split of the data set that is scored. ``val``, where test labels are not public (CAMELYON17): it is
    scored as the test, and ``inner_val`` of the training cases chooses the epoch instead."""
    inner_val: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training cases that chooses the epoch where ``held_out`` is ``val``."""
    figures: Annotated[tuple[str, ...], Field(min_length=1, max_length=10)] = ("auc",)
    """The figures of the table, of the first task: names of ``metrics.json``, and ``froc`` and ``pn_kappa``. All
    others are in ``table.csv``."""
    froc: bool = False
    """Score lesions by the outlines of the data set."""
    bootstrap: Annotated[NonNegativeInt, Field(le=MOST_RESAMPLES)] = 2000
    """Resamples of cases, for the intervals of each job's own evaluation; 0: none."""
    isolate: bool = True
    """A process for each job, so that its peak memory can be told and its death stops nothing else."""
    device: str = "auto"

    @model_validator(mode="after")
    def _rows_can_be_folders(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one occurs twice")
        if len({name.lower() for name in self.rows}) < len(self.rows):
            raise ValueError("rows: two names are the same but for their case, and name the same folder")
        for name in self.rows:
            if not _NAME.fullmatch(name) or name.endswith((" ", ".")):
                raise ValueError(
                    f"rows: {name!r} also names a folder: take letters, digits, blanks and ._+- only"
                )
        return self
