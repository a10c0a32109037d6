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
from wsi_ips.config import READ_NO_FILE, ModelConfig, PipelineConfig, SelectionConfig
from wsi_ips.errors import CheckpointError, one_line
from wsi_ips.files import whole_file
from wsi_ips.models.bag_net import BagNet
from wsi_ips.models.build import build_selecting_net

FORMAT = 1
METADATA_KEY = "wsi_ips"
MAX_CONFIG_CHARS = 1_000_000
MEND = "name the model.safetensors of a fine-tuning run"


def save_checkpoint(
    path: Path, net: BagNet, config: PipelineConfig, *, notes: Mapping[str, str] | None = None
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
        partial.chmod(0o644)  # safetensors leaves it to its owner alone; colleagues predict with it


def load_checkpoint(path: Path) -> tuple[BagNet, PipelineConfig]:
    """The network, in eval mode on the CPU, and the config that it was trained with.

    Downloads no weights: the encoder is built empty and filled from the file (timm looks up the description of
    an ``hf-hub:`` encoder, in its cache or on the hub). The file decides over no memory: its config is held
    against its tensors' shapes before anything is allocated. Raises :class:`CheckpointError` for a missing or
    broken file, one that is not ours, or weights that do not fit the config.
    """
    if not path.is_file():
        raise CheckpointError(path, "no such checkpoint", MEND)
    try:
        with safe_open(path, framework="pt") as file:
            config = _held_config(path, file.metadata() or {})
            names = list(file.keys())
            empty = config.model.encoder.model_copy(update={"weights": "none"})
            model = config.model.model_copy(update={"encoder": empty})
            _check_shapes(
                path,
                model,
                config.selection,
                {name: tuple(file.get_slice(name).get_shape()) for name in names},
            )
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(path, f"is not a safetensors file ({error})", MEND) from None
    net = build_selecting_net(model, config.selection)
    for name, wanted in net.state_dict().items():
        tensor = tensors[name]
        if tensor.is_complex() or tensor.is_floating_point() != wanted.is_floating_point():
            raise CheckpointError(path, f"holds {tensor.dtype} for {name}", MEND)
        if not torch.isfinite(tensor.float()).all():
            raise CheckpointError(path, f"holds weights that are not finite ({name})", "train again")
    net.load_state_dict(tensors)
    return net.eval(), config


def checkpoint_config(path: Path) -> PipelineConfig:
    """The config alone, of a checkpoint whose weights are to be loaded elsewhere. Raises as
    :func:`load_checkpoint`, but for the weights."""
    if not path.is_file():
        raise CheckpointError(path, "no such checkpoint", MEND)
    try:
        with safe_open(path, framework="pt") as file:
            return _held_config(path, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(path, f"is not a safetensors file ({error})", MEND) from None


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


def _held_config(path: Path, metadata: Mapping[str, str]) -> PipelineConfig:
    if METADATA_KEY not in metadata:
        raise CheckpointError(path, "holds no wsi_ips config: it is another program's checkpoint", MEND)
    if len(metadata[METADATA_KEY]) > MAX_CONFIG_CHARS:
        raise CheckpointError(path, f"holds a config of more than {MAX_CONFIG_CHARS:,} characters", MEND)
    try:
        held = json.loads(metadata[METADATA_KEY])
        if held["format"] != FORMAT:
            raise CheckpointError(
                path, f"has format {held['format']!r}, this version reads {FORMAT}", "update wsi_ips"
            )
        return PipelineConfig.model_validate(held["config"], context=READ_NO_FILE)
    except (KeyError, TypeError, ValueError, ValidationError, RecursionError) as error:
        reason = one_line(error, most=200)
        raise CheckpointError(path, f"holds a config that cannot be read ({reason})", MEND) from None


def _check_shapes(
    path: Path, model: ModelConfig, selection: SelectionConfig, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse a file whose config describes another network than its tensors make up."""
    try:
        # On the meta device a tensor has a shape and no memory, whatever size the config asks for.
        with torch.device("meta"):
            net = build_selecting_net(model, selection)
        wanted = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    except Exception as error:  # noqa: BLE001 - a config from elsewhere may ask for anything
        reason = one_line(error, most=200)
        raise CheckpointError(path, f"describes a network that cannot be built ({reason})", MEND) from None
    unfit = [name for name in sorted(wanted.keys() | shapes.keys()) if wanted.get(name) != shapes.get(name)]
    if unfit:
        raise CheckpointError(
            path,
            f"is of another architecture than its config: {len(unfit)} tensors differ, e.g. {unfit[0]}",
            MEND,
        )
