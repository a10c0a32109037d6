"""The tables of what a network says: ``predictions.csv`` of every slide, ``cases.csv`` of every patient.

:func:`write_predictions` and :func:`read_predictions` are the first, :func:`write_cases` is the second. The same
run gives the same bytes.
"""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Self

import numpy as np

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.look_alikes import first_look_alikes
from wsi_ips.errors import ManifestError, ResultsError, one_line
from wsi_ips.evaluation.conformal import AnswerSet, Calibration, questions
from wsi_ips.evaluation.task_scores import Pooling, kind_of, pool_outputs
from wsi_ips.inference.results import PREDICT_AGAIN, PartOfCase, Probabilities, SlideResult
from wsi_ips.storage.files import (
    LONGEST_CELL,
    check_cells,
    check_header,
    check_table_size,
    whole_file,
    whole_table,
)

BETWEEN = "|"
"""Separates several classes in one cell."""
CASE_COLUMNS = ("case_id", "attention_share")
"""Columns that a table has behind ``slide_id`` where all slides of a case are one bag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionRow:
    """One slide of ``predictions.csv``.

    A failed slide has an error in one line, and no probabilities. A labelled slide may have an error too, if
    something else that was wanted of it failed.

    Attributes:
        slide_id: Its name.
        status: ``ok`` or ``failed``.
        probabilities: ``{task: {class: probability}}``.
        n_patches: How many patches its tissue has.
        error: What failed.
        spread: The standard deviation of each probability over several models whose mean ``probabilities`` is.
            Empty for one model.
        raw: For calibrated tasks, the probabilities before calibration. Otherwise empty.
        sets: For calibrated tasks, the set of answers to each question (:mod:`wsi_ips.evaluation.conformal`).
            Otherwise empty.
        case: If all slides of a case are one bag, what the slide is in its case; the probabilities are then those
            of the case. Otherwise None.
    """

    slide_id: str
    status: Literal["ok", "failed"]
    probabilities: Probabilities = field(default_factory=dict)
    n_patches: int | None = None
    error: str = ""
    spread: Probabilities = field(default_factory=dict)
    raw: Probabilities = field(default_factory=dict)
    sets: Mapping[str, tuple[AnswerSet, ...]] = field(default_factory=dict)
    case: PartOfCase | None = None

    @classmethod
    def done(cls, result: SlideResult, *, error: str = "") -> Self:
        """The row of a labelled slide."""
        return cls(
            slide_id=result.coords.slide_id,
            status="ok",
            probabilities=result.probabilities,
            n_patches=len(result.coords) if result.coarse is None else result.coarse.patches,
            error=one_line(error),
            spread=result.spread,
            case=result.case,
        )

    @classmethod
    def failed(cls, slide_id: str, error: str) -> Self:
        """The row of a failed slide."""
        return cls(slide_id=slide_id, status="failed", error=one_line(error))

    def calibrated(self, calibration: Calibration) -> Self:
        """The same row with calibrated probabilities and the set of each question. A failed slide stays as it
        is.
        """
        if self.status != "ok":
            return self
        tasks = calibration.tasks
        raw = {name: self.probabilities[name] for name in tasks}
        tempered = {name: task.tempered(raw[name]) for name, task in tasks.items()}
        return replace(
            self,
            probabilities={**self.probabilities, **tempered},
            raw=raw,
            sets={name: task.sets(raw[name]) for name, task in tasks.items()},
        )


@dataclass(frozen=True, slots=True)
class Doubt:
    """Which columns of doubt a table has, and whether it has those of cases.

    Attributes:
        spread: Whether it has the standard deviations over several models.
        calibrated: The tasks that have sets of answers.
        by_case: Whether all slides of a case are one bag, so that the table names the case of each slide.
    """

    spread: bool = False
    calibrated: frozenset[str] = frozenset()
    by_case: bool = False


def write_predictions(
    path: Path, rows: Sequence[PredictionRow], *, tasks: Sequence[TaskConfig], doubt: Doubt | None = None
) -> None:
    """Write ``predictions.csv``, completely or not at all.

    The columns are ``slide_id, prob_<class>…, pred, n_patches, status, error``; with several tasks
    ``prob_<task>_<class>…, pred_<task>`` for each. ``pred`` is the likeliest class; for a sigmoid task the
    classes with 0.5 or more, joined by ``|``; for a linear task its numbers. Numbers read back exactly. A
    survival task has ``risk, survival_<time>…`` instead, with its name in front of each if there are several
    tasks.

    Where all slides of a case are one bag, ``case_id, attention_share`` follow ``slide_id``: the case whose answer
    it is, and how much of the attention of the case lies on the slide.

    With ``doubt``, further columns follow the ``pred`` of each task. For several models they are
    ``sd_<class>…``. For a calibrated task they are ``raw_<class>…`` (before calibration), ``set`` (the answers
    that cannot be ruled out, joined by ``|``; for a sigmoid task with several classes ``set_<class>…``, each of
    ``not <class>`` and ``<class>``) and ``abstain`` (1 if a set does not hold exactly one answer). With several
    tasks these contain the name of the task as ``prob_`` does.
    """
    doubt = doubt or Doubt()
    with whole_table(path) as writer:
        writer.writerow(_columns(tasks, doubt))
        writer.writerows(_cells(row, tasks, doubt) for row in rows)


def read_predictions(path: Path, *, tasks: Sequence[TaskConfig]) -> list[PredictionRow]:
    """Read what :func:`write_predictions` wrote for these tasks.

    Raises:
        ResultsError: The file is missing, broken, or has other columns.
    """
    if not path.is_file():
        raise ResultsError(path, "does not exist", "name a table that wsi-ips predict wrote")
    check_table_size(path, ResultsError)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file, strict=True)
    except (csv.Error, UnicodeDecodeError, ValueError) as error:
        raise ResultsError(path, f"is not a CSV table ({error})", PREDICT_AGAIN) from None
    doubt = _doubt_of(header, tasks)
    columns = _columns(tasks, doubt)
    if header != columns:
        raise ResultsError(path, f"has the columns {', '.join(header)}, not {', '.join(columns)}")
    read = _RowReader(columns, tasks, doubt)
    rows = []
    for number, line in enumerate(lines, start=2):
        try:
            rows.append(read(line))
        except ValueError as error:
            raise ResultsError(path, f"row {number} is broken ({error})", PREDICT_AGAIN) from None
    return rows


def read_case_table(path: Path, slide_ids: Sequence[str]) -> dict[str, str]:
    """Read ``{slide_id: case_id}`` of these slides from a CSV table that has both columns. All else is ignored.

    Raises:
        ManifestError: The file cannot be read, a slide is missing, or a slide belongs to two cases.
    """
    case_of = _case_table(path)
    for slide_id in slide_ids:
        if not case_of.get(slide_id):
            raise ManifestError(path, f"does not give the case of slide {slide_id}", "add a line for it")
    return {slide_id: case_of[slide_id] for slide_id in slide_ids}


def absent_slides(path: Path, case_of: Mapping[str, str]) -> dict[str, list[str]]:
    """``{case_id: its slides in the table that are not in case_of}``, for the cases in ``case_of``.

    Args:
        path: A table that :func:`read_case_table` has read.
        case_of: What it returned.
    """
    cases = set(case_of.values())
    absent: dict[str, list[str]] = {}
    for slide_id, case in _case_table(path).items():
        if case in cases and slide_id not in case_of:
            absent.setdefault(case, []).append(slide_id)
    return absent


def _case_table(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise ManifestError(path, "does not exist", "name a CSV with the columns slide_id,case_id")
    check_table_size(path, ManifestError)
    case_of: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, strict=True)
            check_header(path, rows.fieldnames, ("slide_id", "case_id"), ManifestError)
            for line in rows:
                check_cells(path, rows.line_num, line, ManifestError)
                slide_id, case = ((line[name] or "").strip() for name in ("slide_id", "case_id"))
                if case and case_of.setdefault(slide_id, case) != case:
                    raise ManifestError(path, f"slide {slide_id} has two cases", "give it one")
    except (csv.Error, UnicodeDecodeError, KeyError) as error:
        why = f"lacks the column {error}" if isinstance(error, KeyError) else f"is no CSV ({one_line(error)})"
        raise ManifestError(path, why, "it needs the columns slide_id,case_id") from None
    if alike := first_look_alikes(case_of.values()):
        raise ManifestError(
            path,
            f"names the cases {alike[0]!r} and {alike[1]!r}, which look like one patient",
            "give all slides of a patient the same case_id, or rename one of the patients",
        )
    return case_of


def write_cases(
    path: Path,
    rows: Sequence[PredictionRow],
    case_of: Mapping[str, str],
    *,
    tasks: Sequence[TaskConfig],
    pool: Pooling = "max",
) -> None:
    """Write ``cases.csv``, one line for each patient in the order of their first slides, completely or not at
    all.

    The columns are ``case_id``, those of ``predictions.csv`` from ``prob_…`` to ``pred``, ``n_slides``
    (labelled, and so pooled) and ``n_failed``. Slides are pooled as
    :func:`wsi_ips.evaluation.task_scores.pool_cases` says. A patient whose slides all failed has no answer.

    Args:
        path: The file to write.
        rows: The slides.
        case_of: ``{slide_id: case_id}``.
        tasks: The tasks.
        pool: How the slides of a patient are pooled.
    """
    slides: dict[str, list[PredictionRow]] = {}
    for row in rows:
        slides.setdefault(case_of[row.slide_id], []).append(row)
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["case_id", *answer_columns(tasks), "n_slides", "n_failed"])
        for case, its in slides.items():
            labelled = [row for row in its if row.status == "ok"]
            pooled = {task.name: _pooled(task, labelled, pool) for task in tasks} if labelled else None
            writer.writerow([case, *answer_cells(pooled, tasks), len(labelled), len(its) - len(labelled)])


def write_case_answers(
    path: Path,
    rows: Sequence[PredictionRow],
    *,
    tasks: Sequence[TaskConfig],
    absent: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:
    """Write ``cases.csv`` where all slides of a case are one bag, completely or not at all.

    The columns are those of :func:`write_cases`, and ``failed``, the names of the slides that the answer had to do
    without, joined by ``|``. Nothing is pooled: the answer is the network's own for the whole case. A case whose
    slides all failed has no answer.

    Args:
        path: The file to write.
        rows: The slides.
        tasks: The tasks.
        absent: ``{case_id: slides}`` that belong to a case and were not given. They count as failed.
    """
    cases: dict[str, list[PredictionRow]] = {}
    for row in rows:
        assert row.case is not None
        cases.setdefault(row.case.case_id, []).append(row)
    with whole_table(path) as writer:
        writer.writerow(["case_id", *answer_columns(tasks), "n_slides", "n_failed", "failed"])
        for case_id, its in cases.items():
            labelled = [row for row in its if row.status == "ok"]
            failed = [row.slide_id for row in its if row.status != "ok"] + list(absent.get(case_id, ()))
            answer = labelled[0].probabilities if labelled else None
            cells = [len(labelled), len(failed), BETWEEN.join(failed)]
            writer.writerow([case_id, *answer_cells(answer, tasks), *cells])


def _pooled(task: TaskConfig, rows: Sequence[PredictionRow], pool: Pooling) -> dict[str, float]:
    if len(rows) == 1:
        return dict(rows[0].probabilities[task.name])
    output_NC = np.array([[row.probabilities[task.name][name] for name in task.classes] for row in rows])
    return dict(zip(task.classes, pool_outputs(kind_of(task), output_NC, pool).tolist(), strict=True))


def answer_columns(tasks: Sequence[TaskConfig]) -> list[str]:
    """The columns of the answers: ``prob_<class>…, pred``; with several tasks ``prob_<task>_<class>…,
    pred_<task>`` for each.
    """
    return [column for task in tasks for column in _task_columns(task, tasks)]


def answer_cells(probabilities: Probabilities | None, tasks: Sequence[TaskConfig]) -> list[str]:
    """The cells of :func:`answer_columns`. They are empty if ``probabilities`` is None."""
    if probabilities is None:
        return [""] * len(answer_columns(tasks))
    cells = []
    for task in tasks:
        cells += _numbers(probabilities[task.name], task)
        cells += [] if task.survival is not None else [_predicted(task, probabilities[task.name])]
    return cells


def _columns(tasks: Sequence[TaskConfig], doubt: Doubt) -> list[str]:
    columns = ["slide_id", *(CASE_COLUMNS if doubt.by_case else ())]
    for task in tasks:
        columns += [*_task_columns(task, tasks), *_doubt_columns(task, tasks, doubt)]
    return [*columns, "n_patches", "status", "error"]


def _task_columns(task: TaskConfig, tasks: Sequence[TaskConfig]) -> list[str]:
    columns = [name for name, _ in _class_columns("prob", task, tasks)]
    return columns if task.survival is not None else [*columns, _named("pred", task, tasks)]


def _doubt_columns(task: TaskConfig, tasks: Sequence[TaskConfig], doubt: Doubt) -> list[str]:
    columns = []
    if doubt.spread:
        columns += [name for name, _ in _class_columns("sd", task, tasks)]
    if task.name in doubt.calibrated:
        columns += [name for name, _ in _class_columns("raw", task, tasks)]
        columns += [*_set_columns(task, tasks), _named("abstain", task, tasks)]
    return columns


def _named(what: str, task: TaskConfig, tasks: Sequence[TaskConfig]) -> str:
    return what if len(tasks) == 1 else f"{what}_{task.name}"


def _class_columns(what: str, task: TaskConfig, tasks: Sequence[TaskConfig]) -> Iterator[tuple[str, str]]:
    """``(column, class)`` for every class of a task."""
    if what == "prob" and task.survival is not None:
        front = "" if len(tasks) == 1 else f"{task.name}_"
        return ((front + name, name) for name in task.classes)
    return ((f"{_named(what, task, tasks)}_{name}", name) for name in task.classes)


def _set_columns(task: TaskConfig, tasks: Sequence[TaskConfig]) -> list[str]:
    column = _named("set", task, tasks)
    return [f"{column}_{question.name}" if question.name else column for question in questions(task)]


def _doubt_of(header: Sequence[str], tasks: Sequence[TaskConfig]) -> Doubt:
    """Which columns of doubt a table has, by the first column that it would have of each kind."""
    spread = any(next(_class_columns("sd", task, tasks))[0] in header for task in tasks)
    with_sets = (task for task in tasks if _named("abstain", task, tasks) in header and questions(task))
    by_case = tuple(header[1 : 1 + len(CASE_COLUMNS)]) == CASE_COLUMNS
    return Doubt(spread, frozenset(task.name for task in with_sets), by_case)


def _cells(row: PredictionRow, tasks: Sequence[TaskConfig], doubt: Doubt) -> list[str]:
    cells = [row.slide_id]
    if doubt.by_case:
        assert row.case is not None
        cells += [row.case.case_id, "" if math.isnan(row.case.share) else repr(row.case.share)]
    for task in tasks:
        if row.status != "ok":
            cells += [""] * (len(_task_columns(task, tasks)) + len(_doubt_columns(task, tasks, doubt)))
            continue
        cells += [*answer_cells(row.probabilities, [task]), *_doubt_cells(row, task, doubt)]
    n_patches = "" if row.n_patches is None else str(row.n_patches)
    return [*cells, n_patches, row.status, one_line(row.error, most=LONGEST_CELL)]


def _doubt_cells(row: PredictionRow, task: TaskConfig, doubt: Doubt) -> list[str]:
    cells = []
    if doubt.spread:
        cells += _numbers(row.spread[task.name], task)
    if task.name in doubt.calibrated:
        sets = row.sets[task.name]
        cells += _numbers(row.raw[task.name], task)
        cells += [BETWEEN.join(answers) for answers in sets]
        cells.append(str(int(any(len(answers) != 1 for answers in sets))))
    return cells


def _numbers(values: Mapping[str, float], task: TaskConfig) -> list[str]:
    return [repr(float(values[name])) for name in task.classes]


def _predicted(task: TaskConfig, probabilities: Mapping[str, float]) -> str:
    if task.activation == "linear":
        return BETWEEN.join(f"{probabilities[name]:.6g}" for name in task.classes)
    if task.activation == "sigmoid":
        return BETWEEN.join(name for name in task.classes if probabilities[name] >= 0.5)
    return max(task.classes, key=lambda name: probabilities[name])


def _output(column: str, cell: str, *, probability: bool) -> float:
    """A probability or another number. Raises ``ValueError`` for a number that no network can say."""
    value = float(cell)
    if math.isinf(value) or (probability and not math.isnan(value) and not 0 <= value <= 1):
        raise ValueError(f"{column} is {cell!r}, not a " + ("number" if math.isinf(value) else "probability"))
    return value


class _RowReader:
    """Reads the lines of a table of these tasks. Where each column is, is worked out once for all lines."""

    def __init__(self, columns: Sequence[str], tasks: Sequence[TaskConfig], doubt: Doubt) -> None:
        place_of = {name: place for place, name in enumerate(columns)}
        self._columns = columns
        self._about = itemgetter(*(place_of[name] for name in ("slide_id", "n_patches", "status", "error")))
        self._by_case = doubt.by_case
        calibrated = [task for task in tasks if task.name in doubt.calibrated]

        def places(what: str, which: Sequence[TaskConfig]) -> list[_Numbers]:
            return [
                _Numbers(
                    task.name,
                    [(name, column, place_of[column]) for column, name in _class_columns(what, task, tasks)],
                    probability=what != "sd" and task.activation != "linear",
                )
                for task in which
            ]

        self._probabilities = places("prob", tasks)
        self._spread = places("sd", tasks) if doubt.spread else []
        self._raw = places("raw", calibrated)
        self._sets = [
            (task.name, [place_of[column] for column in _set_columns(task, tasks)]) for task in calibrated
        ]

    def __call__(self, cells: Sequence[str]) -> PredictionRow:
        """The row of a line. Raises ``ValueError`` for one that is broken."""
        if len(cells) != len(self._columns):
            raise ValueError(f"{len(cells)} cells for {len(self._columns)} columns")
        slide_id, n_patches, status, error = self._about(cells)
        if status not in ("ok", "failed"):
            raise ValueError(f"status {status!r}")
        case = _part(dict(zip(self._columns, cells, strict=True))) if self._by_case else None
        patches = int(n_patches) if n_patches else None
        if status == "failed":
            return PredictionRow(
                slide_id=slide_id, status="failed", n_patches=patches, error=error, case=case
            )
        return PredictionRow(
            slide_id=slide_id,
            status="ok",
            n_patches=patches,
            error=error,
            case=case,
            probabilities={numbers.task: numbers.of(cells) for numbers in self._probabilities},
            spread={numbers.task: numbers.of(cells) for numbers in self._spread},
            raw={numbers.task: numbers.of(cells) for numbers in self._raw},
            sets={task: tuple(_set(cells[place]) for place in places) for task, places in self._sets},
        )


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Where the numbers of a task are: (class, column, place) of each, and whether they are probabilities."""

    task: str
    places: Sequence[tuple[str, str, int]]
    probability: bool

    def of(self, cells: Sequence[str]) -> dict[str, float]:
        return {
            name: _output(column, cells[place], probability=self.probability)
            for name, column, place in self.places
        }


def _part(cells: Mapping[str, str]) -> PartOfCase:
    """The case of a row. Raises ``ValueError`` for a row without one, or a share that is none."""
    case_id, share = (cells[name] for name in CASE_COLUMNS)
    if not case_id:
        raise ValueError("case_id is empty")
    of_case = float(share) if share else math.nan
    if share and not 0 <= of_case <= 1 + 1e-6:
        raise ValueError(f"attention_share is {share!r}, not a share")
    return PartOfCase(case_id, share=of_case)


def _set(cell: str) -> AnswerSet:
    return tuple(cell.split(BETWEEN)) if cell else ()
