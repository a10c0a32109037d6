"""Low-rank adapters on the layers of an encoder (LoRA: Hu et al. 2021, arXiv 2106.09685, section 4.1).

:func:`add_adapters` puts them onto a network and :func:`merge_adapters` adds them up with its weights. The names
of the network's own tensors stay as they are. :func:`stored_state` is what has to be kept of a network that
contains such an encoder: everything but the encoder's own weights, which :func:`fingerprint_of_base` names.

The own weights of an encoder whose checkpoint holds only adapters: where they are found again.

They come from where the training had them: the cache of the hub for an encoder that was named, or the file or
folder that was given. :data:`BASE_WEIGHTS` names another file or folder. Whatever is found has to have the
fingerprint that the checkpoint states (:func:`wsi_ips.models.encoders.lora.fingerprint_of_base`). The encoder
checks it when it is built.
"""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_ips.config import EncoderConfig, LoraConfig
from wsi_ips.errors import CheckpointError, ConfigError
from wsi_ips.models.encoders.listing import cached_repository, cached_weights, how_to_get
from wsi_ips.models.encoders.registry import entry_of
from wsi_ips.models.encoders.weights import HUB_PREFIX, shards_of, weights_file

RESAMPLED = ("pos_embed", "position", "rel_pos")
"""What the names of tensors contain that may be resampled when they are loaded. Such sums differ in their last
bits from one processor to another, so the fingerprint leaves these tensors out.
"""
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)
"""Kinds of normalisation layers."""


class LoraLinear(nn.Linear):
    """A linear layer with an adapter: (..., inputs) to (..., outputs).

    It takes over weight and bias of ``layer``, which do not learn.

    Attributes:
        lora_a: (rank, inputs).
        lora_b: (outputs, rank), zero at first.
        reached: Whether the layer has been called. Some networks read ``weight`` and do not call the layer.
    """

    def __init__(self, layer: nn.Linear, config: LoraConfig) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = _scale(config)
        self.lora_dropout = nn.Dropout(config.dropout)
        self.lora_a = _first(layer.weight, config.rank, layer.in_features)
        self.lora_b = nn.Parameter(layer.weight.new_zeros(layer.out_features, config.rank))
        self.reached = False

    def forward(self, x: Tensor) -> Tensor:
        """What the layer makes of ``x``, and the adapter's part."""
        self.reached = True
        narrow = functional.linear(self.lora_dropout(x), self.lora_a)
        return functional.linear(x, self.weight, self.bias) + self.scale * functional.linear(
            narrow, self.lora_b
        )

    def merged(self) -> nn.Linear:
        """A plain layer that gives the same."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight, plain.bias = _sum(self.weight, self.lora_a, self.lora_b, self.scale), self.bias
        return plain


class LoraConv1x1(nn.Conv2d):
    """A 1x1 convolution with an adapter, whose matrices have two more axes of 1. See :class:`LoraLinear`."""

    def __init__(self, layer: nn.Conv2d, config: LoraConfig) -> None:
        super().__init__(**_shape_of(layer))
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = _scale(config)
        self.lora_dropout = nn.Dropout(config.dropout)
        self.lora_a = _first(layer.weight, config.rank, layer.in_channels, 1, 1)
        self.lora_b = nn.Parameter(layer.weight.new_zeros(layer.out_channels, config.rank, 1, 1))
        self.reached = False

    def forward(self, x: Tensor) -> Tensor:
        """What the convolution makes of ``x``, and the adapter's part."""
        self.reached = True
        narrow = functional.conv2d(self.lora_dropout(x), self.lora_a, stride=self.stride)
        return super().forward(x) + self.scale * functional.conv2d(narrow, self.lora_b)

    def merged(self) -> nn.Conv2d:
        """A plain convolution that gives the same."""
        plain = nn.Conv2d(**_shape_of(self))
        plain.weight, plain.bias = _sum(self.weight, self.lora_a, self.lora_b, self.scale), self.bias
        return plain


Adapted = LoraLinear | LoraConv1x1
"""A layer with an adapter."""


def add_adapters(network: nn.Module, config: LoraConfig, *, name: str) -> None:
    """Put adapters onto the layers that ``config.targets`` names. Nothing else learns, except the norms if asked.

    Args:
        network: The encoder, which is changed in place.
        config: The settings.
        name: What the user calls the encoder, for messages.

    Raises:
        ConfigError: A target names no layer that can have an adapter.
    """
    network.requires_grad_(False)
    layers = {path: layer for path, layer in network.named_modules() if _can_adapt(layer)}
    for target in config.targets:
        if not any(_is_named(path, target) for path in layers):
            known = ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in layers)) or "none"
            raise ConfigError(
                f"model.encoder.lora.targets: {name} has no linear layer or 1x1 convolution {target!r}; it has "
                f"{known}"
            )
    for path, layer in layers.items():
        if any(_is_named(path, target) for target in config.targets):
            put = LoraLinear(layer, config) if isinstance(layer, nn.Linear) else LoraConv1x1(layer, config)
            _replace(network, path, put.train(layer.training))
    if config.norms:
        for module in network.modules():
            if isinstance(module, NORMS):
                module.requires_grad_(True)


def merge_adapters(network: nn.Module) -> int:
    """Replace every layer with an adapter by a plain one that gives the same. Returns how many there were."""
    adapted = [(path, layer) for path, layer in network.named_modules() if isinstance(layer, Adapted)]
    for path, layer in adapted:
        _replace(network, path, layer.merged().train(layer.training))
    return len(adapted)


def check_reached(network: nn.Module, *, name: str) -> None:
    """Check, after patches went through, that every adapter had its part in it.

    Raises:
        ConfigError: The network uses the weights of a layer without calling it, so its adapter does nothing.
    """
    for path, layer in network.named_modules():
        if isinstance(layer, Adapted) and not layer.reached:
            raise ConfigError(
                f"model.encoder.lora.targets: {name} does not call its layer {path}, so an adapter there would do "
                "nothing; name other layers"
            )


def base_names(network: nn.Module, *, keep_statistics: bool) -> frozenset[str]:
    """The names of the tensors that are the network's own and do not change in training.

    With ``keep_statistics``, the running statistics of BatchNorm change and are not among them.
    """
    changing = {path for path, weight in network.named_parameters() if weight.requires_grad}
    if keep_statistics:
        for path, module in network.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                changing |= {f"{path}.{name}" for name, _ in module.named_buffers(recurse=False)}
    return frozenset(network.state_dict().keys() - changing)


def fingerprint_of_base(network: nn.Module) -> str:
    """The SHA-256 in hex of the tensors of a network: their names, types, shapes and values.

    It does not depend on the kind of file that they came from. Tensors that may have been resampled
    (:data:`RESAMPLED`) are left out.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if any(part in name for part in RESAMPLED):
            continue
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def stored_state(net: nn.Module) -> dict[str, Tensor]:
    """The state of a network without what can be had again: the own weights of an encoder with adapters.

    It is the whole state of a network without adapters.
    """
    left_out = {
        f"{path}.{name}" if path else name
        for path, module in net.named_modules()
        for name in getattr(module, "found_again", ())
    }
    return {name: tensor for name, tensor in net.state_dict().items() if name not in left_out}


def load_stored(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`stored_state` returned.

    Raises:
        RuntimeError: Tensors are missing, are too many, or have other shapes.
    """
    wanted = stored_state(net).keys()
    unfit = sorted(wanted ^ tensors.keys())
    if unfit:
        raise RuntimeError(f"{len(unfit)} tensors differ, e.g. {unfit[0]}")
    net.load_state_dict(dict(tensors), strict=False)


def _can_adapt(layer: nn.Module) -> bool:
    # Of subclasses nobody knows what they compute; nn.MultiheadAttention, for one, never calls its own.
    if type(layer) is nn.Linear:
        return True
    if type(layer) is not nn.Conv2d:
        return False
    return layer.kernel_size == (1, 1) and layer.groups == 1 and layer.padding in ((0, 0), "valid", "same")


def _is_named(path: str, target: str) -> bool:
    parts, wanted = path.split("."), target.split(".")
    return len(parts) >= len(wanted) and all(
        fnmatchcase(part, pattern) for part, pattern in zip(parts[-len(wanted) :], wanted, strict=True)
    )


def _replace(network: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    owner = network.get_submodule(parent)
    if isinstance(owner, nn.Sequential | nn.ModuleList):
        owner[int(name)] = layer
    else:
        setattr(owner, name, layer)


def _scale(config: LoraConfig) -> float:
    return 1.0 if config.alpha is None else config.alpha / config.rank


def _first(weight: Tensor, *shape: int) -> nn.Parameter:
    """A, drawn as PyTorch draws the weights of a linear layer."""
    drawn = nn.Parameter(weight.new_empty(shape))
    nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
    return drawn


@torch.no_grad()
def _sum(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> nn.Parameter:
    """weight + scale B A, with the product in float64."""
    product = b.flatten(1).double() @ a.flatten(1).double()
    return nn.Parameter((weight.double() + scale * product.view_as(weight)).to(weight.dtype))


def _shape_of(layer: nn.Conv2d) -> dict[str, Any]:
    return {
        "in_channels": layer.in_channels,
        "out_channels": layer.out_channels,
        "kernel_size": 1,
        "stride": layer.stride,
        "bias": layer.bias is not None,
        "device": "meta",
    }


def adapters_of(network: nn.Module) -> Iterator[Adapted]:
    """The layers of a network that have an adapter."""
    return (layer for layer in network.modules() if isinstance(layer, Adapted))


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
    if weights == "timm" and entry is not None and not entry.brings_weights:
        where = "no repository holds them"
        if entry.sources:
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
