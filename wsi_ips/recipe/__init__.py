"""Jobs, and recipes: a recipe is a job in YAML.

A command line and a recipe make the same job, so they cannot drift apart. Paths in a recipe are relative to
where the command is run.
"""

from wsi_ips.recipe.calibrate_job import CalibrateJob
from wsi_ips.recipe.detection_jobs import DetectJob, TrainDetectorJob
from wsi_ips.recipe.jobs import (
    DemoJob,
    EvaluateJob,
    FeaturesJob,
    FinetuneJob,
    ImagesJob,
    Job,
    ReportJob,
    SearchJob,
    TileJob,
)
from wsi_ips.recipe.loading import load_recipe, make_job, shipped_recipe, with_overrides
from wsi_ips.recipe.map_jobs import EXPORT_OPTIONS, ExportJob, OverlayJob
from wsi_ips.recipe.predict_job import PredictJob

__all__ = [
    "EXPORT_OPTIONS",
    "CalibrateJob",
    "DemoJob",
    "DetectJob",
    "EvaluateJob",
    "ExportJob",
    "FeaturesJob",
    "FinetuneJob",
    "ImagesJob",
    "Job",
    "OverlayJob",
    "PredictJob",
    "ReportJob",
    "SearchJob",
    "TileJob",
    "TrainDetectorJob",
    "load_recipe",
    "make_job",
    "shipped_recipe",
    "with_overrides",
]
