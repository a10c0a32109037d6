"""Training, from a manifest to a checkpoint: :func:`finetune`.

:func:`train_bags` is the same for bags from whatever data set: it builds the network, makes the head start, runs
Lightning, and completes the checkpoint. What a run leaves in its folder, and resumes from, is in
:mod:`wsi_ips.training.run_state`; what a step does is in :mod:`wsi_ips.training.module`.
"""

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from wsi_ips.config import FinetuneConfig, TrainingConfig
from wsi_ips.datasets.manifest import Manifest, SlideRecord, case_targets
from wsi_ips.errors import ConfigError, ManifestError, TrainingError, WsiIpsError, count
from wsi_ips.models.build import build_selecting_net, check_aggregator, complete_model
from wsi_ips.models.checkpoint import begin_from, load_scorer, named_base, save_checkpoint
from wsi_ips.models.encoders.network import Compute, compute_in
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.models.encoders.weights import check_weights
from wsi_ips.models.ips_net import BagNet, IPSNet
from wsi_ips.progress import Progress, silent
from wsi_ips.storage.files import whole_file
from wsi_ips.storage.fingerprint import versions
from wsi_ips.streaming.device import calculating, numerics
from wsi_ips.tiling.kept_coords import given_coords
from wsi_ips.tiling.patches import FindPatches, PatchesInTissue, note_of_patches
from wsi_ips.timeline import working
from wsi_ips.training.bags import Bag, SlideBag, bags_of, tile_bag, warn_of_order, without_slides
from wsi_ips.training.cascade import calibrate
from wsi_ips.training.diagnosis import behind_head_start, findings
from wsi_ips.training.head_start import (
    best_start,
    encoded,
    forget_features,
    head_start_config,
    last_row,
    views_of,
)
from wsi_ips.training.learned_from import LearnedFrom
from wsi_ips.training.learning import Steps
from wsi_ips.training.model_card import SlideFacts, write_card
from wsi_ips.training.module import IPSModule
from wsi_ips.training.open_settings import decide_open_settings
from wsi_ips.training.processes import (
    SharedSteps,
    check_nodes,
    is_first_process,
    of_all,
    place_among_processes,
)
from wsi_ips.training.run_state import (
    BEST_NAME,
    HEAD_START,
    HEAD_START_NAME,
    RUN_NAME,
    STATE_NAME,
    FinetuneReport,
    RunRecorder,
)
from wsi_ips.training.sampling import order_of_epoch
from wsi_ips.training.standardise import standardise
from wsi_ips.training.survival import check_survival, store_baseline, with_time_bins
from wsi_ips.units import Mpp

PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "32-true", "fp16": "16-mixed"}
"""What Lightning is asked for, for each ``training.precision``. Encoders switch to half precision themselves; of
Lightning only the scaler of fp16 is needed."""
FREE = ("save_minutes", "tensorboard", "max_bad_slides")
"""Settings of ``training`` that may change when a run is resumed."""


def finetune(
    manifest: Manifest,
    config: FinetuneConfig,
    out: Path,
    *,
    device: torch.device,
    slide_mpp: Callable[[str], Mpp | None],
    find_patches: FindPatches | None = None,
    progress: Progress = silent,
) -> FinetuneReport:
    """Train on the ``train`` slides of a manifest and choose the epoch on its ``val`` slides. ``test`` is not
    read.

    Slides that cannot be opened or have no tissue are left out and reported. For what is written into ``out``,
    see :func:`train_bags`; at the end there is also ``MODEL_CARD.md``
    (:func:`wsi_ips.training.model_card.write_card`).

    Args:
        manifest: The slides and their labels.
        config: The settings of the run.
        out: Folder to write to.
        device: Where the network runs.
        slide_mpp: Gives the resolution of a slide if the user knows it better than the file, or None.
        find_patches: Finds the patches of a slide. None: those in tissue, as ``config.tiling`` says; they are kept
            nowhere.
        progress: Shows how far it is.

    Raises:
        ManifestError: There are no training slides, or only one label.
        ConfigError: ``out`` holds another run, or the settings are not possible.
        CheckpointError: The encoder's weights are a package that is not installed, or a file that is not there.
        TrainingError: More slides than ``training.max_bad_slides`` allows are bad, or the loss is not finite.
    """
    records = [*manifest.split("train"), *manifest.split("val")]
    check_nodes(config.training.nodes)
    check_labels(manifest, config)
    check_aggregator(config.model, config.selection)
    check_encoder(config)
    allowed = math.ceil(config.training.max_bad_slides * len(records))
    find = find_patches or PatchesInTissue(config.tiling)
    learned_from = LearnedFrom.now(records, config, slide_mpp=slide_mpp)  # before a slide is read
    bags, bad = _tile_bags(records, config, find, slide_mpp, progress, allowed=allowed)
    bad |= without_slides(bad, records, config)
    train, val = (
        bags_of([bag for bag in bags if bag.record.split == split], manifest, config)
        for split in ("train", "val")
    )
    report = train_bags(
        train, val, config, out, device=device, progress=progress, max_bad=allowed - len(bad),
        coords=given_coords(find, [bag.bag_id for bag in bags]), learned_from=learned_from,
    )  # fmt: skip
    report = replace(report, bad={**bad, **report.bad})
    if is_first_process():
        facts = {
            bag.bag_id: SlideFacts(len(bag), float(bag.coords.slide_mpp), bag.scanner)
            for split in ("train", "val")
            for bag in bags
            if bag.record.split == split
        }
        write_card(out, manifest, config, report, facts)
    return report


def _tile_bags(
    records: Sequence[SlideRecord],
    config: FinetuneConfig,
    find: FindPatches,
    slide_mpp: Callable[[str], Mpp | None],
    progress: Progress,
    *,
    allowed: int,
) -> tuple[list[SlideBag], dict[str, str]]:
    """The slides cut into patches, and ``{slide_id: why}`` of those that cannot be, both in the order of
    ``records``.

    Each process of torchrun begins with a share of its own. Where coordinates are kept, it finds those of the
    others' slides made when it comes to them.
    """
    rank, processes = place_among_processes()
    tiled: dict[str, SlideBag] = {}
    bad: dict[str, str] = {}
    with progress("Finding tissue", total=len(records)) as advance:
        for first in range(rank, rank + processes):
            for record in records[first % processes :: processes]:
                try:
                    bag = tile_bag(record, tasks=config.model.tasks, find_patches=find, slide_mpp=slide_mpp)
                except WsiIpsError as error:
                    bad[record.slide_id] = str(error)
                    advance(f"{record.slide_id} is left out: {error}")
                    if len(bad) > allowed:
                        raise too_many_bad(bad, error) from error
                    continue
                tiled[record.slide_id] = bag
                note = note_of_patches(bag.coords)
                advance(
                    f"{record.slide_id}: {count(len(bag), 'patch', 'patches')}"
                    + (f" ({note})" if note else "")
                )
    ids = [record.slide_id for record in records]
    return (
        [tiled[slide_id] for slide_id in ids if slide_id in tiled],
        {slide_id: bad[slide_id] for slide_id in ids if slide_id in bad},
    )


def check_labels(manifest: Manifest, config: FinetuneConfig) -> None:
    """Check that there is something to learn, and something to choose the epoch by.

    Raises:
        ManifestError: There are no training slides, a split has only one label, or with ``bag: case`` slides of
            a case have different labels.
    """
    tasks = config.model.tasks
    if config.bag == "case":
        case_targets(manifest, tasks)
    if not manifest.split("train"):
        raise ManifestError(manifest.path, "has no slides in split 'train'", "set the split column")
    for split, records in (("train", manifest.split("train")), ("val", manifest.split("val"))):
        for task in tasks:
            if task.survival is not None:
                check_survival(manifest, split, records, task)
                continue
            labels = {record.labels[task.column_name] for record in records} - {""}
            if records and len(labels) < 2:
                what = f"the {task.column_name} {labels.pop()!r}" if labels else f"no {task.column_name}"
                raise ManifestError(
                    manifest.path,
                    f"all slides of split {split!r} have {what}",
                    "there is nothing to tell apart: give it slides of at least two",
                )


def check_encoder(config: FinetuneConfig) -> None:
    """Check the encoder before bags are made, as :func:`train_bags` will.

    Raises:
        CheckpointError: The encoder's weights are a package that is not installed, or a file that is not there.
        ConfigError: Training would leave the encoder without normalisation for good.
    """
    encoder = config.model.encoder
    if encoder.features is None:
        check_weights(encoder.weights)
    if encoder.weights == "none" and config.training.start is None:
        with torch.random.fork_rng(devices=[]):
            _check_normalised(build_selecting_net(config.model, config.selection))


def too_many_bad(bad: Mapping[str, str], last: WsiIpsError) -> TrainingError:
    """The error for more bad slides than ``training.max_bad_slides`` allows."""
    return TrainingError(
        f"{count(len(bad), 'slide')} cannot be used, more than training.max_bad_slides allows; the last one: "
        f"{last}"
    )


def train_bags(
    train: Sequence[Bag],
    val: Sequence[Bag],
    config: FinetuneConfig,
    out: Path,
    *,
    device: torch.device,
    progress: Progress = silent,
    max_bad: int = 0,
    coords: str = "",
    learned_from: LearnedFrom | None = None,
) -> FinetuneReport:
    """Train on bags and choose the epoch on ``val``, or by the training loss if there are none.

    Into ``out`` are written ``model.safetensors`` (the best epoch so far, with its configuration),
    ``last.safetensors``, ``history.csv`` (losses and figures of each epoch), ``run.json`` (the complete
    configuration, versions, and how the device calculates), and the state from which the same call resumes after
    it was killed. A head start, if the configuration asks for one, is made first, below ``out/head_start``, and
    ``head_start.safetensors`` is the network as it was then if no epoch that followed was better on ``val``. With
    restarts, each start is a run below ``out/starts``, and ``starts.csv`` says how each of them ended.

    Args:
        train: The bags to learn from.
        val: The bags to choose the epoch on.
        config: The settings of the run.
        out: Folder to write to.
        device: Where the network runs.
        progress: Shows how far it is.
        max_bad: How many bags may turn out to be unreadable.
        coords: Fingerprint of the coordinates that the user gave
            (:func:`wsi_ips.tiling.kept_coords.given_coords`): with others it is another run. Empty: none were
            given.
        learned_from: The content of the files of the bags, taken before they were read: with other content it is
            another run. None: it is not compared.

    Raises:
        ConfigError: ``out`` holds another run, or an encoder with random weights would never be normalised
            (:meth:`TimmEncoder.check_normalised`).
        TrainingError: The loss is not finite, or more than ``max_bad`` bags cannot be read.
    """
    if config.selection.selector == "cascade" and config.selection.coarse.recall is not None and not val:
        raise ConfigError(
            "selection.coarse.recall is measured on the validation split, which is empty: set coarse.share instead"
        )
    config = with_time_bins(config, [bag.targets for bag in train])
    config = decide_open_settings(config.model_copy(update={"model": complete_model(config.model)}), out)
    with calculating(deterministic=config.training.deterministic):
        train_once = partial(
            _train, train, val, device=device, progress=progress, max_bad=max_bad, coords=coords,
            learned_from=learned_from,
        )  # fmt: skip
        return _from_all_starts(config, out, train_once)


def _from_all_starts(
    config: FinetuneConfig, out: Path, train_once: Callable[[FinetuneConfig, Path], FinetuneReport]
) -> FinetuneReport:
    """Train once, or with ``training.restarts`` from several starts unless the head start has them."""
    if config.training.restarts > 1 and not config.head_start_epochs:
        return best_start(config, out, train_once)
    return train_once(config, out)


def _train(
    train: Sequence[Bag],
    val: Sequence[Bag],
    config: FinetuneConfig,
    out: Path,
    *,
    device: torch.device,
    progress: Progress,
    max_bad: int,
    coords: str,
    learned_from: LearnedFrom | None,
) -> FinetuneReport:
    net, config = _beginning(config)
    bad: dict[str, str] = {}
    if config.training.start is not None:
        begin_from(net, config.training.start)
    _check_normalised(net)
    if config.training.start is None and config.head_start_epochs and not (out / STATE_NAME).exists():
        started = _head_start(
            net, train, val, config, out, device=device, progress=progress, max_bad=max_bad, coords=coords,
            learned_from=learned_from,
        )  # fmt: skip
        begin_from(net, started.checkpoint)
        seed_everything(config.training.seed, verbose=False)
        bad = dict(started.bad)
    elif config.training.start is None and not (out / STATE_NAME).exists():
        standardise(net, train, config.streaming, device=device)
    module = IPSModule(net, config, bags=train, steps=_steps(train, config.training), max_bad=max_bad)
    module.bad.update(bad)
    record = RunRecorder(out, config, run=_described(config, train, val, coords), learned_from=learned_from)
    record.resume(module)
    if not record.finished:
        working()
        if is_first_process():
            _write_run(out / RUN_NAME, config)
        _fit(module, val, config, out, device=device, record=record, progress=progress)
    return _ended(record, train, val, module.bad, config, out, device=device, progress=progress)


def _beginning(config: FinetuneConfig) -> tuple[BagNet, FinetuneConfig]:
    """The network that a training begins with, the same one each time, and the configuration with what was found
    out about it.
    """
    seed_everything(config.training.seed, verbose=False)
    net = build_selecting_net(config.model, config.selection)
    if config.selection.scorer is not None:
        config = config.model_copy(update={"selection": load_scorer(cast(IPSNet, net), config)})
    compute_in(net, Compute(config.training.precision))
    return net, config.model_copy(update={"model": named_base(config.model, net)})


def _ended(
    record: RunRecorder,
    train: Sequence[Bag],
    val: Sequence[Bag],
    bad: Mapping[str, str],
    config: FinetuneConfig,
    out: Path,
    *,
    device: torch.device,
    progress: Progress,
) -> FinetuneReport:
    """Complete the checkpoints of a run that has learned, and say how it ended."""
    behind = _behind_head_start(record, config, out)
    if is_first_process():
        learned, chose = ([bag for bag in bags if bag.bag_id not in bad] for bags in (train, val))
        for name in (BEST_NAME, *([HEAD_START_NAME] if behind else [])):
            _complete(out / name, learned, chose, config, device=device, progress=progress)
    train_targets, val_targets = ([bag.targets for bag in bags] for bags in (train, val))
    doubts = findings(record.history, record.best_epoch, config, train=train_targets, val=val_targets)
    doubts += behind
    if is_first_process():
        _write_run(out / RUN_NAME, config, doubts=doubts)
    return FinetuneReport(out / BEST_NAME, record.best_epoch, tuple(record.history), dict(bad), doubts)


def _steps(train: Sequence[Bag], training: TrainingConfig) -> Steps:
    """The steps of a training on these bags, from the first one on."""
    targets, balanced = [bag.targets for bag in train], training.sampling == "balanced"
    return Steps(
        len(train),
        per_step=training.slides_per_step,
        order=lambda epoch: order_of_epoch(targets, seed=training.seed, epoch=epoch, balanced=balanced),
    )


def _complete(
    checkpoint: Path,
    train: Sequence[Bag],
    val: Sequence[Bag],
    config: FinetuneConfig,
    *,
    device: torch.device,
    progress: Progress,
) -> None:
    """Add what a checkpoint needs beside its weights: the recall of a cascade, the baseline hazards of Cox
    tasks.
    """
    if config.selection.selector == "cascade" and val:
        calibrate(checkpoint, val, config, device=device, progress=progress)
    store_baseline(checkpoint, train, config, device=device, progress=progress)


def _behind_head_start(record: RunRecorder, config: FinetuneConfig, out: Path) -> list[str]:
    """Nothing, or what speaks for the network as it was after the head start. It is written then, as
    ``head_start.safetensors``; where another selector followed the head start there is no such network.
    """
    selector = head_start_config(config, width=1).selection.selector
    if (
        config.training.start is not None
        or not config.head_start_epochs
        or config.selection.selector != selector
    ):
        return []
    path, started = out / HEAD_START_NAME, last_row(out)
    said = started and behind_head_start(started, record.history[record.best_epoch], config.training.monitor)
    if is_first_process():
        path.unlink(missing_ok=True)
    if not said or not started:
        return []
    if is_first_process():
        net, _ = _beginning(config)
        begin_from(net, out / HEAD_START / BEST_NAME)
        notes = {name: f"{value:.6g}" for name, value in started.items()}
        save_checkpoint(path, net, config.pipeline, notes=notes)
    return [f"{said}; {path} is the network as it was then, to be compared on other slides"]


def _head_start(
    net: BagNet,
    train: Sequence[Bag],
    val: Sequence[Bag],
    config: FinetuneConfig,
    out: Path,
    *,
    device: torch.device,
    progress: Progress,
    max_bad: int,
    coords: str,
    learned_from: LearnedFrom | None,
) -> FinetuneReport:
    """Train what follows the encoder on features of all bags."""
    content = "" if learned_from is None else learned_from.digest
    train_once = partial(
        _train,
        encoded(train, net, config, out, device=device, views=views_of(config), content=content),
        encoded(val, net, config, out, device=device, content=content),
        device=device,
        progress=progress,
        max_bad=max_bad,
        coords=coords,
        learned_from=learned_from,
    )
    start = head_start_config(config, width=net.feature_width)
    report = _from_all_starts(start, out / HEAD_START, train_once)
    of_all(None)  # wait until the first process has written the checkpoint and nobody reads features any more
    if not config.training.head_start.keep_features and is_first_process():
        forget_features(out)
    return report


def _check_normalised(net: nn.Module) -> None:
    for encoder in net.modules():
        if isinstance(encoder, TimmEncoder):
            encoder.check_normalised()


def _fit(
    module: IPSModule,
    val: Sequence[Bag],
    config: FinetuneConfig,
    out: Path,
    *,
    device: torch.device,
    record: RunRecorder,
    progress: Progress,
) -> None:
    training, steps = config.training, module.steps
    check_nodes(training.nodes)
    warn_of_order(module.net, config)
    if device.type == "cpu" and training.precision == "fp16":
        raise ConfigError("training.precision: fp16 needs a GPU; bf16 and 32 run on a CPU")
    name = "Head start" if out.name == HEAD_START else "Fine-tuning"
    total = training.epochs * (steps.per_epoch + len(val)) - (steps.done + steps.epoch * len(val))
    with _quiet_lightning(), progress(name, total=total) as advance:
        trainer = Trainer(
            accelerator=device.type,
            devices=_devices(training.devices, device),
            num_nodes=training.nodes,
            strategy=SharedSteps() if training.devices * training.nodes > 1 else "auto",
            precision=PRECISIONS[training.precision],
            max_epochs=training.epochs - steps.epoch,
            callbacks=[record, _ShowProgress(advance, record)],
            logger=_logger(out) if training.tensorboard else False,
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, steps, _Share(val, trainer) if val else None)


def _devices(wanted: int, device: torch.device) -> int | list[int]:
    return wanted if wanted > 1 or device.index is None or device.type == "cpu" else [device.index]


def _logger(out: Path) -> TensorBoardLogger:
    try:
        return TensorBoardLogger(out, name="tensorboard", version="")
    except ModuleNotFoundError:
        raise ConfigError(
            "training.tensorboard needs tensorboard: pip install 'wsi_ips[tensorboard]'"
        ) from None


class _Share:
    """The part of the validation bags that this process measures."""

    def __init__(self, bags: Sequence[Bag], trainer: Trainer) -> None:
        self._bags, self._trainer = bags, trainer

    def __iter__(self) -> Iterator[Bag]:
        return iter(self._bags[self._trainer.global_rank :: self._trainer.world_size])


class _ShowProgress(Callback):
    def __init__(self, advance: Callable[[str], None], record: RunRecorder) -> None:
        self._advance, self._record = advance, record

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._advance(self._figures(trainer))

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._advance(self._figures(trainer))

    def _figures(self, trainer: Trainer) -> str:
        shown = {"loss": float(trainer.callback_metrics.get("step_loss", math.nan))}
        shown |= {n: v for n, v in (self._record.history or [{}])[-1].items() if n.startswith("val_")}
        return f"epoch {len(self._record.history) + 1}  " + "  ".join(
            f"{k} {v:.3f}" for k, v in shown.items()
        )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """No banner, and none of the advice that does not apply: bags carry no pixels, so no loader workers are
    needed.
    """
    names = ("pytorch.utilities.rank_zero", "pytorch.accelerators", "fabric.utilities.distributed")
    loggers = [logging.getLogger(f"lightning.{name}") for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            # The metrics are summed over the processes already.
            warnings.filterwarnings("ignore", message=".*It is recommended to use .self.log.*sync_dist.*")
            # Frozen BatchNorm is meant to be in eval mode.
            warnings.filterwarnings("ignore", message=".*module.s. in eval mode at the start of training.*")
            warnings.filterwarnings("ignore", message=".*but have no `val_dataloader`.*")
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def deciding_settings(config: FinetuneConfig) -> dict[str, Any]:
    """The settings that decide the result of a training, as JSON. How slides are streamed does not."""
    settings = config.model_dump(mode="json", include={"tiling", "selection", "model", "training"})
    settings["training"] = {k: v for k, v in settings["training"].items() if k not in FREE}
    return settings


def _described(config: FinetuneConfig, train: Sequence[Bag], val: Sequence[Bag], coords: str) -> str:
    """What is trained on what, with a line for each setting, for given coordinates, and for each bag."""
    lines = [json.dumps(deciding_settings(config), indent=1, sort_keys=True)]
    lines += [f"coordinates of --from-coords: {coords}"] if coords else []
    for split, bags in (("train", train), ("val", val)):
        lines += [f"{split}: {bag.bag_id} {dict(bag.targets)}" for bag in bags]
    return "\n".join(lines)


def _write_run(path: Path, config: FinetuneConfig, *, doubts: Sequence[str] = ()) -> None:
    run = {
        "command": "finetune",
        "config": config.model_dump(mode="json"),
        "numerics": numerics(),
        "versions": versions(),
        "doubts": list(doubts),
    }
    with whole_file(path) as partial:
        partial.write_text(json.dumps(run, indent=2) + "\n")
