"""``features``: what an encoder makes of every patch, as CLAM, TRIDENT or STAMP store it; nothing is learned."""

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import typer
from pydantic import model_validator

from wsi_ips.commands.command_line import one_of
from wsi_ips.commands.options import (
    Compile,
    Coords,
    Devices,
    EncoderName,
    EncoderWeights,
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
    Slides,
    Threads,
    Workers,
    start,
)
from wsi_ips.commands.recipe import Job
from wsi_ips.commands.slides import PatchesOfJob, Resolution, SlidesOfJob, given_mpp, slides_by_id
from wsi_ips.config import Computing, EncoderConfig, StreamingConfig, TilingConfig, WorkersConfig
from wsi_ips.errors import ProcessDied, SlideFailed, WsiIpsError, count, one_line
from wsi_ips.progress import Progress, silent
from wsi_ips.storage.location import absolute
from wsi_ips.units import mpp_of_magnification

if TYPE_CHECKING:
    import torch

    from wsi_ips.inference.feature_export import FeatureExport, StoredFeatures
    from wsi_ips.inference.in_hand import SlidesInHand
    from wsi_ips.inference.made_from import MadeFrom
    from wsi_ips.inference.slide_work import SlideJob
    from wsi_ips.tiling.patches import FindPatches

FeatureLayoutOption = Annotated[
    str | None,
    typer.Option(
        "--layout",
        help="HDF5 layout: clam (default), trident or stamp.",
        autocompletion=one_of("clam", "trident", "stamp"),
    ),
]
COLUMNS = ("n_patches", "status", "error", "note")


class FeaturesJob(PatchesOfJob, Resolution, Computing, Job):
    """Store what an encoder makes of every patch; nothing is learned."""

    command: Literal["features"] = "features"
    slides: SlidesOfJob
    out: Path
    layout: Literal["clam", "trident", "stamp"] = "clam"
    encoder: EncoderConfig | None = None
    """Any encoder of patches; none: the checkpoint's."""
    checkpoint: Path | None = None
    """A model of ours: its encoder, as it was trained, on patches as it was trained on."""
    tiling: TilingConfig | None = None
    """None: the checkpoint's, or the default. With a checkpoint only ``allow_upsampling``."""
    half: bool = False
    """Store float16."""
    device: str = "auto"
    """Where the encoder runs; or several, ``cuda:0,cuda:1``, on which workers take turns."""
    deterministic: bool = False
    """The same bits each time on the same kind of card, as ``training.deterministic``; slower."""
    profile: bool = False
    """Print where the time went, and write ``timeline.json``."""
    streaming: StreamingConfig = StreamingConfig()
    batch: WorkersConfig = WorkersConfig()

    @model_validator(mode="after")
    def _one_encoder(self) -> Self:
        if (self.encoder is None) == (self.checkpoint is None):
            raise ValueError("give an encoder, or the checkpoint whose encoder is meant: one of them")
        own = self.tiling.model_fields_set - {"allow_upsampling"} if self.tiling is not None else set()
        if self.checkpoint is not None and own:
            raise ValueError(
                "a checkpoint has its own tiling: leave tiling (patch size, µm per pixel, …) out"
            )
        if self.encoder is not None and (
            self.encoder.features or self.encoder.project or self.encoder.standardise
        ):
            raise ValueError(
                "encoder: stored are the encoder's own features; leave features, project and standardise out"
            )
        if self.layout == "trident" and self.coords and self.coords.resolve() == self.out.resolve():
            raise ValueError(
                "coords: with layout trident, the coordinates that belong to the features go into out/patches, "
                "where files of coords would lie beside them; name another folder for coords"
            )
        return self


def command(
    slides: Slides,
    out: Out,
    encoder: EncoderName = None,
    weights: EncoderWeights = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="model.safetensors of a fine-tuning run: its encoder and its tiling.")
    ] = None,
    patch_px: Annotated[int | None, typer.Option(help="Side of a patch in pixels.")] = None,
    patch_mpp: Annotated[float | None, typer.Option(help="µm per pixel of a patch.")] = None,
    mag: Annotated[float | None, typer.Option(help='Same as --patch-mpp: 20 ("20x") is 0.5 µm.')] = None,
    from_coords: FromCoords = None,
    coords: Coords = None,
    layout: FeatureLayoutOption = None,
    half: Annotated[bool | None, typer.Option("--half", help="Store float16, not float32.")] = None,
    precision: PrecisionOption = None,
    compile_: Compile = None,
    profile: Profile = None,
    workers: Workers = None,
    threads: Threads = None,
    scheduler: Scheduler = None,
    device: Devices = None,
    slide_mpp: SlideMppOption = None,
    mpp_csv: MppCsv = None,
    recipe: Recipe = None,
    set_: Set = None,
) -> None:
    """Store what an encoder makes of every patch, as CLAM, TRIDENT or STAMP do; nothing is learned."""
    if mag is not None:
        patch_mpp = mpp_of_magnification(mag)
    flags = {"slides": slides, "out": out, "layout": layout, "checkpoint": checkpoint, "half": half,
             "from_coords": from_coords, "coords": coords, "device": device, "slide_mpp": slide_mpp,
             "mpp_csv": mpp_csv, "precision": precision, "compile": compile_, "profile": profile}  # fmt: skip
    sections: dict[str, dict[str, Any]] = {
        "encoder": {"name": encoder, "weights": weights},
        "tiling": {"patch_px": patch_px, "patch_mpp": patch_mpp},
        "batch": {"workers": workers, "threads": threads, "scheduler": scheduler},
    }
    # A section that is there, even an empty one, is a choice.
    chosen = {
        name: values for name, values in sections.items() if any(v is not None for v in values.values())
    }
    start("features", flags, recipe=recipe, overrides=set_, sections=chosen)


@dataclass(frozen=True, slots=True)
class _Row:
    slide_id: str
    n_patches: int | None
    status: str
    error: str = ""
    note: str = ""
    raised: Exception | None = None
    """The error of a slide that failed."""
    was_there: bool = False
    """Whether its features were stored already."""

    @classmethod
    def failed(cls, slide: "SlideJob", error: Exception) -> Self:
        """Whatever a decoder may raise is this slide's failure, not the run's."""
        from wsi_ips.inference.slide_work import reason
        from wsi_ips.slides.base import named

        return cls(slide.slide_id, None, "failed", named(slide.slide_id, reason(slide, error)), raised=error)


def store_features(job: FeaturesJob, progress: Progress) -> Outcome:
    """Write every slide's features, ``features.csv`` and ``run.json``.

    In a folder a bad slide becomes a row; a slide given by itself raises. Slides that an earlier start with the
    same settings finished are left alone, and one that it died of is tried once more in a process of its own, or
    on a worker when nobody else is at work. The tables are written here, whoever stores the features.
    """
    from wsi_ips.inference.in_hand import SlidesInHand
    from wsi_ips.inference.slide_tasks import workers_wanted
    from wsi_ips.inference.slide_work import SlideJob
    from wsi_ips.streaming.device import numerics
    from wsi_ips.timeline import recording

    slides = slides_by_id(job.slides)
    slide_mpp = given_mpp(job.slide_mpp, job.mpp_csv, slides)
    workers = workers_wanted(job.batch, job.device)
    here = workers is None
    storing = _Storing.of(_with_threads(job, job.batch.threads) if here else job, here=here)
    jobs = [SlideJob(slide_id, absolute(path), slide_mpp(slide_id)) for slide_id, path in slides.items()]
    alone = list(slides.values()) == [job.slides]
    folder = storing.export.folder
    how = numerics(deterministic=job.deterministic)
    with (
        folder.claimed(storing.settings, numerics=how),
        SlidesInHand(folder.root) as in_hand,
        recording(folder.root, command="features", on=job.profile) as recorded,
    ):
        batch = None if workers is None else job.batch.model_copy(update={"workers": workers})
        rows = _store_all(jobs, storing, in_hand, progress, batch=batch, raises=alone)
    stored = sum(row.status == "ok" for row in rows.values())
    patches = sum(row.n_patches or 0 for row in rows.values())
    kept = sum(row.was_there for row in rows.values())
    slides_in_all = count(len(rows), "slide")
    were = count(len(rows), "slide was", "slides were")
    again = f"{kept} of {were} encoded already, from the same files and settings"
    return Outcome.of_slides(
        [rows[slide_id].error for slide_id in slides if rows[slide_id].error],
        f"features of {count(patches, 'patch', 'patches')} of {stored} of {slides_in_all} in {folder.root}",
        details=[*([again] if kept else []), *recorded.table()],
    )


@dataclass(frozen=True, slots=True)
class _Storing:
    """All that it takes to store a slide's features. It is made from the job alone, the same in any process."""

    job: FeaturesJob
    export: "FeatureExport"
    find: "FindPatches"
    settings: Mapping[str, Any]
    precision: str
    """What the encoder computes in, once ``auto`` is decided."""
    device: "torch.device"

    @classmethod
    def of(cls, job: FeaturesJob, *, here: bool = True, place: int = 0) -> Self:
        """What a job asks for, with its encoder loaded; without ``here`` the encoder is looked at only, because
        workers have their own. ``place`` is the number of the worker that this process is.

        Raises :class:`ConfigError` for settings that do not go together, :class:`CheckpointError` for weights that
        are missing or do not fit.
        """
        import torch

        from wsi_ips.inference.feature_export import (
            FeatureExport,
            FeaturesFolder,
            encoder_of_checkpoint,
            encoder_of_config,
        )
        from wsi_ips.models.encoders.network import Compute, check_compiles, compute_in, settled
        from wsi_ips.streaming.device import device_of_worker
        from wsi_ips.tiling.kept_coords import patches_from

        # With a scheduler, the machines with the GPUs are others.
        elsewhere = job.batch.scheduler is not None and job.device != "auto" and not here
        device = torch.device("cpu") if elsewhere else device_of_worker(job.device, place)
        kind = job.device.partition(":")[0] if elsewhere else device.type
        if job.checkpoint is not None:
            allowed = job.tiling is not None and job.tiling.allow_upsampling
            encoder = encoder_of_checkpoint(job.checkpoint, allow_upsampling=allowed)
        else:
            assert job.encoder is not None  # the job sees to it
            encoder = encoder_of_config(job.encoder, job.tiling, laid_out=job.from_coords is not None)
        if job.compile and (here or job.batch.scheduler is None):
            check_compiles(device)
        batch = job.streaming.batch if job.compile else None
        compute = Compute(settled(job.precision, encoder.config_name, kind), compiled_batch=batch)
        compute_in(encoder.module, compute)
        find = patches_from(
            encoder.tiling, coords=job.coords, from_coords=job.from_coords, own_px=encoder.stored_px
        )
        export = FeatureExport(
            encoder=encoder.module.to(device).eval() if here else torch.nn.Identity(),
            width=encoder.width,
            name=encoder.name,
            identity=encoder.identity,
            folder=FeaturesFolder(job.out, job.layout, encoder.name),
            half=job.half,
        )
        settings = {
            **encoder.settings,
            # What is allowed changes no slide's features.
            "tiling": encoder.tiling.model_dump(mode="json", exclude={"allow_upsampling"}),
            **job.model_dump(mode="json", include={"layout", "half", "slide_mpp"}),
            "--from-coords": "given" if job.from_coords else "not given",
            "streaming": {"decode": job.streaming.decode},
            # Only where it is set, so that folders of earlier versions are gone on with.
            **({"deterministic": True} if job.deterministic else {}),
        }
        return cls(job, export, find, settings, compute.precision, device)

    def store(
        self, slide: "SlideJob", *, begin: Callable[[str], None] | None = None, progress: Progress = silent
    ) -> _Row:
        """Store a slide's features, unless that is done already. ``begin`` is told the slide's id before it is
        read. What an earlier start stored stays until its successor is whole; where the slide fails it goes."""
        from wsi_ips.streaming.device import calculating

        now = self._made_from(slide)
        stored = self.export.done(slide.slide_id, slide.path, now)
        was_there = stored is not None
        if stored is None:
            if begin is not None:
                begin(slide.slide_id)
            try:
                with calculating(deterministic=self.job.deterministic):
                    stored = self._make(slide, now, progress)
                now.check_unchanged(self._made_from(slide), slide.path)
            except Exception:
                self.export.forget(slide.slide_id)
                raise
        return self._row(slide, stored, was_there=was_there)

    def found(self, slide: "SlideJob") -> _Row | None:
        """The row of a slide whose features an earlier start has stored; None where they have to be made."""
        try:
            stored = self.export.done(slide.slide_id, slide.path, self._made_from(slide))
        except Exception:  # noqa: BLE001 - whoever stores them says what is wrong with the slide
            return None
        return None if stored is None else self._row(slide, stored, was_there=True)

    def for_workers(self) -> FeaturesJob:
        """The job as workers get it: with absolute paths, and the precision that was decided here."""
        paths = ("out", "checkpoint", "from_coords", "coords")
        changed = {name: absolute(getattr(self.job, name)) for name in paths}
        changed["streaming"] = self.job.streaming.from_anywhere()
        return self.job.model_copy(update={**changed, "precision": self.precision})

    def _row(self, slide: "SlideJob", stored: "StoredFeatures", *, was_there: bool) -> _Row:
        from wsi_ips.inference.slide_work import unreadable

        error = unreadable(slide.slide_id, stored.bad_tiles) if stored.bad_tiles else ""
        return _Row(slide.slide_id, stored.n_patches, "ok", error, stored.note, was_there=was_there)

    def forget_stale(self, slide: "SlideJob") -> None:
        """Remove stored features of a slide that has failed, unless they are as they would be made today."""
        if self.export.done(slide.slide_id, slide.path, self._made_from(slide)) is None:
            self.export.forget(slide.slide_id)

    def _make(self, slide_job: "SlideJob", now: "MadeFrom", progress: Progress) -> "StoredFeatures":
        from wsi_ips import timeline
        from wsi_ips.slides.registry import open_slide
        from wsi_ips.streaming.stream import PatchStream

        with timeline.slide(slide_job.slide_id), open_slide(slide_job.path) as slide:
            coords = self.find(slide, slide_id=slide_job.slide_id, mpp=slide_job.mpp)
            stream = PatchStream(slide, coords, config=self.job.streaming, device=self.device)
            return self.export.write(stream, coords, slide.info, made_from=now, progress=progress)

    def _made_from(self, slide: "SlideJob") -> "MadeFrom":
        from wsi_ips.inference.made_from import MadeFrom

        return MadeFrom.now(
            slide.path,
            slide_id=slide.slide_id,
            mpp=slide.mpp,
            streaming=self.job.streaming,
            find_patches=self.find,
            precision=self.precision,
        )


def _store_all(
    slides: "Sequence[SlideJob]",
    storing: _Storing,
    in_hand: "SlidesInHand",
    progress: Progress,
    *,
    batch: WorkersConfig | None,
    raises: bool,
) -> dict[str, _Row]:
    """{slide_id: what became of it}. Slides that an earlier start died of come last, and alone. batch: the
    workers; None: this process does it all. raises: a slide's error is the command's."""
    from wsi_ips.inference.slide_rows import SlideRows
    from wsi_ips.timeline import working

    rows: dict[str, _Row] = {}
    folder = storing.export.folder
    written = SlideRows(
        folder.table,
        COLUMNS,
        [slide.slide_id for slide in slides],
        is_there=lambda slide_id: folder.features(slide_id).is_file(),
    )
    with written as table, progress("Encoding", total=len(slides)) as advance:
        done = (
            _stored_here(slides, storing, in_hand, progress)
            if batch is None
            else _stored_by_workers(slides, storing, in_hand, batch)
        )
        with closing(done) as stored:
            for row in stored:
                if not row.was_there:
                    working()
                if raises and row.raised is not None:
                    raise row.raised
                rows[row.slide_id] = row
                table.add(row.slide_id, [row.n_patches, row.status, one_line(row.error), row.note])
                advance(f"{row.slide_id}: {row.status}")
    return rows


def _stored_here(
    slides: "Sequence[SlideJob]", storing: _Storing, in_hand: "SlidesInHand", progress: Progress
) -> Generator[_Row, None, None]:
    """What becomes of each slide, in this process, or of a suspected one in a process of its own."""
    others, suspects = in_hand.apart(slides, lambda slide: slide.slide_id)
    for slide in (*others, *suspects):
        try:
            if in_hand.suspected(slide.slide_id):
                row = _alone(slide, storing, in_hand)
            else:
                row = storing.store(slide, begin=in_hand.begin, progress=progress)
        except Exception as error:  # noqa: BLE001 - see _Row.failed
            row = _Row.failed(slide, error)
        yield row
        if not in_hand.suspected(slide.slide_id):
            in_hand.end(slide.slide_id)


def _stored_by_workers(
    slides: "Sequence[SlideJob]", storing: _Storing, in_hand: "SlidesInHand", batch: WorkersConfig
) -> Generator[_Row, None, None]:
    """What becomes of each slide: those that are stored already, then the others as workers are done with them."""
    left = []
    for slide in slides:
        found = storing.found(slide)
        if found is None:
            left.append(slide)
        else:
            in_hand.end(slide.slide_id)
            yield found
    if not left:
        return
    # Imported here: a second that features in this process do not have to wait.
    from wsi_ips.inference.cluster import shared_on_cluster, threads_each

    task = FeaturesTask(storing.for_workers(), threads_each(batch))
    announce = lambda line: print(line, file=sys.stderr)  # noqa: E731, T201 - for people, beside the bars
    with closing(shared_on_cluster(left, task, batch, in_hand=in_hand, announce=announce)) as results:
        for slide, result in results:
            if isinstance(result, _Row):
                yield result
                continue
            storing.forget_stale(slide)
            yield _Row.failed(slide, result)


def _alone(slide: "SlideJob", storing: _Storing, in_hand: "SlidesInHand") -> _Row:
    """Store the features of a slide that may kill whoever reads it."""
    try:
        return in_hand.alone(slide.slide_id, slide.path, _store_one, (storing.job, slide))
    except ProcessDied:
        storing.forget_stale(slide)
        raise


def _store_one(task: "tuple[FeaturesJob, SlideJob]") -> _Row:
    job, slide = task
    return _Storing.of(_with_threads(job, job.batch.threads)).store(slide)


def _with_threads(job: FeaturesJob, threads: int | None) -> FeaturesJob:
    """The job of this process, whose CPU threads compute and decode; None leaves both as they are."""
    import torch

    if threads is None:
        return job
    torch.set_num_threads(threads)
    streaming = job.streaming.model_copy(update={"threads": threads})
    return job.model_copy(update={"streaming": streaming})


@dataclass(frozen=True, slots=True)
class FeaturesTask:
    """What workers do to each slide, see :class:`wsi_ips.inference.slide_tasks.SlideTask`.

    threads: CPU threads of a worker that compute, and that decode; None: its defaults, and ``streaming.threads``.
    """

    job: FeaturesJob
    threads: int | None

    def on_worker(self, place: int) -> "_FeaturesWorker":
        """The encoder, loaded on the device of the worker with this number."""
        from wsi_ips.inference.slide_tasks import check_shared
        from wsi_ips.progress import silence_libraries

        silence_libraries()
        storing = _Storing.of(_with_threads(self.job, self.threads), place=place)
        check_shared(storing.export.folder.root, storing.export.folder.description)
        return _FeaturesWorker(storing)


@dataclass(frozen=True, slots=True)
class _FeaturesWorker:
    storing: _Storing

    def work(self, slide: "SlideJob") -> _Row:
        try:
            return self.storing.store(slide)
        except Exception as error:  # noqa: BLE001 - see _Row.failed
            row = _Row.failed(slide, error)
            # Libraries' errors may hold what cannot be sent back.
            return row if isinstance(error, WsiIpsError) else replace(row, raised=SlideFailed(row.error))
