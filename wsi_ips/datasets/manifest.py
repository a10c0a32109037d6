"""Manifests: a CSV of slides with their cases, labels and splits, which is checked before it is used.

Start with :func:`read_manifest`. :func:`target_of` turns a cell into what a task learns; targets are indices or
tuples of numbers, so that data sets need no torch. :func:`split_by_case`, :func:`folds_by_case` and
:func:`set_aside_by_case` divide slides by case, so that no patient is in the training data and in what is
measured.

Survival in a manifest: the columns with a patient's time and event (:func:`survival_target`).

The labels of cases (patients), where all slides of a case are one bag: :func:`case_targets`.
"""

import csv
import filecmp
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Protocol

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.camelyon import SlideFinder
from wsi_ips.datasets.look_alikes import first_look_alikes
from wsi_ips.errors import ConfigError, ManifestError, SlideNotFound
from wsi_ips.registry import did_you_mean
from wsi_ips.storage.files import check_cells, check_header, check_table_size, whole_file
from wsi_ips.storage.fingerprint import files_fingerprint
from wsi_ips.storage.location import Location, Url, is_file_name, is_there, locate, shipped


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


NONE = "none"
"""The cell of a slide that has none of a sigmoid task's classes; an empty cell would look forgotten."""

Target = int | tuple[float, ...]
"""What a task learns from a slide.

That is a class's index (softmax), 0 or 1 per class (sigmoid), a number per output (linear), or (time, event) of a
survival task.
"""

COLUMNS = ("slide_id", "case_id", "split", "path")
"""The columns that every manifest has, beside one column per task."""

SPLITS = ("train", "val", "test")
"""The splits."""


@dataclass(frozen=True, slots=True)
class SlideRecord:
    """One slide of a manifest.

    ``case_id`` is the patient; all slides of a case are in one split. ``labels`` maps columns to cells. ``path``
    is the slide's file or folder, or its URL.
    """

    slide_id: str
    case_id: str
    labels: Mapping[str, str]
    split: str
    path: Location

    @property
    def file(self) -> Path:
        """The slide's file or folder. Raises ``ValueError`` for a slide at a URL."""
        if isinstance(self.path, Url):
            raise ValueError(f"{self.path} is a URL")
        return self.path

    @property
    def place(self) -> Location:
        """``path``, absolute where it is no URL."""
        return self.path if isinstance(self.path, Url) else self.path.absolute()

    def targets(self, tasks: Sequence[TaskConfig]) -> dict[str, Target]:
        """{task: what it learns from this slide}, without the tasks for which the slide has no label.

        Raises ``ValueError`` for a cell that names no target of its task.
        """
        return {
            task.name: survival_target(task, self.labels, self.case_id)
            if task.survival is not None
            else target_of(task, self.labels[task.column_name])
            for task in tasks
            if any(self.labels.get(column, "") for column in task.columns)
        }


@dataclass(frozen=True, slots=True)
class Manifest:
    """The slides of a data set, in file order. ``path`` is the CSV that they come from."""

    path: Path
    records: tuple[SlideRecord, ...]

    def split(self, name: str) -> list[SlideRecord]:
        """The slides of ``train``, ``val`` or ``test``, or of several splits joined by ``+``."""
        return [record for record in self.records if record.split in name.split("+")]


def read_manifest(
    path: Path,
    *,
    tasks: Sequence[TaskConfig],
    root: Path | None = None,
    need_slides: bool = True,
    need_labels: bool = True,
) -> Manifest:
    """Read a CSV with the columns ``slide_id,case_id,split,path`` and those of the tasks.

    Other columns are ignored.

    Paths of slides are absolute, or relative to ``root`` (by default the CSV's folder), or URLs, which are not
    asked whether they exist. With ``root``, a slide that is not there is looked for in CAMELYON's layouts. Without
    ``need_slides`` (their features are stored) no slide has to exist. An empty cell is a missing label: the slide
    is left out of that task only. With ``need_labels``, every slide needs a label for some task.

    Raises :class:`ManifestError` with the line for an unknown label, a slide without any label, an unknown split,
    a slide_id that occurs twice, missing slides, an empty field, a case in two splits, one file under two ids (a
    link or a copy; checked if slides have to exist), and slides of a patient with different times or events of a
    survival task. Raises :class:`SlideNotFound` if ``root`` is no folder.
    """
    if root is not None and not root.is_dir():
        raise SlideNotFound(root, "no such folder of slides", "name the folder that holds the data set")
    columns = (*COLUMNS, *dict.fromkeys(column for task in tasks for column in task.columns))
    if not path.is_file():
        raise ManifestError(path, "no such manifest", _mend_missing(path, columns))
    check_table_size(path, ManifestError)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [name for name in columns if name not in (rows.fieldnames or ())]
            if missing:
                there = [name for name in rows.fieldnames or () if name not in columns]
                raise ManifestError(
                    path,
                    f"lacks the column {missing[0]}",
                    f"its first line must name {','.join(columns)}{did_you_mean(missing[0], there)}",
                )
            check_header(path, rows.fieldnames, columns, ManifestError)
            lines = [(rows.line_num, _record(path, rows.line_num, row, tasks, need_labels)) for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(path, f"is not a CSV in UTF-8 ({error})", "save it as CSV") from None
    if not lines:
        raise ManifestError(path, "lists no slides", "add a line per slide")
    records = _located(path, lines, root) if need_slides else [record for _, record in lines]
    _check_ids_and_cases(path, records)
    check_patients_agree(path, records, tasks)
    if need_slides:
        _check_files(path, records)
    return Manifest(path, tuple(records))


def _mend_missing(path: Path, columns: Sequence[str]) -> str:
    """What to do about a manifest that is not there."""
    ours = shipped("data_manifests") / path.name
    if path.suffix == ".csv" and ours.is_file():
        return f"wsi_ips comes with one of this name, {ours}: give that path, or copy it"
    return f"write a CSV with the columns {','.join(columns)}"


def _record(
    path: Path, line: int, row: Mapping[str, str | None], tasks: Sequence[TaskConfig], need_label: bool
) -> SlideRecord:
    check_cells(path, line, row, ManifestError)
    values = {name: (row.get(name) or "").strip() for name in COLUMNS}
    labels = {column: (row.get(column) or "").strip() for task in tasks for column in task.columns}
    empty = next((name for name in COLUMNS if not values[name]), None)
    if empty:
        raise ManifestError(path, f"line {line}: {empty} is empty", "fill it in, or leave the line out")
    if values["split"] not in SPLITS:
        raise ManifestError(
            path,
            f"line {line}: unknown split {values['split']!r}",
            f"known: {', '.join(SPLITS)}{did_you_mean(values['split'], SPLITS)}",
        )
    if not is_file_name(values["slide_id"]):
        raise ManifestError(
            path,
            f"line {line}: slide_id {values['slide_id'][:80]!r} is no file name",
            "it may have no slash and no control character, and be no longer than a file's name",
        )
    record = SlideRecord(
        values["slide_id"], values["case_id"], labels, values["split"], locate(values["path"])
    )
    try:
        if not record.targets(tasks) and need_label and tasks:
            empty_cells = f"{', '.join(labels)} are all" if len(labels) > 1 else f"{next(iter(labels))} is"
            raise ValueError(f"{empty_cells} empty; fill in a label, or leave the line out")
    except ValueError as error:
        problem, _, fix = str(error).partition("; ")
        raise ManifestError(path, f"line {line}: {problem}", fix) from None
    return record


def _located(path: Path, lines: Sequence[tuple[int, SlideRecord]], root: Path | None) -> list[SlideRecord]:
    """The records with paths that exist.

    All missing slides make one error, for a first download is often partial.
    """
    find = None if root is None else SlideFinder(root)
    records: list[SlideRecord] = []
    missing: list[tuple[int, Path, Path]] = []
    for line, record in lines:
        if isinstance(record.path, Url):
            records.append(record)
            continue
        plain = (root or path.parent) / record.path
        slide = find(record.slide_id, record.path) if find else plain if is_there(plain) else None
        records.append(replace(record, path=slide or plain))
        if slide is None:
            missing.append((line, plain, path.parent / record.path))
    if missing:
        line, first, beside = missing[0]
        fix = "paths are relative to the manifest, or to the folder given with --slides"
        if root is not None:
            fix = "paths are relative to the folder of --slides; for known data sets: wsi-ips data manifest"
            if is_there(beside):
                fix = "it is there relative to the manifest: leave out --slides, from which paths would count"
        raise ManifestError(
            path,
            f"line {line}: no slide at {first} ({len(missing)} of {len(lines)} slides are missing)",
            fix,
        )
    return records


def _check_files(path: Path, records: Sequence[SlideRecord]) -> None:
    """Raise :class:`ManifestError` if one file has two ids: training data would be measured on."""
    split_of = {record.slide_id: record.split for record in records}
    for one, other, why in same_slides({record.slide_id: record.path for record in records}):
        raise ManifestError(
            path,
            f"{one!r} (in {split_of[one]}) and {other!r} (in {split_of[other]}) are the same slide: {why}",
            "give every slide one line, or results leak",
        )


def same_slides(slides: Mapping[str, Location]) -> Iterator[tuple[str, str, str]]:
    """Find slides that are the same file under two ids: (id, id, how that is known), in the order of ``slides``.

    Links are followed. URLs are compared as they are written. Files of the same length are compared by the samples
    of a fingerprint and, if these agree, byte by byte. Folders (Zarr, DICOM) are compared by their path only, for
    the names and headers of their files say too little.
    """
    first_at: dict[Location, str] = {}
    by_length: dict[int, list[str]] = {}
    files = {slide_id: path for slide_id, path in slides.items() if isinstance(path, Path)}
    for slide_id, path in slides.items():
        place = path.resolve() if isinstance(path, Path) else path
        if place in first_at:
            yield first_at[place], slide_id, f"both are {place}"
            continue
        first_at[place] = slide_id
        if isinstance(place, Path) and place.is_file() and (length := place.stat().st_size):
            by_length.setdefault(length, []).append(slide_id)
    for ids in by_length.values():
        known = {slide_id: files_fingerprint([files[slide_id]]) for slide_id in ids} if len(ids) > 1 else {}
        for one, other in combinations(known, 2):
            if known[one] == known[other] and filecmp.cmp(files[one], files[other], shallow=False):
                yield one, other, f"{files[one]} and {files[other]} have the same contents"


def _check_ids_and_cases(path: Path, records: Sequence[SlideRecord]) -> None:
    seen: set[str] = set()
    split_of: dict[str, str] = {}
    for record in records:
        if record.slide_id in seen:
            raise ManifestError(
                path, f"slide_id {record.slide_id!r} occurs twice", "give every slide its own id"
            )
        seen.add(record.slide_id)
        if split_of.setdefault(record.case_id, record.split) != record.split:
            raise ManifestError(
                path,
                f"case {record.case_id!r} lies in {split_of[record.case_id]} and in {record.split}",
                "put all slides of a case into one split, or results leak",
            )
    if alike := first_look_alikes(record.case_id for record in records):
        raise ManifestError(
            path,
            f"names the cases {alike[0]!r} and {alike[1]!r}, which look like one patient",
            "give all slides of a patient the same case_id, or rename one of the patients",
        )


def write_manifest(path: Path, records: Sequence[SlideRecord]) -> None:
    """Write a manifest. Paths of slides below the CSV's folder become relative to it."""
    columns = list(dict.fromkeys(column for record in records for column in record.labels))
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["slide_id", "case_id", *columns, "split", "path"])
        for record in records:
            where = _as_written(record.path, path.parent)
            labels = [record.labels.get(column, "") for column in columns]
            writer.writerow([record.slide_id, record.case_id, *labels, record.split, where])


def _as_written(where: Location, folder: Path) -> str:
    """A slide's place in a manifest that lies in ``folder``."""
    if isinstance(where, Url):
        return where
    return (where.relative_to(folder) if where.is_relative_to(folder) else where).as_posix()


def target_of(task: TaskConfig, cell: str) -> Target:
    """The target that a cell of a manifest names.

    For softmax, the cell is a class's name. For sigmoid, it has the names of the classes that apply, separated by
    ``;``, or ``none``; with a single class, 1 and 0 are possible too. For linear, it has one finite number per
    output, separated by ``;``. Raises ``ValueError`` with the problem and what to do about it.
    """
    if not cell:
        raise ValueError(f"{task.column_name} is empty; fill it in, or leave the line out")
    if task.activation == "softmax":
        return _class(task, cell)
    parts = [part.strip() for part in cell.split(";")]
    if task.activation == "linear":
        return _numbers(task, parts)
    if len(task.classes) == 1 and cell in ("0", "1"):
        return (float(cell),)
    present = set() if parts == [NONE] else {_class(task, part) for part in parts}
    return tuple(float(index in present) for index in range(len(task.classes)))


def _class(task: TaskConfig, name: str) -> int:
    if name not in task.classes:
        known = ", ".join((*task.classes, *([NONE] if task.activation == "sigmoid" else [])))
        raise ValueError(
            f"unknown {task.column_name} {name!r}; known: {known}{did_you_mean(name, task.classes)}"
        )
    return task.classes.index(name)


def _numbers(task: TaskConfig, parts: list[str]) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in parts)
    except ValueError:
        numbers = (math.nan,)
    if len(numbers) != len(task.classes) or not all(math.isfinite(number) for number in numbers):
        raise ValueError(
            f"{task.column_name} {';'.join(parts)!r} is not {len(task.classes)} finite number(s); "
            f"write one per output ({', '.join(task.classes)}), with ';' between them"
        )
    return numbers


def split_by_case(
    records: Sequence[SlideRecord], *, column: str = "label", fractions: Mapping[str, float], seed: int
) -> list[SlideRecord]:
    """Put every case into one split, in about these fractions for each label of ``column``.

    A case counts under its rarest label. ``seed`` decides the order. Raises :class:`ConfigError` if the fractions
    do not sum to 1 or name another split.
    """
    if set(fractions) - set(SPLITS) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ConfigError(f"fractions {dict(fractions)} must name {', '.join(SPLITS)} and sum to 1")
    split_of: dict[str, str] = {}
    for cases in _shuffled_cases(records, column=column, seed=seed).values():
        start, share = 0, 0.0
        for split, fraction in fractions.items():
            share += fraction
            end = round(share * len(cases))
            split_of.update(dict.fromkeys(cases[start:end], split))
            start = end
    return [replace(record, split=split_of[record.case_id]) for record in records]


def folds_by_case(records: Sequence[SlideRecord], *, k: int, column: str | None, seed: int) -> list[int]:
    """The fold, 0 to ``k`` - 1, of each record. All records of a case are in one fold.

    Each label of ``column`` is spread evenly (a case counts under its rarest label), and folds hold equally many
    cases, give or take one; without ``column``, only the latter. ``seed`` decides the order. Raises
    :class:`ConfigError` if a label has fewer than ``k`` cases, so that some fold would lack it.
    """
    if k < 2:
        raise ConfigError(f"cross-validation needs 2 folds or more, not {k}")
    by_label = _shuffled_cases(records, column=column, seed=seed)
    for label, cases in by_label.items():
        # Cases without a label are dealt out as well, however few they are.
        if len(cases) < k and (label or column is None):
            what = f"{column} {label!r}" if column else "slides"
            fewer = f"take {len(cases)} folds or fewer, or " if len(cases) > 1 else ""
            raise ConfigError(f"{k} folds need {k} cases with {what}, found {len(cases)}; {fewer}add cases")
    # Dealt like cards, the next label going on where the last one stopped.
    dealt = [case for cases in by_label.values() for case in cases]
    fold_of = {case: place % k for place, case in enumerate(dealt)}
    return [fold_of[record.case_id] for record in records]


def set_aside_by_case(
    records: Sequence[SlideRecord], *, share: float, column: str | None, seed: int | str
) -> list[bool]:
    """Which records are set aside: about ``share`` of the cases of each label of ``column``.

    If a label has two cases or more, at least one is set aside and one is not; a case counts under its rarest
    label. Without ``column``, labels are ignored. ``seed`` decides the order. Raises :class:`ConfigError` if
    either side would have slides of one label only, or none.
    """
    aside: set[str] = set()
    for cases in _shuffled_cases(records, column=column, seed=seed).values():
        if len(cases) > 1:
            aside.update(cases[: min(len(cases) - 1, max(1, round(share * len(cases))))])
    chosen = [record.case_id in aside for record in records]
    for side, name in ((True, "set aside"), (False, "left")):
        its = [record for record, one in zip(records, chosen, strict=True) if one is side]
        labels = {record.labels[column] for record in its} - {""} if column else set()
        if not its or (column is not None and len(labels) < 2):
            found = f"only {column} {labels.pop()!r}" if labels else "no slides"
            raise ConfigError(
                f"{len(records)} slides are too few to set some aside by case: {name} is {found}"
            )
    return chosen


def _shuffled_cases(
    records: Sequence[SlideRecord], *, column: str | None, seed: int | str
) -> dict[str, list[str]]:
    """{label: its cases, shuffled}, each case once under its rarest label; without a column all under ''."""
    labels = ["" if column is None else record.labels[column] for record in records]
    by_case: dict[str, list[str]] = {}
    for record, label in zip(records, labels, strict=True):
        by_case.setdefault(record.case_id, []).append(label)
    by_label: dict[str, list[str]] = {}
    for case, case_labels in sorted(by_case.items()):
        known = [label for label in case_labels if label] or case_labels
        by_label.setdefault(min(known, key=lambda label: (labels.count(label), label)), []).append(case)
    for label, cases in by_label.items():
        random.Random(f"{seed}/{label}").shuffle(cases)  # noqa: S311 - not a secret
    return dict(sorted(by_label.items()))


def case_targets(manifest: Manifest, tasks: Sequence[TaskConfig]) -> dict[str, dict[str, Target]]:
    """``{case_id: {task: target}}``. A task for which no slide of a case has a label is left out.

    A slide with an empty cell takes the label that another slide of its case has.

    Raises:
        ManifestError: Slides of a case have different labels for a task; the message names the case, the slides
            and both labels.
    """
    targets: dict[str, dict[str, Target]] = {}
    first: dict[tuple[str, str], SlideRecord] = {}
    for record in manifest.records:
        of_case = targets.setdefault(record.case_id, {})
        its = record.targets(tasks)
        for task in tasks:
            if task.name not in its:
                continue
            before = first.setdefault((record.case_id, task.name), record)
            if of_case.setdefault(task.name, its[task.name]) != its[task.name]:
                raise ManifestError(
                    manifest.path,
                    f"slides of case {record.case_id!r} have different labels: {_cells(before, task)} for "
                    f"{before.slide_id!r}, {_cells(record, task)} for {record.slide_id!r}",
                    "with bag: case a case has one label: write the same for all of its slides, or set bag: slide",
                )
    return targets


def _cells(record: SlideRecord, task: TaskConfig) -> str:
    return " and ".join(f"{column} {record.labels.get(column, '')!r}" for column in task.columns)
