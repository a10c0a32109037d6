"""Any timm model as patch encoder: pixels in, one embedding per patch out.

Shape suffixes: n patches, P patch side, D embedding width.
"""

import difflib
from collections.abc import Mapping
from typing import Any, Self

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from wsi_ips.config import EncoderConfig
from wsi_ips.errors import CheckpointError, ConfigError
from wsi_ips.models.encoders.projector import Projector
from wsi_ips.models.encoders.weights import load_weights

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


class TimmEncoder(nn.Module):
    """(n, 3, P, P) uint8, or float in 0..1, to (n, ``dim``).

    Pixels are normalised here, on the device, with the mean and deviation that the model was pretrained with.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self._name = config.name
        whole = _create(config)
        data = resolve_model_data_config(whole)
        self.register_buffer("mean", torch.tensor(data["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(data["std"]).view(1, 3, 1, 1), persistent=False)
        load_weights(whole, config.weights)
        self.backbone, width = _truncated(whole, config)
        # Swin and its like give feature maps (n, height, width, D); everything else (n, D, height, width).
        self._area = (1, 2) if getattr(self.backbone, "output_fmt", "NCHW") == "NHWC" else (2, 3)
        self.projector = Projector(width, config.project) if config.project else nn.Identity()
        self.dim: int = config.project or width
        self._frozen_batch_norm = config.batch_norm == "frozen"
        self.backbone.requires_grad_(config.trainable)
        # Convolutions on a CPU and on tensor cores are faster so; pixels arrive in this order anyway.
        self.backbone.to(memory_format=torch.channels_last)
        self.train(self.training)

    def forward(self, pixels_n3PP: Tensor) -> Tensor:
        """Embeddings (n, D) float. Raises :class:`ConfigError` where the model does not take this P."""
        scale = 1 / 255 if pixels_n3PP.dtype == torch.uint8 else 1.0
        x_n3PP = (pixels_n3PP.to(self.mean.dtype) * scale - self.mean) / self.std
        try:
            features = self.backbone(x_n3PP.contiguous(memory_format=torch.channels_last))
        except AssertionError as error:  # how timm's transformers refuse a size that they were not made for
            raise ConfigError(
                f"{self._name} does not take patches of {x_n3PP.shape[-1]} px ({error}); set tiling.patch_px"
            ) from None
        if isinstance(features, list):
            features = features[-1].mean(dim=self._area)
        embeddings: Tensor = self.projector(features)
        return embeddings

    def train(self, mode: bool = True) -> Self:
        """As usual, but frozen BatchNorm keeps its pretrained statistics; the projector's own learns."""
        super().train(mode)
        if self._frozen_batch_norm:
            for module in self.backbone.modules():
                if isinstance(module, BATCH_NORMS):
                    module.eval()
        return self


def _create(config: EncoderConfig) -> nn.Module:
    """The whole model without classifier. Raises :class:`ConfigError` for a name that timm does not know."""
    hub = config.name.startswith("hf-hub:")
    if not hub and not timm.is_model(config.name):
        close = difflib.get_close_matches(config.name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else "; see timm.list_models()"
        raise ConfigError(f"timm has no model {config.name!r}{hint}")
    try:
        model: nn.Module = timm.create_model(config.name, pretrained=config.weights == "timm", num_classes=0)
    except Exception as error:  # whatever the hub's client raises: no network, no access, no such repository
        if not (hub or config.weights == "timm"):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise CheckpointError(
            config.name,
            f"{'pretrained weights' if config.weights == 'timm' else 'its description'} could not be fetched "
            f"({reason})",
            "download them once where there is a network, or set encoder.weights to a local file or 'none'",
        ) from None
    return model


def _truncated(whole: Any, config: EncoderConfig) -> tuple[nn.Module, int]:
    """The model up to ``config.stage``, with the same weights, and the width of what comes out."""
    if config.stage is None:
        # MobileNetV3 and its like have a layer behind the pooled features.
        return whole, int(getattr(whole, "head_hidden_size", whole.num_features))
    stages = len(getattr(whole, "feature_info", ()))
    if config.stage >= stages:
        known_stages = f"has feature stages 0 to {stages - 1}, not {config.stage}" if stages else "has none"
        raise ConfigError(
            f"encoder.stage: {config.name} {known_stages}; leave encoder.stage out for all of it"
        )
    try:
        cut: Any = timm.create_model(
            config.name, features_only=True, pretrained=False, out_indices=(config.stage,)
        )
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ConfigError(f"{config.name} has no feature stages ({error}); leave encoder.stage out") from None
    known = whole.state_dict()
    try:
        cut.load_state_dict({name: _same_tensor(name, known) for name in cut.state_dict()})
    except (KeyError, RuntimeError):
        raise ConfigError(
            f"{config.name} cannot be cut after a stage: timm gives its parts other names; "
            "leave encoder.stage out"
        ) from None
    return cut, int(cut.feature_info.channels()[-1])


def _same_tensor(name: str, whole: Mapping[str, Tensor]) -> Tensor:
    """What timm's feature extractor calls ``name``, in the state dict of the whole model.

    It puts ``model.`` in front of some models, and calls ``stem.0`` ``stem_0`` in others.
    """
    first, _, rest = name.partition(".")
    names = [name, *([rest] if first == "model" else [])]
    names += [f"{first[:at]}.{first[at + 1 :]}.{rest}" for at, letter in enumerate(first) if letter == "_"]
    return whole[next((candidate for candidate in names if candidate in whole), name)]
