"""Checkpoints: safetensors whose metadata holds the config, so that nothing is unpickled and nothing guessed."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from wsi_ips import __version__
from wsi_ips.config import PipelineConfig
from wsi_ips.errors import CheckpointError
from wsi_ips.files import whole_file
from wsi_ips.models.build import build_net
from wsi_ips.models.ips_net import IPSNet

FORMAT = 1
METADATA_KEY = "wsi_ips"
MEND = "name the model.safetensors of a fine-tuning run"


def save_checkpoint(
    path: Path, net: IPSNet, config: PipelineConfig, *, notes: Mapping[str, str] | None = None
) -> None:
    """Write weights and config; ``notes`` (losses, epoch) are for people."""
    held = {
        "format": FORMAT,
        "version": __version__,
        "config": config.model_dump(mode="json"),
        "notes": dict(notes or {}),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={METADATA_KEY: json.dumps(held)})


def load_checkpoint(path: Path) -> tuple[IPSNet, PipelineConfig]:
    """The network, in eval mode on the CPU, and the config that it was trained with.

    Downloads nothing: the encoder is built empty and filled from the file. Raises :class:`CheckpointError`
    for a missing or broken file, one that is not ours, or weights that do not fit the config.
    """
    if not path.is_file():
        raise CheckpointError(path, "no such checkpoint", MEND)
    try:
        with safe_open(path, framework="pt") as file:
            config = _held_config(path, file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(path, f"is not a safetensors file ({error})", MEND) from None
    empty = config.model.encoder.model_copy(update={"weights": "none"})
    net = build_net(config.model.model_copy(update={"encoder": empty}))
    wanted = net.state_dict()
    unfit = [
        name
        for name in sorted(wanted.keys() | tensors.keys())
        if name not in wanted or name not in tensors or wanted[name].shape != tensors[name].shape
    ]
    if unfit:
        raise CheckpointError(
            path,
            f"is of another architecture than its config: {len(unfit)} tensors differ, e.g. {unfit[0]}",
            MEND,
        )
    broken = next(
        (name for name, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()), None
    )
    if broken:
        raise CheckpointError(path, f"holds weights that are not finite ({broken})", "train again")
    net.load_state_dict(tensors)
    return net.eval(), config


def checkpoint_sha256(path: Path) -> str:
    """The file's SHA-256 in hex: what a result names its model by."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _held_config(path: Path, metadata: Mapping[str, str]) -> PipelineConfig:
    if METADATA_KEY not in metadata:
        raise CheckpointError(path, "holds no wsi_ips config: it is another program's checkpoint", MEND)
    try:
        held = json.loads(metadata[METADATA_KEY])
        if held["format"] != FORMAT:
            raise CheckpointError(
                path, f"has format {held['format']!r}, this version reads {FORMAT}", "update wsi_ips"
            )
        return PipelineConfig.model_validate(held["config"])
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(path, f"holds a config that cannot be read ({reason})", MEND) from None
