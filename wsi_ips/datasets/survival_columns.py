"""Survival in a manifest: the columns with a patient's time and event (:func:`survival_target`)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from wsi_ips.config import TaskConfig
from wsi_ips.errors import ManifestError


class Labelled(Protocol):
    """A line of a manifest, as far as it is needed here."""

    @property
    def case_id(self) -> str: ...

    @property
    def labels(self) -> Mapping[str, str]: ...


def survival_target(task: TaskConfig, labels: Mapping[str, str], case_id: str) -> tuple[float, float]:
    """(time, event) of a survival task from a line's cells. ``labels`` maps columns to cells.

    Raises ``ValueError``, with the patient, the problem and what to do, for an empty cell, a time that is not a
    finite number above 0, and an event that is neither 1 nor 0.
    """
    assert task.survival is not None
    columns = task.survival
    time, event = labels.get(columns.time, ""), labels.get(columns.event, "")
    for column, cell, other in ((columns.time, time, columns.event), (columns.event, event, columns.time)):
        if not cell:
            raise ValueError(
                f"patient {case_id!r} has no {column}, but a {other}; fill it in, or leave both cells empty"
            )
    try:
        until = float(time)
    except ValueError:
        until = math.nan
    if not (math.isfinite(until) and until > 0):
        raise ValueError(
            f"patient {case_id!r} has the {columns.time} {time!r}; write how long the patient was followed, a "
            "number above 0"
        )
    if event not in ("0", "1"):
        raise ValueError(
            f"patient {case_id!r} has the {columns.event} {event!r}; write 1 where the event happened and 0 where "
            "the patient was last seen without it"
        )
    return until, float(event)


def check_patients_agree(path: Path, records: Sequence[Labelled], tasks: Sequence[TaskConfig]) -> None:
    """Raise :class:`ManifestError` if slides of one patient have different times or events."""
    for task in tasks:
        if task.survival is None:
            continue
        known: dict[str, tuple[float, float]] = {}
        for record in records:
            if not any(record.labels.get(column, "") for column in task.columns):
                continue
            target = survival_target(task, record.labels, record.case_id)
            if known.setdefault(record.case_id, target) != target:
                columns = f"{task.survival.time} and {task.survival.event}"
                raise ManifestError(
                    path,
                    f"slides of patient {record.case_id!r} have different {columns}",
                    "a patient has one time and one event: write the same in every line",
                )
