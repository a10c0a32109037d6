"""Which patches a slide is cut into (:class:`TilingConfig`), what counts as tissue, and how patches are read.

A user can bring a learned tissue segmenter (:class:`TissueModelConfig`): a model file with a description beside
it, as JSON or YAML::

    {"mpp": 10, "tile_px": 512, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
     "channel": 1, "activation": "softmax", "threshold": 0.5}
"""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    FiniteFloat,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    StrictStr,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from wsi_ips.config.section import Fraction, Section, read_described
from wsi_ips.config.specification import READ_NO_FILE
from wsi_ips.errors import ConfigError
from wsi_ips.registry import check_known

DESCRIPTIONS = (".json", ".yaml", ".yml")
"""Suffixes of the description of a segmenter."""
Three = tuple[FiniteFloat, FiniteFloat, FiniteFloat]
"""A number for each of red, green and blue."""
ThreePositive = tuple[PositiveFloat, PositiveFloat, PositiveFloat]
"""A positive number for each of red, green and blue."""
OUR_SEGMENTERS = ("rules", "bright_field", "dark_field", "model")
"""The tissue segmenters that come with wsi_ips. Other packages add theirs under the entry point group
``wsi_ips.segmenters``."""
LATER_TISSUE_FIELDS = ("method", "options")
"""Written only where they are set, so that stored settings of earlier versions keep their fingerprints."""


class TissueModelDescription(Section):
    """What a segmenter takes and returns: (1, 3, tile_px, tile_px) float32 RGB to (1, K, h, w)."""

    mpp: Annotated[PositiveFloat, Field(le=1000)]
    """µm per pixel of its input."""
    tile_px: Annotated[int, Field(ge=16, le=8192)] = 512
    """Side of its input in pixels."""
    overlap_px: NonNegativeInt = 64
    """Pixels along each side of a tile that it sees but leaves to its neighbours, because a network errs at its
    edges.
    """
    mean: Three = (0.485, 0.456, 0.406)
    """Subtracted from the channels, which run from 0 to 1."""
    std: ThreePositive = (0.229, 0.224, 0.225)
    """What the channels are then divided by."""
    channel: NonNegativeInt = 1
    """Which of the K output channels is tissue, from 0."""
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    """What turns its output into a share of 0 to 1: softmax over the channels, sigmoid, or nothing."""
    threshold: Fraction = 0.5
    """Tissue is where the channel has this value or more."""

    @model_validator(mode="after")
    def _overlap_leaves_a_step(self) -> Self:
        if 2 * self.overlap_px >= self.tile_px:
            raise ValueError(f"overlap_px {self.overlap_px} must be less than half of tile_px {self.tile_px}")
        return self


class TissueModelConfig(TissueModelDescription):
    """A segmenter as a configuration holds it: its description, its file, and the SHA-256 of the file."""

    file: Path
    sha256: Annotated[StrictStr, Field(pattern="^[0-9a-f]{64}$")]


def read_tissue_model(path: Path) -> TissueModelConfig:
    """The description and the SHA-256 of a model file. The model itself is not loaded.

    Raises:
        ConfigError: The file is missing, or its description is missing or wrong.
    """
    if not path.is_file():
        raise ConfigError(f"tiling.tissue.model {path}: no such file")
    beside = [
        place
        for end in DESCRIPTIONS
        for place in (Path(f"{path}{end}"), path.with_suffix(end))
        if place != path
    ]
    description = next((place for place in beside if place.is_file()), None)
    if description is None:
        raise ConfigError(
            f"{path}: a tissue model needs a description beside it, e.g. {beside[0].name} with its mpp, tile_px, "
            "mean, std, channel, activation and threshold"
        )
    held = read_described(description, TissueModelDescription, what="description")
    return TissueModelConfig(**held.model_dump(), file=path.absolute(), sha256=file_sha256(path))


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_where_named(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str | Path):
        return value
    if info.context == READ_NO_FILE:
        raise ValueError("a checkpoint holds its tissue model's description, not the name of its file alone")
    return read_tissue_model(Path(value))


NamedTissueModel = Annotated[TissueModelConfig, BeforeValidator(_read_where_named)]
"""A description, or the name of a model file. Its description is read at once, so that the configuration of a
checkpoint holds it.
"""


class TissueConfig(Section):
    """What counts as tissue, on a thumbnail of the slide."""

    thumbnail_mpp: PositiveFloat = 8.0
    """Resolution of the thumbnail that is segmented, in µm per pixel."""
    min_object_um2: NonNegativeFloat = 20_000.0
    """Pieces of tissue smaller than this are dropped, in µm²."""
    min_hole_um2: NonNegativeFloat = 20_000.0
    """Holes smaller than this are filled, in µm²."""
    drop_pen: bool = True
    """Leave out felt pen: smooth marks in the colours of a pen (blue, green, black, bright red) on glass or in
    strokes across tissue.
    """
    model: NamedTissueModel | None = None
    """A segmenter of the user instead of the built-in rules: FILE (TorchScript or ONNX), with its description
    beside it in FILE.json, FILE.yaml or the same name with another suffix. See :class:`TissueModelConfig`.
    """
    method: str | None = None
    """What finds the tissue. ``rules``: bright-field or dark-field, as the slide's own brightness says;
    ``bright_field``, ``dark_field``: the one or the other whatever the brightness; ``model``: the segmenter that
    ``model`` names; or the name of another package's segmenter. none: ``model`` where there is one, else
    ``rules``."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Settings of another package's segmenter, which checks them itself."""

    @property
    def segmenter(self) -> str:
        """The name under which the registry of segmenters knows what finds the tissue."""
        return self.method or ("rules" if self.model is None else "model")

    @field_validator("method")
    @classmethod
    def _method_is_known(cls, name: str | None) -> str | None:
        return name and check_known("tissue segmenter", name, OUR_SEGMENTERS, group="wsi_ips.segmenters")

    @model_validator(mode="after")
    def _settings_are_the_method_s(self) -> Self:
        if self.method == "model" and self.model is None:
            raise ValueError("method: model needs a model: set model to its file")
        if self.method in OUR_SEGMENTERS and self.method != "model" and self.model is not None:
            raise ValueError(f"method: {self.method} does not use model: leave one of them out")
        if self.options and self.segmenter in OUR_SEGMENTERS:
            raise ValueError(f"options are another package's segmenter's; {self.segmenter} has none")
        return self

    @model_serializer(mode="wrap")
    def _without_later_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = handler(self)
        return {name: value for name, value in dumped.items() if value or name not in LATER_TISSUE_FIELDS}


class TilingConfig(Section):
    """Which patches a slide is cut into, as in the section ``tiling`` of a recipe.

    >>> import wsi_ips as wi
    >>> tiling = wi.TilingConfig(patch_px=64, patch_mpp=1.0, min_tissue=0.5)
    >>> wi.tile("slide.svs", tiling=tiling)
    Patches('slide', ... of 64 px at 1 µm/px)
    """

    patch_px: PositiveInt = 256
    """Side of the patch that the encoder sees, in pixels."""
    patch_mpp: PositiveFloat = 0.5
    """Resolution of the patch, in µm per pixel ("20x" is 0.5)."""
    overlap_px: NonNegativeInt = 0
    """Pixels that neighbouring patches share, at the resolution of the patch."""
    min_tissue: Fraction = 0.25
    """Share of a patch that has to be tissue."""
    allow_upsampling: bool = False
    """Enlarge a slide that is more than 10 % coarser than ``patch_mpp``, instead of refusing it."""
    tissue: TissueConfig = TissueConfig()

    @model_validator(mode="after")
    def _overlap_leaves_a_step(self) -> Self:
        if self.overlap_px >= self.patch_px:
            raise ValueError(f"overlap_px {self.overlap_px} must be smaller than patch_px {self.patch_px}")
        return self


class DiskCacheConfig(Section):
    """A folder on a local disk that keeps the tiles of slides on slow storage, as they are stored there."""

    folder: Path
    """The folder. It is created, several runs may share it, and it may be deleted when none is running."""
    gb: Annotated[FiniteFloat, Field(ge=0.01, le=1e9)]
    """The most that it holds, in GB of 10^9 bytes. What was used longest ago leaves."""

    @property
    def most_bytes(self) -> int:
        """The most that the folder holds, in bytes."""
        return int(self.gb * 1e9)


class StreamingConfig(Section):
    """How patches are read. Nothing here changes a result, except ``decode``: decoders differ by a few grey
    levels.
    """

    batch: PositiveInt = 64
    """Patches decoded together and encoded in one call."""
    threads: PositiveInt = 2
    """Threads that decode."""
    chunks_in_flight: PositiveInt = 3
    """Chunks that are being decoded or wait for the encoder. This bounds memory and read-ahead."""
    tile_cache_mb: NonNegativeInt = 128
    """MiB of decoded tiles that wait for the next row of patches."""
    decode: Literal["cpu", "device", "auto"] = "cpu"
    """Where JPEG tiles that are whole patches are decoded. ``device``: on the device (CUDA: nvJPEG). ``auto``:
    where it takes less time, measured on the first patches of each slide. All else is decoded on the CPU.
    """
    max_bad_tiles: Fraction = 0.01
    """Share of the tiles of a slide that may be unreadable, and white, before the slide fails."""
    disk_cache: DiskCacheConfig | None = None
    """Where the tiles of slides on network drives and at URLs are kept, so that later epochs, folds and commands
    need not fetch them again (:mod:`wsi_ips.storage.disk_cache`). None: they are read from where they lie.
    """

    def from_anywhere(self) -> Self:
        """The same settings for processes that run in another folder: the path of the cache is absolute."""
        cache = self.disk_cache
        if cache is None:
            return self
        moved = cache.model_copy(update={"folder": cache.folder.absolute()})
        return self.model_copy(update={"disk_cache": moved})

    @model_serializer(mode="wrap")
    def _without_disk_cache(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the cache out where there is none, so that folders named by these settings keep their names."""
        dumped: dict[str, Any] = handler(self)
        return {name: value for name, value in dumped.items() if name != "disk_cache" or value is not None}


class UpsamplingConfig(Section):
    """The one setting that may be changed in a tiling that a checkpoint or a detector already has."""

    allow_upsampling: bool = False
    """Read slides that are more than 10 % coarser than the patches, and enlarge them."""

    def added_to(self, tiling: TilingConfig) -> TilingConfig:
        """The same tiling, which allows upsampling if it or this section does."""
        return tiling.model_copy(
            update={"allow_upsampling": tiling.allow_upsampling or self.allow_upsampling}
        )
