"""Several trainings in one recipe, each with every seed.

:func:`series_of` turns a table or a comparison into a :class:`Series`. Its rows are trainings on slides, as a plan
of one training knows them, or learn from features that are stored once.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from wsi_ips.commands.compare import CompareJob, entry_job
from wsi_ips.commands.finetune import FinetuneJob
from wsi_ips.commands.recipe import Job
from wsi_ips.commands.slides import given_mpp
from wsi_ips.commands.table import TableJob, asked_of, check_row, laid_out, listed_of, storing_of
from wsi_ips.config import FinetuneConfig
from wsi_ips.datasets.camelyon import shipped_rows
from wsi_ips.datasets.manifest import Manifest, SlideRecord, read_manifest
from wsi_ips.errors import ConfigError
from wsi_ips.models.build import build_net
from wsi_ips.planning.survey import SlideToRead
from wsi_ips.planning.work import Work, work_of

DRAWN_SPLITS = {"train": 0.7, "val": 0.15, "test": 0.15}
"""Shares of the splits where a data set has no official ones (PANDA, TCGA-BRCA), or is not known."""

CAMELYON17_TEST = 500
"""Slides of CAMELYON17's test patients, 100 to 199, five nodes each."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Features that are stored once, for all rows that learn from them.

    Attributes:
        name: The folder that they go into.
        encoder: Their encoder.
        work: What storing them takes.
        rows: The rows that learn from them.
    """

    name: str
    encoder: str
    work: Work
    rows: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """A row: one way to train.

    Attributes:
        name: Its name.
        work: Its training with one seed. Of a row on stored features, its ``config`` reads features.
        stored: The name of the features that it learns from; None: it reads slides.
    """

    name: str
    work: Work
    stored: str | None = None


Part = Stored | Row
"""Something that takes time: features that are stored, or a row."""


@dataclass(frozen=True, slots=True)
class Series:
    """Rows times seeds.

    Attributes:
        command: ``table`` or ``compare``.
        rows: The rows.
        stored: Features that are stored before.
        seeds: How many seeds each row is trained with.
        split: The split that is labelled and scored.
        slides: All slides, with their splits.
        scored: The slides that are labelled and scored, with their labels.
        told: What is said of the data set's folder.
        counts: ``{split: slides}`` where the slides are imagined.
        isolate: Whether each job has a process of its own.
        tissue_once: Whether the patches of a slide are found once for all jobs, and not in each.
        lesions: Whether lesions are scored (FROC).
        bootstrap: Resamples of each job's own evaluation. None: jobs are not scored one by one.
    """

    command: str
    rows: tuple[Row, ...]
    stored: tuple[Stored, ...]
    seeds: int
    split: str
    slides: tuple[SlideToRead, ...]
    scored: tuple[SlideRecord, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    isolate: bool = True
    tissue_once: bool = False
    lesions: bool = False
    bootstrap: int | None = 0
    told: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """Stored features and rows."""
        return (*self.stored, *self.rows)


def is_series(job: Job) -> bool:
    """Whether a recipe has several trainings."""
    return job.command in ("table", "compare")


@contextmanager
def series_of(job: Job, *, imagined: int | None = None) -> Iterator[Series]:
    """The trainings of a job of ``table`` or ``compare``, for a ``with`` block.

    Args:
        job: The job.
        imagined: As if there were so many slides, instead of opening any.

    Raises:
        ConfigError: A row cannot be trained, or learns in a way that a plan has no rules for.
        WsiIpsError: The data set is not laid out as released, or the manifest cannot be used.
    """
    if isinstance(job, TableJob):
        with TemporaryDirectory(prefix="wsi_ips_plan_") as folder:
            # A table lays out its slides in the folder that it writes to; a plan leaves nothing there.
            yield _of_table(job.model_copy(update={"out": Path(folder) / "table"}), imagined)
    else:
        assert isinstance(job, CompareJob)
        yield _of_comparison(job, imagined)


def _of_table(job: TableJob, imagined: int | None) -> Series:
    listed = listed_of(job) if imagined is None else None
    manifest = laid_out(job, listed) if listed is not None else None
    told = () if listed is None else (*listed.told, *listed.wrong)
    rows, stored = [], dict[str, Stored]()
    for name, row in job.rows.items():
        asked = asked_of(job, name)
        check_row(name, asked)
        if not row.frozen:
            with work_of(asked, "finetune", need_slides=False) as work:
                rows.append(Row(name, work))
            continue
        storing, _ = storing_of(job, asked)
        key = storing.out.name
        if key not in stored:
            with work_of(storing, "features", need_slides=False) as work:
                assert storing.encoder is not None
                stored[key] = Stored(key, storing.encoder.name, work, ())
        held = stored[key] = replace(stored[key], rows=(*stored[key].rows, name))
        rows.append(Row(name, _on_features(asked, held.work), key))
    return Series(
        "table",
        tuple(rows),
        tuple(stored.values()),
        len(job.seeds),
        "test",
        _slides_of(manifest),
        tuple(manifest.split("test")) if manifest is not None else (),
        counts={} if imagined is None else imagined_splits(job.data_set, imagined, job),
        isolate=job.isolate,
        lesions=job.froc,
        bootstrap=job.bootstrap,
        told=told,
    )


def _on_features(asked: FinetuneJob, storing: Work) -> Work:
    """The training of a row on what ``storing`` stores."""
    config = FinetuneConfig.model_construct(
        **{name: getattr(asked, name) for name in FinetuneConfig.model_fields}
    )
    encoder = asked.model.encoder.on_features(width_of(storing.config))
    model = config.model.model_copy(update={"encoder": encoder})
    config = config.model_copy(update={"model": model, "tiling": storing.config.tiling})
    return Work("finetune", config, (), storing.find, asked=config.training.precision)


def width_of(config: FinetuneConfig) -> int:
    """The width of what an encoder makes of a patch. Nothing is downloaded, and no weights take memory."""
    import torch

    from wsi_ips.planning.simulated import without_weights

    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return build_net(without_weights(config).model).feature_width


def _slides_of(manifest: Manifest | None, slide_mpp: Any = None) -> tuple[SlideToRead, ...]:
    if manifest is None:
        return ()
    return tuple(
        SlideToRead(one.slide_id, one.path, one.split, slide_mpp(one.slide_id) if slide_mpp else None)
        for one in manifest.records
    )


def imagined_splits(data_set: str, slides: int, job: TableJob) -> dict[str, int]:
    """So many slides, in splits as large as those of the data set are to each other."""
    shares = _shares(data_set)
    if job.held_out == "val":
        shares = {
            "train": shares["train"] * (1 - job.inner_val),
            "val": shares["train"] * job.inner_val,
            "test": shares["val"],
        }
    return split_by(shares, slides)


def split_by(shares: Mapping[str, float], slides: int) -> dict[str, int]:
    """So many slides in splits of these sizes to each other."""
    total = sum(shares.values())
    counts = {split: round(slides * share / total) for split, share in shares.items() if split != "train"}
    return {"train": slides - sum(counts.values()), **counts}


def _shares(data_set: str) -> dict[str, float]:
    """How large the splits of a data set are, in slides with a label."""
    names = {
        "camelyon16": ("camelyon16",),
        "camelyon17": ("camelyon17",),
        "camelyon_plus": ("camelyon16", "camelyon17"),
    }.get(data_set)
    if names is None:
        return dict(DRAWN_SPLITS)
    splits = [row["split"] for name in names for row in shipped_rows(name)]
    shares = {split: float(splits.count(split)) for split in ("train", "val", "test")}
    # The test labels of CAMELYON17 are not public; those of CAMELYON+ are.
    shares["test"] += CAMELYON17_TEST if data_set == "camelyon_plus" else 0.0
    return shares


def _of_comparison(job: CompareJob, imagined: int | None) -> Series:
    if job.features is not None:
        raise ConfigError(
            "this recipe compares on stored features, and opens no slides: plan the recipe of wsi-ips features "
            "that makes them, and time one entry with --set training.epochs=1"
        )
    manifest = None
    if imagined is None:
        manifest = read_manifest(job.manifest, tasks=job.model.tasks, root=job.slides_root)
    rows = []
    for name, settings in job.entries.items():
        asked = entry_job(job, name, settings, seed=job.seeds[0])
        check_row(name, asked)
        with work_of(asked, "finetune", need_slides=False) as work:
            rows.append(Row(name, work))
    ids = [one.slide_id for one in manifest.records] if manifest is not None else []
    return Series(
        "compare",
        tuple(rows),
        (),
        len(job.seeds),
        job.split,
        _slides_of(manifest, given_mpp(job.slide_mpp, job.mpp_csv, ids)),
        tuple(manifest.split(job.split)) if manifest is not None else (),
        counts={} if imagined is None else split_by(DRAWN_SPLITS, imagined),
        isolate=job.isolate,
        tissue_once=True,
        bootstrap=None,
    )


def surveyed_as(work: Work) -> str:
    """What two works have in common whose slides are read in the same way."""
    return work.config.tiling.model_dump_json() + str(work.config.streaming.tile_cache_mb)


def measured_as(work: Work) -> str:
    """What two works have in common whose rates are the same: all settings but the epochs and the seed."""
    training = work.config.training.model_copy(update={"epochs": 1, "seed": 0, "patience": None})
    config = work.config.model_copy(update={"training": training})
    return f"{work.kind}{config.model_dump_json()}"


def scored_as(row: Row, learns: bool) -> tuple[str, str]:
    """What two rows have in common whose jobs take the same time beside their slides."""
    config = row.work.config
    about = {"model": {"encoder"}}
    shared = config.model_dump_json(include={"model", "selection", "bag"}, exclude=about)
    return (shared, config.training.model_dump_json(exclude={"epochs", "seed", "patience"}) if learns else "")
