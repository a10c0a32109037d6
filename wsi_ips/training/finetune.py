"""Fine-tune from slide labels: manifest in; model.safetensors, history.csv and run.json out."""

import csv
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader, Dataset

from wsi_ips.config import FinetuneConfig
from wsi_ips.datasets.manifest import Manifest
from wsi_ips.errors import ManifestError
from wsi_ips.files import whole_file
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import save_checkpoint
from wsi_ips.models.ips_net import IPSNet
from wsi_ips.progress import Progress, silent
from wsi_ips.training.bags import Bag, SlideBag, tile_bag
from wsi_ips.training.module import IPSModule
from wsi_ips.units import Mpp
from wsi_ips.versions import versions

CHECKPOINT_NAME = "model.safetensors"


@dataclass(frozen=True, slots=True)
class FinetuneReport:
    """checkpoint: the epoch with the lowest validation loss (the last, without a validation split)."""

    checkpoint: Path
    best_epoch: int
    history: tuple[Mapping[str, float], ...]


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

    Writes into ``out``: ``model.safetensors`` (the best epoch so far, with its config), ``history.csv``
    (losses and validation AUC per epoch), ``run.json`` (the resolved config and versions). Raises
    :class:`ManifestError` without training slides, and whatever is wrong with a slide before training starts.
    """
    train, val = manifest.split("train"), manifest.split("val")
    if not train:
        raise ManifestError(manifest.path, "has no slides in split 'train'", "set the split column")
    tasks = config.model.tasks
    for task in tasks:
        column = task.column_name
        if len({record.labels[column] for record in train}) < 2:
            raise ManifestError(
                manifest.path,
                f"all training slides have the {column} {train[0].labels[column]!r}",
                f"there is nothing to learn without slides of at least two of {', '.join(task.classes)}",
            )
    bags: dict[str, list[SlideBag]] = {"train": [], "val": []}
    with progress("Finding tissue", total=len(train) + len(val)) as advance:
        for record in [*train, *val]:
            bag = tile_bag(record, tasks=tasks, tiling=config.tiling, slide_mpp=slide_mpp)
            bags[record.split].append(bag)
            advance(f"{record.slide_id}: {len(bag.coords)} patches")
    seed_everything(config.training.seed, verbose=False)
    net = build_net(config.model)
    out.mkdir(parents=True, exist_ok=True)
    _write_run(out / "run.json", config)
    keep = _KeepBest(net, config, out, monitor="val_loss" if val else "train_loss", train_bags=len(train))
    _fit(net, bags["train"], bags["val"], config, device=device, keep=keep, progress=progress)
    return FinetuneReport(out / CHECKPOINT_NAME, keep.best_epoch, tuple(keep.history))


def _fit(
    net: IPSNet,
    train: Sequence[Bag],
    val: Sequence[Bag],
    config: FinetuneConfig,
    *,
    device: torch.device,
    keep: "_KeepBest",
    progress: Progress,
) -> None:
    generator = torch.Generator().manual_seed(config.training.seed)
    per_step = config.training.slides_per_step
    train_loader: DataLoader[Bag] = DataLoader(
        _Bags(train), per_step, shuffle=True, generator=generator, collate_fn=list
    )
    val_loader: DataLoader[Bag] | None = DataLoader(_Bags(val), per_step, collate_fn=list) if val else None
    module = IPSModule(net, config, steps_per_epoch=len(train_loader))
    steps = config.training.epochs * (len(train_loader) + (len(val_loader) if val_loader else 0))
    with _quiet_lightning(), progress("Fine-tuning", total=steps) as advance:
        trainer = Trainer(
            accelerator=device.type,
            devices=1 if device.index is None or device.type == "cpu" else [device.index],
            max_epochs=config.training.epochs,
            gradient_clip_val=config.training.gradient_clip or None,
            callbacks=[keep, _ShowProgress(advance)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, train_loader, val_loader)


class _Bags(Dataset[Bag]):
    def __init__(self, bags: Sequence[Bag]) -> None:
        self._bags = bags

    def __len__(self) -> int:
        return len(self._bags)

    def __getitem__(self, index: int) -> Bag:
        return self._bags[index]


class _KeepBest(Callback):
    """Saves the net whenever ``monitor`` is lowest, and the history after every epoch."""

    def __init__(
        self, net: IPSNet, config: FinetuneConfig, out: Path, *, monitor: str, train_bags: int
    ) -> None:
        self._net, self._config, self._out, self._monitor = net, config, out, monitor
        self._train_bags = train_bags
        self.best_epoch = -1
        self.history: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning runs validation before this hook, so both splits' figures of the epoch are there.
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.history.append({"epoch": trainer.current_epoch, **metrics})
        best = min(self.history, key=lambda row: row[self._monitor])
        if best is self.history[-1]:
            self.best_epoch = trainer.current_epoch
            notes = {name: f"{value:.6g}" for name, value in self.history[-1].items()}
            notes["train_slides"] = str(self._train_bags)
            save_checkpoint(self._out / CHECKPOINT_NAME, self._net, self._config.pipeline, notes=notes)
        _write_history(self._out / "history.csv", self.history)


class _ShowProgress(Callback):
    def __init__(self, advance: Callable[[str], None]) -> None:
        self._advance = advance

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._advance(_figures(trainer))

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._advance(_figures(trainer))


def _figures(trainer: Trainer) -> str:
    shown = {name: trainer.callback_metrics[name] for name in ("train_loss", "val_loss", "val_auc")
             if name in trainer.callback_metrics}  # fmt: skip
    return f"epoch {trainer.current_epoch + 1}  " + "  ".join(f"{k} {v:.3f}" for k, v in shown.items())


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """No banner, and none of the advice that does not hold here: bags carry no pixels, so no loader workers."""
    loggers = [
        logging.getLogger(f"lightning.pytorch.{name}") for name in ("utilities.rank_zero", "accelerators")
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            # Frozen BatchNorm is meant to be in eval mode.
            warnings.filterwarnings("ignore", message=".*module.s. in eval mode at the start of training.*")
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _write_history(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    columns = list(dict.fromkeys(name for row in history for name in row))
    with whole_file(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(history)


def _write_run(path: Path, config: FinetuneConfig) -> None:
    run = {"command": "finetune", "config": config.model_dump(mode="json"), "versions": versions()}
    with whole_file(path) as partial:
        partial.write_text(json.dumps(run, indent=2) + "\n")
