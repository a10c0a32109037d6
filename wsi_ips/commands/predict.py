"""``predict``: labels, attention and overlays for every slide of a folder."""

from pathlib import Path

from wsi_ips.commands.inputs import given_mpp, slides_by_id
from wsi_ips.commands.outcome import Outcome
from wsi_ips.datasets.feature_files import list_features
from wsi_ips.errors import ConfigError
from wsi_ips.heatmaps.overlay import write_overlay
from wsi_ips.inference.batch import SlideJob, predict_slides
from wsi_ips.inference.feature_predict import FeaturePredictor, predict_features
from wsi_ips.inference.predict import Predictor
from wsi_ips.inference.results import SlideResult
from wsi_ips.inference.run_folder import RunFolder, claimed
from wsi_ips.inference.telemetry import SlideTelemetry
from wsi_ips.models.checkpoint import checkpoint_sha256, load_checkpoint
from wsi_ips.progress import Progress
from wsi_ips.recipe import PredictJob
from wsi_ips.slides.registry import open_slide
from wsi_ips.streaming.device import pick_device


def predict(job: PredictJob, progress: Progress) -> Outcome:
    """Write ``predictions.csv``, ``attention/*.h5``, ``overlays/*.png`` and ``run.json``.

    In a folder a bad slide becomes a row; a slide given by itself raises. An overlay that cannot be drawn costs
    no label: it is reported, and the exit code says so. Where ``out`` holds the same run, it is gone on with.
    """
    if job.features is not None:
        return _from_features(job, job.features, progress)
    assert job.slides is not None  # the job sees to it
    net, pipeline = load_checkpoint(job.checkpoint)
    if pipeline.model.encoder.features is not None:
        raise ConfigError(f"{job.checkpoint}: reads stored features, not slides; give them with --features")
    slides = slides_by_id(job.slides)
    slide_mpp = given_mpp(job.slide_mpp, job.mpp_csv)
    sha256 = checkpoint_sha256(job.checkpoint)
    device = pick_device(job.device)
    predictor = Predictor(net, pipeline, streaming=job.streaming, device=device, checkpoint=sha256)
    run = RunFolder(job.out)

    def draw(result: SlideResult, path: Path) -> None:
        with open_slide(result.slide_path) as slide:
            write_overlay(path, slide, result)

    measured: list[SlideTelemetry] = []
    # With the checkpoint's own config, so that the run can be read where the checkpoint is not.
    config = {**pipeline.model_dump(mode="json"), **job.model_dump(mode="json")}
    with claimed(run, config=config, checkpoint=job.checkpoint, sha256=sha256, force=job.force):
        rows = predict_slides(
            [SlideJob(slide_id, path, slide_mpp(slide_id)) for slide_id, path in slides.items()],
            predictor,
            run,
            draw=draw if job.overlays else None,
            resume=True,
            observe=lambda result: measured.append(result.telemetry),
            on_error="raise" if list(slides.values()) == [job.slides] else "report",
            progress=progress,
        )
    labelled = sum(row.status == "ok" for row in rows)
    return Outcome.of_slides(
        [row.error for row in rows if row.status != "ok" or row.error],
        f"{labelled} of {len(rows)} slides labelled in {run.predictions}",
        details=SlideTelemetry.total(measured).table() if job.profile and measured else (),
    )


def _from_features(job: PredictJob, features: Path, progress: Progress) -> Outcome:
    """The same from stored features: no slide is opened, and no overlay drawn."""
    net, pipeline = load_checkpoint(job.checkpoint)
    sha256 = checkpoint_sha256(job.checkpoint)
    predictor = FeaturePredictor(net, pipeline, job.streaming, pick_device(job.device), checkpoint=sha256)
    run = RunFolder(job.out)
    paths = list_features(features)
    config = {**pipeline.model_dump(mode="json"), **job.model_dump(mode="json")}
    with claimed(run, config=config, checkpoint=job.checkpoint, sha256=sha256, force=job.force):
        rows, unplaced = predict_features(paths, predictor, run, progress=progress)
    note = (
        f"{len(unplaced)} files do not say how large their patches are (CLAM's never do): "
        "their attention is stored with corners only, and cannot be drawn"
    )
    return Outcome.of_slides(
        [row.error for row in rows if row.status != "ok"],
        f"{sum(row.status == 'ok' for row in rows)} of {len(rows)} slides labelled in {run.predictions}",
        details=[note] if unplaced else (),
    )
