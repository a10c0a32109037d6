"""The labels of cases (patients), where all slides of a case are one bag: :func:`case_targets`."""

from collections.abc import Sequence

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.manifest import Manifest, SlideRecord, Target
from wsi_ips.errors import ManifestError


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
