"""``tile``: tissue, patch coordinates and contours; no model."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import chain
from pathlib import Path

from wsi_ips.commands.inputs import given_mpp, slides_by_id
from wsi_ips.commands.outcome import Outcome
from wsi_ips.commands.shared_out import shared_out
from wsi_ips.commands.slide_rows import SlideRows
from wsi_ips.commands.tile_slide import SlideToTile, TiledSlide, forget_stale, tile_one
from wsi_ips.errors import ConfigError, ProcessDied, one_line
from wsi_ips.inference.in_hand import Died, SlidesInHand
from wsi_ips.progress import Progress
from wsi_ips.recipe import TileJob
from wsi_ips.storage.held_folder import held

TABLE = "tiles.csv"
COLUMNS = ("n_patches", "status", "error", "note")


def tile(job: TileJob, progress: Progress) -> Outcome:
    """Write ``patches/*.h5``, ``contours_geojson/*.geojson`` (unless contours are given) and ``tiles.csv``;
    with ``mask_preview`` ``previews/*.jpg``, also of slides without tissue.

    A slide whose stored coordinates were made from the same file and settings is left alone, so that a run that
    was killed goes on; a slide that it died of is tried once more in a process of its own. In a folder a bad slide
    becomes a row, whatever it raised; a slide given by itself raises. Raises :class:`ResultsError` while another
    process writes into the folder.
    """
    if job.contours is not None and not job.contours.is_dir():
        raise ConfigError(f"--contours {job.contours}: no such folder")
    locations = slides_by_id(job.slides)
    slide_mpp = given_mpp(job.slide_mpp, job.mpp_csv, locations)
    slides = [SlideToTile(slide_id, path, slide_mpp(slide_id)) for slide_id, path in locations.items()]
    with _held(job.out), SlidesInHand(job.out) as in_hand:
        tiled = _tile_all(job, slides, in_hand, progress)
    failures = [tiled[slide_id].error for slide_id in locations if tiled[slide_id].error]
    kept = sum(done.was_there for done in tiled.values())
    details = [f"{kept} slides were tiled already, from the same files and settings"] if kept else []
    patches = sum(done.n_patches for done in tiled.values())
    summary = f"{patches} patches of {len(tiled) - len(failures)} slides in {job.out / 'patches'}"
    return Outcome.of_slides(failures, summary, details=details)


def _held(out: Path) -> AbstractContextManager[None]:
    below = (out / "patches", out / "contours_geojson", out / "previews")
    return held(out, below=below, undo=(out / TABLE,), results="patches/*.h5")


def _tile_all(
    job: TileJob, slides: Sequence[SlideToTile], in_hand: SlidesInHand, progress: Progress
) -> dict[str, TiledSlide]:
    """{slide_id: what became of it}. Slides that an earlier start died of come last, and alone."""
    tiled: dict[str, TiledSlide] = {}
    table = SlideRows(job.out / TABLE, COLUMNS, [slide.slide_id for slide in slides])
    others, suspects = in_hand.apart(slides, lambda slide: slide.slide_id)
    with progress("Tiling", total=len(slides)) as advance:
        for slide, done in chain(_tiled(job, others, in_hand), _tiled_alone(job, suspects, in_hand)):
            if done.raised is not None and slide.path == job.slides:
                raise done.raised
            tiled[slide.slide_id] = done
            status = "failed" if done.error else "ok"
            table.add(slide.slide_id, [done.n_patches, status, one_line(done.error), done.note])
            advance(slide.slide_id)
    return tiled


def _tiled(
    job: TileJob, slides: Sequence[SlideToTile], in_hand: SlidesInHand
) -> Iterator[tuple[SlideToTile, TiledSlide]]:
    """Each slide with what became of it, in the order in which they are done."""
    workers = min(job.workers, len(slides))
    if workers <= 1:
        for slide in slides:
            done = tile_one(job, slide, begin=in_hand.begin)
            in_hand.end(slide.slide_id)
            yield slide, done
        return
    for slide, result in shared_out(partial(tile_one, job), slides, workers=workers):
        if isinstance(result, Died):
            yield slide, _killed(job, slide, in_hand.killed(slide.slide_id, slide.path, result))
        else:
            yield slide, result


def _tiled_alone(
    job: TileJob, slides: Sequence[SlideToTile], in_hand: SlidesInHand
) -> Iterator[tuple[SlideToTile, TiledSlide]]:
    """The same, each in a process of its own."""
    for slide in slides:
        try:
            yield slide, in_hand.alone(slide.slide_id, slide.path, partial(tile_one, job), slide)
        except ProcessDied as error:
            yield slide, _killed(job, slide, error)


def _killed(job: TileJob, slide: SlideToTile, error: ProcessDied) -> TiledSlide:
    forget_stale(job, slide)
    return TiledSlide.failed(slide, str(error), error)
