"""A learned tissue segmenter: a model file of the user's own, and what it takes and gives.

The description lies beside the model, as JSON or YAML:

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
    NonNegativeInt,
    PositiveFloat,
    StrictStr,
    ValidationInfo,
    model_validator,
)

from wsi_ips.config.described_file import read_described
from wsi_ips.config.section import Fraction, Section
from wsi_ips.config.specification import READ_NO_FILE
from wsi_ips.errors import ConfigError

DESCRIPTIONS = (".json", ".yaml", ".yml")
Three = tuple[FiniteFloat, FiniteFloat, FiniteFloat]
ThreePositive = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class TissueModelDescription(Section):
    """What a segmenter takes and gives. It sees (1, 3, tile_px, tile_px) float32, RGB, and gives (1, K, h, w)."""

    mpp: Annotated[PositiveFloat, Field(le=1000)]
    """µm per pixel of its input."""
    tile_px: Annotated[int, Field(ge=16, le=8192)] = 512
    """Side of its input in pixels."""
    overlap_px: NonNegativeInt = 64
    """Pixels along each side of a tile that it sees and leaves to its neighbours: a network errs at its edges."""
    mean: Three = (0.485, 0.456, 0.406)
    """Taken from the channels, which run from 0 to 1."""
    std: ThreePositive = (0.229, 0.224, 0.225)
    """What the channels are divided by then."""
    channel: NonNegativeInt = 1
    """Which of the K output channels is tissue, from 0."""
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    """What makes a share of 0 to 1 of its output: softmax over the channels, sigmoid, or nothing."""
    threshold: Fraction = 0.5
    """Tissue is where the channel has this value or more."""

    @model_validator(mode="after")
    def _overlap_leaves_a_step(self) -> Self:
        if 2 * self.overlap_px >= self.tile_px:
            raise ValueError(f"overlap_px {self.overlap_px} must be less than half of tile_px {self.tile_px}")
        return self


class TissueModelConfig(TissueModelDescription):
    """A segmenter as a config holds it: its description, its file, and the file's contents as a digest."""

    file: Path
    sha256: Annotated[StrictStr, Field(pattern="^[0-9a-f]{64}$")]


def read_tissue_model(path: Path) -> TissueModelConfig:
    """The model file's description and digest; the model itself is not loaded.

    Raises :class:`ConfigError` for a file that is not there, has no description beside it, or a wrong one.
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
    """The file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_where_named(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str | Path):
        return value
    if info.context == READ_NO_FILE:
        raise ValueError("a checkpoint holds its tissue model's description, not the name of its file alone")
    return read_tissue_model(Path(value))


NamedTissueModel = Annotated[TissueModelConfig, BeforeValidator(_read_where_named)]
"""The description itself, or the model file's name: its description is read at once, so that a checkpoint's config
holds it."""
