"""The published SpineNets as timm models. They are one table; no size has code of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from timm.models import build_model_with_cfg, register_model
from torch import nn

from wsi_ips.models.spinenet.backbone import SpineNet
from wsi_ips.models.spinenet.specification import R0_SP53, R23_SP30, R50_SP0, SPINENET_49, Specification


@dataclass(frozen=True, slots=True)
class Member:
    """What distinguishes one published network from another. The fields are arguments of :class:`SpineNet`."""

    specification: Specification
    endpoint_channels: int | None = 256
    width: float = 1.0
    alpha: float = 0.5
    repeats: int = 1


MEMBERS: Mapping[str, Member] = MappingProxyType(
    {
        # The public code says 128; the published counts of the detector fit 256 only.
        "spinenet49s": Member(SPINENET_49, 128, width=0.65),
        "spinenet49": Member(SPINENET_49),
        "spinenet96": Member(SPINENET_49, repeats=2),
        "spinenet143": Member(SPINENET_49, alpha=1.0, repeats=3),
        "spinenet143l": Member(SPINENET_49, width=1.3, alpha=1.0, repeats=3),
        "spinenet190": Member(SPINENET_49, 512, width=1.3, alpha=1.0, repeats=4),
        "r0_sp53": Member(R0_SP53),
        "r23_sp30": Member(R23_SP30),
        "r50_sp0": Member(R50_SP0, None),
    }
)
"""The published networks by name (Du et al. 2020, tables of SpineNet sizes and of scale-permuted ResNets)."""

_DESCRIPTION = {
    "url": "",
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": None,
    "interpolation": "bilinear",
    "crop_pct": 0.875,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "first_conv": "stem.0",
    "classifier": "fc",
}


def create_spinenet(specification: Specification, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """A network of any specification.

    Args:
        specification: Its blocks.
        pretrained: Part of the interface of timm. There are no pretrained weights.
        options: Options of timm and of :class:`SpineNet`. ``features_only=True`` gives a module that returns the
            list of outputs, finest first; ``out_indices`` chooses among them.
    """
    count = len(specification.outputs)
    model: nn.Module = build_model_with_cfg(
        SpineNet,
        specification.name,
        pretrained,
        pretrained_cfg=_DESCRIPTION,
        model_cfg=None,
        feature_cfg={"feature_cls": "getter", "out_indices": tuple(range(count))},
        specification=specification,
        **options,
    )
    return model


def _register(name: str, member: Member) -> None:
    def entrypoint(pretrained: bool = False, **options: Any) -> nn.Module:
        size = {
            "width": member.width,
            "alpha": member.alpha,
            "repeats": member.repeats,
            "endpoint_channels": member.endpoint_channels,
        }
        # timm passes descriptions of pretrained weights, of which there are none.
        for unused in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            options.pop(unused, None)
        specification = options.pop("specification", member.specification)
        return create_spinenet(specification, pretrained=pretrained, **{**size, **options})

    entrypoint.__name__ = entrypoint.__qualname__ = name
    register_model(entrypoint)


for _name, _member in MEMBERS.items():
    _register(_name, _member)
