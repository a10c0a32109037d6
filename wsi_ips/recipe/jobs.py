"""Jobs: what each command needs, as data.

A command line and a recipe make the same job, so they cannot drift apart. Paths in a recipe are relative to
where the command is run.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from wsi_ips.config import EncoderConfig, FinetuneConfig, Fraction, Section, StreamingConfig, TilingConfig
from wsi_ips.drawn.config import DemoConfig
from wsi_ips.images.config import ImageDataConfig
from wsi_ips.recipe.calibrate_job import CalibrateJob
from wsi_ips.recipe.detection_jobs import DetectJob, TrainDetectorJob
from wsi_ips.recipe.given_slides import Resolution, Slides
from wsi_ips.recipe.map_jobs import ExportJob, OverlayJob
from wsi_ips.recipe.predict_job import PredictJob
from wsi_ips.search.config import SearchConfig

MOST_RESAMPLES = 1_000_000
MOST_PATCHES_SHOWN = 100


class TileJob(Resolution):
    """Find tissue and write coordinates; no model."""

    command: Literal["tile"] = "tile"
    slides: Slides
    out: Path
    layout: Literal["clam", "trident"] = "clam"
    contours: Path | None = None
    """Folder of ``<slide_id>.geojson`` (TRIDENT's): tissue as outlined there; none: by our own segmentation."""
    mask_preview: bool = False
    """Write ``previews/<slide_id>.jpg`` as well: the slide with its tissue, contours and patches drawn."""
    workers: PositiveInt = 1
    """Processes that tile a slide each; 1: this process does it. No result depends on it."""
    tiling: TilingConfig = TilingConfig()


class FeaturesJob(Resolution):
    """Store what an encoder makes of every patch; nothing is learned."""

    command: Literal["features"] = "features"
    slides: Slides
    out: Path
    layout: Literal["clam", "trident"] = "clam"
    encoder: EncoderConfig | None = None
    """Any encoder of patches; none: the checkpoint's."""
    checkpoint: Path | None = None
    """A model of ours: its encoder, as it was trained, on patches as it was trained on."""
    tiling: TilingConfig | None = None
    """None: the checkpoint's, or the default. With a checkpoint only ``allow_upsampling``."""
    from_coords: Path | None = None
    """Folder of patch coordinates (CLAM's, TRIDENT's, AtlasPatch's, ours): exactly those patches."""
    half: bool = False
    """Store float16."""
    device: str = "auto"
    deterministic: bool = False
    """The same bits each time on the same kind of card, as ``training.deterministic``; slower."""
    streaming: StreamingConfig = StreamingConfig()

    @model_validator(mode="after")
    def _one_encoder(self) -> Self:
        if (self.encoder is None) == (self.checkpoint is None):
            raise ValueError("give an encoder, or the checkpoint whose encoder is meant: one of them")
        own = self.tiling.model_fields_set - {"allow_upsampling"} if self.tiling is not None else set()
        if self.checkpoint is not None and own:
            raise ValueError(
                "a checkpoint has its own tiling: leave tiling (patch size, µm per pixel, …) out"
            )
        if self.encoder is not None and (self.encoder.features or self.encoder.project):
            raise ValueError("encoder: stored are the encoder's own features; leave features and project out")
        return self


class FinetuneJob(FinetuneConfig, Resolution):
    """Learn from the slide labels of a manifest."""

    command: Literal["finetune"] = "finetune"
    manifest: Path
    slides_root: Path | None = None
    """Folder that the manifest's paths are below, CAMELYON's in either layout; none: the manifest's own."""
    features: Path | None = None
    """Folder of stored features (CLAM's or TRIDENT's), to learn from instead of the slides."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Cross-validate by case with this many folds of the train and val slides; none: train once."""
    inner_val: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """With ``folds``: share of the cases that a fold does not hold out which its epoch is chosen on, so that it is
    not chosen on those that it is measured on; 0: by the training loss."""
    out: Path
    device: str = "auto"
    restart: bool = False
    """Begin anew where ``out`` holds a run, instead of going on with it."""

    @model_validator(mode="after")
    def _features_are_read_by_their_encoder(self) -> Self:
        if (self.features is not None) != (self.model.encoder.name == "features"):
            raise ValueError(
                "features: DIR and model.encoder {name: features, features: <width>} go together; "
                "see pipelines/finetune_features.yaml"
            )
        return self


class ImagesJob(FinetuneConfig):
    """Learn from a data set of images, and score its test images: the other domains of the paper.

    Of ``tiling`` only ``patch_px`` and ``overlap_px`` are used: images have no resolution and no tissue.
    """

    command: Literal["images"] = "images"
    data: ImageDataConfig
    out: Path
    device: str = "auto"
    restart: bool = False
    """Begin anew where ``out`` holds a run, instead of going on with it."""


class EvaluateJob(Section):
    """Score a prediction run against the labels of a manifest."""

    command: Literal["evaluate"] = "evaluate"
    run: Path
    """The folder that ``predict`` wrote."""
    manifest: Path
    out: Path | None = None
    """None: ``evaluation/`` in ``run``."""
    split: Literal["train", "val", "test", "train+val"] = "test"
    """``train+val``: what a cross-validation held out, fold by fold."""
    task: str | None = None
    """Of a model with several tasks, the one to score; none: all."""
    annotations: Path | None = None
    """Folder of lesion outlines, ``<slide_id>.xml`` (ASAP), for FROC."""
    partly_annotated: bool = False
    """Judge lesions also on slides whose outlines are known to be incomplete: those that CAMELYON16's README
    names, and CAMELYON17's of isolated tumour cells. For another data set that has slides of the same names."""
    detection_radius_um: PositiveFloat | None = None
    """Detections of one slide are farther apart than this; none: 1.5 patch sides."""
    detections: Literal["attention", "contribution"] | None = None
    """What FROC's detections are the maxima of: the figure that is first, ``froc.png`` and ``detections/``. The
    other one is reported beside it where it is there. None: contributions where the head tells them."""
    history: Path | None = None
    """``history.csv`` of the fine-tuning run, for the plot of its losses."""
    pool: Literal["max", "mean", "noisy_or"] = "max"
    """How the slides' probabilities make a patient's."""
    threshold: Fraction = 0.5
    """The probability from which a yes-or-no class is called."""
    threshold_from: Literal["train", "val"] | None = None
    """Choose it on this split instead (largest sensitivity + specificity), for tasks of two classes."""
    risk_groups: Annotated[int, Field(ge=2, le=10)] = 2
    """Groups of risk whose survival is drawn and compared, for survival tasks."""
    bootstrap: Annotated[NonNegativeInt, Field(le=MOST_RESAMPLES)] = 2000
    """Resamples of the cases, for the intervals; 0: none."""
    stratify: bool = True
    """Each resample has as many cases of a class as the split; of survival, as many events."""
    seed: NonNegativeInt = 0
    plots: bool | None = None
    """None: where matplotlib is installed."""

    @model_validator(mode="after")
    def _threshold_is_chosen_elsewhere(self) -> Self:
        if self.threshold_from is not None and self.threshold_from in self.split.split("+"):
            raise ValueError(
                f"threshold_from must be another split than the one that is scored, {self.split}"
            )
        return self


class ReportJob(Section):
    """Write a run as one HTML file that can be mailed; no model."""

    command: Literal["report"] = "report"
    run: Path
    """The folder that ``predict`` wrote."""
    out: Path | None = None
    """An ``.html`` file; none: ``report.html`` in ``run``."""
    evaluation: Path | None = None
    """The folder that ``evaluate`` wrote; none: ``evaluation/`` in ``run``, where it is of this run."""
    training: Path | None = None
    """The folder that ``finetune`` wrote, for the losses."""
    slides: Slides | None = None
    """Where the slides are now; none: where ``predict`` read them."""
    open_urls: bool = False
    """Open slides at URLs that the run names, too: without ``slides``, a run folder decides no requests."""
    top: Annotated[NonNegativeInt, Field(le=MOST_PATCHES_SHOWN)] = 9
    """How many of a slide's patches are shown, those with the most attention."""

    @model_validator(mode="after")
    def _out_is_a_page(self) -> Self:
        if self.out is not None and self.out.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"out {self.out} must end in .html")
        return self


class SearchJob(SearchConfig):
    """Search for a scale-permuted network by a proxy task."""

    command: Literal["search"] = "search"
    out: Path
    device: str = "auto"


class DemoJob(DemoConfig):
    """Draw slides, fine-tune, predict, score."""

    command: Literal["demo"] = "demo"
    out: Path = Path("demo_run")
    device: str = "auto"


Job = (
    TileJob
    | FeaturesJob
    | FinetuneJob
    | ImagesJob
    | PredictJob
    | CalibrateJob
    | TrainDetectorJob
    | DetectJob
    | OverlayJob
    | ExportJob
    | EvaluateJob
    | ReportJob
    | SearchJob
    | DemoJob
)
