"""Jobs about objects inside the patches."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from wsi_ips.config import Fraction, Section, StreamingConfig, UpsamplingConfig
from wsi_ips.nuclei.config import DetectorConfig, DetectorTrainingConfig
from wsi_ips.recipe.given_slides import Resolution, Slides


class TrainDetectorJob(Section):
    """Learn to find objects (nuclei) from images whose objects are outlined."""

    command: Literal["train-detector"] = "train-detector"
    images: Path
    """Folder with ``train/``, and where there are any ``val/`` and ``test/``: ``*.png``, with ImageScope outlines
    beside them (``*.xml``)."""
    out: Path
    detector: DetectorConfig = DetectorConfig()
    training: DetectorTrainingConfig = DetectorTrainingConfig()
    held_back: NonNegativeInt = 2
    """Without ``val/``, so many of the training images teach nothing: the score threshold is chosen on them."""
    device: str = "auto"


class DetectJob(Resolution):
    """Find objects (nuclei) in the patches that a run kept, or in all tissue."""

    command: Literal["detect"] = "detect"
    slides: Slides
    detector: Path
    """What ``train-detector`` wrote."""
    out: Path
    run: Path | None = None
    """The folder that ``predict`` wrote: only the patches that it kept; none: all patches with tissue."""
    patch_px: Annotated[PositiveInt, Field(ge=64, le=4096)] = 448
    """Side of a patch of all tissue, in the detector's pixels; 32 more are read on each side."""
    min_tissue: Fraction = 0.1
    score_threshold: Fraction | None = None
    """None: the detector's own."""
    shape: Literal["outline", "box", "point"] | None = None
    """Of objects in the GeoJSON; none: outlines where the detector tells them, else boxes."""
    tiling: UpsamplingConfig = UpsamplingConfig()
    device: str = "auto"
    deterministic: bool = False
    """The same bits each time on the same kind of card, as ``training.deterministic``; slower."""
    streaming: StreamingConfig = StreamingConfig(batch=4)

    @model_validator(mode="after")
    def _a_run_has_its_resolution(self) -> Self:
        if self.run is not None and (self.slide_mpp is not None or self.mpp_csv is not None):
            raise ValueError("a run has its slides' resolution: leave slide_mpp and mpp_csv out")
        return self
