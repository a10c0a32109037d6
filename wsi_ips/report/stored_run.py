"""What a prediction run left behind, put together: its slides with status and answers, its settings.

A run that is still going on, or was killed, can be reported too: the tables in its folder are always whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wsi_ips.config import TaskConfig
from wsi_ips.errors import ResultsError, one_line
from wsi_ips.held_folder import read_description
from wsi_ips.inference.predictions import PredictionRow, read_predictions
from wsi_ips.inference.results import Probabilities
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.slide_table import SlideRow, read_slide_table
from wsi_ips.inference.telemetry import SlideTelemetry
from wsi_ips.location import is_file_name

SlideStatus = Literal["ok", "failed", "unfinished"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSlide:
    """One slide of a run. number: its place in the run, from 1. path: where predict read it; empty where that is
    not known. unfinished: the run ended, or is still going on. error: of a slide that is ok, what else failed.
    telemetry: None where its time was not written down."""

    number: int
    slide_id: str
    status: SlideStatus
    path: str = ""
    probabilities: Probabilities | None = None
    n_patches: int | None = None
    error: str = ""
    telemetry: SlideTelemetry | None = None


@dataclass(frozen=True, slots=True)
class StoredRun:
    """tasks: the model's. slides: in the run's order. description: ``run.json``. notes: what is not as it should
    be, in words."""

    folder: RunFolder
    tasks: Sequence[TaskConfig]
    slides: Sequence[StoredSlide]
    description: Mapping[str, Any]
    notes: Sequence[str] = ()

    @property
    def of_features(self) -> bool:
        """Whether stored features were labelled, not slides."""
        config = self.description.get("config")
        return isinstance(config, dict) and bool(config.get("features"))


def read_run(folder: RunFolder, tasks: Sequence[TaskConfig]) -> StoredRun:
    """Read a run's tables and its description.

    A ``slides.csv`` that cannot be read costs the times only. Raises :class:`ResultsError` for predictions or a
    description that cannot be read, and for a run without a slide.
    """
    predicted = {row.slide_id: row for row in read_predictions(folder.predictions, tasks=tasks)}
    notes = []
    begun: Mapping[str, SlideRow] = {}
    try:
        if folder.slides.is_file():
            begun = read_slide_table(folder.slides)
        else:
            notes.append("The run has no slides.csv: where its time went is not known.")
    except ResultsError as error:
        notes.append(f"Where the time went is not known: {error}")
    slide_ids = list(dict.fromkeys([*begun, *predicted]))
    if not slide_ids:
        raise ResultsError(folder.predictions, "holds no slides", "let wsi-ips predict finish some first")
    slides = [
        _slide(number, slide_id, predicted.get(slide_id), begun.get(slide_id))
        for number, slide_id in enumerate(slide_ids, start=1)
    ]
    try:
        description = read_description(folder.description)
    except (OSError, ValueError) as error:
        raise ResultsError(
            folder.description, f"cannot be read ({one_line(error)})", "predict again"
        ) from None
    return StoredRun(folder, tasks, slides, description, notes)


def _slide(number: int, slide_id: str, row: PredictionRow | None, begun: SlideRow | None) -> StoredSlide:
    path = begun.path if begun else ""
    if row is None:
        status: SlideStatus = "failed" if begun and begun.status == "failed" else "unfinished"
        return StoredSlide(
            number=number, slide_id=slide_id, status=status, path=path, error=begun.error if begun else ""
        )
    measured = begun is not None and begun.status == "ok" and begun.telemetry.seconds > 0
    return StoredSlide(
        number=number,
        slide_id=slide_id,
        status=row.status,
        path=path,
        probabilities=row.probabilities if row.status == "ok" else None,
        n_patches=row.n_patches,
        error=row.error,
        telemetry=begun.telemetry if begun and measured else None,
    )


def attention_file(run: StoredRun, slide_id: str) -> Path | None:
    """Where a slide's attention is stored; None for an id that is no file name, which predict never wrote."""
    return run.folder.attention(slide_id) if is_file_name(slide_id) else None
