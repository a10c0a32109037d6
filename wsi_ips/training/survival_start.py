"""What training finds out about its patients before it learns survival: whether it can be learned, and the time
bins.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from wsi_ips.config import FinetuneConfig, TaskConfig
from wsi_ips.datasets.manifest import Manifest, SlideRecord, Target
from wsi_ips.errors import ConfigError, ManifestError
from wsi_ips.survival.concordance import harrell
from wsi_ips.survival.follow_up import FollowUp
from wsi_ips.survival.time_bins import time_bins


def follow_up_of(task: TaskConfig, targets: Sequence[Mapping[str, Target]]) -> FollowUp:
    """The times and events of the bags that have them, in their order. ``targets`` is ``{task: target}`` of each
    bag.
    """
    known = [target[task.name] for target in targets if task.name in target]
    pairs = [each for each in known if isinstance(each, tuple)]
    return FollowUp.of([time for time, _ in pairs], [event for _, event in pairs])


def check_survival(manifest: Manifest, split: str, records: Sequence[SlideRecord], task: TaskConfig) -> None:
    """Check that survival can be learned from the patients of a split, or an epoch chosen by them.

    Training needs both events and censorings; any other split needs two patients of whom it is known whose event
    came first.

    Raises:
        ManifestError: The patients of the split do not suffice.
    """
    assert task.survival is not None
    if not records:
        return
    known = follow_up_of(task, [record.targets([task]) for record in records])
    column = task.survival.event
    if split == "train" and (not len(known) or known.event.all() or not known.event.any()):
        found = f"only {column} {int(known.event[0])}" if len(known) else f"no {column}"
        raise ManifestError(
            manifest.path,
            f"the patients of split {split!r} have {found}",
            "survival is learned from patients with the event and without: add cases, or see that the column "
            "tells events, not censorings",
        )
    if not len(known) or not harrell(known, [0.0] * len(known)).pairs:
        raise ManifestError(
            manifest.path,
            f"of no two patients of split {split!r} it is known whose event came first ({known.counts})",
            f"no epoch can be chosen by them: add cases with the {column}, or leave the split out",
        )


def with_time_bins(config: FinetuneConfig, targets: Sequence[Mapping[str, Target]]) -> FinetuneConfig:
    """The configuration with the edges of the time bins of every hazards task, found in the times of the
    training bags.

    Edges that the configuration has already stay.

    Raises:
        ConfigError: Bins cannot be cut, or survival is asked for at a time beyond the longest follow-up.
    """
    if all(task.survival is None for task in config.model.tasks):
        return config
    tasks = tuple(_begun(task, targets) for task in config.model.tasks)
    return config.model_copy(update={"model": config.model.model_copy(update={"tasks": tasks})})


def _begun(task: TaskConfig, targets: Sequence[Mapping[str, Target]]) -> TaskConfig:
    survival = task.survival
    if survival is None:
        return task
    known = follow_up_of(task, targets)
    longest = float(known.time.max()) if len(known) else 0.0
    if survival.at[-1] > longest:
        raise ConfigError(
            f"task {task.name}: survival.at has {survival.at[-1]:g} {survival.unit}, and no training patient was "
            f"followed longer than {longest:g}: leave later times out"
        )
    if survival.loss != "hazards" or survival.edges is not None:
        return task
    try:
        edges = time_bins(known, survival.bins)
    except ValueError as error:
        raise ConfigError(f"task {task.name}: {error}; take fewer survival.bins, or loss: cox") from None
    return with_survival(task, edges=tuple(edges.tolist()))


def with_survival(task: TaskConfig, **fitted: Any) -> TaskConfig:
    """The task with values in its ``survival`` section that were found out about its patients."""
    assert task.survival is not None
    return task.model_copy(update={"survival": task.survival.model_copy(update=fitted)})
