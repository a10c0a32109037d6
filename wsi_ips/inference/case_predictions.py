"""``cases.csv``: what the network says of every patient, pooled over the slides."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wsi_ips.config import TaskConfig
from wsi_ips.errors import ManifestError, one_line
from wsi_ips.evaluation.cases import Pooling, pool_outputs
from wsi_ips.evaluation.task_scores import kind_of
from wsi_ips.files import check_table_size, whole_file
from wsi_ips.inference.predictions import PredictionRow, answer_cells, answer_columns


def read_case_table(path: Path, slide_ids: Sequence[str]) -> dict[str, str]:
    """{slide_id: case_id} of these slides, from a CSV with both columns; other columns and slides are left out.

    Raises :class:`ManifestError` for a slide that is not there, or is with two cases.
    """
    if not path.is_file():
        raise ManifestError(path, "does not exist", "name a CSV with the columns slide_id,case_id")
    check_table_size(path, ManifestError)
    case_of: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for line in csv.DictReader(file, strict=True):
                case = case_of.setdefault(line["slide_id"], line["case_id"])
                if case != line["case_id"]:
                    raise ManifestError(path, f"slide {line['slide_id']} is of two cases", "give it one")
    except (csv.Error, UnicodeDecodeError, KeyError) as error:
        why = f"lacks the column {error}" if isinstance(error, KeyError) else f"is no CSV ({one_line(error)})"
        raise ManifestError(path, why, "it needs the columns slide_id,case_id") from None
    for slide_id in slide_ids:
        if not case_of.get(slide_id):
            raise ManifestError(path, f"does not say whose slide {slide_id} is", "add a line for it")
    return {slide_id: case_of[slide_id] for slide_id in slide_ids}


def write_cases(
    path: Path,
    rows: Sequence[PredictionRow],
    case_of: Mapping[str, str],
    *,
    tasks: Sequence[TaskConfig],
    pool: Pooling = "max",
) -> None:
    """Write a line per patient, in the order of their first slides, whole.

    Columns: ``case_id``, those of ``predictions.csv`` from ``prob_…`` to ``pred``, ``n_slides`` (labelled, and so
    pooled), ``n_failed``. Pooled as :func:`wsi_ips.evaluation.cases.pool_cases` says; a patient whose slides all
    failed has no answer.
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


def _pooled(task: TaskConfig, rows: Sequence[PredictionRow], pool: Pooling) -> dict[str, float]:
    if len(rows) == 1:
        return dict(rows[0].probabilities[task.name])
    output_NC = np.array([[row.probabilities[task.name][name] for name in task.classes] for row in rows])
    return dict(zip(task.classes, pool_outputs(kind_of(task), output_NC, pool).tolist(), strict=True))
