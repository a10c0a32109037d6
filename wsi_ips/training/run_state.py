"""What a killed training run resumes from, so that it ends with the weights it would have had.

The folder of a training run: one run at a time writes into it.

What a training run leaves behind: history, the best and the last checkpoint, the state to resume from.
"""

import csv
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from wsi_ips.config import FinetuneConfig, Monitor
from wsi_ips.errors import CheckpointError, ConfigError, TrainingError, one_line
from wsi_ips.models.checkpoint import save_checkpoint
from wsi_ips.storage.files import system_cause, whole_file
from wsi_ips.storage.held_folder import held
from wsi_ips.training.kept_patches import mean_figures
from wsi_ips.training.module import IPSModule
from wsi_ips.training.processes import is_first_process, of_all

FORMAT = 1
STATE_NAME = "training_state.pt"
HEAD_START = "head_start"
"""Folder of the head start's own run."""
STARTS = "starts"
"""Folder of the runs of several beginnings."""
MEND = "train into another folder, or give --restart to begin anew in this one"


def save_state(
    path: Path, net: nn.Module, optimizer: Optimizer, *, run: str, state: Mapping[str, Any]
) -> None:
    """Write weights, optimiser and ``state`` (plain values and tensors). run: what is trained on what."""
    held = {
        "format": FORMAT,
        "run": run,
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "state": dict(state),
    }
    # Given a path, torch does not say why it could not write.
    with whole_file(path) as partial, partial.open("wb") as file:
        torch.save(held, file)


def load_state(path: Path, *, run: str) -> dict[str, Any]:
    """What :func:`save_state` wrote: net, optimizer, state. No code in the file is run.

    Raises :class:`CheckpointError` for a file that cannot be read, :class:`ConfigError` for another run's.
    """
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - of a damaged pickle, whatever its machine runs into
        if cause := system_cause(error):
            raise CheckpointError(path, cause.problem, cause.fix) from None
        reason = one_line(error, most=120)
        raise CheckpointError(path, f"cannot be read ({reason})", MEND) from None
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        raise CheckpointError(path, "is no training state of this version", MEND)
    kinds = {"run": str, "net": Mapping, "optimizer": Mapping, "state": Mapping}
    lacking = [name for name, kind in kinds.items() if not isinstance(held.get(name), kind)]
    if lacking:
        raise CheckpointError(path, f"is no whole training state: it has no {lacking[0]!r}", MEND)
    if held["run"] != run:
        differs = _difference(held["run"], run)
        raise ConfigError(f"{path.parent} holds a run with other settings or slides ({differs}); {MEND}")
    return held


def forget_run(folder: Path) -> None:
    """The next run in this folder begins anew, with its head start and restarts. Checkpoints stay until it writes
    its own."""
    (folder / STATE_NAME).unlink(missing_ok=True)
    for name in (HEAD_START, STARTS):
        shutil.rmtree(folder / name, ignore_errors=True)


def _difference(theirs: str, ours: str) -> str:
    """The first line of two descriptions that differs."""
    for before, now in zip(theirs.splitlines(), ours.splitlines(), strict=False):
        if before != now:
            return f"{before.strip().rstrip(',')} there, {now.strip().rstrip(',')} here"
    return "another number of slides"


@contextmanager
def training_folder(out: Path, *, results: str = f"**/{STATE_NAME}") -> Iterator[None]:
    """Hold ``out`` for the time of the ``with`` block. A run that fails before it learned anything
    leaves no folder.

    results: glob of the files that say that something was. The first process of a run holds the folder for the
    others. Raises :class:`wsi_ips.errors.ResultsError` while another run holds it; one that died holds nothing.
    """
    if not is_first_process():
        yield
        return
    with held(out, below=(), undo=(out / "run.json", out / "folds.csv"), results=results):
        yield


BEST_NAME = "model.safetensors"
LAST_NAME = "last.safetensors"


@dataclass(frozen=True, slots=True)
class FinetuneReport:
    """checkpoint: the best epoch's (see ``training.monitor``). bad: {slide_id: why it was left out}. doubts: what
    says that the run has not found anything, see :func:`wsi_ips.training.diagnosis.findings`."""

    checkpoint: Path
    best_epoch: int
    history: tuple[Mapping[str, float], ...]
    bad: Mapping[str, str] = field(default_factory=dict)
    doubts: Sequence[str] = ()


class RunRecorder(Callback):
    """Keeps the run's folder: written by the first process only, each file whole."""

    def __init__(self, out: Path, config: FinetuneConfig, *, run: str) -> None:
        """run: what is trained on what, see :func:`save_state`."""
        self._out = out
        self._config = config
        self._run = run
        self._saved = monotonic()
        self._held: dict[str, Any] | None = None
        self.history: list[dict[str, float]] = []

    @property
    def best_epoch(self) -> int:
        """Index into the history; the first of equals. -1 before the first epoch ends."""
        monitor = self._config.training.monitor
        return max(range(len(self.history)), key=lambda row: merit(self.history[row], monitor), default=-1)

    def resume(self, module: IPSModule) -> None:
        """Put the saved state, if there is one, into ``module``, and into the optimiser once there is one.

        Raises as :func:`load_state`.
        """
        path = self._out / STATE_NAME
        if not path.exists():
            return
        self._held = held = load_state(path, run=self._run)
        try:
            module.net.load_state_dict(held["net"])
            module.restore(held["state"])
            self.history = list(held["state"]["history"])
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                path, f"does not fit this run ({one_line(error, most=120)})", MEND
            ) from None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises :class:`TrainingError` where the processes have different slides or resume from different steps:
        they would learn from each other's slides."""
        assert isinstance(pl_module, IPSModule)
        if len(set(of_all((self._run, pl_module.steps.done)))) > 1:
            raise TrainingError(
                "the processes found different slides or different saved states: one of them could not read what "
                "the others could; see that all of them reach the slides and the output folder, and start again"
            )
        if self._held is not None:
            trainer.optimizers[0].load_state_dict(self._held["optimizer"])
            trainer.precision_plugin.load_state_dict(self._held["state"]["precision"])
            self._held = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, IPSModule)
        steps = pl_module.steps
        if (
            steps.done % steps.per_epoch
            and monotonic() - self._saved >= 60 * self._config.training.save_minutes
        ):
            self._save_state(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning runs validation before this hook, so both splits' figures of the epoch are there.
        assert isinstance(pl_module, IPSModule)
        epoch = len(self.history)
        losses = pl_module.losses
        row = {"epoch": epoch, "train_loss": math.fsum(losses) / len(losses) if losses else math.nan}
        row |= {f"val_{name}": value for name, value in pl_module.val_figures.items()}
        row |= mean_figures(pl_module.watched)
        self.history.append(row)
        if trainer.is_global_zero:
            notes = {name: f"{value:.6g}" for name, value in row.items()}
            for name in [LAST_NAME, *([BEST_NAME] if self.best_epoch == epoch else [])]:
                save_checkpoint(self._out / name, pl_module.net, self._config.pipeline, notes=notes)
            write_history(self._out / "history.csv", self.history)
        self._save_state(trainer, pl_module)
        patience = self._config.training.patience
        trainer.should_stop |= patience is not None and epoch - self.best_epoch >= patience

    @property
    def finished(self) -> bool:
        """Whether the history says that nothing is left to do."""
        training = self._config.training
        waited = len(self.history) - 1 - self.best_epoch
        return len(self.history) >= training.epochs or (
            training.patience is not None and bool(self.history) and waited >= training.patience
        )

    def _save_state(self, trainer: Trainer, module: IPSModule) -> None:
        if trainer.is_global_zero:
            precision = trainer.precision_plugin.state_dict()
            state = {**module.state(), "history": self.history, "precision": precision}
            optimizer = trainer.optimizers[0]
            save_state(self._out / STATE_NAME, module.net, optimizer, run=self._run, state=state)
        self._saved = monotonic()


def merit(row: Mapping[str, float], monitor: Monitor) -> tuple[float, float]:
    """What is highest in the best epoch; ``row``: its line of the history, ``monitor``: as of the config.

    Without the figure that the monitor names, the loss decides: that of validation where there is one. It decides
    too where several epochs tell few slides apart equally well: all of them, or none.
    """
    if monitor == "last":
        return row["epoch"], 0.0
    worst, loss = -math.inf, row.get("val_loss", row["train_loss"])
    value = -loss
    if monitor == "refined_loss" and "val_refined_loss" in row:
        value = -round(row["val_refined_loss"], 4)
    if monitor in ("auc", "c_index", "kappa"):
        figures = [
            figure for name, figure in row.items() if name.startswith("val_") and name.endswith(monitor)
        ]
        value = sum(figures) / len(figures) if figures else value
    return value if math.isfinite(value) else worst, -loss if math.isfinite(loss) else worst


def write_history(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """One line per epoch."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    with whole_file(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(history)
