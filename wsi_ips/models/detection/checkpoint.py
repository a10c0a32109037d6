"""Trained detectors: safetensors with the config in the metadata, as the IPS networks' checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from wsi_ips.config import READ_NO_FILE, DetectorConfig
from wsi_ips.models.detection.build import build_detector
from wsi_ips.models.weights_file import WeightsFile

METADATA_KEY = "wsi_ips_detector"
MEND = "name a detector that train-detector wrote"


def save_detector(
    path: Path, detector: nn.Module, config: DetectorConfig, *, notes: Mapping[str, str] | None = None
) -> None:
    """Write a detector's weights and its config; ``notes`` are for people."""
    _FILE.write(path, detector, config, notes=dict(notes or {}))


def load_detector(path: Path) -> tuple[nn.Module, DetectorConfig]:
    """The detector in eval mode on the CPU, and its config. Raises :class:`CheckpointError` as
    :meth:`WeightsFile.read`."""
    return _FILE.read(path)


def _config_of(path: Path, held: Mapping[str, Any]) -> DetectorConfig:
    return DetectorConfig.model_validate(held["config"], context=READ_NO_FILE)


_FILE = WeightsFile(key=METADATA_KEY, name="detector", mend=MEND, config_of=_config_of, build=build_detector)
