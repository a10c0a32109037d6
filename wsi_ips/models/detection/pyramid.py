"""Features of strides 8 to 128 with equal channels, as torchvision's detectors take them."""

from collections import OrderedDict
from functools import partial
from typing import Any

import timm
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from wsi_ips.config import DetectorConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.spinenet import MEMBERS, SpineNet
from wsi_ips.models.spinenet.specification_file import specification_of

STRIDES = (8, 16, 32, 64, 128)


class Pyramid(nn.Module):
    """(N, 3, h, w) to five maps by name, finest first; ``out_channels`` each."""

    def __init__(self, features: nn.Module, *, fpn: nn.Module | None, out_channels: int) -> None:
        super().__init__()
        self.features = features
        self.fpn = fpn
        self.out_channels = out_channels

    def forward(self, x_N3hw: Tensor) -> "OrderedDict[str, Tensor]":
        found: OrderedDict[str, Tensor] = OrderedDict(
            (str(place), x) for place, x in enumerate(self.features(x_N3hw))
        )
        return found if self.fpn is None else self.fpn(found)


def build_pyramid(config: DetectorConfig) -> Pyramid:
    """SpineNet as it is; any other timm model under a feature pyramid (Lin et al. 2017) with P6 and P7.

    Untrained. Raises :class:`ConfigError` for a model that timm does not know or without features of
    strides 8, 16 and 32.
    """
    if config.backbone.startswith("hf-hub:") or not timm.is_model(config.backbone):
        raise ConfigError(f"detector.backbone: timm has no model {config.backbone!r}")
    # timm's types are those of any attribute of a module.
    create: Any = partial(timm.create_model, config.backbone, features_only=True, pretrained=False)
    if _is_spinenet(config.backbone):
        create = partial(create, act_layer=config.act_layer)
    if config.specification is not None:
        if config.backbone not in MEMBERS:
            raise ConfigError(f"detector.specification goes with a SpineNet's name, not {config.backbone!r}")
        create = partial(create, specification=specification_of(config.specification))
    try:
        features = create()
        strides, channels = features.feature_info.reduction(), features.feature_info.channels()
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ConfigError(f"detector.backbone: {config.backbone} gives no feature maps ({error})") from None
    if tuple(strides) == STRIDES and len(set(channels)) == 1:
        return Pyramid(features, fpn=None, out_channels=channels[0])
    if not {8, 16, 32} <= set(strides):
        raise ConfigError(f"detector.backbone: {config.backbone} has strides {strides}, not 8, 16 and 32")
    # Of equal strides the last, deepest one.
    wanted = [max(i for i, stride in enumerate(strides) if stride == needed) for needed in (8, 16, 32)]
    features = create(out_indices=wanted)
    n_out = config.pyramid_channels
    fpn = FeaturePyramidNetwork(features.feature_info.channels(), n_out, LastLevelP6P7(n_out, n_out))
    return Pyramid(features, fpn=fpn, out_channels=n_out)


def _is_spinenet(name: str) -> bool:
    return timm.model_entrypoint(name).__module__.startswith(SpineNet.__module__.rpartition(".")[0])
