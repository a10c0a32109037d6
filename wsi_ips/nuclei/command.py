"""Commands on nuclei: ``train-detector`` learns to find them, ``detect`` finds them in slides."""

from pathlib import Path
from typing import Annotated, Literal, Self

import typer
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from wsi_ips.commands.options import Device, MppCsv, Out, Outcome, Recipe, Set, SlideMppOption, Slides, start
from wsi_ips.commands.recipe import Job
from wsi_ips.commands.slides import Resolution, SlidesOfJob
from wsi_ips.config import Fraction, StreamingConfig, UpsamplingConfig
from wsi_ips.nuclei.config import DetectorConfig, DetectorTrainingConfig
from wsi_ips.progress import Progress


class TrainDetectorJob(Job):
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


def train_detector_command(
    images: Annotated[
        Path, typer.Argument(help="Folder with train/ (and val/, test/): *.png, outlines *.xml beside them.")
    ],
    out: Out,
    model: Annotated[
        str | None, typer.Option(help="retinanet (default) finds boxes, mask_rcnn outlines as well.")
    ] = None,
    held_back: Annotated[
        int | None, typer.Option(help="Training images to choose the threshold on, without val/ (2).")
    ] = None,
    device: Device = None,
    recipe: Recipe = None,
    set_: Set = None,
) -> None:
    """Train a detector of nuclei on outlined images, and score it on those in test/."""
    flags = {"images": images, "out": out, "held_back": held_back, "device": device}
    start("train-detector", flags, recipe=recipe, overrides=set_, sections={"detector": {"model": model}})


def train(job: TrainDetectorJob, progress: Progress) -> Outcome:
    """Train and score a detector: :func:`wsi_ips.nuclei.train.train`."""
    from wsi_ips.nuclei import train as training

    return training.train(job, progress)


class DetectJob(Resolution, Job):
    """Find objects (nuclei) in the patches that a run kept, or in all tissue."""

    command: Literal["detect"] = "detect"
    slides: SlidesOfJob
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


def detect_command(
    slides: Slides,
    out: Out,
    detector: Annotated[Path, typer.Option(help="detector.safetensors of train-detector.")],
    run: Annotated[
        Path | None,
        typer.Option(help="The folder that predict wrote: the patches that it kept; default: all tissue."),
    ] = None,
    patch_px: Annotated[
        int | None, typer.Option(help="Side of a patch of all tissue, in the detector's pixels (448).")
    ] = None,
    min_tissue: Annotated[float | None, typer.Option(help="Share of a patch that is tissue (0.1).")] = None,
    score_threshold: Annotated[float | None, typer.Option(help="Default: the detector's own.")] = None,
    shape: Annotated[
        str | None, typer.Option(help="In the GeoJSON: outline (default of mask_rcnn), box or point.")
    ] = None,
    device: Device = None,
    slide_mpp: SlideMppOption = None,
    mpp_csv: MppCsv = None,
    recipe: Recipe = None,
    set_: Set = None,
) -> None:
    """Find nuclei in the kept patches, or in all tissue; write them as CSV and GeoJSON."""
    flags = {"slides": slides, "out": out, "detector": detector, "run": run, "patch_px": patch_px,
             "min_tissue": min_tissue, "score_threshold": score_threshold, "shape": shape, "device": device,
             "slide_mpp": slide_mpp, "mpp_csv": mpp_csv}  # fmt: skip
    start("detect", flags, recipe=recipe, overrides=set_)


def detect(job: DetectJob, progress: Progress) -> Outcome:
    """Find objects in every slide: :func:`wsi_ips.nuclei.detect_slides.detect`."""
    from wsi_ips.nuclei import detect_slides

    return detect_slides.detect(job, progress)
