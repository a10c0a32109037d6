"""``predict``: labels, attention and overlays for every slide of a folder."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import typer
from pydantic import BeforeValidator, model_validator

from wsi_ips.commands.command_line import ExplainedCommand, one_of
from wsi_ips.commands.options import (
    Compile,
    Coords,
    Devices,
    FromCoords,
    MppCsv,
    Out,
    Outcome,
    PrecisionOption,
    Profile,
    Recipe,
    Scheduler,
    Set,
    SlideMppOption,
    Threads,
    Workers,
    start,
)
from wsi_ips.commands.recipe import Job
from wsi_ips.commands.slides import PatchesOfJob, Resolution, SlidesOfJob, given_mpp, slides_by_id
from wsi_ips.config import (
    BatchConfig,
    Computing,
    PipelineConfig,
    StreamingConfig,
    TurnsConfig,
    UpsamplingConfig,
)
from wsi_ips.errors import ConfigError, count
from wsi_ips.progress import Progress
from wsi_ips.storage.location import Location, absolute, locate

if TYPE_CHECKING:
    from wsi_ips.evaluation.conformal import Calibration
    from wsi_ips.inference.checkpoints import Checkpoints
    from wsi_ips.inference.predictions import PredictionRow
    from wsi_ips.inference.results import SlideResult
    from wsi_ips.inference.run_folder import RunFolder
    from wsi_ips.inference.run_tables import RunTables
    from wsi_ips.inference.slide_work import SlideJob
    from wsi_ips.inference.worker import WorkerSetup
    from wsi_ips.models.encoders.compute import Compute


def _one_by_itself(checkpoints: object) -> object:
    """A list of one is that one."""
    if isinstance(checkpoints, list | tuple):
        if not checkpoints:
            raise ValueError("name a checkpoint")
        return checkpoints[0] if len(checkpoints) == 1 else checkpoints
    return checkpoints


class PredictJob(PatchesOfJob, Resolution, Computing, Job):
    """Label every slide of a folder."""

    command: Literal["predict"] = "predict"
    slides: SlidesOfJob | None = None
    features: Path | None = None
    """Folder of stored features (CLAM's, TRIDENT's or STAMP's), to label instead of slides. With slides too, these
    only tell in which pixels STAMP's patches lie."""
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
    """Print where the time went, and which stage is the slowest, and write ``timeline.json``."""
    force: bool = False
    """Replace another run's results in ``out``."""
    embeddings: bool = False
    """Store the kept patches' embeddings with the attention."""
    explain: Literal["gradient"] | None = None
    """A further map beside attention and contributions: gradient times input of the kept patches."""
    cases: Path | None = None
    """CSV with the columns slide_id,case_id (a manifest has them): adds ``cases.csv``, a row per patient. A model
    that reads all slides of a case as one bag (``bag: case``) needs it."""
    pool: Literal["max", "mean", "noisy_or"] = "max"
    """How the slides' probabilities make a patient's. Not used with ``bag: case``, where nothing is pooled."""
    tiling: UpsamplingConfig = UpsamplingConfig()
    """All else of the tiling is the checkpoint's."""
    selection: TurnsConfig = TurnsConfig()
    """All else of the selection is the checkpoint's."""
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
        if self.slides is None and self.features is None:
            raise ValueError("give slides, or a folder of features")
        if (self.from_coords or self.coords) and self.features is not None:
            raise ValueError("features have their own coordinates: from_coords and coords go with slides")
        if self.features is not None:
            batch = self.batch
            if batch.workers or batch.scheduler or batch.shard_patches or self.embeddings:
                raise ValueError(
                    "workers, scheduler, shard_patches and embeddings go with slides, not features"
                )
            if self.compile or self.precision in ("bf16", "fp16"):
                raise ValueError("features need no encoder: precision and compile go with slides")
            if self.selection.turns is not None:
                raise ValueError("features have no pixels to turn: turns goes with slides")
            if self.slides is None and (self.slide_mpp is not None or self.mpp_csv is not None):
                raise ValueError("features are read as they are: slide_mpp and mpp_csv go with slides")
        return self


class SeveralCheckpoints(ExplainedCommand):
    """A command whose ``--checkpoint`` takes all ``*.safetensors`` that follow it; no slide has that name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(repeated(args)))


def repeated(arguments: Iterable[str]) -> Iterator[str]:
    """The same arguments with the option said again before its second value and all later ones."""
    before = ""
    values = False  # whether what came before was a value of the option
    for argument in arguments:
        first = before == OPTION
        further = values and argument.endswith(SUFFIX) and not argument.startswith("-")
        if further:
            yield OPTION
        yield argument
        values = first or further or argument.startswith(f"{OPTION}=")
        before = argument


OPTION, SUFFIX = "--checkpoint", ".safetensors"
Overlays = Annotated[
    bool | None, typer.Option("--overlays/--no-overlays", help="Draw an overlay per slide (default).")
]
Force = Annotated[bool | None, typer.Option("--force", help="Replace the results of another run in OUT.")]
OnError = Annotated[
    str | None,
    typer.Option(
        help="A slide that fails: report (default) and go on, or stop.",
        autocompletion=one_of("report", "stop"),
    ),
]
Embeddings = Annotated[
    bool | None, typer.Option("--embeddings", help="Store the kept patches' embeddings too.")
]
Explain = Annotated[
    str | None,
    typer.Option(help="gradient: also store gradient times input of the kept patches, for --map gradient."),
]
Cases = Annotated[
    Path | None, typer.Option(help="CSV with columns slide_id,case_id: adds cases.csv, by patient.")
]
Pool = Annotated[
    str | None,
    typer.Option(
        help="A patient's probability: max (default), mean or noisy_or.",
        autocompletion=one_of("max", "mean", "noisy_or"),
    ),
]
TurnsOption = Annotated[
    int | None,
    typer.Option(
        "--turns",
        help="Read kept patches in 1, 4 or 8 orientations and average (default: as trained).",
        autocompletion=one_of("1", "4", "8"),
    ),
]

face = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@face.command("predict", cls=SeveralCheckpoints)
def command(
    checkpoint: Annotated[
        list[Path],
        typer.Option(help="model.safetensors of a fine-tuning run; of several: their mean and spread."),
    ],
    out: Out,
    slides: Annotated[
        str | None, typer.Argument(help="A slide, a folder that is searched for slides, or a slide's URL.")
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="Folder of features stored by CLAM, TRIDENT or STAMP, to read instead of slides."),
    ] = None,
    from_coords: FromCoords = None,
    coords: Coords = None,
    calibration: Annotated[
        Path | None, typer.Option(help="JSON of calibrate: calibrated probabilities, and sets of answers.")
    ] = None,
    overlays: Overlays = None,
    profile: Profile = None,
    force: Force = None,
    workers: Workers = None,
    threads: Threads = None,
    scheduler: Scheduler = None,
    on_error: OnError = None,
    embeddings: Embeddings = None,
    explain: Explain = None,
    cases: Cases = None,
    pool: Pool = None,
    turns: TurnsOption = None,
    precision: PrecisionOption = None,
    compile_: Compile = None,
    device: Devices = None,
    slide_mpp: SlideMppOption = None,
    mpp_csv: MppCsv = None,
    recipe: Recipe = None,
    set_: Set = None,
) -> None:
    """Label every slide of a folder; write predictions.csv, attention (HDF5) and overlays (PNG)."""
    flags = {"slides": slides, "features": features, "checkpoint": checkpoint, "out": out,
             "from_coords": from_coords, "coords": coords, "calibration": calibration, "overlays": overlays,
             "profile": profile, "force": force, "device": device, "slide_mpp": slide_mpp, "mpp_csv": mpp_csv,
             "embeddings": embeddings, "explain": explain, "cases": cases, "pool": pool,
             "precision": precision, "compile": compile_}  # fmt: skip
    batch = {"workers": workers, "threads": threads, "scheduler": scheduler, "on_error": on_error}
    sections: dict[str, dict[str, Any]] = {"batch": batch, "selection": {"turns": turns}}
    start("predict", flags, recipe=recipe, overrides=set_, sections=sections)


def predict(job: PredictJob, progress: Progress) -> Outcome:
    """Write ``predictions.csv``, ``slides.csv``, ``attention/*.h5``, ``overlays/*.png``, ``run.json``, and at
    the end ``summary.md``; with ``profile`` also ``timeline.json``.

    In a folder a bad slide becomes a row; a slide given by itself raises. An overlay that cannot be drawn costs
    no label: it is reported, and the exit code says so. Where ``out`` holds the same run, it is gone on with.
    """
    from wsi_ips.inference.run_folder import RunFolder, claimed
    from wsi_ips.inference.telemetry import SlideTelemetry
    from wsi_ips.timeline import recording

    if job.features is not None:
        from wsi_ips.streaming.device import calculating

        with calculating(deterministic=job.deterministic):
            return _from_features(job, job.features, progress)
    pipeline, raster = _pipeline(job)
    assert job.slides is not None  # the job sees to it
    jobs = _slide_jobs(job, job.slides)
    case_of = _case_of(job, pipeline, [slide.slide_id for slide in jobs])
    run = RunFolder(job.out)
    setup = _setup(job, pipeline, raster=raster)
    calibration = _calibration(job, setup.models, pipeline)
    claim = claimed(
        run,
        config=_told(job, pipeline),
        checkpoint=job.checkpoints[0],
        sha256=setup.models.sha256,
        code=setup.models.code,
        force=job.force,
        more=_more(setup.models, calibration),
    )
    with claim as start, recording(job.out, command="predict", on=job.profile) as recorded:
        setup = replace(setup, start=start)
        tables, absent = _label_all(job, pipeline, jobs, case_of, setup, calibration, progress)
    details = SlideTelemetry.total(tables.recorded).table() if job.profile and tables.recorded else []
    details = [*tables.told, *details, *recorded.told()]
    return _outcome(tables.rows, job.out, details=details, absent=absent)


def _label_all(
    job: PredictJob,
    pipeline: PipelineConfig,
    jobs: "Sequence[SlideJob]",
    case_of: dict[str, str] | None,
    setup: "WorkerSetup",
    calibration: "Calibration | None",
    progress: Progress,
) -> "tuple[RunTables, list[str]]":
    """Label what is left to label, and write the tables of the run and its summary. Returns the tables, and a line
    for each slide that its case had to do without.
    """
    from wsi_ips.inference.run_tables import RunTables
    from wsi_ips.report.run_summary import write_summary
    from wsi_ips.report.stored_run import run_of_tables

    run = setup.run
    tables = RunTables(
        run,
        jobs,
        tasks=pipeline.model.tasks,
        spread=setup.models.several,
        calibration=calibration,
        by_case=pipeline.bag == "case",
    )
    # A slide given by itself is all there is to do: its error is the command's.
    alone = job.slides is not None and [slide.path for slide in jobs] == [absolute(job.slides)]
    batch = job.batch.model_copy(update={"on_error": "stop"}) if alone else job.batch
    if pipeline.bag == "case":
        _label_cases(jobs, case_of, setup, tables, batch, job, progress)
    else:
        _label_slides(jobs, setup, tables, batch, job, progress)
    tables.close()
    rows = tables.rows
    absent = _write_cases(job, run, rows, case_of, pipeline)
    write_summary(run_of_tables(run, pipeline.model.tasks, rows, tables.slides))
    return tables, absent


def _label_slides(
    jobs: "Sequence[SlideJob]",
    setup: "WorkerSetup",
    tables: "RunTables",
    batch: BatchConfig,
    job: PredictJob,
    progress: Progress,
) -> None:
    from wsi_ips.inference.label import label
    from wsi_ips.inference.slide_tasks import workers_wanted

    def begin() -> "tuple[WorkerSetup, BatchConfig]":
        workers = workers_wanted(batch, job.device)
        return _begun(job, setup), batch.model_copy(update={"workers": workers})

    label(jobs, setup, tables, batch, progress, begin=begin)


def _begun(job: PredictJob, setup: "WorkerSetup") -> "WorkerSetup":
    """The setup of a run that has something to compute: PyTorch is imported, and asked for devices."""
    from wsi_ips.inference.run_folder import note_numerics
    from wsi_ips.streaming.device import numerics

    note_numerics(setup.run, numerics(deterministic=job.deterministic))
    return replace(setup, compute=_compute(job))


def _label_cases(
    jobs: "Sequence[SlideJob]",
    case_of: dict[str, str] | None,
    setup: "WorkerSetup",
    tables: "RunTables",
    batch: BatchConfig,
    job: PredictJob,
    progress: Progress,
) -> None:
    from wsi_ips.inference.case_predict import case_jobs, label_cases

    assert case_of is not None  # _case_of sees to it
    setup = _begun(job, setup)
    label_cases(case_jobs(jobs, case_of), setup, tables, on_error=batch.on_error, progress=progress)


def _case_of(job: PredictJob, pipeline: PipelineConfig, slide_ids: Sequence[str]) -> dict[str, str] | None:
    """``{slide_id: case_id}`` from the job's table; None without a table.

    Raises :class:`ConfigError` for a job that a model that reads all slides of a case as one bag cannot do,
    :class:`ManifestError` for a table that does not give the case of every slide.
    """
    from wsi_ips.inference.predictions import read_case_table

    if pipeline.bag == "slide":
        return read_case_table(job.cases, slide_ids) if job.cases else None
    from wsi_ips.inference.case_predict import check_in_turn

    if job.cases is None:
        raise ConfigError(
            f"{job.checkpoints[0]}: reads all slides of a case as one bag (bag: case); say which slides are a "
            "case's with --cases CSV, which has the columns slide_id,case_id"
        )
    batch = job.batch
    check_in_turn(workers=batch.workers, scheduler=batch.scheduler, shard_patches=batch.shard_patches)
    return read_case_table(job.cases, slide_ids)


def _write_cases(
    job: PredictJob,
    run: "RunFolder",
    rows: "Sequence[PredictionRow]",
    case_of: dict[str, str] | None,
    pipeline: PipelineConfig,
) -> list[str]:
    """Write ``cases.csv``, if cases are known. Returns a line for each slide that its case, read as one bag, had
    to do without because it was not given.
    """
    from wsi_ips.inference.predictions import absent_slides, write_case_answers, write_cases

    if job.cases is None or case_of is None:
        return []
    tasks = pipeline.model.tasks
    if pipeline.bag == "slide":
        write_cases(run.cases, rows, case_of, tasks=tasks, pool=job.pool)
        return []
    absent = absent_slides(job.cases, case_of)
    write_case_answers(run.cases, rows, tasks=tasks, absent=absent)
    return [
        f"{slide_id}: belongs to case {case_id!r} ({job.cases}) and was not given: the case was read without it"
        for case_id, slides in absent.items()
        for slide_id in slides
    ]


def _pipeline(job: PredictJob) -> tuple[PipelineConfig, bool]:
    """What the slides are read with, and whether a model's positions are the paper's raster indices.

    Raises :class:`ConfigError` for a model of features, or slides that cannot be scored in parts;
    :class:`CheckpointError` for models that cannot be averaged.
    """
    from wsi_ips.inference.checkpoints import same_patches_and_tasks

    first, *others = same_patches_and_tasks(job.checkpoints, job.selection)
    if first.model.encoder.features is not None:
        raise ConfigError(
            f"{job.checkpoints[0]}: reads stored features, not slides; give them with --features"
        )
    if job.batch.shard_patches is not None:
        from wsi_ips.inference.predict import check_parts

        check_parts(first)
    if job.explain is not None:
        from wsi_ips.selection.slide_reading import check_explained

        check_explained(first)
    raster = any(one.model.attention.positions == "raster" for one in (first, *others))
    return first.model_copy(update={"tiling": job.tiling.added_to(first.tiling)}), raster


def _told(job: PredictJob, pipeline: PipelineConfig) -> dict[str, Any]:
    """The settings in ``run.json``: the job's, and all of the model's, so that the run can be read where the
    checkpoint is not. The turns are said where they are the default too, since the checkpoint may say others."""
    of_model, its_own = pipeline.model_dump(mode="json"), job.model_dump(mode="json")
    selection = {**of_model["selection"], "turns": pipeline.selection.turns}
    return {**of_model, **its_own, "tiling": of_model["tiling"], "selection": selection}


def _calibration(job: PredictJob, models: "Checkpoints", pipeline: PipelineConfig) -> "Calibration | None":
    """Raises :class:`CalibrationError` for one that is not these checkpoints'."""
    from wsi_ips.evaluation.conformal import check_belongs, read_calibration
    from wsi_ips.models.checkpoint_head import checkpoint_config

    if job.calibration is None:
        return None
    calibration = read_calibration(job.calibration)
    check_belongs(
        job.calibration,
        calibration,
        sha256=models.sha256,
        turns=pipeline.selection.turns,
        own_turns=checkpoint_config(job.checkpoints[0]).selection.turns,
        tasks=pipeline.model.tasks,
    )
    return calibration


def _more(models: "Checkpoints", calibration: "Calibration | None") -> dict[str, Any]:
    """What ``run.json`` says beside a single checkpoint's run. The calibration whole: its file may be gone by
    the time the run is evaluated."""
    several = {"checkpoints": models.to_json()} if models.several else {}
    return several if calibration is None else {**several, "calibration": calibration.to_json()}


def _setup(job: PredictJob, pipeline: PipelineConfig, *, raster: bool) -> "WorkerSetup":
    """raster: see :func:`_pipeline`."""
    from wsi_ips.inference.checkpoints import Checkpoints
    from wsi_ips.inference.run_folder import RunFolder
    from wsi_ips.inference.worker import WorkerSetup
    from wsi_ips.storage.system import may_have_cuda
    from wsi_ips.tiling.kept_coords import patches_from

    return WorkerSetup(
        models=Checkpoints.of(job.checkpoints),
        run=RunFolder(job.out.absolute()),
        streaming=job.streaming.from_anywhere(),
        device=job.device,
        threads=job.batch.threads,
        shard_patches=job.batch.shard_patches,
        draw=draw_overlay if job.overlays else None,
        embeddings=job.embeddings,
        gradients=job.explain is not None,
        find_patches=patches_from(
            pipeline.tiling, coords=job.coords, from_coords=job.from_coords, raster=raster
        ),
        selection=_other_turns(job),
        deterministic=job.deterministic,
        compute=_compute(job, look=job.compile or may_have_cuda()),
    )


def _other_turns(job: PredictJob) -> TurnsConfig:
    """What the job changes in the selection of its checkpoints; nothing where they say the same."""
    from wsi_ips.models.checkpoint_head import checkpoint_config

    own = {checkpoint_config(path).selection.turns for path in job.checkpoints}
    return TurnsConfig() if own == {job.selection.turns} else job.selection


def _compute(job: PredictJob, *, look: bool = True) -> "tuple[Compute, ...]":
    """What the encoder of each checkpoint computes in. It is decided here, where the command was started, so that
    all workers compute in the same precision. Raises :class:`ConfigError` where nothing can be compiled.

    look: ask PyTorch whether there is a GPU; without, there is none. A run that is finished does not import it for
    that.
    """
    from wsi_ips.models.checkpoint_head import checkpoint_config
    from wsi_ips.models.encoders.compute import Compute, settled

    kind = job.device.partition(":")[0]
    if job.device == "auto":
        from_torch = look and (job.compile or job.precision == "auto")
        kind = _kind_found() if from_torch else "cpu"
    batch = job.streaming.batch if job.compile else None
    if job.compile and job.batch.scheduler is None:
        from wsi_ips.models.encoders.network import check_compiles
        from wsi_ips.streaming.device import device_of_worker

        check_compiles(device_of_worker(job.device, 0))
    names = [checkpoint_config(path).model.encoder.name for path in job.checkpoints]
    return tuple(Compute(settled(job.precision, name, kind), compiled_batch=batch) for name in names)


def _kind_found() -> str:
    from wsi_ips.streaming.device import pick_device

    return pick_device().type


def draw_overlay(result: "SlideResult", path: Path, fingerprint: str) -> None:
    """Draw a slide's overlay with the defaults, whatever process this is. ``fingerprint`` is that of the slide."""
    from wsi_ips.heatmaps.overlay import write_overlay
    from wsi_ips.slides.registry import open_slide

    with open_slide(locate(result.slide_path)) as slide:
        write_overlay(path, slide, result, fingerprint=fingerprint)


def _slide_jobs(job: PredictJob, slides: Location) -> "list[SlideJob]":
    """Absolute, so that workers elsewhere, and commands started elsewhere, find the slides."""
    from wsi_ips.inference.slide_work import SlideJob
    from wsi_ips.storage.files import many_objects

    by_id = slides_by_id(slides)
    slide_mpp = given_mpp(job.slide_mpp, job.mpp_csv, by_id)
    with many_objects():
        return [SlideJob(slide_id, absolute(path), slide_mpp(slide_id)) for slide_id, path in by_id.items()]


def _outcome(
    rows: "Sequence[PredictionRow]", out: Path, *, details: Sequence[str], absent: Sequence[str] = ()
) -> Outcome:
    from wsi_ips.slides.base import named

    return Outcome.of_slides(
        [*(named(row.slide_id, row.error) for row in rows if row.status != "ok" or row.error), *absent],
        f"{sum(row.status == 'ok' for row in rows)} of {count(len(rows), 'slide')} labelled "
        f"in {out / 'predictions.csv'}",
        details=details,
    )


def _from_features(job: PredictJob, features: Path, progress: Progress) -> Outcome:
    """The same from stored features: no pixel of a slide is read, and no overlay drawn."""
    from wsi_ips.datasets.feature_files import list_features
    from wsi_ips.inference.case_predict import predict_feature_cases
    from wsi_ips.inference.checkpoints import Checkpoints, same_patches_and_tasks
    from wsi_ips.inference.feature_predict import FeaturePredictor, predict_features
    from wsi_ips.inference.run_folder import RunFolder, claimed
    from wsi_ips.models.checkpoint import load_checkpoint
    from wsi_ips.report.run_summary import write_summary
    from wsi_ips.report.stored_run import run_of_tables
    from wsi_ips.streaming.device import numerics, pick_device
    from wsi_ips.timeline import recording

    pipeline = same_patches_and_tasks(job.checkpoints)[0]
    models = Checkpoints.of(job.checkpoints)
    net, *others = [load_checkpoint(path)[0] for path in job.checkpoints]
    slides = None if job.slides is None else {each.slide_id: each for each in _slide_jobs(job, job.slides)}
    predictor = FeaturePredictor(
        net,
        pipeline,
        job.streaming,
        pick_device(job.device),
        checkpoint=models.sha256,
        others=tuple(others),
        gradients=job.explain is not None,
        slides=slides,
    )
    calibration = _calibration(job, models, pipeline)
    run = RunFolder(job.out)
    paths = list_features(features)
    predictor.check_first(paths.values())
    case_of = _case_of(job, pipeline, list(paths))
    claim = claimed(
        run, config=_told(job, pipeline), checkpoint=job.checkpoints[0], sha256=models.sha256,
        code=models.code, force=job.force,
        numerics=numerics(), more=_more(models, calibration),
    )  # fmt: skip
    with claim, recording(job.out, command="predict", on=job.profile) as recorded:
        how: Any = {"on_error": job.batch.on_error, "calibration": calibration, "progress": progress}
        if pipeline.bag == "case" and case_of is not None:
            tables, unplaced = predict_feature_cases(paths, case_of, predictor, run, **how)
        else:
            tables, unplaced = predict_features(paths, predictor, run, **how)
        absent = _write_cases(job, run, tables.rows, case_of, pipeline)
        write_summary(run_of_tables(run, pipeline.model.tasks, tables.rows, tables.slides))
    details = [*tables.told, *([_unplaced(len(unplaced))] if unplaced else []), *recorded.table()]
    return _outcome(tables.rows, job.out, details=details, absent=absent)


def _unplaced(number: int) -> str:
    files = count(number, "file does", "files do")
    return (
        f"{files} not say how large their patches are (CLAM's never do), or in which pixels they lie (STAMP's: "
        "give the slides as well): their attention is stored with corners only, and cannot be drawn"
    )
