"""Checkpoints: safetensors whose metadata holds the config, so that nothing is unpickled and nothing guessed."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsi_ips.config import READ_NO_FILE, PipelineConfig
from wsi_ips.errors import CheckpointError
from wsi_ips.models.bag_net import BagNet
from wsi_ips.models.build import build_selecting_net
from wsi_ips.models.weights_file import WeightsFile

FORMAT = 1
METADATA_KEY = "wsi_ips"
MEND = "name the model.safetensors of a fine-tuning run"


def save_checkpoint(
    path: Path, net: BagNet, config: PipelineConfig, *, notes: Mapping[str, str] | None = None
) -> None:
    """Write weights and config; ``notes`` (losses, epoch) are for people."""
    _FILE.write(path, net, config, format=FORMAT, notes=dict(notes or {}))


def load_checkpoint(path: Path) -> tuple[BagNet, PipelineConfig]:
    """The network, in eval mode on the CPU, and the config that it was trained with.

    Downloads no weights: the encoder is built empty and filled from the file (timm looks up the description of
    an ``hf-hub:`` encoder, in its cache or on the hub). The file decides over no memory: its config is held
    against its tensors' shapes before anything is allocated. Raises :class:`CheckpointError` for a missing or
    broken file, one that is not ours, or weights that do not fit the config.
    """
    return _FILE.read(path)


def checkpoint_config(path: Path) -> PipelineConfig:
    """The config alone, of a checkpoint whose weights are to be loaded elsewhere. Raises as
    :func:`load_checkpoint`, but for the weights."""
    return _FILE.config(path)


def begin_from(net: BagNet, path: Path) -> None:
    """Put a checkpoint's weights into ``net``: all of them, or all but the encoder's from stored features'
    model. A cascade may begin from IPS: what looks from afar is then as it was built.

    Raises :class:`CheckpointError` as :func:`load_checkpoint`, and where the two differ in any other weight.
    """
    theirs, pipeline = load_checkpoint(path)
    given, wanted = theirs.state_dict(), net.state_dict()
    if pipeline.model.encoder.features is not None:
        wanted = {name: tensor for name, tensor in wanted.items() if not name.startswith("encoder.")}
    if not any(name.startswith("coarse.") for name in given):
        wanted = {name: tensor for name, tensor in wanted.items() if not name.startswith("coarse.")}
    unfit = [
        name
        for name in sorted(given.keys() | wanted.keys())
        if name not in given or name not in wanted or given[name].shape != wanted[name].shape
    ]
    if unfit:
        raise CheckpointError(
            path,
            f"does not fit this model: {len(unfit)} weights differ, e.g. {unfit[0]}",
            "give training.start a checkpoint of the same encoder width, attention and tasks",
        )
    net.load_state_dict(given, strict=False)


def checkpoint_sha256(path: Path) -> str:
    """The file's SHA-256 in hex: what a result names its model by."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _config_of(path: Path, held: Mapping[str, Any]) -> PipelineConfig:
    if held["format"] != FORMAT:
        raise CheckpointError(
            path, f"has format {held['format']!r}, this version reads {FORMAT}", "update wsi_ips"
        )
    return PipelineConfig.model_validate(held["config"], context=READ_NO_FILE)


def _empty(config: PipelineConfig) -> BagNet:
    encoder = config.model.encoder.model_copy(update={"weights": "none"})
    return build_selecting_net(config.model.model_copy(update={"encoder": encoder}), config.selection)


_FILE = WeightsFile(
    key=METADATA_KEY, name="checkpoint", mend=MEND, config_of=_config_of, build=_empty
)  # fmt: skip
