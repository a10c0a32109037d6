"""From a job to the function that does it."""

from collections.abc import Mapping
from importlib import import_module

from wsi_ips.commands.outcome import Outcome
from wsi_ips.config import EncoderConfig, Section
from wsi_ips.models.encoders.registry import allow_code
from wsi_ips.progress import Progress
from wsi_ips.recipe import (
    CalibrateJob,
    DemoJob,
    DetectJob,
    EvaluateJob,
    ExportJob,
    FeaturesJob,
    FinetuneJob,
    ImagesJob,
    Job,
    OverlayJob,
    PredictJob,
    ReportJob,
    SearchJob,
    TileJob,
    TrainDetectorJob,
)

_DONE_BY: Mapping[type[Section], str] = {
    TileJob: "tile:tile",
    FeaturesJob: "features:store_features",
    FinetuneJob: "finetune:finetune_manifest",
    ImagesJob: "images:learn_images",
    PredictJob: "predict:predict",
    CalibrateJob: "calibrate:calibrate",
    TrainDetectorJob: "train_detector:train",
    DetectJob: "detect:detect",
    OverlayJob: "overlay:overlay",
    ExportJob: "export:export",
    EvaluateJob: "evaluate:evaluate",
    ReportJob: "report:report",
    SearchJob: "search:search_networks",
    DemoJob: "demo:demo",
}
"""Module of this package, and its function of a job and a :class:`Progress`."""


def run_job(job: Job, progress: Progress) -> Outcome:
    """Run any job. Raises :class:`wsi_ips.errors.WsiIpsError` for wrong input.

    Each command's module is imported here and not above: tiling does not wait for torch.
    """
    _note_named_code(job)
    module, _, function = _DONE_BY[type(job)].partition(":")
    outcome: Outcome = getattr(import_module(f"wsi_ips.commands.{module}"), function)(job, progress)
    return outcome


def _note_named_code(job: Job) -> None:
    """An encoder that is code in a file may be run where a job names it; one that a checkpoint names may not."""
    encoder = getattr(getattr(job, "model", job), "encoder", None)
    if isinstance(encoder, EncoderConfig):
        allow_code(encoder.name)
