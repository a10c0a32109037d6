"""What ``evaluate`` scores: each slide of a split with its labels and its prediction, none of them lost."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.manifest import Manifest, SlideRecord
from wsi_ips.errors import ManifestError, ResultsError, count
from wsi_ips.evaluation.task_scores import THRESHOLD, Scored
from wsi_ips.inference.case_answers import one_for_each_case
from wsi_ips.inference.predictions import PredictionRow


@dataclass(frozen=True, slots=True)
class Joined:
    """The slides of one split: scored (pairs), failed, or missing. elsewhere: predicted slides of other splits.

    unlabelled: of one task, the predicted slides that have no label for it; see :meth:`of_task`.

    bag: ``case`` where all slides of a case were read as one bag: pairs are then cases, see :meth:`by_case`.
    """

    split: str
    pairs: tuple[tuple[SlideRecord, PredictionRow], ...]
    failed: tuple[tuple[SlideRecord, PredictionRow], ...]
    missing: tuple[SlideRecord, ...]
    elsewhere: int
    unlabelled: tuple[SlideRecord, ...] = ()
    bag: Literal["slide", "case"] = "slide"

    def by_case(self, manifest: Manifest, tasks: Sequence[TaskConfig]) -> Self:
        """One pair for each case, where slides were read with their cases; otherwise the same.

        Raises :class:`ManifestError` where the manifest's cases are others, or slides of a case have different
        labels.
        """
        if not any(row.case for _, row in self.pairs):
            return self
        return replace(self, pairs=tuple(one_for_each_case(self.pairs, manifest, tasks)), bag="case")

    def of_task(self, task: TaskConfig) -> Self:
        """The same without the slides that have no label for the task."""
        known = tuple(pair for pair in self.pairs if pair[0].targets([task]))
        without = tuple(record for record, _ in self.pairs if not record.targets([task]))
        return replace(self, pairs=known, unlabelled=without)

    @property
    def complaints(self) -> list[str]:
        """A line per slide that could not be scored."""
        return [
            *(f"{record.slide_id}: predict failed: {row.error}" for record, row in self.failed),
            *(f"{record.slide_id}: is in the manifest, not in the predictions" for record in self.missing),
        ]

    def scored(self, task: TaskConfig, *, threshold: float = THRESHOLD) -> Scored:
        """One task's outputs and targets, slide by slide."""
        return Scored.of(
            task,
            [row.probabilities[task.name] for _, row in self.pairs],
            [record.targets([task])[task.name] for record, _ in self.pairs],
            [record.case_id for record, _ in self.pairs],
            threshold=threshold,
        )

    @property
    def in_split(self) -> int:
        """How many slides the split has, or how many cases where cases were read as bags."""
        if self.bag == "slide":
            return len(self.pairs) + len(self.failed) + len(self.missing)
        records = [*(record for record, _ in (*self.pairs, *self.failed)), *self.missing]
        return len({record.case_id for record in records})

    @property
    def counted(self) -> str:
        """How many are scored, in words."""
        return f"{len(self.pairs)} of {self.in_split} {self.bag}s"

    def to_json(self) -> dict[str, Any]:
        return {
            **({"bag": self.bag} if self.bag == "case" else {}),
            "in_split": self.in_split,
            "scored": len(self.pairs),
            "cases": len({record.case_id for record, _ in self.pairs}),
            "failed": {record.slide_id: row.error for record, row in self.failed},
            "missing": [record.slide_id for record in self.missing],
            "predicted_elsewhere": self.elsewhere,
        }


def join(manifest: Manifest, rows: Sequence[PredictionRow], split: str, *, predictions: Path) -> Joined:
    """Each slide of the split with its prediction. ``predictions`` is the table that ``rows`` came from.

    Raises :class:`ManifestError` for a split without slides, :class:`ResultsError` for a slide that was
    predicted twice, or where no slide of the split has a prediction.
    """
    records = manifest.split(split)
    if not records:
        raise ManifestError(manifest.path, f"has no slides in split {split!r}", "name another with --split")
    row_of: dict[str, PredictionRow] = {}
    for row in rows:
        if row.slide_id in row_of:
            raise ResultsError(predictions, f"slide {row.slide_id!r} occurs twice", "predict again")
        row_of[row.slide_id] = row
    found = [(record, row_of[record.slide_id]) for record in records if record.slide_id in row_of]
    pairs = tuple((record, row) for record, row in found if row.status == "ok")
    if not pairs:
        raise ResultsError(
            predictions,
            f"has no prediction for any of the {count(len(records), 'slide')} in split {split!r} of "
            f"{manifest.path}",
            f"predict those slides; the first is {records[0].slide_id!r}",
        )
    return Joined(
        split=split,
        pairs=pairs,
        failed=tuple((record, row) for record, row in found if row.status != "ok"),
        missing=tuple(record for record in records if record.slide_id not in row_of),
        elsewhere=len(rows) - len(found),
    )
