"""Stored features in the place of an encoder.

Shape suffixes: n patches, C feature width.

Projectors: they read stored features, or narrow an image encoder's output.

Shape suffixes: n patches, C input width, D output width.

Any listed encoder, timm model or function of a user's as patch encoder: pixels in, one embedding per patch out.

Shape suffixes: n patches, P patch side, T tokens, D embedding width.
"""

from typing import Any, Self

import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from wsi_ips.config import EncoderConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.encoders.entry import EncoderEntry
from wsi_ips.models.encoders.hub import hub_weights
from wsi_ips.models.encoders.network import network_of, timm_network
from wsi_ips.models.encoders.output import output_of, token_pool
from wsi_ips.models.encoders.registry import named
from wsi_ips.models.encoders.transform import patch_transform
from wsi_ips.models.encoders.weights import load_weights


class FeatureEncoder(nn.Module):
    """(n, C) of any float type to the same in float32; ``dim`` is C. Has no weights."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, features_nC: Tensor) -> Tensor:
        """Raises :class:`ConfigError` for pixels, or features of another width."""
        if features_nC.ndim != 2 or features_nC.shape[1] != self.dim:
            raise ConfigError(
                f"this network reads stored features of width {self.dim}, not {tuple(features_nC.shape[1:])}"
            )
        return features_nC.to(torch.float32)


class Projector(nn.Module):
    """LayerNorm without affine, Linear, BatchNorm, ReLU (Bergner et al. 2023, CAMELYON16 model)."""

    def __init__(self, n_in: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.norm = nn.LayerNorm(n_in, eps=1e-5, elementwise_affine=False)
        self.linear = nn.Linear(n_in, dim)
        self.batch_norm = nn.BatchNorm1d(dim)

    def forward(self, x_nC: Tensor) -> Tensor:
        """(n, C) float to (n, D)."""
        projected: Tensor = self.batch_norm(self.linear(self.norm(x_nC))).relu()
        return projected


class PlainProjector(nn.Module):
    """Linear, ReLU, dropout, as attention MIL on stored features has it (CLAM's first layer).

    It looks at each patch by itself: no statistics over the patches of a step, which differ from slide to slide.
    """

    def __init__(self, n_in: int, dim: int, *, dropout: float) -> None:
        super().__init__()
        self.dim = dim
        self.linear = nn.Linear(n_in, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_nC: Tensor) -> Tensor:
        """(n, C) float to (n, D)."""
        projected: Tensor = self.dropout(self.linear(x_nC).relu())
        return projected


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


class TimmEncoder(nn.Module):
    """(n, 3, P, P) uint8, or float in 0..1, to (n, ``dim``); with ``in_channels`` other than 3, so many.

    Patches are resized and cropped here, on the device, as the encoder's authors or ``config.transform`` say, and
    normalised with the mean and deviation that the model was pretrained with. Raises :class:`ConfigError` for
    settings that the encoder cannot have, :class:`CheckpointError` for weights that are missing or do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self._name = config.name
        whole, entry = _whole(config)
        mean_C, std_C = _pixel_statistics(whole, config, entry)
        self.register_buffer("mean", mean_C.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", std_C.view(1, -1, 1, 1), persistent=False)
        load_weights(whole, config.weights, entry)
        self._transform = patch_transform(config, entry)
        self._output = output_of(whole, config, entry)
        self._stages = _stages(whole, config, entry)
        self.backbone, self.dim = _cut(
            whole, self._stages, tokens={"cls": 1, "cls_mean": 2}.get(self._output, 0)
        )
        if entry is not None and self.dim != entry.width and _as_listed(config):
            raise ConfigError(f"encoder {entry.name} gives features {self.dim} wide, not its {entry.width}")
        self._frozen_batch_norm = config.batch_norm == "frozen"
        self._random = config.weights == "none"
        self.backbone.requires_grad_(config.trainable)
        # Convolutions on a CPU and on tensor cores are faster so; pixels arrive in this order anyway.
        self.backbone.to(memory_format=torch.channels_last)
        self.train(self.training)

    def forward(self, pixels_n3PP: Tensor) -> Tensor:
        """Embeddings (n, D) float. Raises :class:`ConfigError` where the model does not take this P."""
        if self._transform is not None:
            pixels_n3PP = self._transform(pixels_n3PP)
        x_n3PP = self._normalised(pixels_n3PP)
        try:
            features_nD = self._features(x_n3PP)
        except AssertionError as error:  # how timm's transformers refuse a size that they were not made for
            raise ConfigError(
                f"{self._name} does not take patches of {x_n3PP.shape[-1]} px ({error}); set tiling.patch_px, or "
                "model.encoder.transform: {resize: PX}"
            ) from None
        if features_nD.ndim != 2 or features_nD.shape[1] != self.dim:
            shape = tuple(features_nD.shape[1:])
            raise ConfigError(
                f"{self._name} gives {shape} for a patch, not ({self.dim},); set encoder.pooling: cls or cls_mean "
                "where these are tokens"
            )
        return features_nD

    def _normalised(self, pixels_n3PP: Tensor) -> Tensor:
        """Float, channels last, as the model was pretrained.

        Worked on rows of interleaved colours: over a channels-last (n, 3, P, P) the same arithmetic runs three
        numbers at a time and takes as long as a quarter of a small encoder.
        """
        largest = 255.0 if pixels_n3PP.dtype == torch.uint8 else 1.0
        factor_3, shift_3 = 1 / (largest * self.std.flatten()), -self.mean.flatten() / self.std.flatten()
        pixels_nPP3 = pixels_n3PP.permute(0, 2, 3, 1)
        n, height, width, channels = pixels_nPP3.shape
        rows = pixels_nPP3.reshape(n, height, width * channels).to(self.mean.dtype)
        rows = torch.addcmul(shift_3.repeat(width), rows, factor_3.repeat(width))
        return rows.view(n, height, width, channels).permute(0, 3, 1, 2)

    def _features(self, x_n3PP: Tensor) -> Tensor:
        """The whole network's pooled features, or the stages' maps averaged, side by side, (n, D)."""
        backbone: Any = self.backbone
        if self._output != "model":
            return token_pool(backbone, x_n3PP, self._output)
        if not self._stages:
            return backbone(x_n3PP)  # type: ignore[no-any-return]
        # (n, C, height, width) of every family, Swin's channels-last maps too.
        maps = backbone.forward_intermediates(
            x_n3PP, indices=self._stages, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        return torch.cat([map_nChw.mean(dim=(2, 3)) for map_nChw in maps], dim=1)

    def check_normalised(self) -> None:
        """Raise :class:`ConfigError` where training would leave this encoder without normalisation for good.

        Random weights have no statistics. Frozen, each BatchNorm keeps mean 0 and variance 1, so that it only
        passes on what it gets. Weights that were loaded into the module since it was built count.
        """
        if self._random and self._frozen_batch_norm and _without_statistics(self.backbone):
            raise ConfigError(
                f"model.encoder: {self._name} has random weights (weights: none), and batch_norm: frozen would "
                "keep its BatchNorm at mean 0 and variance 1 for good; set model.encoder.batch_norm=batch and "
                "training.micro_batch=null, or give weights"
            )

    def train(self, mode: bool = True) -> Self:
        """As usual, but frozen BatchNorm keeps its pretrained statistics."""
        super().train(mode)
        if self._frozen_batch_norm:
            for module in self.backbone.modules():
                if isinstance(module, BATCH_NORMS):
                    module.eval()
        return self


def _without_statistics(module: nn.Module) -> bool:
    """Whether one of its BatchNorms has seen nothing yet."""
    return any(
        norm.running_mean is not None
        and norm.running_var is not None
        and bool((norm.running_mean == 0).all() and (norm.running_var == 1).all())
        for norm in module.modules()
        if isinstance(norm, BATCH_NORMS)
    )


def _whole(config: EncoderConfig) -> tuple[Any, EncoderEntry | None]:
    """The whole network without classifier, and its metadata where it is listed."""
    found = named(config.name)
    if isinstance(found, EncoderEntry):
        if config.weights == "timm":
            hub_weights(found)  # that they are missing is said before a network of gigabytes is built
        return network_of(found, config), found
    if found is None:
        return timm_network(config), None
    if not isinstance(found, nn.Module) or not isinstance(getattr(found, "dim", None), int):
        raise ConfigError(
            f"encoder {config.name}: its function returns a {type(found).__name__}, not a torch module with the "
            "width of its embeddings as attribute dim"
        )
    if config.args or config.img_size:
        raise ConfigError(f"encoder {config.name} takes no arguments: leave encoder.args and img_size out")
    return found, None


def _as_listed(config: EncoderConfig) -> bool:
    """Whether nothing was set that changes what comes out."""
    return not config.args and config.pooling == "model" and config.stage is None


def _pixel_statistics(
    whole: nn.Module, config: EncoderConfig, entry: EncoderEntry | None
) -> tuple[Tensor, Tensor]:
    """Mean and deviation (channels,) that pixels in 0..1 are normalised by."""
    if not config.normalise:
        return torch.zeros(config.in_channels), torch.ones(config.in_channels)
    if config.mean is not None and config.std is not None:
        mean_C, std_C = torch.tensor(config.mean), torch.tensor(config.std)
    elif entry is not None:
        mean_C, std_C = torch.tensor(entry.mean), torch.tensor(entry.std)
    elif not hasattr(whole, "pretrained_cfg"):  # a user's own module, which says nothing of it
        return torch.zeros(config.in_channels), torch.ones(config.in_channels)
    else:
        data = resolve_model_data_config(whole)
        mean_C, std_C = torch.tensor(data["mean"]), torch.tensor(data["std"])
    if config.in_channels == len(mean_C):
        return mean_C, std_C
    if config.in_channels == 1:
        return mean_C.mean()[None], std_C.mean()[None]
    raise ConfigError(
        f"encoder.in_channels: {config.name} was pretrained on {len(mean_C)} channels, which says nothing of "
        f"{config.in_channels}; set encoder.normalise=false"
    )


def _stages(whole: nn.Module, config: EncoderConfig, entry: EncoderEntry | None) -> list[int]:
    """The feature stages that are pooled; none: the model pools by itself. Raises :class:`ConfigError`."""
    if config.stage is None and config.pooling != "levels":
        own = getattr(entry.architecture, "stage", None) if entry and config.pooling == "model" else None
        return [] if own is None else [own]
    setting = "encoder.stage" if config.stage is not None else "encoder.pooling"
    stages = getattr(whole, "feature_info", ())
    if not stages or not hasattr(whole, "prune_intermediate_layers"):
        raise ConfigError(f"{setting}: {config.name} has no feature stages; leave {setting} out")
    last = len(stages) - 1 if config.stage is None else config.stage
    if last >= len(stages):
        raise ConfigError(
            f"encoder.stage: {config.name} has feature stages 0 to {len(stages) - 1}, not {last}; "
            "leave encoder.stage out for all of it"
        )
    return [last] if config.pooling == "model" else list(range(last + 1))


def _cut(whole: Any, stages: list[int], *, tokens: int = 0) -> tuple[nn.Module, int]:
    """The model without whatever the stages do not need, and the width of what comes out: ``tokens`` tokens side
    by side, or what the stages or the model itself give.

    Not ``features_only``: EfficientNet's and MobileNetV3's extractors run, and keep, every block all the same.
    """
    if tokens:
        return whole, tokens * int(whole.num_features)
    if not stages and isinstance(getattr(whole, "dim", None), int):
        return whole, whole.dim
    if not stages:
        # MobileNetV3 and its like have a layer behind the pooled features.
        return whole, int(getattr(whole, "head_hidden_size", whole.num_features))
    widths = [int(whole.feature_info[stage]["num_chs"]) for stage in stages]
    whole.prune_intermediate_layers(stages, prune_norm=True, prune_head=True)
    return whole, sum(widths)
