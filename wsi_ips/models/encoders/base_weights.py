"""The own weights of an encoder whose checkpoint holds only adapters: where they are found again.

They come from where the training had them: the cache of the hub for an encoder that was named, or the file or
folder that was given. :data:`BASE_WEIGHTS` names another file or folder. Whatever is found has to have the
fingerprint that the checkpoint states (:func:`wsi_ips.models.encoders.lora.fingerprint_of_base`). The encoder
checks it when it is built.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from wsi_ips.config import EncoderConfig
from wsi_ips.errors import CheckpointError
from wsi_ips.models.encoders.hub import cached_repository, cached_weights, how_to_get
from wsi_ips.models.encoders.registry import entry_of
from wsi_ips.models.encoders.weights import HUB_PREFIX, shards_of, weights_file

BASE_WEIGHTS = "WSI_IPS_BASE_WEIGHTS"
"""The environment variable that names the file or folder of these weights on this machine."""
LARGEST_BASE_BYTES = 2**34
"""Largest network that is filled from elsewhere than the checkpoint, in bytes."""
MOST_TIMES_ITS_FILE = 4
"""How many times as many bytes as in its file a network may have in memory: twice for weights in half precision,
and some more for weights that are resampled.
"""
SMALL_BYTES = 2**24
"""Networks up to this size are built whatever the size of their file."""


def found_again(
    path: Path, encoder: EncoderConfig, wanted: Mapping[str, Tensor], *, named: Path | None = None
) -> EncoderConfig:
    """The settings of the encoder of a checkpoint with adapters, with its weights as they are named here.

    Nothing is downloaded for a listed encoder or a repository of the hub, which a stranger's checkpoint may name.
    The weights of a model of timm's own are what timm finds or downloads.

    Args:
        path: The checkpoint.
        encoder: The settings that it holds.
        wanted: The tensors of the network, on the meta device.
        named: Their file or folder, if the user says it. None: :data:`BASE_WEIGHTS`, or where the training had
            them.

    Raises:
        CheckpointError: The weights are not on this machine, or the checkpoint does not say which ones they are,
            or it asks for a network that is much larger than their file.
    """
    assert encoder.lora is not None
    if encoder.lora.base_sha256 is None:
        raise CheckpointError(
            path, "holds adapters and does not say which weights they belong to", "train it again"
        )
    if given := str(named or os.environ.get(BASE_WEIGHTS, "")):
        encoder = encoder.model_copy(update={"weights": given})
    problem, fix = _missing(encoder)
    if problem:
        raise CheckpointError(
            path,
            f"holds adapters alone, and the weights of {encoder.name} that they belong to are not here: {problem}",
            f"{fix}; or name their file or folder in the environment variable {BASE_WEIGHTS}",
        )
    _check_size(path, encoder, sum(tensor.numel() * tensor.element_size() for tensor in wanted.values()))
    return encoder


def with_fingerprint(encoder: EncoderConfig, base_sha256: str | None) -> EncoderConfig:
    """The settings as a checkpoint holds them: with the fingerprint of the encoder's own weights, and the full
    path where they are in a file or folder.
    """
    if encoder.lora is None or base_sha256 is None:
        return encoder
    weights = encoder.weights
    if weights != "timm" and not weights.startswith((HUB_PREFIX, "pypi:")):
        weights = str(Path(weights).resolve())
    lora = encoder.lora.model_copy(update={"base_sha256": base_sha256})
    return encoder.model_copy(update={"lora": lora, "weights": weights})


def _missing(encoder: EncoderConfig) -> tuple[str, str]:
    """Why the weights cannot be had, and what to do; empty texts if they can be."""
    weights, entry = encoder.weights, entry_of(encoder.name)
    if weights == "timm" and entry is not None:
        where = f"{entry.files[0]} of {entry.sources[0]} is not in the hub's cache"
        return ("", "") if cached_weights(entry) else (where, how_to_get(entry))
    source = encoder.name if weights == "timm" else weights
    if source.startswith(HUB_PREFIX):
        repository = source.removeprefix(HUB_PREFIX)
        where = f"{repository} is not in the hub's cache"
        return ("", "") if cached_repository(repository) else (where, f"hf download {repository}")
    if weights == "timm" or weights.startswith("pypi:") or _is_there(Path(weights)):
        return "", ""
    return f"there is no file or folder {weights}", "put them there"


def _is_there(path: Path) -> bool:
    """Whether it is a plain file or a folder. A checkpoint may name anything, such as a device without an end."""
    try:
        return path.is_file() or path.is_dir()
    except OSError:
        return False


def _check_size(path: Path, encoder: EncoderConfig, size: int) -> None:
    """Refuse a network of a size that its weights cannot fill, before it is built."""
    most, file = LARGEST_BASE_BYTES, weights_file(encoder)
    if file is not None:
        held = sum(each.stat().st_size for each in (file, *shards_of(file)))
        most = min(most, max(SMALL_BYTES, MOST_TIMES_ITS_FILE * held))
    if size > most:
        raise CheckpointError(
            path,
            f"asks for a network of {size / 2**20:,.0f} MiB, more than the weights of {encoder.name} can fill",
            "do not use this file",
        )
