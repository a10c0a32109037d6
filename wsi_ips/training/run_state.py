"""The folder of a training run: what it leaves behind, and what it resumes from after it was killed.

:class:`Record` writes the history, the best and the last checkpoint, and the state from which a run continues,
so that it ends with the weights that it would have had. :func:`training_folder` makes sure that only one run at
a time writes into a folder.
"""

import csv
import json
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
from wsi_ips.models.encoders.lora import load_stored, stored_state
from wsi_ips.storage.files import system_cause, whole_file
from wsi_ips.storage.held_folder import first_difference, held
from wsi_ips.timeline import TIMELINE_NAME, staged
from wsi_ips.training.kept_patches import mean_figures
from wsi_ips.training.learned_from import LearnedFrom
from wsi_ips.training.module import IPSModule
from wsi_ips.training.processes import is_first_process, of_all

FORMAT = 1
"""Version of the training state. A file of another version is refused."""
STATE_NAME = "training_state.pt"
"""File of the state that a run resumes from."""
BEST_NAME = "model.safetensors"
"""Checkpoint of the best epoch."""
LAST_NAME = "last.safetensors"
"""Checkpoint of the last epoch."""
RUN_NAME = "run.json"
"""File of the complete configuration."""
HEAD_START = "head_start"
"""Folder of the run of the head start."""
HEAD_START_NAME = "head_start.safetensors"
"""Checkpoint of the whole network after the head start, where no epoch that followed was better."""
STARTS = "starts"
"""Folder of the runs of several starts."""
HOW_TO_FIX = "train into another folder, or give --restart to begin anew in this one"
"""What a message about an unusable state tells the user to do."""


@dataclass(frozen=True, slots=True)
class FinetuneReport:
    """How a training ended.

    Attributes:
        checkpoint: The checkpoint of the best epoch (see ``training.monitor``).
        best_epoch: Index of that epoch in the history.
        history: The figures of each epoch.
        bad: ``{slide_id: why it was left out}``.
        doubts: Signs that the run has not found anything, see :func:`wsi_ips.training.diagnosis.findings`.
    """

    checkpoint: Path
    best_epoch: int
    history: tuple[Mapping[str, float], ...]
    bad: Mapping[str, str] = field(default_factory=dict)
    doubts: Sequence[str] = ()


class RunRecorder(Callback):
    """A Lightning callback that keeps the folder of a run. Only the first process writes, and each file is
    written whole.
    """

    def __init__(
        self, out: Path, config: FinetuneConfig, *, run: str, learned_from: LearnedFrom | None = None
    ) -> None:
        """Prepare the record of a run.

        Args:
            out: The folder of the run.
            config: Its settings.
            run: Text that says what is trained on what. A state with another text is refused.
            learned_from: The content of the files that are learned from. A state of other content is refused.
        """
        self._out = out
        self._config = config
        self._run = run
        self._learned_from = learned_from
        self._saved = monotonic()
        self._held: dict[str, Any] | None = None
        self.history: list[dict[str, float]] = []

    @property
    def best_epoch(self) -> int:
        """Index of the best epoch in the history, the first among equals. -1 before the first epoch ends."""
        monitor = self._config.training.monitor
        return max(range(len(self.history)), key=lambda row: merit(self.history[row], monitor), default=-1)

    def resume(self, module: IPSModule) -> None:
        """Put the saved state, if there is one, into ``module``, and into the optimiser when training starts.

        Raises:
            CheckpointError: The state cannot be read, or does not fit.
            ConfigError: It belongs to another run.
        """
        path = self._out / STATE_NAME
        if not path.exists():
            return
        self._held = held = load_state(path, run=self._run, learned_from=self._learned_from)
        try:
            if self._learned_from is not None and held.get("learned_from") is not None:
                self._learned_from = LearnedFrom.from_json(held["learned_from"]).updated(self._learned_from)
            load_stored(module.net, held["net"])
            module.restore(held["state"])
            self.history = list(held["state"]["history"])
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                path, f"does not fit this run ({one_line(error, most=120)})", HOW_TO_FIX
            ) from None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the optimiser, after a check that all processes do the same run.

        Raises:
            TrainingError: The processes have different slides or resume from different steps, so that they would
                learn from each other's slides.
        """
        assert isinstance(pl_module, IPSModule)
        content = "" if self._learned_from is None else self._learned_from.digest
        if len(set(of_all((self._run, content, pl_module.steps.done)))) > 1:
            raise TrainingError(
                "the processes found different slides or different saved states: one of them could not read what "
                "the others could; see that all of them reach the slides and the output folder, and start again"
            )
        if self._held is not None:
            trainer.optimizers[0].load_state_dict(self._held["optimizer"])
            trainer.precision_plugin.load_state_dict(self._held["state"]["precision"])
            self._held = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save the state every ``training.save_minutes`` minutes."""
        assert isinstance(pl_module, IPSModule)
        steps = pl_module.steps
        if (
            steps.done % steps.per_epoch
            and monotonic() - self._saved >= 60 * self._config.training.save_minutes
        ):
            self._save_state(trainer, pl_module)

    @staged("write results")
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write history, checkpoints and state, and stop if the patience is used up."""
        # Lightning runs validation before this hook, so the figures of both splits are there.
        assert isinstance(pl_module, IPSModule)
        epoch = len(self.history)
        losses = pl_module.losses
        row = {"epoch": epoch, "train_loss": math.fsum(losses) / len(losses) if losses else math.nan}
        row |= {f"val_{name}": value for name, value in pl_module.val_figures.items()}
        row |= mean_figures(pl_module.watched)
        self.history.append(row)
        if trainer.is_global_zero:
            notes = {name: f"{value:.6g}" for name, value in row.items()}
            with pl_module.shown():
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
            save_state(
                self._out / STATE_NAME, module.net, optimizer, run=self._run, state=state,
                learned_from=self._learned_from,
            )  # fmt: skip
        self._saved = monotonic()


def merit(row: Mapping[str, float], monitor: Monitor) -> tuple[float, float]:
    """How good an epoch is; the best epoch has the highest value.

    Without the figure that the monitor names, the loss decides: that of validation if there is one. It also
    decides if several epochs tell few slides apart equally well, all of them or none.

    Args:
        row: Its line of the history.
        monitor: The setting ``training.monitor``.
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
    """Write the history as CSV, with one line for each epoch."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    with whole_file(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(history)


@staged("write results")
def save_state(
    path: Path,
    net: nn.Module,
    optimizer: Optimizer,
    *,
    run: str,
    state: Mapping[str, Any],
    learned_from: LearnedFrom | None = None,
) -> None:
    """Write the state that a run resumes from.

    Args:
        path: The file to write.
        net: The network.
        optimizer: Its optimiser.
        run: Text that says what is trained on what.
        state: Plain values and tensors that the run also needs.
        learned_from: The content of the files that are learned from.
    """
    held = {
        "format": FORMAT,
        "run": run,
        "learned_from": None if learned_from is None else learned_from.to_json(),
        "net": stored_state(net),
        "optimizer": optimizer.state_dict(),
        "state": dict(state),
    }
    # Given a path instead of a file, torch would not say why it could not write.
    with whole_file(path) as partial, partial.open("wb") as file:
        torch.save(held, file)


def load_state(path: Path, *, run: str, learned_from: LearnedFrom | None = None) -> dict[str, Any]:
    """Read what :func:`save_state` wrote: ``net``, ``optimizer`` and ``state``. No code in the file is run.

    Raises:
        CheckpointError: The file cannot be read.
        ConfigError: It belongs to another run than ``run``, or to one that learned from other files than
            ``learned_from``. The message names the first difference. States of earlier versions do not say what
            they learned from.
    """
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a damaged pickle may raise anything
        if cause := system_cause(error):
            raise CheckpointError(path, cause.problem, cause.fix) from None
        reason = one_line(error, most=120)
        raise CheckpointError(path, f"cannot be read ({reason})", HOW_TO_FIX) from None
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        raise CheckpointError(path, "is no training state of this version", HOW_TO_FIX)
    kinds = {"run": str, "net": Mapping, "optimizer": Mapping, "state": Mapping}
    lacking = [name for name, kind in kinds.items() if not isinstance(held.get(name), kind)]
    if lacking:
        raise CheckpointError(path, f"is no whole training state: it has no {lacking[0]!r}", HOW_TO_FIX)
    if held["run"] != run:
        differs = _difference(held["run"], run)
        raise ConfigError(
            f"{path.parent} holds a run with other settings or slides ({differs}); {HOW_TO_FIX}"
        )
    if learned_from is not None and (differs := _other_content(path, held.get("learned_from"), learned_from)):
        raise ConfigError(
            f"{path.parent} holds a run that learned from other files ({differs}); {HOW_TO_FIX}"
        )
    return held


def _other_content(path: Path, stored: Any, now: LearnedFrom) -> str:
    """How the files that a state was learned from differ from those of now; empty if they do not."""
    if stored is None:
        return ""
    try:
        return LearnedFrom.from_json(stored).difference(now)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        raise CheckpointError(
            path, "does not say what it learned from as this version does", HOW_TO_FIX
        ) from None


def _difference(theirs: str, ours: str) -> str:
    """The first setting, or else the first line behind the settings, in which two descriptions differ."""
    (before, lines_before), (now, lines_now) = (_settings_and_lines(each) for each in (theirs, ours))
    if said := first_difference(before, now):
        return said
    for line_before, line_now in zip(lines_before, lines_now, strict=False):
        if line_before != line_now:
            return f"{line_before} there, {line_now} here"
    return "another number of slides"


def _settings_and_lines(description: str) -> tuple[dict[str, Any], list[str]]:
    """The settings that a description begins with, and the lines behind them."""
    try:
        settings, end = json.JSONDecoder().raw_decode(description)
    except (ValueError, RecursionError):  # not written by this program
        return {}, description.splitlines()
    return (settings if isinstance(settings, dict) else {}), description[end:].splitlines()


def forget_run(folder: Path) -> None:
    """Make the next run in this folder begin anew, with its head start and starts. The checkpoints of epochs stay
    until it writes its own.
    """
    for name in (STATE_NAME, TIMELINE_NAME, HEAD_START_NAME):
        (folder / name).unlink(missing_ok=True)
    for name in (HEAD_START, STARTS):
        shutil.rmtree(folder / name, ignore_errors=True)


@contextmanager
def training_folder(out: Path, *, results: str = f"**/{STATE_NAME}") -> Iterator[None]:
    """Hold the folder ``out`` within the ``with`` block, so that no other run writes into it.

    The first process of a run holds it for the others. A run that fails before it learned anything leaves no
    folder. A run that died holds nothing.

    Args:
        out: The folder.
        results: Glob of the files that show that something was learned.

    Raises:
        ResultsError: Another run holds the folder.
    """
    if not is_first_process():
        yield
        return
    with held(out, below=(), undo=(out / RUN_NAME, out / "folds.csv"), results=results):
        yield
