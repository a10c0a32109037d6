"""Weights and the config that they were trained with, in one safetensors file: nothing is unpickled or guessed.

What the files of whole networks and those of detectors have in common; see ``checkpoint.py`` and
``detection/checkpoint.py``.

Checkpoints: safetensors whose metadata holds the config, so that nothing is unpickled and nothing guessed.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from wsi_ips import __version__
from wsi_ips.config import READ_NO_FILE, PipelineConfig, Section
from wsi_ips.errors import CheckpointError, one_line
from wsi_ips.models.build import build_selecting_net
from wsi_ips.models.encoders.registry import check_code_allowed
from wsi_ips.models.ips_net import BagNet
from wsi_ips.storage.files import system_cause, whole_file

MAX_CONFIG_CHARS = 1_000_000

Config = TypeVar("Config", bound=Section)
Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class WeightsFile(Generic[Config, Net]):
    """One kind of such files. key: of the metadata. name: what a user calls it. mend: what to name instead.

    config_of: from what the metadata holds; build: the untrained network of a config, without a download.
    """

    key: str
    name: str
    mend: str
    config_of: Callable[[Path, Mapping[str, Any]], Config]
    build: Callable[[Config], Net]

    def write(self, path: Path, net: nn.Module, config: Config, **more: Any) -> None:
        """``more`` stands beside the config in the metadata."""
        held = {"version": __version__, "config": config.model_dump(mode="json"), **more}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
        with whole_file(path) as partial:
            save_file(tensors, partial, metadata={self.key: json.dumps(held)})
            partial.chmod(0o644)  # safetensors leaves it to its owner alone; colleagues predict with it

    def read(self, path: Path) -> tuple[Net, Config]:
        """The network, in eval mode on the CPU, and its config.

        The file decides over no memory: its config is held against its tensors' shapes before anything is
        allocated. Raises :class:`CheckpointError` for a missing or broken file, one of another kind, or weights
        that do not fit the config or are not finite.
        """
        with self._opened(path) as file:
            config = self._config(path, file.metadata() or {})
            names = list(file.keys())
            self._check_shapes(
                path, config, {name: tuple(file.get_slice(name).get_shape()) for name in names}
            )
            tensors = {name: file.get_tensor(name) for name in names}
        net = self.build(config)
        self._check_values(path, tensors, net.state_dict())
        net.load_state_dict(tensors)
        return net.eval(), config

    def config(self, path: Path) -> Config:
        """The config alone. Raises as :meth:`read`, but for the weights."""
        with self._opened(path) as file:
            return self._config(path, file.metadata() or {})

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Any]:
        if not path.is_file():
            raise CheckpointError(path, f"no such {self.name}", self.mend)
        try:
            with path.open(
                "rb"
            ):  # whatever keeps safetensors from opening it, it says that there is no such file
                pass
            with safe_open(path, framework="pt") as file:
                yield file
        except (SafetensorError, OSError) as error:
            if cause := system_cause(error):
                raise CheckpointError(path, cause.problem, cause.fix) from None
            raise CheckpointError(path, f"is not a safetensors file ({error})", self.mend) from None

    def _config(self, path: Path, metadata: Mapping[str, str]) -> Config:
        if self.key not in metadata:
            raise CheckpointError(
                path, f"is no {self.name} of ours: another kind or another program's file", self.mend
            )
        if len(metadata[self.key]) > MAX_CONFIG_CHARS:
            raise CheckpointError(
                path, f"holds a config of more than {MAX_CONFIG_CHARS:,} characters", self.mend
            )
        try:
            return self.config_of(path, json.loads(metadata[self.key]))
        except (KeyError, TypeError, ValueError, ValidationError, RecursionError) as error:
            reason = one_line(error, most=200)
            raise CheckpointError(path, f"holds a config that cannot be read ({reason})", self.mend) from None

    def _check_shapes(self, path: Path, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse a file whose config describes another network than its tensors make up."""
        try:
            # On the meta device a tensor has a shape and no memory, whatever size the config asks for.
            with torch.device("meta"):
                net = self.build(config)
            wanted = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
        except Exception as error:  # noqa: BLE001 - a config from elsewhere may ask for anything
            reason = one_line(error, most=200)
            raise CheckpointError(
                path, f"describes a network that cannot be built ({reason})", self.mend
            ) from None
        unfit = [
            name for name in sorted(wanted.keys() | shapes.keys()) if wanted.get(name) != shapes.get(name)
        ]
        if unfit:
            raise CheckpointError(
                path,
                f"is of another architecture than its config: {len(unfit)} tensors differ, e.g. {unfit[0]}",
                self.mend,
            )

    def _check_values(self, path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if tensor.is_complex() or tensor.is_floating_point() != wanted[name].is_floating_point():
                raise CheckpointError(path, f"holds {tensor.dtype} for {name}", self.mend)
            if not torch.isfinite(tensor.float()).all():
                raise CheckpointError(path, f"holds weights that are not finite ({name})", "train again")


FORMAT = 1
METADATA_KEY = "wsi_ips"
MEND = "name the model.safetensors of a fine-tuning run"


def save_checkpoint(
    path: Path, net: BagNet, config: PipelineConfig, *, notes: Mapping[str, str] | None = None
) -> None:
    """Write weights and config; ``notes`` (losses, epoch) are for people."""
    _FILE.write(path, net, config, format=FORMAT, notes=dict(notes or {}))


def load_checkpoint(path: Path) -> tuple[BagNet, PipelineConfig]:
    """The network, in eval mode on the CPU, and the config that it was trained with.

    Downloads no weights: the encoder is built empty and filled from the file (timm looks up the description of
    an ``hf-hub:`` encoder, in its cache or on the hub). The file decides over no memory: its config is held
    against its tensors' shapes before anything is allocated. Raises :class:`CheckpointError` for a missing or
    broken file, one that is not ours, or weights that do not fit the config.
    """
    return _FILE.read(path)


def checkpoint_config(path: Path) -> PipelineConfig:
    """The config alone, of a checkpoint whose weights are to be loaded elsewhere. Raises as
    :func:`load_checkpoint`, but for the weights."""
    return _FILE.config(path)


def begin_from(net: BagNet, path: Path) -> None:
    """Put a checkpoint's weights into ``net``: all of them, or all but the encoder's from stored features'
    model. A cascade may begin from IPS: what looks from afar is then as it was built.

    Raises :class:`CheckpointError` as :func:`load_checkpoint`, and where the two differ in any other weight.
    """
    theirs, pipeline = load_checkpoint(path)
    given, wanted = theirs.state_dict(), net.state_dict()
    if pipeline.model.encoder.features is not None:
        wanted = {name: tensor for name, tensor in wanted.items() if not name.startswith("encoder.")}
    if not any(name.startswith("coarse.") for name in given):
        wanted = {name: tensor for name, tensor in wanted.items() if not name.startswith("coarse.")}
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


def checkpoint_sha256(path: Path) -> str:
    """The file's SHA-256 in hex: what a result names its model by."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _config_of(path: Path, held: Mapping[str, Any]) -> PipelineConfig:
    if held["format"] != FORMAT:
        raise CheckpointError(
            path, f"has format {held['format']!r}, this version reads {FORMAT}", "update wsi_ips"
        )
    return PipelineConfig.model_validate(held["config"], context=READ_NO_FILE)


def _empty(config: PipelineConfig) -> BagNet:
    check_code_allowed(config.model.encoder.name)
    encoder = config.model.encoder.model_copy(update={"weights": "none"})
    return build_selecting_net(config.model.model_copy(update={"encoder": encoder}), config.selection)


_FILE = WeightsFile(
    key=METADATA_KEY, name="checkpoint", mend=MEND, config_of=_config_of, build=_empty
)  # fmt: skip
