"""Checkpoints: the weights of a network and the configuration that it was trained with, in one safetensors file.

The metadata of the file holds the configuration, so nothing is unpickled and nothing has to be guessed. Start
with :func:`save_checkpoint` and :func:`load_checkpoint`. :class:`WeightsFile` is the format itself, which the
checkpoints of other networks share (:mod:`wsi_ips.nuclei.models`).

A whole checkpoint from one that holds adapters alone: :func:`merge_checkpoint`.
"""

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from wsi_ips import __version__
from wsi_ips.config import ModelConfig, PipelineConfig, SelectionConfig
from wsi_ips.errors import CheckpointError, one_line
from wsi_ips.models.attention import DirectAttention
from wsi_ips.models.build import build_selecting_net, scorer_model
from wsi_ips.models.checkpoint_head import (
    FORMAT,
    HOW_TO_FIX,
    MAX_CONFIG_CHARS,
    METADATA_KEY,
    Config,
    WeightsHead,
    config_of,
)
from wsi_ips.models.checkpoint_head import checkpoint_config as checkpoint_config
from wsi_ips.models.checkpoint_head import checkpoint_notes as checkpoint_notes
from wsi_ips.models.checkpoint_head import checkpoint_sha256 as checkpoint_sha256
from wsi_ips.models.encoders.lora import (
    found_again,
    load_stored,
    merge_adapters,
    stored_state,
    with_fingerprint,
)
from wsi_ips.models.encoders.projectors import StandardisedProjector
from wsi_ips.models.encoders.registry import check_code_allowed
from wsi_ips.models.ips_net import BagNet, IPSNet
from wsi_ips.models.origins import MADE_BY, differences, names_of, origins_of, stored_origins
from wsi_ips.storage.files import no_empty_folder, whole_file

logger = logging.getLogger(__name__)

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class WeightsFile(WeightsHead[Config], Generic[Config, Net]):
    """One kind of file with weights and a configuration.

    Attributes:
        build: Builds the untrained network of a configuration, without downloading anything.
        begin: Builds the network that the tensors of a file are laid on, where that takes weights that the file
            does not hold: from the path, the configuration and the same network on the meta device. None: it
            is ``build``.
    """

    build: Callable[[Config], Net]
    begin: Callable[[Path, Config, Net], Net] | None = None

    def write(self, path: Path, net: nn.Module, config: Config, **more: Any) -> None:
        """Write weights and configuration to ``path``. ``more`` is stored beside the configuration in the
        metadata.
        """
        held = {"version": __version__, "config": config.model_dump(mode="json"), **more}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in stored_state(net).items()}
        with no_empty_folder(path.parent), whole_file(path) as partial:
            save_file(tensors, partial, metadata={self.key: json.dumps(held)})
            partial.chmod(0o644)  # safetensors leaves it to its owner alone; colleagues predict with it

    def read(self, path: Path) -> tuple[Net, Config]:
        """Read the network, in eval mode on the CPU, and its configuration.

        The file cannot make the program allocate more memory than it has tensors: its configuration is compared
        with the shapes of its tensors first.

        Raises:
            CheckpointError: The file is missing, broken or of another kind, or its weights do not fit the
                configuration or are not finite.
        """
        with self._opened(path, framework="pt") as file:
            config = self._config(path, file.metadata() or {})
            names = list(file.keys())
            empty = self._check_shapes(
                path, config, {name: tuple(file.get_slice(name).get_shape()) for name in names}
            )
            tensors = {name: file.get_tensor(name) for name in names}
        net = self.build(config) if self.begin is None else self.begin(path, config, empty)
        self._check_values(path, tensors, net.state_dict())
        load_stored(net, tensors)
        return net.eval(), config

    def _check_shapes(self, path: Path, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Net:
        """Refuse a file whose configuration describes another network than its tensors do.

        Returns the network on the meta device.
        """
        try:
            # On the meta device a tensor has a shape and no memory, whatever size the config asks for.
            with torch.device("meta"), Unfilled():
                net = self.build(config)
            wanted = {name: tuple(tensor.shape) for name, tensor in stored_state(net).items()}
        except Exception as error:  # noqa: BLE001 - a config from elsewhere may ask for anything
            reason = one_line(error, most=200)
            raise CheckpointError(
                path, f"describes a network that cannot be built ({reason})", self.fix
            ) from None
        unfit = [
            name for name in sorted(wanted.keys() | shapes.keys()) if wanted.get(name) != shapes.get(name)
        ]
        if unfit:
            raise CheckpointError(
                path,
                f"is of another architecture than its config: {len(unfit)} tensors differ, e.g. {unfit[0]}",
                self.fix,
            )
        return net

    def _check_values(self, path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if tensor.is_complex() or tensor.is_floating_point() != wanted[name].is_floating_point():
                raise CheckpointError(path, f"holds {tensor.dtype} for {name}", self.fix)
            # The lowest and the highest value are not numbers if one of all is none.
            if tensor.numel() and not all(map(torch.isfinite, torch.aminmax(tensor.float()))):
                raise CheckpointError(path, f"holds weights that are not finite ({name})", "train again")


class Unfilled(TorchFunctionMode):
    """Tensors of the meta device keep no values, so they are not filled with random ones.

    PyTorch works out some of these operations in Python there, which takes longer than building the network. With
    ``parameters``, the parameters of a network are not filled either, wherever they are: for one whose parameters
    are all read from a file. PyTorch's generator is advanced less then. With ``copied`` False, what they hold is
    not copied either when their order in memory is changed: for one whose parameters are read after the block.
    """

    # PyTorch asks here for the functions of nn.init that it lets others replace, and not for what these call.
    FILLING = frozenset({Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, Tensor.clamp_,
                         nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_})  # fmt: skip

    def __init__(self, *, parameters: bool = False, copied: bool = True) -> None:
        super().__init__()
        self._parameters, self._copied = parameters, copied

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in self.FILLING:
            tensor = args[0] if args else (kwargs or {})["tensor"]
            if tensor.is_meta or (self._parameters and isinstance(tensor, nn.Parameter)):
                return tensor
        kwargs = kwargs or {}
        if func is Tensor.to and not self._copied and isinstance(args[0], nn.Parameter):
            order = kwargs.get("memory_format")
            if order is not None and not args[0].is_contiguous(memory_format=order):
                return torch.empty_like(args[0], memory_format=order)
        return func(*args, **kwargs)


def save_checkpoint(
    path: Path, net: BagNet, config: PipelineConfig, *, notes: Mapping[str, str] | None = None
) -> None:
    """Write the weights and the configuration of a network.

    Args:
        path: The file to write.
        net: The network.
        config: The configuration that it was trained with.
        notes: Texts for people, such as losses or the epoch.
    """
    origins = origins_of(config)
    more = {MADE_BY: origins} if origins else {}
    _FILE.write(path, net, config, format=FORMAT, notes=dict(notes or {}), **more)


def load_checkpoint(
    path: Path, *, base_weights: Path | None = None, advance_rng: bool = True
) -> tuple[BagNet, PipelineConfig]:
    """Read a network, in eval mode on the CPU, and the configuration that it was trained with.

    Args:
        path: The file.
        base_weights: File or folder of the weights below the adapters of its encoder, if it has any. None: where
            the training had them.
        advance_rng: Draw the random values that the file's replace. They are needed only where PyTorch's generator
            is used afterwards, and drawing them takes longer than reading the file.

    No weights are downloaded: the encoder is built empty and filled from the file. If the file holds adapters, the
    encoder's own weights are found again, see :mod:`wsi_ips.models.encoders.lora`. (For an ``hf-hub:``
    encoder, timm looks up its description in the cache or on the hub.) The file cannot make the program allocate
    more memory than it has tensors: its configuration is compared with their shapes first. Where a member of
    another package has another version here than when the file was written, a warning says so.

    Raises:
        CheckpointError: The file is missing, broken or not a checkpoint, or its weights do not fit the
            configuration; or it holds adapters, and the weights below them are not here or are others.
    """
    begin = partial(_begin, base_weights=base_weights, advance_rng=advance_rng)
    try:
        net, config = replace(_FILE, begin=begin).read(path)
    except CheckpointError as error:
        held = _held(path)
        others = differences(stored_origins(held), _names_in(held)) if error.args[0] == path else []
        if not others:
            raise
        fix = f"{'; '.join(others)}: install that version of the package, or use that file"
        raise CheckpointError(path, error.args[1], fix) from error
    for difference in differences(stored_origins(_held(path)), names_of(config)):
        logger.warning("%s: %s; its results may differ", path, difference)
    return net, config


def _held(path: Path) -> dict[str, Any]:
    """What the metadata of a checkpoint holds; empty if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY, "")
        held = json.loads(text) if len(text) <= MAX_CONFIG_CHARS else {}
    except (SafetensorError, OSError, ValueError, RecursionError):
        return {}
    return held if isinstance(held, dict) else {}


def _names_in(held: Mapping[str, Any]) -> dict[str, str]:
    """The members that the metadata of a checkpoint names, where its configuration may be no valid one."""
    try:
        config = held["config"]
        model, selector = config["model"], config["selection"]["selector"]
        names = {"encoder": model["encoder"]["name"], "selector": selector}
        if model.get("aggregator"):
            names["aggregator"] = model["aggregator"]["name"]
    except (KeyError, TypeError, AttributeError):
        return {}
    return {kind: name[:100] for kind, name in names.items() if isinstance(name, str)}


def begin_from(net: BagNet, path: Path) -> None:
    """Put the weights of a checkpoint into ``net``, to begin a training from them.

    If the checkpoint was trained on stored features, all weights but those of the encoder are taken. If it has
    no coarse scorer, or no ``selection.scorer``, the one of ``net`` stays as it is.

    Raises:
        CheckpointError: The file cannot be read, it treats features otherwise (``model.encoder.standardise``,
            ``model.attention.layer_norm``), or any other weight is missing or of another shape.
    """
    theirs, pipeline = load_checkpoint(path)
    ours_of, its_of = (_settings_without_weights(each) for each in (net, theirs))
    for setting, its in its_of.items():
        if (ours := ours_of.get(setting, its)) != its:
            raise CheckpointError(
                path,
                f"was trained with {setting}: {its}, and this model has {ours}",
                f"leave the setting out, or set it to {its}",
            )
    if pipeline.model.encoder.features is None and _base_of(theirs) != _base_of(net):
        raise CheckpointError(
            path,
            "has other weights below its adapters than this model, or only one of them has adapters",
            "give training.start a checkpoint of the same encoder weights and lora; to begin from a merged one, "
            "name it in model.encoder.weights",
        )
    given, wanted = theirs.state_dict(), net.state_dict()
    if pipeline.model.encoder.features is not None:
        wanted = {name: tensor for name, tensor in wanted.items() if not name.startswith("encoder.")}
    for part in ("coarse.", "scorer."):
        if not any(name.startswith(part) for name in given):
            wanted = {name: tensor for name, tensor in wanted.items() if not name.startswith(part)}
    unfit = [
        name
        for name in sorted(given.keys() | wanted.keys())
        if name not in given or name not in wanted or given[name].shape != wanted[name].shape
    ]
    if unfit:
        raise CheckpointError(
            path,
            f"does not fit this model: {len(unfit)} weights differ, e.g. {unfit[0]}",
            "give training.start a checkpoint of the same encoder width, attention and tasks",
        )
    net.load_state_dict(given, strict=False)


def _settings_without_weights(net: BagNet) -> dict[str, str]:
    """{setting: its value}, of the settings that change what a network computes and not the shapes of its
    weights.
    """
    settings = {"model.encoder.standardise": "false"}
    if isinstance(net.projector, StandardisedProjector):
        settings["model.encoder.standardise"] = "true" if net.projector.each else "centre"
    if isinstance(net, IPSNet) and isinstance(net.attention, DirectAttention):
        settings["model.attention.layer_norm"] = str(net.attention.layer_norm).lower()
    return settings


def load_scorer(net: IPSNet, config: PipelineConfig) -> SelectionConfig:
    """Put the weights of the checkpoint ``selection.scorer`` into ``net.scorer``.

    Returns the selection with the scorer's network and the SHA-256 of the file, as the checkpoint of ``net`` holds
    it.

    Raises:
        CheckpointError: The file cannot be read, its encoder is another than that of ``net``, or it saw patches of
            another size.
    """
    scorer = config.selection.scorer
    assert scorer is not None
    assert scorer.checkpoint is not None
    assert net.scorer is not None
    path = scorer.checkpoint
    theirs, pipeline = load_checkpoint(path)
    if pipeline.model.encoder.features is None and config.model.encoder.features is None:
        ours, its = net.encoder.state_dict(), theirs.encoder.state_dict()
        same = ours.keys() == its.keys() and all(torch.equal(ours[name], its[name]) for name in ours)
        if not same:
            raise CheckpointError(
                path,
                "scores the features of another encoder than that of this model",
                "give selection.scorer a model that was trained with the same encoder and trainable: false, or on "
                "its stored features",
            )
        saw, sees = (
            f"{each.patch_px} px at {each.patch_mpp:g} µm" for each in (pipeline.tiling, config.tiling)
        )
        if saw != sees:
            raise CheckpointError(
                path,
                f"scores patches of {saw} per pixel, and this model reads {sees}",
                "give selection.scorer a model that was trained on patches of the same size",
            )
    leave = ("encoder.", "coarse.", "scorer.")
    state = {name: each for name, each in theirs.state_dict().items() if not name.startswith(leave)}
    net.scorer.load_state_dict(state)
    known = {"model": scorer_model(scorer, net.feature_width), "sha256": checkpoint_sha256(path)}
    return config.selection.model_copy(update={"scorer": scorer.model_copy(update=known)})


def named_base(config: ModelConfig, net: BagNet) -> ModelConfig:
    """The configuration of a network with the fingerprint of the weights below its adapters, if it has any."""
    return config.model_copy(update={"encoder": with_fingerprint(config.encoder, _base_of(net))})


def _base_of(net: BagNet) -> str | None:
    """The fingerprint of the weights below the adapters of the encoder; None if it has no adapters."""
    return getattr(net.encoder, "base_sha256", None)


def _empty(config: PipelineConfig) -> BagNet:
    check_code_allowed(config.model.encoder.name)
    encoder = config.model.encoder.model_copy(update={"weights": "none"})
    return build_selecting_net(config.model.model_copy(update={"encoder": encoder}), config.selection)


def _begin(
    path: Path, config: PipelineConfig, empty: BagNet, *, base_weights: Path | None, advance_rng: bool
) -> BagNet:
    """The network that the tensors of a checkpoint are laid on: empty, or with the weights below its adapters."""
    if config.model.encoder.lora is None:
        with nullcontext() if advance_rng else Unfilled(parameters=True, copied=False):
            return _empty(config)
    check_code_allowed(config.model.encoder.name)
    encoder = found_again(path, config.model.encoder, empty.state_dict(), named=base_weights)
    return build_selecting_net(config.model.model_copy(update={"encoder": encoder}), config.selection)


_FILE = WeightsFile(key=METADATA_KEY, name="checkpoint", fix=HOW_TO_FIX, config_of=config_of, build=_empty)

TRIED = 4
"""Patches that the encoder is tried on before and after."""
LARGEST_DIFFERENCE = 1e-4
"""Largest relative difference between the features before and after."""


@torch.no_grad()
def merge_checkpoint(checkpoint: Path, out: Path, *, base_weights: Path | None = None) -> float:
    """Add the adapters of a checkpoint up with the encoder's own weights, and write all weights to ``out``.

    The configuration of ``out`` is the same without ``model.encoder.lora``. The features of a few random patches
    are compared before anything is written.

    Args:
        checkpoint: The checkpoint with the adapters.
        out: The file to write.
        base_weights: See :func:`wsi_ips.models.checkpoint.load_checkpoint`.

    Returns:
        The largest difference between features before and after, as a part of the largest feature.

    Raises:
        CheckpointError: The checkpoint cannot be read, holds no adapters, or the merged encoder computes something
            else.
    """
    net, pipeline = load_checkpoint(checkpoint, base_weights=base_weights)
    side, channels = pipeline.tiling.patch_px, pipeline.model.encoder.in_channels
    pixels = torch.rand(TRIED, channels, side, side, generator=torch.Generator().manual_seed(0))
    before = net.encoder(pixels)
    encoder: Any = net.encoder
    if not merge_adapters(encoder.backbone):
        raise CheckpointError(checkpoint, "holds no adapters", "it is a whole checkpoint as it is")
    encoder.found_again = frozenset()
    error = _difference(net.encoder(pixels), before)
    if not error <= LARGEST_DIFFERENCE:
        raise CheckpointError(
            checkpoint,
            f"computes something else when its adapters are merged: features differ by {error:.1e} of their size",
            "use it as it is",
        )
    settings = pipeline.model.encoder.model_copy(update={"lora": None})
    model = pipeline.model.model_copy(update={"encoder": settings})
    notes = checkpoint_notes(checkpoint) | {"merged from": checkpoint.name}
    save_checkpoint(out, net, pipeline.model_copy(update={"model": model}), notes=notes)
    return error


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())
