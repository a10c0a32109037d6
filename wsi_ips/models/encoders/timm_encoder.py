"""The encoder of patches: :class:`TimmEncoder` maps pixels to one embedding per patch.

It is any listed encoder, any model of timm, or a function of the user. :class:`FeatureEncoder` takes its place
when features are stored already.

Shape suffixes: n patches, P patch side, C channels or feature width, D embedding width, hw places of a map.
"""

from typing import Any, Self

import torch
from timm.data.config import resolve_model_data_config
from timm.layers.drop import DropPath
from torch import Tensor, nn

from wsi_ips.config import EncoderConfig, LoraConfig
from wsi_ips.errors import CheckpointError, ConfigError
from wsi_ips.models.encoders.entry import EncoderEntry
from wsi_ips.models.encoders.listing import hub_weights
from wsi_ips.models.encoders.lora import add_adapters, base_names, check_reached, fingerprint_of_base
from wsi_ips.models.encoders.network import ComputingModule, network_of, output_of, timm_network, token_pool
from wsi_ips.models.encoders.registry import named
from wsi_ips.models.encoders.transform import patch_transform
from wsi_ips.models.encoders.weights import load_weights

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
"""Kinds of BatchNorm that can be frozen."""
LEAST_VARIANCE = 1e-6
"""Added to the variance of a channel before its root is taken."""


class TimmEncoder(ComputingModule):
    """An encoder of patches: pixels (n, 3, P, P), uint8 or float in 0..1, to embeddings (n, ``dim``).

    With ``in_channels`` other than 3 it takes that many. Patches are resized and cropped here, on the device, as
    the authors of the encoder or ``config.transform`` say, and normalised with the mean and standard deviation
    that the model was pretrained with.

    Args:
        config: Which encoder, with which weights.

    Raises:
        ConfigError: The encoder does not take these settings.
        CheckpointError: Its weights are missing or do not fit.
    """

    mean: Tensor
    std: Tensor
    _adapters_reached = True

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
        self._deviations = config.pooling == "levels_std"
        self.backbone, self.dim = _cut(
            whole, self._stages, tokens={"cls": 1, "cls_mean": 2}.get(self._output, 0)
        )
        if self._deviations:
            self.dim *= 2
        if entry is not None and self.dim != entry.width and _as_listed(config):
            raise ConfigError(f"encoder {entry.name} gives features {self.dim} wide, not its {entry.width}")
        self._frozen_batch_norm = config.batch_norm == "frozen"
        self._random = config.weights == "none"
        self.base_sha256: str | None = None
        """Fingerprint of the encoder's own weights, if it learns adapters."""
        self.found_again: frozenset[str] = frozenset()
        """Tensors that are not stored, because they are the encoder's own weights below its adapters."""
        self.backbone.requires_grad_(config.trainable)
        self._check_drop_path(config)
        if config.lora is not None:
            self._adapt(config.lora, config)
        # Convolutions on a CPU and on tensor cores are faster in this order, and pixels arrive in it anyway.
        self.backbone.to(memory_format=torch.channels_last)
        self.train(self.training)

    def forward(self, pixels_n3PP: Tensor) -> Tensor:
        """Encode patches.

        Raises:
            ConfigError: The model does not take patches of this size, or returns something else than (n,
                ``dim``).
        """
        if self._transform is not None:
            pixels_n3PP = self._transform(pixels_n3PP)
        x_n3PP = self._normalised(pixels_n3PP)
        try:
            features_nD = self.computed(self._features, x_n3PP)
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
        if not self._adapters_reached:
            check_reached(self.backbone, name=self._name)
            self._adapters_reached = True
        return features_nD

    def _normalised(self, pixels_n3PP: Tensor) -> Tensor:
        """The pixels as float, channels last, normalised as for the pretraining of the model.

        The arithmetic runs over rows of interleaved colours. Over a channels-last (n, 3, P, P) it would run
        three numbers at a time, and take as long as a quarter of a small encoder.
        """
        largest = 255.0 if pixels_n3PP.dtype == torch.uint8 else 1.0
        factor_3, shift_3 = 1 / (largest * self.std.flatten()), -self.mean.flatten() / self.std.flatten()
        pixels_nPP3 = pixels_n3PP.permute(0, 2, 3, 1)
        n, height, width, channels = pixels_nPP3.shape
        rows = pixels_nPP3.reshape(n, height, width * channels).to(self.mean.dtype)
        rows = torch.addcmul(shift_3.repeat(width), rows, factor_3.repeat(width))
        return rows.view(n, height, width, channels).permute(0, 3, 1, 2)

    def _features(self, x_n3PP: Tensor) -> Tensor:
        """The pooled features (n, D) of the whole network, or the pooled maps of its stages side by side."""
        backbone: Any = self.backbone
        if self._output != "model":
            return token_pool(backbone, x_n3PP, self._output)
        if not self._stages:
            return backbone(x_n3PP)  # type: ignore[no-any-return]
        # NCHW also for families such as Swin, whose own maps are channels last.
        maps = backbone.forward_intermediates(
            x_n3PP, indices=self._stages, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        means = [map_nChw.mean(dim=(2, 3)) for map_nChw in maps]
        if not self._deviations:
            return torch.cat(means, dim=1)
        return torch.cat([*means, *(_deviation(map_nChw) for map_nChw in maps)], dim=1)

    def _adapt(self, lora: LoraConfig, config: EncoderConfig) -> None:
        """Freeze the network and put adapters onto it, after a check that its weights are the right ones."""
        if not self._random:  # without weights, only names and shapes are asked for
            self.base_sha256 = fingerprint_of_base(self.backbone)
            if lora.base_sha256 not in (None, self.base_sha256):
                raise CheckpointError(
                    self._name if config.weights == "timm" else config.weights,
                    f"holds other weights than the adapters were trained on: their SHA-256 is {self.base_sha256}, "
                    f"not {lora.base_sha256}",
                    f"give the weights of {self._name} that the adapters were trained on",
                )
        add_adapters(self.backbone, lora, name=self._name)
        names = base_names(self.backbone, keep_statistics=not self._frozen_batch_norm)
        self.found_again = frozenset(f"backbone.{name}" for name in names)
        self._adapters_reached = False

    def _check_drop_path(self, config: EncoderConfig) -> None:
        if config.drop_path and not any(
            isinstance(module, DropPath) and module.drop_prob for module in self.backbone.modules()
        ):
            raise ConfigError(f"model.encoder.drop_path: {self._name} has no drop path; leave it out")

    def save_memory(self) -> None:
        """Recompute the blocks of the network in the backward pass instead of keeping what they made.

        Raises:
            ConfigError: The network cannot do that.
        """
        backbone: Any = self.backbone
        try:
            backbone.set_grad_checkpointing(True)
        except (AttributeError, AssertionError, NotImplementedError):  # timm's models assert that they can
            raise ConfigError(
                f"training.encoder_checkpointing: {self._name} cannot recompute its blocks; leave it out, and set "
                "a smaller training.micro_batch"
            ) from None

    def check_normalised(self) -> None:
        """Check that training would not leave this encoder without normalisation for good.

        Random weights have no statistics. If it is frozen, each BatchNorm keeps mean 0 and variance 1, so that
        it only passes its input on. Weights that were loaded into the module after it was built count.

        Raises:
            ConfigError: The weights are random, and a frozen BatchNorm has no statistics.
        """
        if self._random and self._frozen_batch_norm and _without_statistics(self.backbone):
            raise ConfigError(
                f"model.encoder: {self._name} has random weights (weights: none), and batch_norm: frozen would "
                "keep its BatchNorm at mean 0 and variance 1 for good; set model.encoder.batch_norm=batch and "
                "training.micro_batch=null, or give weights"
            )

    def train(self, mode: bool = True) -> Self:
        """Set training or eval mode. A frozen BatchNorm stays in eval mode, so that it keeps its pretrained
        statistics.
        """
        super().train(mode)
        if self._frozen_batch_norm:
            for module in self.backbone.modules():
                if isinstance(module, BATCH_NORMS):
                    module.eval()
        return self


def _deviation(map_nChw: Tensor) -> Tensor:
    """The standard deviation (n, C) of each channel over its places, with a gradient where all are equal.

    It is computed in float32, because a square leaves the range of float16 long before the deviation does.
    """
    variance_nC = map_nChw.float().var(dim=(2, 3), correction=0)
    return (variance_nC + LEAST_VARIANCE).sqrt().to(map_nChw.dtype)


def _without_statistics(module: nn.Module) -> bool:
    """Whether a BatchNorm of the module has seen no data yet."""
    return any(
        norm.running_mean is not None
        and norm.running_var is not None
        and bool((norm.running_mean == 0).all() and (norm.running_var == 1).all())
        for norm in module.modules()
        if isinstance(norm, BATCH_NORMS)
    )


def _whole(config: EncoderConfig) -> tuple[Any, EncoderEntry | None]:
    """The whole network without classifier, and its metadata if it is listed."""
    found = named(config.name)
    if isinstance(found, EncoderEntry):
        if config.weights == "timm" and not found.brings_weights:
            hub_weights(found)  # raises if they are missing, before a network of gigabytes is built
        return network_of(found, config), found
    if found is None:
        return timm_network(config), None
    if not isinstance(found, nn.Module) or not isinstance(getattr(found, "dim", None), int):
        raise ConfigError(
            f"encoder {config.name}: its function returns a {type(found).__name__}, not a torch module with the "
            "width of its embeddings as attribute dim"
        )
    if config.args or config.img_size or config.drop_path:
        raise ConfigError(
            f"encoder {config.name} takes no arguments: leave encoder.args, img_size and drop_path out"
        )
    return found, None


def _as_listed(config: EncoderConfig) -> bool:
    """Whether no setting changes what the encoder returns."""
    return not config.args and config.pooling == "model" and config.stage is None


def _pixel_statistics(
    whole: nn.Module, config: EncoderConfig, entry: EncoderEntry | None
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (channels,) by which pixels in 0..1 are normalised."""
    if not config.normalise:
        return torch.zeros(config.in_channels), torch.ones(config.in_channels)
    if config.mean is not None and config.std is not None:
        mean_C, std_C = torch.tensor(config.mean), torch.tensor(config.std)
    elif entry is not None:
        mean_C, std_C = torch.tensor(entry.mean), torch.tensor(entry.std)
    elif not hasattr(whole, "pretrained_cfg"):  # a module of the user, whose statistics are unknown
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
    """The feature stages that are pooled; none if the model pools by itself."""
    levels = config.pools_stages
    if config.stage is None and not levels:
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
    """The model without what its stages do not need, and the width of its output.

    ``tokens`` is the number of tokens that the output puts side by side; 0 if the stages or the model itself
    pool. timm's ``features_only`` is not used, because the extractors of EfficientNet and MobileNetV3 run, and
    keep, every block all the same.
    """
    if tokens:
        return whole, tokens * int(whole.num_features)
    if not stages and isinstance(getattr(whole, "dim", None), int):
        return whole, whole.dim
    if not stages:
        # MobileNetV3 and similar models have a layer behind the pooled features.
        return whole, int(getattr(whole, "head_hidden_size", whole.num_features))
    widths = [int(whole.feature_info[stage]["num_chs"]) for stage in stages]
    whole.prune_intermediate_layers(stages, prune_norm=True, prune_head=True)
    return whole, sum(widths)


class FeatureEncoder(nn.Module):
    """Takes the place of an encoder for stored features: (n, C) of any float type to the same in float32.

    ``dim`` is C. It has no weights.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, features_nC: Tensor) -> Tensor:
        """Return the features as float32.

        Raises:
            ConfigError: The input is pixels, or features of another width.
        """
        if features_nC.ndim != 2 or features_nC.shape[1] != self.dim:
            raise ConfigError(
                f"this network reads stored features of width {self.dim}, not {tuple(features_nC.shape[1:])}"
            )
        return features_nC.to(torch.float32)
