"""From the settings of an encoder to its whole network, before any weights are read from files.

:func:`network_of` builds a listed encoder, :func:`timm_network` any other model of timm.
"""

import difflib
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any

import timm
from timm.layers.mlp import GluMlp, Mlp, SwiGLU, SwiGLUPacked
from torch import nn

from wsi_ips.config import EncoderConfig, SpecificationTable
from wsi_ips.errors import CheckpointError, ConfigError, one_line
from wsi_ips.models.encoders.entry import EncoderEntry, OwnArchitecture, TimmArchitecture
from wsi_ips.models.encoders.registry import built, known_names
from wsi_ips.models.spinenet import MEMBERS  # this import also registers its models with timm
from wsi_ips.models.spinenet.specification import specification_of

LAYERS: Mapping[str, Any] = {
    "SwiGLUPacked": SwiGLUPacked,
    "SwiGLU": SwiGLU,
    "GluMlp": GluMlp,
    "Mlp": Mlp,
    "SiLU": nn.SiLU,
    "GELU": nn.GELU,
    "LayerNorm": partial(nn.LayerNorm, eps=1e-6),
    "LayerNorm-1e-12": partial(nn.LayerNorm, eps=1e-12),
}
"""Layers by the words that stand for them in settings, which cannot hold classes."""

LAYER_ARGUMENTS = ("mlp_layer", "act_layer", "norm_layer")
"""Arguments of ``timm.create_model`` that take such a word."""


def timm_network(config: EncoderConfig) -> Any:
    """Any other model that timm knows, with its pretrained weights if ``weights`` is ``timm``.

    Raises:
        ConfigError: There is no such model, or it does not take these arguments.
        CheckpointError: The weights, or the description of an ``hf-hub:`` model, cannot be fetched.
    """
    if config.specification is not None:
        return _specified(config, config.specification)
    hub = config.name.startswith("hf-hub:")
    if not hub and not timm.is_model(config.name):
        close = difflib.get_close_matches(config.name, [*known_names(), *timm.list_models()], n=3)
        hint = (
            f"; did you mean {' or '.join(close)}?" if close else "; see wsi-ips encoders, timm.list_models()"
        )
        raise ConfigError(f"timm has no model {config.name!r}{hint}")
    arguments: dict[str, Any] = {**config.args, **_drop_path(config), "in_chans": config.in_channels}
    if config.img_size:
        arguments["img_size"] = config.img_size
    try:
        return _created(config.name, arguments, shown=config.name, pretrained=config.weights == "timm")
    except ConfigError:
        raise
    except Exception as error:  # whatever the hub's client raises: no network, no access, no such repository
        if not (hub or config.weights == "timm"):
            raise
        reason = one_line(f"{type(error).__name__}: {error}", most=160)
        raise CheckpointError(
            config.name,
            f"{'pretrained weights' if config.weights == 'timm' else 'its description'} could not be fetched "
            f"({reason})",
            "download them once where there is a network, or set encoder.weights to a local file or 'none'",
        ) from None


def network_of(entry: EncoderEntry, config: EncoderConfig) -> Any:
    """The network of a listed encoder, with random weights.

    Raises:
        ConfigError: The network does not take these settings, or its code cannot be imported.
    """
    if config.in_channels != 3:
        raise ConfigError(f"encoder {entry.name} takes colours: leave encoder.in_channels at 3")
    if isinstance(entry.architecture, OwnArchitecture):
        if config.args or config.img_size or config.drop_path:
            raise ConfigError(
                f"encoder {entry.name} takes no arguments: leave encoder.args, img_size and drop_path out"
            )
        return built(_function(entry.architecture, entry.name), entry.name)
    architecture: TimmArchitecture = entry.architecture
    arguments = {**architecture.arguments, **config.args, **_drop_path(config)}
    if config.img_size:
        arguments["img_size"] = config.img_size
    return _created(architecture.name, arguments, shown=entry.name)


def _drop_path(config: EncoderConfig) -> dict[str, Any]:
    return {"drop_path_rate": config.drop_path} if config.drop_path else {}


def _created(name: str, arguments: Mapping[str, Any], *, shown: str, pretrained: bool = False) -> Any:
    words = {**arguments}
    for argument in LAYER_ARGUMENTS:
        word = words.get(argument)
        if not isinstance(word, str):
            continue
        if word in LAYERS:
            words[argument] = LAYERS[word]
        elif argument == "mlp_layer":
            raise ConfigError(f"encoder.args.{argument}: {word!r} is not one of {', '.join(LAYERS)}")
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **words)
    except Exception as error:
        # timm raises one of these for an argument that does not suit; other errors come from the hub's client.
        theirs = isinstance(error, TypeError | AssertionError | KeyError | AttributeError)
        if words.keys() <= {"in_chans"} or (pretrained and not theirs):
            raise
        reason = one_line(error, most=160)
        raise ConfigError(
            f"encoder {shown} does not take these encoder.args, img_size or drop_path ({reason})"
        ) from None


def _specified(config: EncoderConfig, table: SpecificationTable) -> Any:
    """A SpineNet of these blocks. Raises ConfigError if they are not a graph, or ``name`` is not that of a
    SpineNet.
    """
    name = "spinenet49" if config.name == "spinenet" else config.name
    if name not in MEMBERS or config.weights == "timm":
        raise ConfigError(
            f"encoder.specification goes with weights: none (or a file) and name: spinenet or {', '.join(MEMBERS)}"
        )
    return timm.create_model(
        name, specification=specification_of(table), num_classes=0, in_chans=config.in_channels
    )


def _function(architecture: OwnArchitecture, name: str) -> Any:
    if not isinstance(architecture.build, str):
        return architecture.build
    module, _, function = architecture.build.partition(":")
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"encoder {name}: {architecture.build} cannot be imported ({error})") from error
