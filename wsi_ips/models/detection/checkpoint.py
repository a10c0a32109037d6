"""Trained detectors: safetensors with the config in the metadata, as the IPS networks' checkpoints."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from wsi_ips import __version__
from wsi_ips.config import READ_NO_FILE, DetectorConfig
from wsi_ips.errors import CheckpointError, ConfigError, one_line
from wsi_ips.files import whole_file
from wsi_ips.models.detection.build import build_retinanet

METADATA_KEY = "wsi_ips_detector"
MAX_CONFIG_CHARS = 1_000_000
MEND = "name a detector that save_detector wrote"


def save_detector(
    path: Path, detector: nn.Module, config: DetectorConfig, *, notes: Mapping[str, str] | None = None
) -> None:
    """Write a RetinaNet's weights and its config; ``notes`` are for people."""
    held = {"version": __version__, "config": config.model_dump(mode="json"), "notes": dict(notes or {})}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.state_dict().items()}
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={METADATA_KEY: json.dumps(held)})
        partial.chmod(0o644)  # safetensors leaves it to its owner alone


def load_detector(path: Path) -> tuple[nn.Module, DetectorConfig]:
    """The detector in eval mode on the CPU, and its config.

    The config is held against the tensors' shapes before anything is allocated. Raises :class:`CheckpointError`
    for a missing or broken file, one that is no detector, or weights that do not fit or are not finite.
    """
    if not path.is_file():
        raise CheckpointError(path, "no such detector", MEND)
    try:
        with safe_open(path, framework="pt") as file:
            config = _held_config(path, file.metadata() or {})
            names = list(file.keys())
            _check_shapes(path, config, {name: tuple(file.get_slice(name).get_shape()) for name in names})
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(path, f"is not a safetensors file ({error})", MEND) from None
    for name, tensor in tensors.items():
        if tensor.is_complex() or not torch.isfinite(tensor.float()).all():
            raise CheckpointError(path, f"holds weights that are not finite ({name})", "train again")
    detector = build_retinanet(config)
    detector.load_state_dict(tensors)
    return detector.eval(), config


def _held_config(path: Path, metadata: Mapping[str, str]) -> DetectorConfig:
    text = metadata.get(METADATA_KEY, "")
    if not text or len(text) > MAX_CONFIG_CHARS:
        raise CheckpointError(path, "is no detector of ours", MEND)
    try:
        return DetectorConfig.model_validate(json.loads(text)["config"], context=READ_NO_FILE)
    except (json.JSONDecodeError, KeyError, TypeError, ValidationError, RecursionError) as error:
        reason = one_line(error, most=160)
        raise CheckpointError(path, f"holds a config that cannot be read ({reason})", MEND) from None


def _check_shapes(path: Path, config: DetectorConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    try:
        with torch.device("meta"):
            wanted = {name: tuple(t.shape) for name, t in build_retinanet(config).state_dict().items()}
    except (ConfigError, RuntimeError, ValueError) as error:
        reason = one_line(error, most=160)
        raise CheckpointError(path, f"describes a detector that cannot be built ({reason})", MEND) from None
    unfit = [name for name in sorted(wanted.keys() | shapes.keys()) if wanted.get(name) != shapes.get(name)]
    if unfit:
        raise CheckpointError(
            path, f"does not fit its config: {len(unfit)} tensors differ, e.g. {unfit[0]}", MEND
        )
