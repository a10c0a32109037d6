"""Predictions of slides that were read with their cases, one for each case: :func:`one_for_each_case`.

Every slide of a case has the answer of the case in its row. Scored slide by slide, a patient would count as often
as it has slides.
"""

from collections.abc import Sequence
from dataclasses import replace

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.manifest import Manifest, SlideRecord, case_targets
from wsi_ips.errors import ManifestError
from wsi_ips.inference.predictions import PredictionRow

Pair = tuple[SlideRecord, PredictionRow]
"""A slide of a manifest, and its prediction."""
JOINER = ";"
"""Joins the names of the slides of a case, where a table has one row for all of them."""


def one_for_each_case(pairs: Sequence[Pair], manifest: Manifest, tasks: Sequence[TaskConfig]) -> list[Pair]:
    """One pair for each case, in the order of its first slide, if slides were read with their cases; otherwise the
    same pairs.

    The record of a case has the names of the slides that were read, joined by ``;``, as its ``slide_id``, and the
    labels of the case.

    Raises:
        ManifestError: A slide was predicted as part of another case than the manifest says, or slides of a case
            have different labels.
    """
    if not any(row.case for _, row in pairs):
        return list(pairs)
    by_case: dict[str, list[Pair]] = {}
    for record, row in with_labels_of_cases(pairs, manifest, tasks):
        by_case.setdefault(record.case_id, []).append((record, row))
    return [
        (replace(its[0][0], slide_id=JOINER.join(record.slide_id for record, _ in its)), its[0][1])
        for its in by_case.values()
    ]


def with_labels_of_cases(
    pairs: Sequence[Pair], manifest: Manifest, tasks: Sequence[TaskConfig]
) -> list[Pair]:
    """The same pairs, each slide with the labels of its case. For errors see :func:`one_for_each_case`."""
    for record, row in pairs:
        if row.case is None or row.case.case_id != record.case_id:
            said = None if row.case is None else row.case.case_id
            raise ManifestError(
                manifest.path,
                f"slide {record.slide_id!r} belongs to case {record.case_id!r}, and was read as part of {said!r}",
                "predict again with --cases and this manifest",
            )
    case_targets(manifest, tasks)  # raises for labels that differ
    labels: dict[str, dict[str, str]] = {}
    for record in manifest.records:
        of_case = labels.setdefault(record.case_id, {})
        of_case |= {column: cell for column, cell in record.labels.items() if cell}
    return [
        (replace(record, labels={**record.labels, **labels[record.case_id]}), row) for record, row in pairs
    ]
