"""What a table of labels lets a network learn: :func:`propose_task` looks at a column and proposes a task.

A proposal is checked: every cell of the table is read as the task would read it. Whether it is meant that way,
only the user can say; :attr:`Proposal.notes` says what was taken for what.
"""

import csv
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.manifest import COLUMNS, NONE, Manifest, read_manifest
from wsi_ips.errors import ConfigError, ManifestError, count
from wsi_ips.registry import did_you_mean

KINDS = ("classification", "ordinal", "multilabel", "survival", "regression")
"""Kinds of tasks that can be proposed."""
MOST_CLASSES = 50
"""A column with more different texts is no column of classes."""
MOST_NAMED, LONGEST_NAME = 10, 80
"""How many columns or classes a message names, and how many characters of each."""
FEW = 5
"""Fewer training slides of a class than this are worth a warning."""
WITHOUT_TABLE: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "classification": {"name": "label", "classes": ["normal", "tumor"]},
    "ordinal": {"name": "label", "kind": "ordinal", "classes": ["low", "middle", "high"]},
    "multilabel": {"name": "label", "classes": ["inflammation", "necrosis"], "activation": "sigmoid"},
    "survival": {
        "name": "survival", "kind": "survival", "survival": {"time": "time", "event": "event", "at": [12, 36, 60]}
    },
    "regression": {"name": "label", "classes": ["value"], "activation": "linear"},
})  # fmt: skip
"""A task of each kind to begin from where there is no table yet."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A task that a table can teach.

    Attributes:
        task: Its settings, as in ``model.tasks`` of a recipe.
        notes: What was found, and what speaks against it, a line each.
    """

    task: Mapping[str, Any]
    notes: Sequence[str]


def propose_task(
    path: Path, kind: str, *, column: str | None = None, time: str = "time", event: str = "event"
) -> Proposal:
    """Propose a task of this kind from a manifest, whose slides need not exist.

    Args:
        path: The manifest.
        kind: One of :data:`KINDS`.
        column: The column of the labels. None: ``label``, or the only one that no manifest has to have.
        time, event: The columns of a survival task.

    Raises:
        ManifestError: The table cannot be used: a column is missing, or a cell does not fit.
        ConfigError: There is no such kind, or which column is meant cannot be told.
    """
    if kind not in KINDS:
        raise ConfigError(f"--task {kind}: known are {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    manifest = read_manifest(path, tasks=(), need_slides=False)
    cells = _cells(path)
    if kind == "survival":
        task = _survival(path, manifest, cells, time, event)
        name = event
    else:
        name = _column(path, cells, column)
        task = _MADE[kind](path, name, cells[name])
    config = TaskConfig.model_validate(task)
    checked = read_manifest(path, tasks=(config,), need_slides=False)
    return Proposal(task, _notes(checked, config, cells[name]))


def _cells(path: Path) -> dict[str, list[str]]:
    """``{column: its cells}``, blanks around them left out."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    return {name: [(row[name] or "").strip() for row in rows] for name in rows[0] if name is not None}


def _column(path: Path, cells: Mapping[str, Sequence[str]], wanted: str | None) -> str:
    others = [name for name in cells if name not in COLUMNS]
    if wanted is not None:
        if wanted in others:
            return wanted
        raise ManifestError(
            path, f"has no column {wanted!r}", f"it has {_listed(others)}{did_you_mean(wanted, others)}"
        )
    if "label" in others:
        return "label"
    if len(others) != 1:
        raise ManifestError(
            path,
            "has no column label" if not others else f"has the columns {_listed(others)}",
            "add one with the labels" if not others else "say with --column which one holds the labels",
        )
    return others[0]


def _listed(names: Sequence[str]) -> str:
    """Names of a table, which may be long and many, for a message."""
    shown = ", ".join(name[:LONGEST_NAME] for name in names[:MOST_NAMED])
    return f"{shown} and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else shown


def _named(path: Path, column: str, names: Sequence[str], *, fewest: int) -> list[str]:
    classes = sorted(set(names), key=_as_read)
    if len(classes) > MOST_CLASSES:
        numbers = all(_number(name) is not None for name in classes)
        raise ManifestError(
            path,
            f"{column} has {len(classes)} different {'numbers' if numbers else 'texts'}",
            "learn numbers with --task regression" if numbers else "name a column of classes with --column",
        )
    if len(classes) < fewest:
        found = _listed([repr(name) for name in classes]) or "nothing"
        raise ManifestError(path, f"{column} holds only {found}", f"{fewest} classes or more are needed")
    return classes


def _as_read(name: str) -> list[tuple[int, float, str]]:
    """Sorts numbers within texts by their value: grade 2 comes before grade 10."""
    return [
        (0, float(part), "") if part.isdecimal() else (1, 0.0, part)
        for part in re.split(r"(\d+)", name)
        if part
    ]


def _classification(path: Path, column: str, cells: Sequence[str]) -> dict[str, Any]:
    several = next((cell for cell in cells if ";" in cell), None)
    if several is not None:
        raise ManifestError(
            path, f"{column} {several[:80]!r} names several classes", "learn them with --task multilabel"
        )
    return {"name": column, "classes": _named(path, column, [cell for cell in cells if cell], fewest=2)}


def _ordinal(path: Path, column: str, cells: Sequence[str]) -> dict[str, Any]:
    classes = _named(path, column, [cell for cell in cells if cell], fewest=3)
    return {"name": column, "kind": "ordinal", "classes": classes}


def _multilabel(path: Path, column: str, cells: Sequence[str]) -> dict[str, Any]:
    parts = [part.strip() for cell in cells if cell for part in cell.split(";")]
    classes = _named(path, column, [part for part in parts if part not in ("", NONE)], fewest=1)
    return {"name": column, "classes": classes, "activation": "sigmoid"}


def _regression(path: Path, column: str, cells: Sequence[str]) -> dict[str, Any]:
    first = next((cell for cell in cells if cell), None)
    if first is None:
        raise ManifestError(path, f"{column} is empty in every line", "fill in numbers")
    outputs = first.count(";") + 1
    classes = [column] if outputs == 1 else [f"{column}_{place + 1}" for place in range(outputs)]
    return {"name": column, "classes": classes, "activation": "linear"}


_MADE = {
    "classification": _classification,
    "ordinal": _ordinal,
    "multilabel": _multilabel,
    "regression": _regression,
}


def _survival(
    path: Path, manifest: Manifest, cells: Mapping[str, Sequence[str]], time: str, event: str
) -> dict[str, Any]:
    for name, option in ((time, "--time"), (event, "--event")):
        if name not in cells:
            others = [each for each in cells if each not in COLUMNS]
            raise ManifestError(
                path,
                f"has no column {name!r}",
                f"say with {option} which it is: {_listed(others) or 'it has none'}{did_you_mean(name, others)}",
            )
    splits = [record.split for record in manifest.records]
    learned = sorted(
        number
        for cell, split in zip(cells[time], splits, strict=True)
        if split == "train" and (number := _number(cell)) is not None and number > 0
    )
    if not learned:
        raise ManifestError(
            path, f"no training slide has a {time} above 0", "set the split column, or the times"
        )
    at = [learned[int(share * (len(learned) - 1))] for share in (0.25, 0.5, 0.75)]
    times = [float(f"{number:.2g}") for number in at]
    times = [rounded if rounded <= learned[-1] else number for rounded, number in zip(times, at, strict=True)]
    rising = [times[0], *(later for earlier, later in pairwise(times) if later > earlier)]
    return {"name": "survival", "kind": "survival", "survival": {"time": time, "event": event, "at": rising}}


def _number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _notes(manifest: Manifest, task: TaskConfig, cells: Sequence[str]) -> list[str]:
    splits = Counter(record.split for record in manifest.records)
    cases = len({record.case_id for record in manifest.records})
    counted = ", ".join(f"{split} {splits[split]}" for split in ("train", "val", "test") if splits[split])
    notes = [
        f"{manifest.path}: {count(len(manifest.records), 'slide')} of {count(cases, 'patient')} ({counted})"
    ]
    notes += [
        f"warning: no slide is in split {split}, {what}"
        for split, what in (
            ("train", "and nothing can be learned"),
            ("val", "so that the epoch is chosen by the training loss"),
        )
        if not splits[split]
    ]
    if task.survival is not None:
        events = sum(cell == "1" for cell in cells)
        shown = ", ".join(f"{time:g}" for time in task.survival.at)
        said = (
            f"{count(events, 'event')} in {count(len(cells), 'slide')}; survival is predicted at {shown} "
            f"{task.survival.unit}"
        )
        return [*notes, f"{said}: set unit and at as you mean them"]
    empty = sum(not cell for cell in cells)
    if empty:
        notes.append(f"{empty} slides have no {task.column_name}")
    if task.activation == "linear":
        return [*notes, f"{task.column_name}: {len(task.classes)} number(s) per slide"]
    of_class = {name: Counter[str]() for name in task.classes}
    for record, cell in zip(manifest.records, cells, strict=True):
        for part in {part.strip() for part in cell.split(";")} if task.activation == "sigmoid" else {cell}:
            if part in of_class:
                of_class[part][record.split] += 1
    shown = ", ".join(f"{name} ({sum(counts.values())})" for name, counts in of_class.items())
    order = ", in this order from the lowest: check it" if task.kind == "ordinal" else ""
    notes.append(f"{task.column_name}: {len(task.classes)} classes, {shown}{order}")
    for name, counts in of_class.items():
        if counts["train"] < FEW:
            notes.append(f"warning: only {counts['train']} training slides are {name}")
        if splits["val"] and not counts["val"]:
            notes.append(f"warning: no validation slide is {name}")
    return notes
