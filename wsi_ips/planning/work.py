"""What a recipe asks for, in the terms of a plan: :func:`work_of` turns a job of any kind into a :class:`Work`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from wsi_ips.commands.features import FeaturesJob
from wsi_ips.commands.recipe import Job
from wsi_ips.commands.slides import given_mpp, slides_by_id
from wsi_ips.config import FinetuneConfig, PipelineConfig, TilingConfig
from wsi_ips.datasets.manifest import Manifest, read_manifest
from wsi_ips.errors import ConfigError
from wsi_ips.models.encoders.fitting import fitting_tiling
from wsi_ips.planning.survey import SlideToRead
from wsi_ips.tiling.kept_coords import patches_from
from wsi_ips.tiling.patches import FindPatches, PatchesInTissue

Kind = Literal["finetune", "predict", "features"]
"""What is planned: a training, labels of slides, or features of all patches."""
KINDS: tuple[Kind, ...] = ("finetune", "predict", "features")
COPIES = {"clam": 2, "trident": 1, "stamp": 1}
"""Files of a slide's features, by layout."""
DRAWN_SAMPLE = 4
"""Slides of a demo that is not drawn yet that are drawn for a plan, and thrown away again."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is planned.

    Attributes:
        kind: A training, labels, or features.
        config: All settings; those of a training do not count for the other kinds, except the precision.
        slides: The slides that are read.
        find: Finds their patches.
        asked: The precision as the recipe has it: ``auto`` depends on the device.
        overlays: Whether a picture is drawn of each slide.
        half: Whether features are stored as float16.
        copies: How many files hold each feature: CLAM's layout has two of a slide, HDF5 and a tensor.
        networks: How many networks label each slide.
        folds: How many trainings there are.
        workers: Processes that work on a slide each.
        counts: ``{split: slides}`` where ``slides`` are only a sample of them.
    """

    kind: Kind
    config: FinetuneConfig
    slides: tuple[SlideToRead, ...]
    find: FindPatches
    asked: str = "32"
    overlays: bool = False
    half: bool = False
    copies: int = 1
    networks: int = 1
    folds: int = 1
    workers: int = 1
    counts: Mapping[str, int] = field(default_factory=dict)


@contextmanager
def work_of(job: Job, kind: Kind | None, *, need_slides: bool = True) -> Iterator[Work]:
    """The work of a job, for a ``with`` block: slides that had to be drawn for it exist as long.

    Args:
        job: A job of ``finetune``, ``demo``, ``predict`` or ``features``.
        kind: What is planned; None: what the job does.
        need_slides: False reads no manifest and no folder, because the slides are imagined.

    Raises:
        ConfigError: A plan has no rules for such a job, or for this kind of it.
        WsiIpsError: The manifest, the checkpoint or the slides are missing.
    """
    values: Any = job
    if job.command == "demo":
        with _of_demo(values, kind or "finetune", need_slides=need_slides) as work:
            yield work
    elif job.command == "finetune":
        yield _of_training(values, kind or "finetune", need_slides=need_slides)
    elif job.command == "predict" and kind in (None, "predict"):
        yield _of_predict(values, need_slides=need_slides)
    elif job.command == "features" and kind in (None, "features"):
        yield _of_features(values, need_slides=need_slides)
    elif job.command in ("predict", "features"):
        raise ConfigError(f"a recipe of {job.command} has no settings of {kind}: leave --for out")
    else:
        raise ConfigError(
            "wsi-ips plan knows recipes of finetune, predict, features, demo, table and compare, "
            f"not of {job.command}"
        )


def _of_training(job: Any, kind: Kind, *, need_slides: bool) -> Work:
    if job.features is not None:
        raise ConfigError(
            "this recipe learns from stored features, which takes seconds for each epoch and no slides: plan the "
            "recipe of wsi-ips features that made them"
        )
    config = _settings(job, FinetuneConfig)
    config = config.model_copy(update={"tiling": fitting_tiling(config.tiling, config.model.encoder)})
    slides: tuple[SlideToRead, ...] = ()
    if need_slides:
        manifest = read_manifest(job.manifest, tasks=config.model.tasks, root=job.slides_root)
        slides = _of_manifest(manifest, kind, given_mpp(job.slide_mpp, job.mpp_csv, _ids(manifest)))
    folds = job.folds or 1
    return Work(
        kind, config, slides, patches_from(config.tiling, from_coords=job.from_coords),
        asked=config.training.precision, folds=folds, overlays=kind == "predict",
        copies=_copies(kind),
    )  # fmt: skip


def _copies(kind: Kind) -> int:
    """Of features that a recipe of something else would store: the layout is the default."""
    return COPIES[FeaturesJob.model_fields["layout"].default] if kind == "features" else 1


def _ids(manifest: Manifest) -> list[str]:
    return [record.slide_id for record in manifest.records]


def _of_manifest(manifest: Manifest, kind: Kind, slide_mpp: Any) -> tuple[SlideToRead, ...]:
    """Training reads train and val; labels are given to test, or to all where there is none; features to all."""
    splits = {"finetune": "train+val", "predict": "test", "features": "train+val+test"}[kind]
    records = manifest.split(splits) or manifest.records
    return tuple(
        SlideToRead(record.slide_id, record.path, record.split, slide_mpp(record.slide_id))
        for record in records
    )


@contextmanager
def _of_demo(job: Any, kind: Kind, *, need_slides: bool) -> Iterator[Work]:
    """The slides that the demo has drawn; where it has not run, a few of the same kind are drawn and thrown
    away.
    """
    from wsi_ips.drawn.synthetic import make_camelyon_like

    config = _settings(job, FinetuneConfig)
    work = Work(kind, config, (), PatchesInTissue(config.tiling), asked=config.training.precision)
    work = replace(work, overlays=kind == "predict", copies=_copies(kind))
    drawn: Path = job.out / "data" / "reference.csv"
    if not need_slides:
        yield work
    elif drawn.is_file():
        manifest = read_manifest(drawn, tasks=config.model.tasks)
        yield replace(work, slides=_of_manifest(manifest, kind, lambda _: None))
    else:
        counts = {"train": job.data.train, "val": job.data.val, "test": job.data.test}
        few = {
            split: min(DRAWN_SAMPLE // 2 if split == "train" else 1, count) for split, count in counts.items()
        }
        with TemporaryDirectory(prefix="wsi_ips_plan_") as folder:
            sample = job.data.model_copy(update=few)
            manifest = read_manifest(make_camelyon_like(Path(folder), sample), tasks=config.model.tasks)
            slides = _of_manifest(manifest, kind, lambda _: None)
            kept = {split: counts[split] for split in {slide.split for slide in slides}}
            yield replace(work, slides=slides, counts=kept)


def _of_predict(job: Any, *, need_slides: bool) -> Work:
    from wsi_ips.inference.checkpoints import same_patches_and_tasks

    if job.features is not None:
        raise ConfigError("this recipe labels stored features, which takes seconds: there is nothing to plan")
    first, *others = same_patches_and_tasks(job.checkpoints, job.selection)
    tiling = job.tiling.added_to(first.tiling)
    config = FinetuneConfig.model_construct(
        **{name: getattr(first, name) for name in PipelineConfig.model_fields}, streaming=job.streaming,
        training=FinetuneConfig().training,
    ).model_copy(update={"tiling": tiling})  # fmt: skip
    return Work(
        "predict",
        config,
        _of_folder(job) if need_slides else (),
        patches_from(tiling, from_coords=job.from_coords),
        asked=job.precision,
        overlays=job.overlays,
        networks=1 + len(others),
        workers=job.batch.workers or 1,
    )


def _of_features(job: Any, *, need_slides: bool) -> Work:
    from wsi_ips.models.checkpoint import checkpoint_config

    if job.checkpoint is not None:
        pipeline = checkpoint_config(job.checkpoint)
        encoder, tiling = pipeline.model.encoder, pipeline.tiling
    else:
        encoder = job.encoder
        tiling = fitting_tiling(job.tiling or TilingConfig(), encoder)
    plain = FinetuneConfig()
    config = plain.model_copy(
        update={
            "tiling": tiling,
            "model": plain.model.model_copy(update={"encoder": encoder}),
            "streaming": job.streaming,
        }
    )
    return Work(
        "features",
        config,
        _of_folder(job) if need_slides else (),
        patches_from(tiling, from_coords=job.from_coords),
        asked=job.precision,
        half=job.half,
        copies=COPIES[job.layout],
        workers=job.batch.workers or 1,
    )


def _settings(job: Any, kind: type[FinetuneConfig]) -> FinetuneConfig:
    """The sections of a training in a job, without what else the job holds."""
    return kind.model_construct(**{name: getattr(job, name) for name in kind.model_fields})


def _of_folder(job: Any) -> tuple[SlideToRead, ...]:
    by_id = slides_by_id(job.slides)
    slide_mpp = given_mpp(job.slide_mpp, job.mpp_csv, by_id)
    return tuple(SlideToRead(name, path, "all", slide_mpp(name)) for name, path in by_id.items())
