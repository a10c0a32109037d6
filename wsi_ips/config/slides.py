"""Which patches a slide is cut into, and how they are read."""

from typing import Literal, Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from wsi_ips.config.section import Fraction, Section
from wsi_ips.config.tissue_model import NamedTissueModel


class TissueConfig(Section):
    """What counts as tissue, on a thumbnail of the slide."""

    thumbnail_mpp: PositiveFloat = 8.0
    """Resolution of the thumbnail that is segmented, in µm per pixel."""
    min_object_um2: NonNegativeFloat = 20_000.0
    """Specks of tissue smaller than this are dropped, in µm²."""
    min_hole_um2: NonNegativeFloat = 20_000.0
    """Holes smaller than this are filled, in µm²."""
    drop_pen: bool = True
    """Leave out felt pen: smooth marks in a pen's colours (blue, green, black, bright red) that lie on glass or
    cross tissue in strokes."""
    model: NamedTissueModel | None = None
    """A segmenter of the user's own instead of our rules: FILE (TorchScript or ONNX), with its description beside
    it in FILE.json, FILE.yaml or the same name with another ending. See :class:`TissueModelConfig`."""


class TilingConfig(Section):
    """Which patches a slide is cut into."""

    patch_px: PositiveInt = 256
    """Side of the patch that the encoder sees, in pixels."""
    patch_mpp: PositiveFloat = 0.5
    """Resolution of the patch, in µm per pixel ("20x" is 0.5)."""
    overlap_px: NonNegativeInt = 0
    """Pixels that neighbouring patches share, at the patch's resolution."""
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


class UpsamplingConfig(Section):
    """What may be said of a tiling that a checkpoint or a detector already has."""

    allow_upsampling: bool = False
    """Read slides that are more than 10 % coarser than the patches, and enlarge them."""

    def added_to(self, tiling: TilingConfig) -> TilingConfig:
        """The same tiling, which allows upsampling if it or this does."""
        return tiling.model_copy(
            update={"allow_upsampling": tiling.allow_upsampling or self.allow_upsampling}
        )


class StreamingConfig(Section):
    """How patches are read. None of it changes a result, but ``decode``: decoders differ by a few grey levels."""

    batch: PositiveInt = 64
    """Patches decoded together and encoded in one call."""
    threads: PositiveInt = 2
    """Threads that decode."""
    chunks_in_flight: PositiveInt = 3
    """Chunks being decoded or waiting for the encoder; bounds memory and read-ahead."""
    tile_cache_mb: NonNegativeInt = 128
    """MiB of decoded tiles that wait for the next row of patches."""
    decode: Literal["cpu", "device", "auto"] = "cpu"
    """Where JPEG tiles that are patches are decoded. ``device``: there (CUDA: nvJPEG). ``auto``: where it takes
    less time, measured on each slide's first patches. All else is decoded on the CPU."""
    max_bad_tiles: Fraction = 0.01
    """Share of a slide's tiles that may be unreadable, and white, before the slide fails."""
