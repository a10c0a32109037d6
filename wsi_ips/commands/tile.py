"""``tile``: tissue, patch coordinates and contours; no model."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import PositiveInt

from wsi_ips.commands.options import (
    Layout,
    MppCsv,
    Out,
    Outcome,
    Profile,
    Recipe,
    Scheduler,
    Set,
    SlideMppOption,
    Slides,
    start,
)
from wsi_ips.commands.recipe import Job
from wsi_ips.commands.slides import Resolution, SlidesOfJob, given_mpp, slides_by_id
from wsi_ips.config import TilingConfig, WorkersConfig
from wsi_ips.errors import ConfigError, ProcessDied, SlideFailed, WsiIpsError, count, one_line
from wsi_ips.progress import Progress
from wsi_ips.storage.location import Location, absolute
from wsi_ips.units import mpp_of_magnification

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

    from wsi_ips.inference.in_hand import SlidesInHand
    from wsi_ips.tiling.patches import SlideToTile, TiledSlide, TilingFolder

    _EachTiled = Generator[tuple[SlideToTile, TiledSlide], None, None]


class TileJob(Resolution, Job):
    """Find tissue and write coordinates; no model."""

    command: Literal["tile"] = "tile"
    slides: SlidesOfJob
    out: Path
    layout: Literal["clam", "trident"] = "clam"
    contours: Path | None = None
    """Folder of ``<slide_id>.geojson`` (TRIDENT's): tissue as outlined there; none: by our own segmentation."""
    mask_preview: bool = True
    """Write ``previews/<slide_id>.jpg`` as well: the slide with its tissue, contours and patches drawn."""
    workers: PositiveInt = 1
    """Processes that tile a slide each; 1: this process does it. No result depends on it."""
    profile: bool = False
    """Print where the time went, and write ``timeline.json``."""
    scheduler: str | None = None
    """Address of a running dask scheduler (``tcp://host:8786``) whose workers do it instead. They need the slides
    and ``out`` under the same paths."""
    tiling: TilingConfig = TilingConfig()


def command(
    slides: Slides,
    out: Out,
    patch_px: Annotated[int | None, typer.Option(help="Side of a patch in pixels.")] = None,
    patch_mpp: Annotated[float | None, typer.Option(help="µm per pixel of a patch.")] = None,
    mag: Annotated[float | None, typer.Option(help='Same as --patch-mpp: 20 ("20x") is 0.5 µm.')] = None,
    overlap_px: Annotated[int | None, typer.Option(help="Pixels that neighbours share.")] = None,
    min_tissue: Annotated[float | None, typer.Option(help="Share of a patch that is tissue.")] = None,
    layout: Layout = None,
    contours: Annotated[
        Path | None, typer.Option(help="Folder of SLIDE_ID.geojson (TRIDENT): tissue as outlined there.")
    ] = None,
    mask_preview: Annotated[
        bool | None,
        typer.Option(
            "--mask-preview/--no-mask-preview",
            help="Draw each slide's tissue and patches: OUT/previews/SLIDE_ID.jpg (default).",
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that tile a slide each (default 1).")] = None,
    profile: Profile = None,
    scheduler: Scheduler = None,
    slide_mpp: SlideMppOption = None,
    mpp_csv: MppCsv = None,
    recipe: Recipe = None,
    set_: Set = None,
) -> None:
    """Find tissue and write patch coordinates (HDF5) and contours (GeoJSON); no model."""
    if mag is not None:
        patch_mpp = mpp_of_magnification(mag)
    tiling = {
        "patch_px": patch_px,
        "patch_mpp": patch_mpp,
        "overlap_px": overlap_px,
        "min_tissue": min_tissue,
    }
    flags = {"slides": slides, "out": out, "layout": layout, "contours": contours,
             "mask_preview": mask_preview, "workers": workers, "scheduler": scheduler, "profile": profile,
             "slide_mpp": slide_mpp, "mpp_csv": mpp_csv}  # fmt: skip
    start("tile", flags, recipe=recipe, overrides=set_, sections={"tiling": tiling})


def tile(job: TileJob, progress: Progress) -> Outcome:
    """Write ``patches/*.h5``, ``contours_geojson/*.geojson`` (unless contours are given) and ``tiles.csv``;
    unless ``mask_preview`` is False ``previews/*.jpg``, also of slides without tissue.

    A slide whose stored coordinates were made from the same file and settings is left alone, so that a run that
    was killed goes on; a slide that it died of is tried once more in a process of its own. In a folder a bad slide
    becomes a row, whatever it raised; a slide given by itself raises. Raises :class:`ResultsError` while another
    process writes into the folder, and :class:`ConfigError` for a folder with other slides that were tiled by
    other settings.
    """
    from wsi_ips.inference.shared_out import started_early

    if job.contours is not None and not job.contours.is_dir():
        raise ConfigError(f"--contours {job.contours}: no such folder")
    locations = slides_by_id(job.slides)
    workers = min(job.workers, len(locations)) if job.scheduler is None else 0
    modules = ["wsi_ips.tiling.patches", *(["wsi_ips.heatmaps.tissue_preview"] if job.mask_preview else [])]
    with started_early(workers, modules=modules) as pool:
        return _tile(job, locations, progress, pool)


def _tile(
    job: TileJob, locations: Mapping[str, Location], progress: Progress, pool: "ProcessPoolExecutor | None"
) -> Outcome:
    """``tile``, on the slides at these locations. pool: the processes of its workers, if it has any here."""
    from wsi_ips.heatmaps.tissue_preview import write_preview
    from wsi_ips.inference.in_hand import SlidesInHand
    from wsi_ips.tiling.patches import SlideToTile, TilingFolder, check_same_tiling
    from wsi_ips.timeline import recording

    slide_mpp = given_mpp(job.slide_mpp, job.mpp_csv, locations)
    # Workers elsewhere run in other folders.
    place: Callable[[Any], Any] = absolute if job.scheduler is not None else lambda where: where
    slides = [
        SlideToTile(slide_id, absolute(path), slide_mpp(slide_id)) for slide_id, path in locations.items()
    ]
    folder = TilingFolder(
        place(job.out), job.tiling, job.layout, contours=place(job.contours),
        preview=write_preview if job.mask_preview else None, alone=absolute(job.slides),
    )  # fmt: skip
    with _held(job.out):
        check_same_tiling(folder, locations)
        with (
            SlidesInHand(job.out) as in_hand,
            recording(job.out, command="tile", on=job.profile) as recorded,
        ):
            tiled = _tile_all(folder, slides, in_hand, progress, pool=pool, job=job)
    failures = [tiled[slide_id].error for slide_id in locations if tiled[slide_id].error]
    kept = sum(done.was_there for done in tiled.values())
    details = (
        [f"{count(kept, 'slide was', 'slides were')} tiled already, from the same files and settings"]
        if kept
        else []
    )
    details += recorded.table()
    patches = count(sum(done.n_patches for done in tiled.values()), "patch", "patches")
    summary = f"{patches} of {count(len(tiled) - len(failures), 'slide')} in {job.out / 'patches'}"
    return Outcome.of_slides(failures, summary, details=details)


def _held(out: Path) -> AbstractContextManager[None]:
    from wsi_ips.storage.held_folder import held
    from wsi_ips.tiling.kept_coords import TABLE

    below = (out / "patches", out / "contours_geojson", out / "previews")
    return held(out, below=below, undo=(out / TABLE,), results="patches/*.h5")


def _tile_all(
    folder: "TilingFolder",
    slides: Sequence["SlideToTile"],
    in_hand: "SlidesInHand",
    progress: Progress,
    *,
    pool: "ProcessPoolExecutor | None",
    job: TileJob,
) -> dict[str, "TiledSlide"]:
    """{slide_id: what became of it}. Slides that an earlier start died of come last, and alone."""
    from wsi_ips.inference.slide_rows import SlideRows
    from wsi_ips.tiling.kept_coords import COLUMNS, TABLE
    from wsi_ips.timeline import working

    tiled: dict[str, TiledSlide] = {}
    names = [slide.slide_id for slide in slides]
    rows = SlideRows(
        folder.root / TABLE, COLUMNS, names, is_there=lambda slide_id: folder.coords(slide_id).is_file()
    )
    with (
        rows as table,
        progress("Tiling", total=len(slides)) as advance,
        closing(_results(folder, slides, in_hand, pool=pool, job=job)) as results,
    ):
        for slide, done in results:
            if not done.was_there:
                working()
            if done.raised is not None and slide.path == folder.alone:
                raise done.raised
            tiled[slide.slide_id] = done
            status = "failed" if done.error else "ok"
            table.add(slide.slide_id, [done.n_patches, status, one_line(done.error), done.note])
            advance(slide.slide_id)
    return tiled


def _results(
    folder: "TilingFolder",
    slides: Sequence["SlideToTile"],
    in_hand: "SlidesInHand",
    *,
    pool: "ProcessPoolExecutor | None",
    job: TileJob,
) -> "_EachTiled":
    """Each slide with what became of it. To be closed: it holds processes, or a connection to a cluster."""
    if job.scheduler is not None:
        yield from _tiled_on(job.scheduler, folder, slides, in_hand)
        return
    others, suspects = in_hand.apart(slides, lambda slide: slide.slide_id)
    yield from _tiled(folder, others, in_hand, workers=job.workers, pool=pool)
    yield from _tiled_alone(folder, suspects, in_hand)


def _tiled(
    folder: "TilingFolder",
    slides: Sequence["SlideToTile"],
    in_hand: "SlidesInHand",
    *,
    workers: int,
    pool: "ProcessPoolExecutor | None",
) -> "_EachTiled":
    """Each slide with what became of it, in the order in which they are done."""
    from wsi_ips.inference.in_hand import Died
    from wsi_ips.inference.shared_out import shared_out
    from wsi_ips.tiling.patches import tile_one

    workers = min(workers, len(slides))
    if workers <= 1:
        for slide in slides:
            done = tile_one(folder, slide, begin=in_hand.begin)
            in_hand.end(slide.slide_id)
            yield slide, done
        return
    with closing(shared_out(partial(tile_one, folder), slides, workers=workers, pool=pool)) as results:
        for slide, result in results:
            if isinstance(result, Died):
                yield slide, _killed(folder, slide, in_hand.killed(slide.slide_id, slide.path, result))
            else:
                yield slide, result


def _tiled_on(
    scheduler: str, folder: "TilingFolder", slides: Sequence["SlideToTile"], in_hand: "SlidesInHand"
) -> "_EachTiled":
    """The same by the workers of a dask scheduler; suspects come last, each when nobody else is at work."""
    from wsi_ips.inference.cluster import shared_on_cluster
    from wsi_ips.tiling.patches import TiledSlide

    batch = WorkersConfig(scheduler=scheduler)
    with closing(shared_on_cluster(slides, TilingTask(folder), batch, in_hand=in_hand)) as results:
        for slide, result in results:
            yield slide, result if isinstance(result, TiledSlide) else _killed(folder, slide, result)


@dataclass(frozen=True, slots=True)
class TilingTask:
    """What workers do to each slide, see :class:`wsi_ips.inference.slide_tasks.SlideTask`."""

    folder: "TilingFolder"

    def on_worker(self, place: int) -> "TilingTask":
        """The same on every worker that sees the folder. Raises :class:`ResultsError` on one that does not."""
        from wsi_ips.inference.slide_tasks import check_shared

        check_shared(self.folder.root, self.folder.root)
        return self

    def work(self, slide: "SlideToTile") -> "TiledSlide":
        """Tile a slide; an error of the slide is in the result."""
        from wsi_ips.slides.base import failure_in_words
        from wsi_ips.tiling.patches import tile_one

        done = tile_one(self.folder, slide)
        if done.raised is None or isinstance(done.raised, WsiIpsError):
            return done
        # Libraries' errors may hold what cannot be sent back.
        return replace(done, raised=SlideFailed(failure_in_words(slide.slide_id, done.raised)))


def _tiled_alone(
    folder: "TilingFolder", slides: Sequence["SlideToTile"], in_hand: "SlidesInHand"
) -> "_EachTiled":
    """The same, each in a process of its own."""
    from wsi_ips.tiling.patches import tile_one

    for slide in slides:
        try:
            yield slide, in_hand.alone(slide.slide_id, slide.path, partial(tile_one, folder), slide)
        except ProcessDied as error:
            yield slide, _killed(folder, slide, error)


def _killed(folder: "TilingFolder", slide: "SlideToTile", error: WsiIpsError) -> "TiledSlide":
    from wsi_ips.tiling.patches import TiledSlide, forget_stale

    forget_stale(folder, slide)
    return TiledSlide.failed(slide, str(error), error)
