"""A trained model, loaded once, that labels slides: :func:`load` and :class:`Model`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from wsi_ips.api.encoder import Encoder
from wsi_ips.api.progress import shown_progress
from wsi_ips.api.result import Result
from wsi_ips.api.slide import AnySlide, place_of
from wsi_ips.api.streams import streaming_of
from wsi_ips.config import PipelineConfig, StreamingConfig, TaskConfig, UpsamplingConfig
from wsi_ips.errors import ConfigError
from wsi_ips.inference.checkpoints import Checkpoints, EnsemblePredictor, same_patches_and_tasks
from wsi_ips.inference.predict import Predictor
from wsi_ips.inference.worker import load_predictor
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.models.ips_net import BagNet
from wsi_ips.slides.folder import slide_id
from wsi_ips.slides.resolution import SlideMpp
from wsi_ips.storage.location import Location, locate
from wsi_ips.streaming.device import pick_device
from wsi_ips.tiling.patches import FindPatches, PatchesInTissue, stored_patches


@dataclass(frozen=True, slots=True)
class _Reads:
    """How the patches of a slide are found and read."""

    folder: Path | None
    allow_upsampling: bool
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
            threads: How many threads decode (2).
            progress: Whether to show a bar. None shows one in notebooks.

        Raises:
            WsiIpsError: The slide or a setting cannot be used; :func:`wsi_ips.predict` lists the kinds.
        """
        place = _absolute(locate(place_of(slide)))
        name = slide_id(place)
        streaming = StreamingConfig() if threads is None else streaming_of("Model.predict", threads=threads)
        folder = None if patches is None else Path(patches).absolute()
        predictor = self._predictor(_Reads(folder, allow_upsampling, streaming))
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
                self._files, streaming=reads.streaming, device=self.device, find_patches=find
            )
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


def _absolute(place: Location) -> Location:
    return place.absolute() if isinstance(place, Path) else place
