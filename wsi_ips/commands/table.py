"""``table``: the table of a public data set, row by row and seed by seed, beside published numbers."""

import json
import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from wsi_ips.commands.evaluate import EvaluateJob, evaluate
from wsi_ips.commands.features import FeaturesJob, store_features
from wsi_ips.commands.finetune import FinetuneJob
from wsi_ips.commands.options import SOME_FAILED, Device, Outcome, Set, start
from wsi_ips.commands.recipe import Job, make_job, with_overrides
from wsi_ips.config import EncoderConfig, FinetuneConfig
from wsi_ips.errors import ConfigError, DatasetError, WsiIpsError, count, one_line
from wsi_ips.evaluation.run.compare_config import SECTIONS
from wsi_ips.evaluation.run.table_config import TableConfig
from wsi_ips.progress import Progress, silent
from wsi_ips.storage.location import shipped

if TYPE_CHECKING:
    from wsi_ips.datasets.known_sets import Listed
    from wsi_ips.datasets.manifest import Manifest
    from wsi_ips.evaluation.run.compare import ContentNow, Planned
    from wsi_ips.evaluation.run.result_table import JobResult, Published

MANIFEST, SLIDES, OUTLINES, FEATURES = "manifest.csv", "slides", "outlines", "features"
COSTS = "costs.json"
"""What a job cost, beside what ``compare`` counts."""
STORED = "stored.json"
"""That all features are there, what they cost, and the fingerprints of the slides that they were made from."""
SCORED = "scored.json"
"""What a job was scored on, beside what the figures themselves say."""


class TableJob(TableConfig, Job):
    """Train every row of a public data set's table with every seed, and write the table."""

    command: Literal["table"] = "table"


def command(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="A YAML recipe, such as pipelines/tables/camelyon16.yaml, which comes with wsi_ips."
        ),
    ],
    data: Annotated[
        Path | None, typer.Option(help="The downloaded data set's folder, or the one above it.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write to; default: the recipe's.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Table of labels, where it is not in the folder under its own name.")
    ] = None,
    splits: Annotated[
        Path | None, typer.Option(help="Folder of train.csv, val.csv, test.csv (PANDA, TCGA).")
    ] = None,
    isolate: Annotated[
        bool | None,
        typer.Option("--isolate/--one-process", help="A process for each job (default): measures memory."),
    ] = None,
    device: Device = None,
    set_: Set = None,
) -> None:
    """Train every row of a public data set's table with every seed; one table beside published numbers."""
    flags = {
        "data": data,
        "out": out,
        "labels": labels,
        "splits": splits,
        "isolate": isolate,
        "device": device,
    }
    start("table", flags, recipe=recipe, overrides=set_)


def table(job: TableJob, progress: Progress) -> Outcome:
    """Leave a folder for each row and seed in ``out``, ``manifest.csv``, and the table as CSV, Markdown and HTML.

    What is complete is not run again. A job that fails is told in the table and stops no other. Raises, before
    anything is trained, :class:`DatasetError` for a folder that is not laid out as the data set is,
    :class:`ConfigError` for a row that cannot be trained, or a folder that holds a row with other settings.
    """
    from wsi_ips.evaluation.run.compare import ContentNow
    from wsi_ips.evaluation.run.result_table import read_published, write_tables
    from wsi_ips.storage.held_folder import held

    listed = listed_of(job)
    published = read_published(shipped_published())
    asked = {name: asked_of(job, name) for name in job.rows}
    there = count(listed.total, "slide is", "slides are")
    told = [*listed.told, *listed.wrong, f"{len(listed.rows)} of {there} there"]
    for line in told:  # before days of training, and once more at the end
        print(line, file=sys.stderr)  # noqa: T201 - for people, beside the bars
    with held(job.out, below=[], undo=[job.out / MANIFEST], results="table.csv"):
        manifest = laid_out(job, listed)
        results = _Run(job, manifest, progress, ContentNow()).all(asked)
        paths = write_tables(
            job, results, published, {name: one.model.encoder.name for name, one in asked.items()}
        )
    lines = [*told, *_shown(job, results, published)]
    failures = [f"{one.row}, seed {one.seed}: {one.failed}" for one in results if one.failed]
    skipped = sum(one.skipped for one in results)
    jobs = count(len(results), "job is", "jobs are")
    lines.append(f"{len(results) - len(failures)} of {jobs} complete, {skipped} were before")
    warnings = [one.warning for one in results if one.warning]
    lines += [f"failed: {failure}" for failure in [*failures, *warnings]]
    return Outcome([*lines, f"see {paths[1]}"], SOME_FAILED if failures or warnings else 0)


def listed_of(job: TableJob) -> "Listed":
    """The slides of the data set as they lie below ``job.data``.

    Raises :class:`DatasetError` for a folder that is not laid out as the data set is, or without the outlines that
    lesions are to be scored by.
    """
    from wsi_ips.datasets.known_sets import look

    listed = look(job.data_set, job.data, labels=job.labels, splits=job.splits)
    if job.froc and not listed.outlines:
        raise DatasetError(
            job.data, "has no outlines of lesions", "unpack lesion_annotations.zip, or set froc: false"
        )
    return listed


def shipped_published() -> Path:
    """The table of published numbers that comes with the package (installed, or in a checkout)."""
    path = shipped("pipelines") / "tables" / "published.csv"
    if path.is_file():
        return path
    raise DatasetError(
        "published.csv", "does not lie in pipelines/tables/ beside the package", "install it again"
    )


def asked_of(job: TableJob, row: str, *, seed: int | None = None, **values: Any) -> FinetuneJob:
    """The training of a row on pixels, or with ``features`` on what is stored.

    Raises :class:`ConfigError` that names the row.
    """
    shared = job.model_dump(mode="json", include={*SECTIONS, "bag"}, exclude_unset=True)
    shared |= {
        "command": "finetune",
        "manifest": job.out / MANIFEST,
        "out": job.out / row,
        "device": job.device,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in job.rows[row].settings.items()]
    if seed is not None:
        overrides.append(f"training.seed={seed}")
    made = with_overrides(shared, overrides)
    finished = make_job(made, source=f"row {row}")
    assert isinstance(finished, FinetuneJob)
    if "width" not in values:
        return finished
    encoder = finished.model.encoder.on_features(values["width"]).model_dump(
        mode="json", exclude_defaults=True
    )
    made = with_overrides(made, [f"model.encoder={json.dumps(encoder)}"])
    made["features"] = values["features"]
    finished = make_job(made, source=f"row {row}")
    assert isinstance(finished, FinetuneJob)
    return finished


def check_row(row: str, config: FinetuneConfig) -> None:
    """Raise :class:`ConfigError`, which names the row, for an aggregator that cannot be trained so."""
    from wsi_ips.models.build import check_aggregator

    try:
        check_aggregator(config.model, config.selection)
    except ConfigError as error:
        raise ConfigError(f"row {row}: {error}") from None


def storing_of(job: TableJob, asked: FinetuneJob) -> tuple[FeaturesJob, str]:
    """The job that stores the features of a row, and a text that tells its encoder and patches."""
    from wsi_ips.models.encoders.fitting import fitting_tiling

    encoder = EncoderConfig.model_validate(
        {**asked.model.encoder.model_dump(mode="json", exclude_unset=True), "lora": None, "trainable": True,
         "project": None, "standardise": None, "drop_path": 0.0}
    )  # fmt: skip
    tiling = fitting_tiling(asked.tiling, encoder)
    content = json.dumps([encoder.model_dump(mode="json"), tiling.model_dump(mode="json")], sort_keys=True)
    name = f"{encoder.name.rpartition('/')[2]}_{sha256(content.encode()).hexdigest()[:12]}"
    return FeaturesJob(
        slides=job.out / SLIDES,
        out=job.out / FEATURES / name,
        encoder=encoder,
        tiling=tiling,
        device=job.device,
        streaming=asked.streaming,
    ), content


def laid_out(job: TableJob, listed: "Listed") -> "Manifest":
    """Write ``manifest.csv``, links to the slides by id, and the outlines, and read the manifest back."""
    from wsi_ips.datasets.camelyon import write_rows
    from wsi_ips.datasets.manifest import read_manifest, set_aside_by_case, write_manifest
    from wsi_ips.storage.files import whole_file
    from wsi_ips.training.fit import check_labels

    path = job.out / MANIFEST
    write_rows(path, listed.rows)
    tasks = job.model.tasks
    manifest = read_manifest(path, tasks=tasks)
    if job.held_out == "val":
        train = manifest.split("train")
        aside = set_aside_by_case(train, share=job.inner_val, column=tasks[0].column_name, seed=0)
        inner = {record.slide_id for record, chosen in zip(train, aside, strict=True) if chosen}
        split_of = {"val": "test", "train": "train", "test": "test"}
        records = [
            replace(one, split="val" if one.slide_id in inner else split_of[one.split])
            for one in manifest.records
        ]
        write_manifest(path, records)
        manifest = read_manifest(path, tasks=tasks)
    check_labels(manifest, job)
    if not manifest.split("test"):
        raise DatasetError(job.data, f"has no slides of split {job.held_out}", "nothing could be scored")
    _link(
        {f"{one.slide_id}{one.file.suffix}": one.file.absolute() for one in manifest.records},
        job.out / SLIDES,
    )
    if job.froc:
        for slide_id, outlines in listed.outlines:
            with whole_file(job.out / OUTLINES / f"{slide_id}.xml") as partial:
                partial.write_bytes(outlines.read_bytes())
    return manifest


def _link(links: Mapping[str, Path], folder: Path) -> None:
    """Make a folder of links to slides, called by their ids, and of nothing else."""
    folder.mkdir(exist_ok=True)
    for link in folder.iterdir():
        if link.is_symlink() and links.get(link.name) != link.readlink():
            link.unlink()
    for name, path in links.items():
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(path)


@dataclass(frozen=True, slots=True)
class _Task:
    """One row with one seed, in a form that another process takes."""

    row: str
    planned: "Planned"
    scored: EvaluateJob


@dataclass(frozen=True, slots=True)
class _Run:
    """The jobs of a table, one after the other."""

    job: TableJob
    manifest: "Manifest"
    progress: Progress
    content: "ContentNow"

    def all(self, asked: Mapping[str, FinetuneJob]) -> list["JobResult"]:
        """Run what is not complete. Rows on pixels are checked first: features take hours."""
        from wsi_ips.evaluation.run.result_table import JobResult

        pixels = {name: self._tasks(name) for name in self.job.rows if not self.job.rows[name].frozen}
        for its in pixels.values():
            self._check(its)
        for name in self.job.rows:
            if name not in pixels:
                self._check_frozen(name, asked[name])
        results: list[JobResult] = []
        total = len(self.job.rows) * len(self.job.seeds)
        with self.progress(f"Table of {self.job.data_set}", total=total) as advance:
            for name in self.job.rows:
                if name in pixels:
                    its, costs = pixels[name], dict[str, float | None]()
                else:
                    try:
                        its, costs = self._stored(name, asked[name])
                    except (WsiIpsError, BrokenProcessPool) as error:
                        if isinstance(error, ConfigError):
                            raise
                        why = f"features: {one_line(error, most=300)}"
                        results += [JobResult(name, seed, failed=why) for seed in self.job.seeds]
                        for seed in self.job.seeds:
                            advance(f"{name}, seed {seed}: failed")
                        continue
                for task in its:
                    results.append(self._one(task, costs))
                    state = (
                        "failed" if results[-1].failed else "was complete" if results[-1].skipped else "done"
                    )
                    advance(f"{name}, seed {task.planned.seed}: {state}")
        return results

    def _tasks(self, row: str, *, manifest: "Manifest | None" = None, **stored: Any) -> list[_Task]:
        """The jobs of a row, by seed."""
        from wsi_ips.evaluation.run.compare import PREDICTIONS, Planned
        from wsi_ips.models.encoders.fitting import fitting_tiling

        tasks = []
        said: set[str] = set()
        for seed in self.job.seeds:
            config = asked_of(self.job, row, seed=seed, **stored)
            tiling = fitting_tiling(config.tiling, config.model.encoder, said=said)
            config = config.model_copy(update={"tiling": tiling})
            out = self.job.out / row / f"seed_{seed}"
            planned = Planned(
                row, config, manifest or self.manifest, stored.get("features"), out, "test", self.job.device
            )
            scored = EvaluateJob(
                run=out / PREDICTIONS,
                manifest=self.job.out / MANIFEST,
                annotations=self.job.out / OUTLINES if self.job.froc else None,
                bootstrap=self.job.bootstrap,
                plots=False,
            )
            tasks.append(_Task(row, planned, scored))
        return tasks

    def _check(self, tasks: Sequence[_Task]) -> None:
        """Raise :class:`ConfigError` for a row that cannot be trained, or a folder of other settings or slides."""
        from wsi_ips.evaluation.run.compare import Finished, is_done

        check_row(tasks[0].row, tasks[0].planned.config)
        for task in tasks:
            if is_done(task.planned):
                Finished.read(task.planned, skipped=True, now=self.content.of(task.planned))

    def _check_frozen(self, row: str, asked: FinetuneJob) -> None:
        """Check a row on features before they are stored; where they are, its folders too."""
        # The width is not known before the encoder is loaded, and decides nothing that is checked here.
        config = asked_of(
            self.job, row, width=asked.model.encoder.features or 1024, features=self.job.out / FEATURES
        )
        check_row(row, config)
        storing, content = storing_of(self.job, asked)
        if _stored_at(storing.out / STORED, content, self._slides()) is not None:
            self._stored(row, asked)

    def _slides(self) -> dict[str, str]:
        """The fingerprints of the slides as they are now."""
        from wsi_ips.training.learned_from import slide_fingerprints

        return slide_fingerprints(self.manifest.records)

    def _stored(self, row: str, asked: FinetuneJob) -> tuple[list[_Task], dict[str, float | None]]:
        """Store the features of a frozen row where they are not yet, or where slides have changed since; its jobs,
        and what the features cost.
        """
        from wsi_ips.datasets.feature_files import list_features, open_features

        storing, content = storing_of(self.job, asked)
        folder, slides = storing.out, self._slides()
        costs = _stored_at(folder / STORED, content, slides)
        if costs is None:
            self._in_process(_store, storing, content, slides)
            costs = _read_json(folder / STORED)
        files = list_features(folder)
        width = open_features(next(iter(files.values()))).width
        there = replace(
            self.manifest, records=tuple(one for one in self.manifest.records if one.slide_id in files)
        )
        tasks = self._tasks(row, manifest=there, width=width, features=folder)
        self._check(tasks)
        return tasks, {"feature_seconds": costs["seconds"], "feature_bytes": costs["bytes"]}

    def _one(self, task: _Task, costs: Mapping[str, float | None]) -> "JobResult":
        """Run a job if it is not complete, and read what came of it; a failure is a result too."""
        from wsi_ips.evaluation.run.compare import Finished, is_done
        from wsi_ips.evaluation.run.result_table import JobResult, read_scores, unscored_slides

        row, seed = task.row, task.planned.seed
        skipped = is_done(task.planned) and _is_scored(task)
        try:
            if not skipped:
                self._in_process(_train_and_score, task)
            finished = Finished.read(task.planned, skipped=skipped)
            metrics = task.scored.run / "evaluation" / "metrics.json"
            scores, unscored = read_scores(metrics), unscored_slides(metrics)
        except BrokenProcessPool:
            return JobResult(
                row, seed, failed="its process was killed, perhaps for want of memory", costs=costs
            )
        except WsiIpsError as error:
            return JobResult(row, seed, failed=one_line(error, most=300), costs=costs)
        except Exception as error:  # noqa: BLE001 - a job that fails for whatever reason stops no other
            return JobResult(
                row, seed, failed=one_line(f"{type(error).__name__}: {error}", most=300), costs=costs
            )
        its = {
            name: getattr(finished.costs, name)
            for name in ("train_seconds", "predict_seconds", "bytes_written")
        }
        peaks = _read_json(task.planned.out / COSTS)
        its |= {name: peaks.get(name) for name in ("peak_ram", "peak_vram")}
        used = {record.slide_id for record in task.planned.manifest.records}
        without = {record.slide_id for record in self.manifest.records} - used
        left_out = sorted({*unscored, *finished.bad, *without})
        return JobResult(row, seed, scores, {**its, **costs}, skipped=skipped, left_out=left_out)

    def _in_process(self, work: Callable[..., None], *what: Any) -> None:
        if not self.job.isolate:
            work(*what, False)
            return
        # spawn: a fork of a process with threads, or with a CUDA context, may hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
            pool.submit(work, *what, True).result()


def _train_and_score(task: _Task, isolated: bool) -> None:
    """Train, predict and evaluate one row with one seed, in whatever process this is."""
    import torch

    from wsi_ips.evaluation.run.compare import do_planned, is_done
    from wsi_ips.inference.telemetry import peak_rss_mb
    from wsi_ips.streaming.device import pick_device

    if not is_done(task.planned):
        do_planned(task.planned, isolated=isolated)
        device = pick_device(task.planned.device)
        cuda = device.type == "cuda"
        _write_json(
            task.planned.out / COSTS,
            {
                "peak_ram": peak_rss_mb() * 2**20 if isolated else None,
                "peak_vram": torch.cuda.max_memory_allocated(device) if cuda and isolated else None,
                "device": torch.cuda.get_device_name(device) if cuda else device.type,
            },
        )
    outlines = _outlines_of(task.scored)
    evaluate(task.scored, silent)
    _write_json(task.planned.out / SCORED, {"outlines": outlines})


def _store(job: FeaturesJob, content: str, slides: Mapping[str, str], isolated: bool) -> None:
    """Store features, and record that they are all there. Those of slides that have not changed stay."""
    started = perf_counter()
    before = _read_json(job.out / STORED)
    earlier = float(before.get("seconds", 0.0)) if before.get("content") == content else 0.0
    outcome = store_features(job, silent)
    _write_json(
        job.out / STORED,
        {
            "content": content,
            "slides": dict(slides),
            "seconds": earlier + perf_counter() - started,
            "bytes": sum(path.stat().st_size for path in job.out.rglob("*") if path.is_file()),
            "failed": [line for line in outcome.lines if line.startswith("failed: ")],
        },
    )


def _stored_at(path: Path, content: str, slides: Mapping[str, str]) -> dict[str, Any] | None:
    """What is noted of stored features; None if they are not all there, or of other settings or slides. A slide
    that cannot be read now is not compared. Notes of earlier versions do not name the slides.
    """
    held = _read_json(path)
    before = held.get("slides")
    if held.get("content") != content or not isinstance(before, dict):
        return None
    return held if all(before.get(name) == now for name, now in slides.items() if now) else None


def _is_scored(task: _Task) -> bool:
    """Whether the run has been evaluated with these settings, on lesions with these outlines."""
    job = task.scored
    held = _read_json(job.run / "evaluation" / "metrics.json")
    if held.get("job") != {"command": "evaluate", **job.model_dump(mode="json")}:
        return False
    return job.annotations is None or _read_json(task.planned.out / SCORED).get("outlines") == _outlines_of(
        job
    )


def _outlines_of(job: EvaluateJob) -> str:
    """A digest of the outlines that lesions are scored on, of all their bytes; empty without any."""
    if job.annotations is None:
        return ""
    digest = sha256()
    for path in sorted(job.annotations.iterdir()) if job.annotations.is_dir() else ():
        digest.update(f"{path.name}\0{sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    """What a file of ours holds; nothing where it is missing or cut off."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def _write_json(path: Path, held: Mapping[str, Any]) -> None:
    from wsi_ips.storage.files import whole_file

    with whole_file(path) as partial:
        partial.write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")


def _shown(job: TableJob, results: Sequence["JobResult"], published: Sequence["Published"]) -> list[str]:
    """The table's figures in words, a line for each row, and the first published number."""
    from wsi_ips.evaluation.run.result_table import lines_of

    lines = []
    for row in job.rows:
        its = [line for line in lines_of(results) if line.row == row and line.figure in job.figures]
        words = ", ".join(f"{line.figure} of {line.of} {line.mean:.3f}" for line in its)
        lines += [f"{row}: {words}"] if words else []
    theirs = [one for one in published if one.data_set == job.data_set]
    if theirs:
        lines.append(
            f"published: {theirs[0].method} {theirs[0].figure} {theirs[0].value:g} ({theirs[0].source})"
        )
    return lines
