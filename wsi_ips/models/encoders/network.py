"""An encoder around its network: which output is the feature, and in which precision it is computed.

From the settings of an encoder to its whole network, before any weights are read from files.

:func:`network_of` builds a listed encoder, :func:`timm_network` any other model of timm.

Which of the tokens of a transformer become the embedding of a patch.

:func:`output_of` decides when the encoder is built, :func:`token_pool` picks the tokens in each forward pass.

In which precision an encoder computes, and whether it is compiled: :class:`Compute` and
:class:`ComputingModule`.

An encoder computes in float32, or in bfloat16 or float16 under PyTorch's autocast: matrix products and
convolutions take half-precision numbers, and layers that need more (LayerNorm and softmax on CUDA) stay in
float32. Its features are float32 in any case. So are all computations behind it, for which :func:`float32_behind`
switches off an autocast that the training engine has switched on.

:func:`settled` turns the setting ``precision`` into a precision, :func:`compute_in` gives it to the encoder of a
network. Source: ENCODERS.md section 4 (bf16, torch.compile).

Shape suffixes: n patches, P patch side, T tokens (class and registers first, then patches), D width.
"""

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import timm
import torch
from timm.layers.mlp import GluMlp, Mlp, SwiGLU, SwiGLUPacked
from torch import Tensor, nn

from wsi_ips.config import EncoderConfig, SpecificationTable
from wsi_ips.errors import CheckpointError, ConfigError, one_line
from wsi_ips.models.encoders.compute import Compute as Compute
from wsi_ips.models.encoders.compute import Settled as Settled
from wsi_ips.models.encoders.compute import settled as settled
from wsi_ips.models.encoders.entry import EncoderEntry, Output, OwnArchitecture, TimmArchitecture
from wsi_ips.models.encoders.registry import built, known_names
from wsi_ips.models.spinenet import MEMBERS
from wsi_ips.models.spinenet.specification import specification_of
from wsi_ips.progress import quiet_hub
from wsi_ips.storage.system import keep_freed_memory


def output_of(whole: Any, config: EncoderConfig, entry: EncoderEntry | None) -> Output:
    """What becomes the embedding: ``cls``, ``cls_mean``, or ``model`` for what the network or its stages pool
    themselves.

    Args:
        whole: The network.
        config: The settings of the encoder.
        entry: Its metadata, if it is listed.

    Raises:
        ConfigError: Tokens are wanted from a network that has none, or that normalises only its pooled features;
            or the network returns tokens and nobody says which ones are meant.
    """
    if config.pooling == "levels" or config.pooling == "levels_std" or config.stage is not None:
        return "model"
    wanted: Output = config.pooling
    if wanted == "model" and entry is not None:
        wanted = entry.output
    if wanted == "model":
        if getattr(whole, "global_pool", None) == "":
            raise ConfigError(f"encoder {config.name} gives tokens: set encoder.pooling: cls or cls_mean")
        return wanted
    if getattr(whole, "cls_token", None) is None or not hasattr(whole, "forward_features"):
        raise ConfigError(f"encoder.pooling: {wanted} needs a class token, which {config.name} does not have")
    if not isinstance(getattr(whole, "fc_norm", nn.Identity()), nn.Identity):
        raise ConfigError(
            f"encoder.pooling: {wanted}: {config.name} norms only its pooled features; leave encoder.pooling out, "
            "or set encoder.args: {global_pool: token}"
        )
    return wanted


def token_pool(network: Any, pixels_n3PP: Tensor, output: Output) -> Tensor:
    """Map normalised pixels (n, 3, P, P) to the class token (n, D), or to it beside the mean of the patch tokens
    (n, 2 D).

    Registers are in neither.
    """
    tokens_nTD: Tensor = network.forward_features(pixels_n3PP)
    if output == "cls":
        return tokens_nTD[:, 0]
    return torch.cat([tokens_nTD[:, 0], tokens_nTD[:, network.num_prefix_tokens :].mean(dim=1)], dim=1)


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
            "download them once where there is a network, or name a local file or none as its weights "
            "(--weights, or encoder.weights in a recipe)",
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
        with quiet_hub():
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


DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The types of the half precisions."""


def compute_in(net: nn.Module, compute: Compute) -> None:
    """Make the encoders within a network compute so. Stored features pass through in any case.

    From then on this process keeps memory that it frees, see :func:`wsi_ips.storage.system.keep_freed_memory`.
    """
    keep_freed_memory()
    for module in net.modules():
        if isinstance(module, ComputingModule):
            module.compute_as(compute)


class ComputingModule(nn.Module):
    """Base class of encoders that compute as :meth:`compute_as` says. At first that is float32."""

    _compute = Compute()
    _compiled: Callable[[Tensor], Tensor] | None = None

    def compute_as(self, compute: Compute) -> None:
        """Compute so from now on. No weight is changed, and none is copied."""
        self._compute = compute
        self._compiled = None

    def computed(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return ``network(x)`` in the chosen precision, as float32.

        Args:
            network: Maps inputs (n, ...) to features (n, D), each input by itself. It is the same in every call.
            x: Inputs, float32.

        Raises:
            ConfigError: It is to be compiled, and this machine has no compiler for it.
        """
        if self._compute == Compute():
            return network(x)
        run = network
        if self._compute.compiled_batch is not None:
            if self._compiled is None:
                self._compiled = torch.compile(network, dynamic=False)
            run = self._in_batches
        if self._compute.precision == "32":
            return run(x)
        with torch.autocast(x.device.type, dtype=DTYPES[self._compute.precision]):
            features = run(x)
        return features.float()

    def _in_batches(self, x: Tensor) -> Tensor:
        """The compiled network on batches of one size, so that the last, smaller one does not compile anew."""
        size, run = self._compute.compiled_batch, self._compiled
        assert size is not None
        assert run is not None
        parts = []
        for part in x.split(size):
            count = len(part)
            if count < size:
                part = torch.cat([part, part.new_zeros(size - count, *part.shape[1:])])
                if x.is_contiguous(memory_format=torch.channels_last):
                    part = part.contiguous(memory_format=torch.channels_last)
            parts.append(_or_no_compiler(run, part)[:count])
        return torch.cat(parts) if len(parts) != 1 else parts[0]


def check_compiles(device: torch.device) -> None:
    """Compile a small function, so that a missing compiler is told before any slide is read.

    Raises:
        ConfigError: PyTorch cannot compile for this device.
    """
    _or_no_compiler(torch.compile(_one_more, dynamic=False), torch.zeros(8, device=device))


def _one_more(x: Tensor) -> Tensor:
    return x * 2 + 1


def _or_no_compiler(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    from torch._dynamo.exc import TorchDynamoException

    failures: tuple[Any, ...] = (TorchDynamoException, ImportError, FileNotFoundError)
    try:
        return run(x)
    except failures as error:
        reason = one_line(f"{type(error).__name__}: {error}", most=160)
        raise ConfigError(
            f"compile: true: PyTorch cannot compile for {x.device.type} here ({reason}); install a C++ compiler "
            "(for a GPU: Triton), or leave compile out"
        ) from error


def float32_behind(device_type: str) -> torch.autocast:
    """Context manager that switches off an autocast of the training engine, so that only encoders, which switch
    on their own, compute in half precision.
    """
    return torch.autocast(device_type, enabled=False)
