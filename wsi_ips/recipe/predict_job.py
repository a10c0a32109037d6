"""The job that labels slides."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, model_validator

from wsi_ips.config import BatchConfig, StreamingConfig, UpsamplingConfig
from wsi_ips.recipe.given_slides import Resolution, Slides


def _one_by_itself(checkpoints: object) -> object:
    """A list of one is that one."""
    if isinstance(checkpoints, list | tuple):
        if not checkpoints:
            raise ValueError("name a checkpoint")
        return checkpoints[0] if len(checkpoints) == 1 else checkpoints
    return checkpoints


class PredictJob(Resolution):
    """Label every slide of a folder."""

    command: Literal["predict"] = "predict"
    slides: Slides | None = None
    features: Path | None = None
    """Folder of stored features (CLAM's or TRIDENT's), to label instead of slides."""
    from_coords: Path | None = None
    """Folder of patch coordinates (CLAM's, TRIDENT's, AtlasPatch's, ours): label exactly those patches."""
    checkpoint: Annotated[Path | tuple[Path, ...], BeforeValidator(_one_by_itself)]
    """A model; or several of the same tasks, tiling and selection, whose mean and spread are told."""
    calibration: Path | None = None
    """What ``calibrate`` wrote for this checkpoint: calibrated probabilities, and sets of answers."""
    out: Path
    device: str = "auto"
    deterministic: bool = False
    """The same bits each time on the same kind of card, as ``training.deterministic``; slower."""
    overlays: bool = True
    profile: bool = False
    """Print where the time went, and which stage is the slowest."""
    force: bool = False
    """Replace another run's results in ``out``."""
    embeddings: bool = False
    """Store the kept patches' embeddings with the attention."""
    cases: Path | None = None
    """CSV with the columns slide_id,case_id (a manifest has them): adds ``cases.csv``, a row per patient."""
    pool: Literal["max", "mean", "noisy_or"] = "max"
    """How the slides' probabilities make a patient's."""
    tiling: UpsamplingConfig = UpsamplingConfig()
    """All else of the tiling is the checkpoint's."""
    streaming: StreamingConfig = StreamingConfig()
    batch: BatchConfig = BatchConfig()

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """One or more."""
        return self.checkpoint if isinstance(self.checkpoint, tuple) else (self.checkpoint,)

    @model_validator(mode="after")
    def _parts_are_of_one_network(self) -> Self:
        if self.batch.shard_patches is not None and len(self.checkpoints) > 1:
            raise ValueError("batch.shard_patches goes with one checkpoint: leave it out")
        return self

    @model_validator(mode="after")
    def _slides_or_features(self) -> Self:
        if (self.slides is None) == (self.features is None):
            raise ValueError("give slides, or a folder of features: one of them")
        if self.from_coords is not None and self.features is not None:
            raise ValueError("features have their own coordinates: from_coords goes with slides")
        if self.features is not None:
            batch = self.batch
            if batch.workers or batch.scheduler or batch.shard_patches or self.embeddings:
                raise ValueError(
                    "workers, scheduler, shard_patches and embeddings go with slides, not features"
                )
            if self.slide_mpp is not None or self.mpp_csv is not None:
                raise ValueError("features are read as they are: slide_mpp and mpp_csv go with slides")
        return self
