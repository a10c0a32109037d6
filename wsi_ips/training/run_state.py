"""What a killed training run resumes from, so that it ends with the weights it would have had."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from wsi_ips.errors import CheckpointError, ConfigError, one_line
from wsi_ips.files import whole_file
from wsi_ips.outside_causes import system_cause

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
            raise CheckpointError(path, cause.problem, cause.mend) from None
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
