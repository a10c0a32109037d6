"""The encoder whose features are stored: a checkpoint's or a named one, its tiling, and what identifies it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wsi_ips.config import EncoderConfig, TilingConfig, TransformConfig, UpsamplingConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.checkpoint import checkpoint_sha256, load_checkpoint
from wsi_ips.models.encoders.fitting import fitting_tiling
from wsi_ips.models.encoders.registry import code_file, entry_of
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.models.encoders.weights import fingerprint_of_weights, weights_file


@dataclass(frozen=True, slots=True)
class StoringEncoder:
    """An encoder with the tiling that it is given, and what tells it from others."""

    module: nn.Module
    width: int
    name: str
    tiling: TilingConfig
    settings: dict[str, Any]
    config_name: str
    """Its name in the configuration, by which it may be listed."""
    stored_px: bool = False
    """Patches that somebody laid out keep their own pixels, and the encoder resizes them."""


def encoder_of_checkpoint(path: Path, *, allow_upsampling: bool) -> StoringEncoder:
    """The encoder of a model of ours, on patches as it was trained on. Raises :class:`ConfigError` for a model of
    stored features, :class:`CheckpointError` for a file that is none."""
    net, pipeline = load_checkpoint(path)
    if not isinstance(net.encoder, TimmEncoder):
        raise ConfigError(f"{path}: reads stored features, it has no encoder of its own")
    sha256 = checkpoint_sha256(path)
    tiling = UpsamplingConfig(allow_upsampling=allow_upsampling).added_to(pipeline.tiling)
    return StoringEncoder(
        net.encoder,
        net.encoder.dim,
        f"wsi_ips_{sha256[:12]}",
        tiling,
        {"checkpoint": sha256},
        pipeline.model.encoder.name,
    )


def encoder_of_config(
    config: EncoderConfig, tiling: TilingConfig | None, *, laid_out: bool
) -> StoringEncoder:
    """An encoder by its config, and how slides are tiled for it.

    tiling: as it was asked for; None: the default. laid_out: whether somebody has laid the patches out; where no
    size is asked for either, they keep their own pixels if the encoder takes patches of any size.
    """
    with torch.random.fork_rng(devices=[]):
        # Random weights (``weights: none``) are the same whenever the command is started.
        torch.manual_seed(0)
        encoder = TimmEncoder(config)
    code = code_file(config.name)
    shown = config.name if code is None else f"{code.stem}_{config.name.rpartition(':')[2]}"
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", shown.removeprefix("hf-hub:"))
    weights = weights_file(config)
    # Another file under the same name is another encoder.
    sha256 = fingerprint_of_weights(weights) if weights else None
    settings = {"encoder": config.model_dump(mode="json"), "weights_sha256": sha256}
    if entry := entry_of(config.name):
        # What a name stands for may be corrected in a later version: then these are other features.
        settings["listed"] = {
            "transform": entry.transform.model_dump(mode="json"),
            "output": entry.output,
            "mean": list(entry.mean),
            "std": list(entry.std),
        }
    if code is not None:
        settings["code_sha256"] = fingerprint_of_weights(code)
    given = tiling or TilingConfig()
    stored_px = _resizes(config) and laid_out and not _sizes_set(given)
    if stored_px:
        return StoringEncoder(
            encoder,
            encoder.dim,
            name,
            given,
            {**settings, "patches": "as stored"},
            config.name,
            stored_px=True,
        )
    return StoringEncoder(encoder, encoder.dim, name, fitting_tiling(given, config), settings, config.name)


def _resizes(encoder: EncoderConfig) -> bool:
    """Whether the encoder takes patches of any size, as its authors' transform does."""
    own = encoder.transform == "own" and entry_of(encoder.name) is not None
    return own or isinstance(encoder.transform, TransformConfig)


def _sizes_set(tiling: TilingConfig) -> bool:
    return bool(tiling.model_fields_set & {"patch_px", "patch_mpp"})
