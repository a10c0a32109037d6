"""A whole checkpoint from one that holds adapters alone: :func:`merge_checkpoint`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsi_ips.errors import CheckpointError
from wsi_ips.models.checkpoint import load_checkpoint, save_checkpoint
from wsi_ips.models.encoders.lora import merge_adapters

TRIED = 4
"""Patches that the encoder is tried on before and after."""
LARGEST_DIFFERENCE = 1e-4
"""Largest relative difference between the features before and after."""


@torch.no_grad()
def merge_checkpoint(checkpoint: Path, out: Path, *, base_weights: Path | None = None) -> float:
    """Add the adapters of a checkpoint up with the encoder's own weights, and write all weights to ``out``.

    The configuration of ``out`` is the same without ``model.encoder.lora``. The features of a few random patches
    are compared before anything is written.

    Args:
        checkpoint: The checkpoint with the adapters.
        out: The file to write.
        base_weights: See :func:`wsi_ips.models.checkpoint.load_checkpoint`.

    Returns:
        The largest difference between features before and after, as a part of the largest feature.

    Raises:
        CheckpointError: The checkpoint cannot be read, holds no adapters, or the merged encoder computes something
            else.
    """
    net, pipeline = load_checkpoint(checkpoint, base_weights=base_weights)
    side, channels = pipeline.tiling.patch_px, pipeline.model.encoder.in_channels
    pixels = torch.rand(TRIED, channels, side, side, generator=torch.Generator().manual_seed(0))
    before = net.encoder(pixels)
    encoder: Any = net.encoder
    if not merge_adapters(encoder.backbone):
        raise CheckpointError(checkpoint, "holds no adapters", "it is a whole checkpoint as it is")
    encoder.found_again = frozenset()
    error = _difference(net.encoder(pixels), before)
    if not error <= LARGEST_DIFFERENCE:
        raise CheckpointError(
            checkpoint,
            f"computes something else when its adapters are merged: features differ by {error:.1e} of their size",
            "use it as it is",
        )
    settings = pipeline.model.encoder.model_copy(update={"lora": None})
    model = pipeline.model.model_copy(update={"encoder": settings})
    notes = {"merged from": checkpoint.name}
    save_checkpoint(out, net, pipeline.model_copy(update={"model": model}), notes=notes)
    return error


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())
