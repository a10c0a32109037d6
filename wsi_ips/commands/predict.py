"""``predict``: labels, attention and overlays for every slide of a folder."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from wsi_ips.commands.inputs import given_mpp, slides_by_id, stored_patches
from wsi_ips.commands.outcome import Outcome
from wsi_ips.config import BatchConfig, PipelineConfig
from wsi_ips.datasets.feature_files import list_features
from wsi_ips.errors import ConfigError, UnsupportedSlide
from wsi_ips.evaluation.conformal import Calibration, check_belongs, read_calibration
from wsi_ips.heatmaps.overlay import write_overlay
from wsi_ips.inference.checkpoints import Checkpoints, same_patches_and_tasks
from wsi_ips.inference.feature_predict import FeaturePredictor, predict_features
from wsi_ips.inference.in_hand import SlidesInHand
from wsi_ips.inference.in_turn import predict_in_turn, predict_suspects
from wsi_ips.inference.predict import check_parts
from wsi_ips.inference.predictions import PredictionRow, read_case_table, write_cases
from wsi_ips.inference.results import SlideResult
from wsi_ips.inference.run_folder import RunFolder, claimed
from wsi_ips.inference.run_tables import RunTables
from wsi_ips.inference.slide_work import SlideJob
from wsi_ips.inference.telemetry import SlideTelemetry
from wsi_ips.inference.worker import WorkerSetup
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.progress import Progress
from wsi_ips.recipe import PredictJob
from wsi_ips.slides.base import named
from wsi_ips.slides.registry import check_name, open_slide
from wsi_ips.storage.location import Location, locate
from wsi_ips.streaming.device import calculating, numerics, pick_device
from wsi_ips.tiling.patches import FindPatches, PatchesInTissue


def predict(job: PredictJob, progress: Progress) -> Outcome:
    """Write ``predictions.csv``, ``slides.csv``, ``attention/*.h5``, ``overlays/*.png`` and ``run.json``.

    In a folder a bad slide becomes a row; a slide given by itself raises. An overlay that cannot be drawn costs
    no label: it is reported, and the exit code says so. Where ``out`` holds the same run, it is gone on with.
    """
    if job.features is not None:
        with calculating(deterministic=job.deterministic):
            return _from_features(job, job.features, progress)
    pipeline, raster = _pipeline(job)
    assert job.slides is not None  # the job sees to it
    jobs = _slide_jobs(job, job.slides)
    case_of = read_case_table(job.cases, [slide.slide_id for slide in jobs]) if job.cases else None
    run = RunFolder(job.out)
    setup = _setup(job, pipeline, raster=raster)
    calibration = _calibration(job, setup.models, pipeline)
    # With the checkpoint's own config, so that the run can be read where the checkpoint is not.
    config = {**pipeline.model_dump(mode="json"), **job.model_dump(mode="json", exclude={"tiling"})}
    with claimed(
        run,
        config=config,
        checkpoint=job.checkpoints[0],
        sha256=setup.models.sha256,
        force=job.force,
        numerics=numerics(deterministic=job.deterministic),
        more=_more(setup.models, calibration),
    ) as start:
        setup = replace(setup, start=start)
        tables = RunTables(
            run, jobs, tasks=pipeline.model.tasks, spread=setup.models.several, calibration=calibration
        )
        # A slide given by itself is all there is to do: its error is the command's.
        alone = [slide.path for slide in jobs] == [_absolute(job.slides)]
        batch = job.batch.model_copy(update={"workers": _workers(job.batch, job.device)})
        _label(
            jobs, setup, tables, batch.model_copy(update={"on_error": "stop"}) if alone else batch, progress
        )
        tables.close()
        if case_of is not None:
            write_cases(run.cases, tables.rows, case_of, tasks=pipeline.model.tasks, pool=job.pool)
    details = SlideTelemetry.total(tables.recorded).table() if job.profile and tables.recorded else ()
    return _outcome(tables.rows, run, details=details)


def _pipeline(job: PredictJob) -> tuple[PipelineConfig, bool]:
    """What the slides are read with, and whether a model's positions are the paper's raster indices.

    Raises :class:`ConfigError` for a model of features, or slides that cannot be scored in parts;
    :class:`CheckpointError` for models that cannot be averaged.
    """
    first, *others = same_patches_and_tasks(job.checkpoints)
    if first.model.encoder.features is not None:
        raise ConfigError(
            f"{job.checkpoints[0]}: reads stored features, not slides; give them with --features"
        )
    if job.batch.shard_patches is not None:
        check_parts(first)
    raster = any(one.model.attention.positions == "raster" for one in (first, *others))
    return first.model_copy(update={"tiling": job.tiling.added_to(first.tiling)}), raster


def _calibration(job: PredictJob, models: Checkpoints, pipeline: PipelineConfig) -> Calibration | None:
    """Raises :class:`CalibrationError` for one that is not these checkpoints'."""
    if job.calibration is None:
        return None
    calibration = read_calibration(job.calibration)
    check_belongs(job.calibration, calibration, sha256=models.sha256, tasks=pipeline.model.tasks)
    return calibration


def _more(models: Checkpoints, calibration: Calibration | None) -> dict[str, Any]:
    """What ``run.json`` says beside a single checkpoint's run. The calibration whole: its file may be gone by
    the time the run is evaluated."""
    several = {"checkpoints": models.to_json()} if models.several else {}
    return several if calibration is None else {**several, "calibration": calibration.to_json()}


def _setup(job: PredictJob, pipeline: PipelineConfig, *, raster: bool) -> WorkerSetup:
    """raster: see :func:`_pipeline`."""
    return WorkerSetup(
        models=Checkpoints.of(job.checkpoints),
        run=RunFolder(job.out.absolute()),
        streaming=job.streaming,
        device=job.device,
        threads=job.batch.threads,
        shard_patches=job.batch.shard_patches,
        draw=draw_overlay if job.overlays else None,
        embeddings=job.embeddings,
        find_patches=_patches(job.from_coords, pipeline, raster=raster),
        deterministic=job.deterministic,
    )


def draw_overlay(result: SlideResult, path: Path) -> None:
    """Draw a slide's overlay with the defaults, whatever process this is."""
    with open_slide(locate(result.slide_path)) as slide:
        write_overlay(path, slide, result)


def _patches(folder: Path | None, pipeline: PipelineConfig, *, raster: bool) -> FindPatches:
    if folder is None:
        return PatchesInTissue(pipeline.tiling)
    return stored_patches(folder, pipeline.tiling, raster=raster)


def _slide_jobs(job: PredictJob, slides: Location) -> list[SlideJob]:
    """Absolute, so that workers elsewhere, and commands started elsewhere, find the slides."""
    by_id = slides_by_id(slides)
    slide_mpp = given_mpp(job.slide_mpp, job.mpp_csv, by_id)
    return [SlideJob(slide_id, _absolute(path), slide_mpp(slide_id)) for slide_id, path in by_id.items()]


def _absolute(where: Location) -> Location:
    return where.absolute() if isinstance(where, Path) else where


def _workers(batch: BatchConfig, device: str) -> int | None:
    """How many workers of our own, where they are wanted or there are several GPUs; None: this process does it."""
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if batch.scheduler is None and batch.workers is None and gpus < 2:
        return None
    return batch.workers or max(1, gpus)


def _label(
    jobs: Sequence[SlideJob], setup: WorkerSetup, tables: RunTables, batch: BatchConfig, progress: Progress
) -> None:
    """Label what no earlier start has labelled. Slides that one of them died of come last, and alone."""
    with SlidesInHand(setup.run.root) as in_hand:
        in_hand.suspect(tables.left_running)
        try:
            left = tables.take_found(jobs, setup.recorder(), redraw=batch.workers is None, in_hand=in_hand)
            if batch.workers is None:
                _label_here(left, setup, tables, in_hand, batch, progress)
            else:
                _label_on_workers(left, setup, tables, in_hand, batch, progress)
        except BaseException:
            # Ended by an error, Ctrl-C or SIGTERM: no slide is left as one that the process died of.
            tables.give_up()
            raise


def _label_here(
    jobs: Sequence[SlideJob],
    setup: WorkerSetup,
    tables: RunTables,
    in_hand: SlidesInHand,
    batch: BatchConfig,
    progress: Progress,
) -> None:
    others, suspects = in_hand.apart(jobs, lambda job: job.slide_id)
    if others:
        died = predict_in_turn(
            others, setup.load(0), tables, on_error=batch.on_error, progress=progress, in_hand=in_hand
        )
        in_hand.suspect(slide.slide_id for slide in died)
        suspects = [*suspects, *died]
    if suspects:
        predict_suspects(suspects, setup, tables, in_hand, on_error=batch.on_error, progress=progress)


def _label_on_workers(
    jobs: Sequence[SlideJob],
    setup: WorkerSetup,
    tables: RunTables,
    in_hand: SlidesInHand,
    batch: BatchConfig,
    progress: Progress,
) -> None:
    nameable = [job for job in jobs if not _fails_by_name(job, setup, tables, batch)]
    if not nameable:
        return
    # Imported here: a second that a single slide does not have to wait.
    from wsi_ips.inference.batch import predict_on_workers

    predict_on_workers(
        nameable,
        setup,
        tables,
        batch,
        progress=progress,
        announce=lambda line: print(line, file=sys.stderr),  # noqa: T201 - for people, beside the bars
        in_hand=in_hand,
    )


def _fails_by_name(job: SlideJob, setup: WorkerSetup, tables: RunTables, batch: BatchConfig) -> bool:
    """Whether the slide's name is none that may be sent to a worker; its failure is recorded then."""
    try:
        check_name(job.path)
    except UnsupportedSlide as error:
        tables.begun(job.slide_id)
        tables.add(setup.recorder().failed(job, error))
        if batch.on_error == "stop":
            raise
        return True
    return False


def _outcome(rows: Sequence[PredictionRow], run: RunFolder, *, details: Sequence[str]) -> Outcome:
    return Outcome.of_slides(
        [named(row.slide_id, row.error) for row in rows if row.status != "ok" or row.error],
        f"{sum(row.status == 'ok' for row in rows)} of {len(rows)} slides labelled in {run.predictions}",
        details=details,
    )


def _from_features(job: PredictJob, features: Path, progress: Progress) -> Outcome:
    """The same from stored features: no slide is opened, and no overlay drawn."""
    pipeline = same_patches_and_tasks(job.checkpoints)[0]
    models = Checkpoints.of(job.checkpoints)
    net, *others = [load_checkpoint(path)[0] for path in job.checkpoints]
    predictor = FeaturePredictor(
        net,
        pipeline,
        job.streaming,
        pick_device(job.device),
        checkpoint=models.sha256,
        others=tuple(others),
    )
    calibration = _calibration(job, models, pipeline)
    run = RunFolder(job.out)
    paths = list_features(features)
    case_of = read_case_table(job.cases, list(paths)) if job.cases else None
    config = {**pipeline.model_dump(mode="json"), **job.model_dump(mode="json", exclude={"tiling"})}
    with claimed(
        run,
        config=config,
        checkpoint=job.checkpoints[0],
        sha256=models.sha256,
        force=job.force,
        numerics=numerics(),
        more=_more(models, calibration),
    ):
        tables, unplaced = predict_features(
            paths,
            predictor,
            run,
            on_error=job.batch.on_error,
            calibration=calibration,
            progress=progress,
        )
        if case_of is not None:
            write_cases(run.cases, tables.rows, case_of, tasks=pipeline.model.tasks, pool=job.pool)
    note = (
        f"{len(unplaced)} files do not say how large their patches are (CLAM's never do): "
        "their attention is stored with corners only, and cannot be drawn"
    )
    return _outcome(tables.rows, run, details=[note] if unplaced else ())
