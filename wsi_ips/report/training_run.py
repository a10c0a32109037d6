"""What ``wsi-ips finetune`` left: losses epoch by epoch, its settings, and whether the run's checkpoint is its."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_ips.errors import ResultsError
from wsi_ips.evaluation.history import read_history
from wsi_ips.held_folder import read_description
from wsi_ips.report.stored_run import StoredRun

CHECKPOINTS = ("model.safetensors", "last.safetensors")
MEND = "name the folder that wsi-ips finetune wrote"


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """history: {column: a number an epoch}. checkpoint: which of its files the run was made with, None: neither.
    description: its ``run.json``, empty where there is none."""

    folder: Path
    history: Mapping[str, Sequence[float]]
    checkpoint: str | None
    description: Mapping[str, Any]

    @property
    def doubts(self) -> list[str]:
        """What says that the run has not found anything, as ``finetune`` said it."""
        said = self.description.get("doubts", [])
        return [str(doubt) for doubt in said] if isinstance(said, list) else []

    @property
    def best_epoch(self) -> int | None:
        """The epoch, from 1, with the lowest validation loss; None where none was measured."""
        losses = self.history.get("val_loss", ())
        known = [(loss, place) for place, loss in enumerate(losses) if loss == loss]
        return int(self.history["epoch"][min(known)[1]]) + 1 if known else None


def read_training(folder: Path, run: StoredRun) -> TrainingRun:
    """Read a training run's folder. Raises :class:`ResultsError` for one that is none, with the mend."""
    if not (folder / "history.csv").is_file():
        folds = sorted(path.name for path in folder.glob("fold_*") if (path / "history.csv").is_file())
        mend = f"name one fold's: {folder / folds[0]}" if folds else MEND
        raise ResultsError(folder, "holds no history.csv", mend)
    history = read_history(folder / "history.csv")
    try:
        description = read_description(folder / "run.json")
    except (OSError, ValueError):
        description = {}  # the losses are what was asked for
    return TrainingRun(folder, history, _checkpoint(folder, run), description)


def _checkpoint(folder: Path, run: StoredRun) -> str | None:
    described = run.description.get("checkpoint")
    wanted = described.get("sha256") if isinstance(described, dict) else None
    for name in CHECKPOINTS:
        path = folder / name
        if wanted and path.is_file():
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == wanted:
                    return name
    return None
