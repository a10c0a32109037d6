"""From a manifest to a checkpoint."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from wsi_ips.config import FinetuneConfig, TaskConfig
from wsi_ips.datasets.manifest import Manifest
from wsi_ips.errors import ManifestError, TrainingError, WsiIpsError
from wsi_ips.progress import Progress, silent
from wsi_ips.tiling.upsampling import upsampling_note
from wsi_ips.training.bags import SlideBag, tile_bag
from wsi_ips.training.fit import check_encoder, train_bags
from wsi_ips.training.record import FinetuneReport
from wsi_ips.units import Mpp


def finetune(
    manifest: Manifest,
    config: FinetuneConfig,
    out: Path,
    *,
    device: torch.device,
    slide_mpp: Callable[[str], Mpp | None],
    progress: Progress = silent,
) -> FinetuneReport:
    """Train on the manifest's ``train`` slides, choose the epoch on its ``val`` slides; ``test`` is not read.

    Slides that cannot be opened or have no tissue are left out and reported. Writes and raises as
    :func:`train_bags`; raises :class:`ManifestError` without training slides or with one label only,
    :class:`TrainingError` where more than ``training.max_bad_slides`` of the slides are bad.
    """
    records = [*manifest.split("train"), *manifest.split("val")]
    check_labels(manifest, config.model.tasks)
    if config.model.encoder.weights == "none":
        check_encoder(config)
    bags: dict[str, list[SlideBag]] = {"train": [], "val": []}
    bad: dict[str, str] = {}
    allowed = math.ceil(config.training.max_bad_slides * len(records))
    with progress("Finding tissue", total=len(records)) as advance:
        for record in records:
            try:
                bag = tile_bag(record, tasks=config.model.tasks, tiling=config.tiling, slide_mpp=slide_mpp)
            except WsiIpsError as error:
                bad[record.slide_id] = str(error)
                advance(f"{record.slide_id} is left out: {error}")
                if len(bad) > allowed:
                    raise too_many_bad(bad, error) from error
                continue
            bags[record.split].append(bag)
            note = upsampling_note(bag.coords)
            advance(f"{record.slide_id}: {len(bag)} patches" + (f" ({note})" if note else ""))
    report = train_bags(
        bags["train"], bags["val"], config, out, device=device, progress=progress, max_bad=allowed - len(bad)
    )
    return replace(report, bad={**bad, **report.bad})


def check_labels(manifest: Manifest, tasks: Sequence[TaskConfig]) -> None:
    """Raise :class:`ManifestError` where there is nothing to learn, or nothing to choose the epoch by."""
    if not manifest.split("train"):
        raise ManifestError(manifest.path, "has no slides in split 'train'", "set the split column")
    for split, records in (("train", manifest.split("train")), ("val", manifest.split("val"))):
        for task in tasks:
            labels = {record.labels[task.column_name] for record in records} - {""}
            if records and len(labels) < 2:
                what = f"the {task.column_name} {labels.pop()!r}" if labels else f"no {task.column_name}"
                raise ManifestError(
                    manifest.path,
                    f"all slides of split {split!r} have {what}",
                    "there is nothing to tell apart: give it slides of at least two",
                )


def too_many_bad(bad: Mapping[str, str], last: WsiIpsError) -> TrainingError:
    """The error for more bad slides than ``training.max_bad_slides`` allows."""
    return TrainingError(
        f"{len(bad)} slides cannot be used, more than training.max_bad_slides allows; the last one: {last}"
    )
