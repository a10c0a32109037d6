"""Low-rank adapters on the layers of an encoder (LoRA: Hu et al. 2021, arXiv 2106.09685, section 4.1).

:func:`add_adapters` puts them onto a network and :func:`merge_adapters` adds them up with its weights. The names
of the network's own tensors stay as they are. :func:`stored_state` is what has to be kept of a network that
contains such an encoder: everything but the encoder's own weights, which :func:`fingerprint_of_base` names.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_ips.config import LoraConfig
from wsi_ips.errors import ConfigError

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
