"""From a job to the function that does it."""

from wsi_ips.commands.outcome import Outcome
from wsi_ips.progress import Progress
from wsi_ips.recipe import (
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
)


def run_job(job: Job, progress: Progress) -> Outcome:
    """Run any job. Raises :class:`wsi_ips.errors.WsiIpsError` for wrong input.

    Each command's module is imported here and not above: tiling does not wait for torch.
    """
    match job:
        case TileJob():
            from wsi_ips.commands.tile import tile

            return tile(job, progress)
        case FeaturesJob():
            from wsi_ips.commands.features import store_features

            return store_features(job, progress)
        case FinetuneJob() | ImagesJob() | SearchJob():
            return _learn(job, progress)
        case PredictJob():
            from wsi_ips.commands.predict import predict

            return predict(job, progress)
        case DetectJob():
            from wsi_ips.commands.detect import detect

            return detect(job, progress)
        case OverlayJob():
            from wsi_ips.commands.overlay import overlay

            return overlay(job, progress)
        case ExportJob():
            from wsi_ips.commands.export import export

            return export(job, progress)
        case EvaluateJob():
            from wsi_ips.commands.evaluate import evaluate

            return evaluate(job, progress)
        case ReportJob():
            from wsi_ips.commands.report import report

            return report(job, progress)
        case DemoJob():
            from wsi_ips.commands.demo import demo

            return demo(job, progress)


def _learn(job: FinetuneJob | ImagesJob | SearchJob, progress: Progress) -> Outcome:
    match job:
        case FinetuneJob():
            from wsi_ips.commands.finetune import finetune_manifest

            return finetune_manifest(job, progress)
        case ImagesJob():
            from wsi_ips.commands.images import learn_images

            return learn_images(job, progress)
        case SearchJob():
            from wsi_ips.commands.search import search_networks

            return search_networks(job, progress)
