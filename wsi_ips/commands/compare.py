"""``compare``: several aggregators and selectors on the same splits and seeds, in one table."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from wsi_ips.commands.finetune import FinetuneJob
from wsi_ips.commands.options import Device, Outcome, Set, start
from wsi_ips.commands.recipe import Job, make_job, with_overrides
from wsi_ips.commands.slides import Resolution, given_mpp
from wsi_ips.errors import ConfigError, count
from wsi_ips.evaluation.run.compare_config import SECTIONS, CompareConfig
from wsi_ips.progress import Progress

if TYPE_CHECKING:
    from wsi_ips.datasets.manifest import Manifest
    from wsi_ips.evaluation.run.compare import Planned
    from wsi_ips.evaluation.run.compare_table import Table


class CompareJob(CompareConfig, Resolution, Job):
    """Train several aggregators and selectors on the same splits and seeds."""

    command: Literal["compare"] = "compare"


def command(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="A YAML recipe, such as pipelines/compare_features.yaml, which comes with wsi_ips."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write to; default: the recipe's.")
    ] = None,
    manifest: Annotated[Path | None, typer.Option(help="CSV: slide_id,case_id,label,split,path.")] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="Folder of features stored by CLAM, TRIDENT or STAMP, instead of slides."),
    ] = None,
    bootstrap: Annotated[int | None, typer.Option(help="Resamples for the intervals (default 2000).")] = None,
    isolate: Annotated[
        bool | None,
        typer.Option(
            "--isolate/--one-process", help="A process for each training (default): measures memory."
        ),
    ] = None,
    plots: Annotated[
        bool | None, typer.Option("--plots/--no-plots", help="Draw PNGs; default: where matplotlib is.")
    ] = None,
    restart: Annotated[
        bool | None, typer.Option("--restart", help="Train everything anew, whatever OUT holds.")
    ] = None,
    device: Device = None,
    set_: Set = None,
) -> None:
    """Train several aggregators and selectors on the same splits and seeds; one table of what each is worth."""
    flags = {"out": out, "manifest": manifest, "features": features, "bootstrap": bootstrap,
             "isolate": isolate, "plots": plots, "restart": restart, "device": device}  # fmt: skip
    start("compare", flags, recipe=recipe, overrides=set_)


def compare(job: CompareJob, progress: Progress) -> Outcome:
    """Leave in ``out`` a folder for each entry and seed, ``compare.csv``, ``compare.md`` and the plots.

    What is complete is not trained again. Raises :class:`ConfigError`, before anything is trained, for an entry
    that cannot be: an aggregator that is not known, or one without the score that its selector ranks patches by.
    """
    from wsi_ips.datasets.manifest import read_manifest
    from wsi_ips.evaluation.run.compare import run_all
    from wsi_ips.evaluation.run.compare_table import tabulate, write_markdown, write_table
    from wsi_ips.slides.base import named

    manifest = read_manifest(
        job.manifest, tasks=job.model.tasks, root=job.slides_root, need_slides=job.features is None
    )
    check_can_be_compared(job, manifest)
    planned = plan(job, manifest)
    finished = run_all(planned, isolate=job.isolate, restart=job.restart, progress=progress)
    table = tabulate(job, finished, manifest)
    write_table(job.out / "compare.csv", table)
    write_markdown(job.out / "compare.md", table, job)
    trainings = count(len(finished), "training was", "trainings were")
    lines = [f"{sum(each.skipped for each in finished)} of {trainings} complete already"]
    lines += [*_shown(table), *table.notes, *_drawn(job, table)]
    failures = []
    for each in finished:
        where = f"{each.planned.entry}, seed {each.planned.seed}"
        failures += [f"{where}: {named(slide_id, why)}" for slide_id, why in each.bad.items()]
        failures += [f"{where}: {named(row.slide_id, row.error)}" for row in each.rows if row.status != "ok"]
    return Outcome.of_slides(failures, f"see {job.out / 'compare.md'}", details=lines)


def plan(job: CompareJob, manifest: "Manifest") -> "list[Planned]":
    """Every training, entry by entry and seed by seed.

    Raises:
        ConfigError: An entry cannot be trained. The message names it.
    """
    from wsi_ips.evaluation.run.compare import Planned
    from wsi_ips.models.build import check_aggregator
    from wsi_ips.models.encoders.fitting import fitting_tiling
    from wsi_ips.models.encoders.registry import allow_code
    from wsi_ips.tiling.kept_coords import COORDS
    from wsi_ips.training.fit import check_encoder

    slide_mpp = given_mpp(job.slide_mpp, job.mpp_csv, [record.slide_id for record in manifest.records])
    known = {record.slide_id: slide_mpp(record.slide_id) for record in manifest.records}
    mpp = {slide_id: value for slide_id, value in known.items() if value is not None}
    planned = []
    said: set[str] = set()
    for name, settings in job.entries.items():
        for seed in job.seeds:
            its = entry_job(job, name, settings, seed=seed)
            tiling = fitting_tiling(its.tiling, its.model.encoder, said=said)
            its = its.model_copy(update={"tiling": tiling})
            if seed == job.seeds[0]:
                allow_code(its.model.encoder.name)
                try:
                    check_aggregator(its.model, its.selection)
                    check_encoder(its)
                except ConfigError as error:
                    raise ConfigError(f"entry {name}: {error}") from None
            planned.append(
                Planned(
                    name, its, manifest, job.features, its.out, job.split, job.device, mpp, job.out / COORDS
                ),
            )
    return planned


def entry_job(job: CompareJob, name: str, settings: Mapping[str, Any], *, seed: int) -> FinetuneJob:
    """The training of one entry with one seed: the shared settings, and the entry's over them.

    Raises:
        ConfigError: It has a setting that is not known or not possible. The message names the entry.
    """
    shared = job.model_dump(mode="json", include=set(SECTIONS), exclude_unset=True)
    shared |= {"command": "finetune", "manifest": job.manifest, "slides_root": job.slides_root,
               "features": job.features, "out": job.out / name / f"seed_{seed}", "device": job.device,
               "slide_mpp": job.slide_mpp, "mpp_csv": job.mpp_csv}  # fmt: skip
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    values = with_overrides(shared, [*overrides, f"training.seed={seed}"])
    made = make_job(values, source=f"entry {name}")
    assert isinstance(made, FinetuneJob)
    return made


def check_can_be_compared(job: CompareJob, manifest: "Manifest") -> None:
    """Check what can be checked of the slides before hours of training.

    Raises:
        ManifestError: A split has no slides, or nothing to tell apart.
        FeaturesError: Features of a slide are missing.
        ConfigError: Plots are asked for and cannot be drawn.
    """
    from wsi_ips.datasets.feature_files import find_features
    from wsi_ips.errors import ManifestError
    from wsi_ips.evaluation.plots import check_can_plot
    from wsi_ips.training.fit import check_labels

    check_labels(manifest, job)
    scored = manifest.split(job.split)
    if not scored:
        raise ManifestError(
            manifest.path, f"has no slides in split {job.split!r}", "nothing could be compared"
        )
    for task in job.model.tasks:
        labels = {str(record.targets([task]).get(task.name)) for record in scored if record.targets([task])}
        if len(labels) < 2:
            raise ManifestError(
                manifest.path,
                f"the slides of split {job.split!r} have {'no' if not labels else 'one'} {task.column_name}",
                "nothing can be told apart: give it slides of at least two",
            )
    if job.features is not None:
        needed = [*manifest.split("train"), *manifest.split("val"), *scored]
        find_features(job.features, dict.fromkeys(record.slide_id for record in needed))
    if job.plots:
        check_can_plot()


def _shown(table: "Table") -> list[str]:
    """The main figures in words, a line for each entry."""
    from wsi_ips.evaluation.plots import figure_name
    from wsi_ips.evaluation.run.compare_table import delong_in_words, lead_in_words

    shown = []
    for line in table.headlines:
        lead = lead_in_words(line)
        p = f", DeLong p {delong_in_words(line)}" if line.delong_p else ""
        spread = f" ± {line.sd:.3f}, worst {line.worst:.3f}" if len(line.values) > 1 else ""
        ahead = f"; {lead}{p}" if lead else ""
        value = "not defined" if math.isnan(line.mean) else f"{line.mean:.3f}{spread}{ahead}"
        shown.append(f"{line.entry}: {line.task}, {line.count} {line.of}: {figure_name(line.figure)} {value}")
    return shown


def _drawn(job: CompareJob, table: "Table") -> list[str]:
    from wsi_ips.evaluation.plots import check_can_plot
    from wsi_ips.evaluation.run.compare_table import draw_table

    if job.plots is False:
        return []
    try:
        check_can_plot()
    except ConfigError:
        return ["no plots: matplotlib is not installed; pip install 'wsi_ips[plots]'"]
    draw_table(job.out, table)
    return []
