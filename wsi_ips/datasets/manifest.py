"""Which slides there are, whose they are, and what they are: a CSV that is believed only after checks."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.camelyon import SlideFinder
from wsi_ips.datasets.same_slide import same_slides
from wsi_ips.datasets.targets import Target, target_of
from wsi_ips.errors import ManifestError, SlideNotFound
from wsi_ips.files import check_table_size, whole_file
from wsi_ips.location import is_file_name, is_there

COLUMNS = ("slide_id", "case_id", "split", "path")
"""What every manifest has, beside a column per task."""
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class SlideRecord:
    """One slide. ``case_id`` is the patient: all slides of a case lie in one split. ``labels``: column to cell."""

    slide_id: str
    case_id: str
    labels: Mapping[str, str]
    split: str
    path: Path

    def targets(self, tasks: Sequence[TaskConfig]) -> dict[str, Target]:
        """{task: what it learns from this slide}, without the tasks that the slide has no label for.

        Raises ``ValueError`` as :func:`target_of`.
        """
        cells = {task.name: self.labels.get(task.column_name, "") for task in tasks}
        return {task.name: target_of(task, cells[task.name]) for task in tasks if cells[task.name]}


@dataclass(frozen=True, slots=True)
class Manifest:
    """The slides of a data set, in file order. ``path`` is the CSV that they came from."""

    path: Path
    records: tuple[SlideRecord, ...]

    def split(self, name: str) -> list[SlideRecord]:
        """The slides of ``train``, ``val`` or ``test``; of several, joined by ``+``."""
        return [record for record in self.records if record.split in name.split("+")]


def read_manifest(
    path: Path,
    *,
    tasks: Sequence[TaskConfig],
    root: Path | None = None,
    need_slides: bool = True,
    need_labels: bool = True,
) -> Manifest:
    """Read a CSV with the columns ``slide_id,case_id,split,path`` and one per task; others are ignored.

    Slide paths are absolute or relative to ``root`` (none: the CSV's folder); with ``root`` a slide that is not
    there is looked for in CAMELYON's layouts. Without ``need_slides`` (their features are stored) none has to be
    there. An empty cell is a missing label: the slide is left out of that task alone. With ``need_labels`` every
    slide has a label for some task. Raises :class:`ManifestError` with the line for an unknown label, a slide
    without any, an unknown split, a duplicate slide_id, missing slides, an empty field, a case in two splits, a
    file under two ids (a link or a copy; looked at where slides have to be there);
    :class:`SlideNotFound` where ``root`` is no folder.
    """
    if root is not None and not root.is_dir():
        raise SlideNotFound(root, "no such folder of slides", "name the folder that holds the data set")
    columns = (*COLUMNS, *dict.fromkeys(task.column_name for task in tasks))
    if not path.is_file():
        raise ManifestError(path, "no such manifest", f"write a CSV with the columns {','.join(columns)}")
    check_table_size(path, ManifestError)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [name for name in columns if name not in (rows.fieldnames or ())]
            if missing:
                raise ManifestError(
                    path, f"lacks the column {missing[0]}", f"its first line must name {','.join(columns)}"
                )
            lines = [(rows.line_num, _record(path, rows.line_num, row, tasks, need_labels)) for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(path, f"is not a CSV in UTF-8 ({error})", "save it as CSV") from None
    if not lines:
        raise ManifestError(path, "lists no slides", "add a line per slide")
    records = _located(path, lines, root) if need_slides else [record for _, record in lines]
    _check_ids_and_cases(path, records)
    if need_slides:
        _check_files(path, records)
    return Manifest(path, tuple(records))


def write_manifest(path: Path, records: Sequence[SlideRecord]) -> None:
    """Write records; slide paths below the CSV's folder become relative to it."""
    columns = list(dict.fromkeys(column for record in records for column in record.labels))
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["slide_id", "case_id", *columns, "split", "path"])
        for record in records:
            below = record.path.is_relative_to(path.parent)
            where = record.path.relative_to(path.parent) if below else record.path
            labels = [record.labels.get(column, "") for column in columns]
            writer.writerow([record.slide_id, record.case_id, *labels, record.split, where.as_posix()])


def _record(
    path: Path, line: int, row: Mapping[str, str | None], tasks: Sequence[TaskConfig], need_label: bool
) -> SlideRecord:
    values = {name: (row.get(name) or "").strip() for name in COLUMNS}
    labels = {task.column_name: (row.get(task.column_name) or "").strip() for task in tasks}
    empty = next((name for name in COLUMNS if not values[name]), None)
    if empty:
        raise ManifestError(path, f"line {line}: {empty} is empty", "fill it in, or leave the line out")
    if values["split"] not in SPLITS:
        raise ManifestError(
            path, f"line {line}: unknown split {values['split']!r}", f"known: {', '.join(SPLITS)}"
        )
    if not is_file_name(values["slide_id"]):
        raise ManifestError(
            path,
            f"line {line}: slide_id {values['slide_id'][:80]!r} is no file name",
            "it may have no slash and no control character, and be no longer than a file's name",
        )
    record = SlideRecord(values["slide_id"], values["case_id"], labels, values["split"], Path(values["path"]))
    try:
        if not record.targets(tasks) and need_label and tasks:
            empty_cells = f"{', '.join(labels)} are all" if len(labels) > 1 else f"{next(iter(labels))} is"
            raise ValueError(f"{empty_cells} empty; fill in a label, or leave the line out")
    except ValueError as error:
        problem, _, mend = str(error).partition("; ")
        raise ManifestError(path, f"line {line}: {problem}", mend) from None
    return record


def _located(path: Path, lines: Sequence[tuple[int, SlideRecord]], root: Path | None) -> list[SlideRecord]:
    """The records with paths that exist. One error for all that do not: a first download is often partial."""
    find = None if root is None else SlideFinder(root)
    records: list[SlideRecord] = []
    missing: list[tuple[int, Path]] = []
    for line, record in lines:
        plain = (root or path.parent) / record.path
        slide = find(record.slide_id, record.path) if find else plain if is_there(plain) else None
        records.append(replace(record, path=slide or plain))
        if slide is None:
            missing.append((line, plain))
    if missing:
        line, first = missing[0]
        mend = "paths are relative to the manifest, or to the folder given with --slides"
        if root is not None:
            mend = "a manifest of CAMELYON slides that are there: wsi-ips data manifest"
        raise ManifestError(
            path,
            f"line {line}: no slide at {first} ({len(missing)} of {len(lines)} slides are missing)",
            mend,
        )
    return records


def _check_files(path: Path, records: Sequence[SlideRecord]) -> None:
    """Raise where one file goes by two ids: what is learned from would be measured on."""
    split_of = {record.slide_id: record.split for record in records}
    for one, other, why in same_slides({record.slide_id: record.path for record in records}):
        raise ManifestError(
            path,
            f"{one!r} (in {split_of[one]}) and {other!r} (in {split_of[other]}) are the same slide: {why}",
            "give every slide one line, or results leak",
        )


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
