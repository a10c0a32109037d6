"""``tile``: tissue, patch coordinates and contours; no model."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from wsi_ips.commands.inputs import given_mpp, slides_by_id
from wsi_ips.commands.outcome import Outcome
from wsi_ips.commands.shared_out import shared_out
from wsi_ips.commands.tile_slide import SlideToTile, TiledSlide, forget_stale, tile_one
from wsi_ips.errors import ConfigError, one_line
from wsi_ips.files import sweep, whole_table
from wsi_ips.progress import Progress
from wsi_ips.recipe import TileJob


def tile(job: TileJob, progress: Progress) -> Outcome:
    """Write ``patches/*.h5``, ``contours_geojson/*.geojson`` (unless contours are given) and ``tiles.csv``;
    with ``mask_preview`` ``previews/*.jpg``, also of slides without tissue.

    A slide whose stored coordinates were made from the same file and settings is left alone, so that a run that
    was killed goes on. In a folder a bad slide becomes a row, whatever it raised; a slide given by itself raises.
    """
    if job.contours is not None and not job.contours.is_dir():
        raise ConfigError(f"--contours {job.contours}: no such folder")
    locations = slides_by_id(job.slides)
    slide_mpp = given_mpp(job.slide_mpp, job.mpp_csv, locations)
    for folder in (job.out, job.out / "patches", job.out / "contours_geojson", job.out / "previews"):
        sweep(folder)
    slides = [SlideToTile(slide_id, path, slide_mpp(slide_id)) for slide_id, path in locations.items()]
    tiled: dict[str, TiledSlide] = {}
    with progress("Tiling", total=len(slides)) as advance:
        for slide, done in _tiled(job, slides):
            if done.raised is not None and slide.path == job.slides:
                raise done.raised
            tiled[slide.slide_id] = done
            advance(slide.slide_id)
    _write_table(job.out / "tiles.csv", tiled, list(locations))
    failures = [done.error for done in tiled.values() if done.error]
    kept = sum(done.was_there for done in tiled.values())
    details = [f"{kept} slides were tiled already, from the same files and settings"] if kept else []
    patches = sum(done.n_patches for done in tiled.values())
    summary = f"{patches} patches of {len(tiled) - len(failures)} slides in {job.out / 'patches'}"
    return Outcome.of_slides(failures, summary, details=details)


def _tiled(job: TileJob, slides: Sequence[SlideToTile]) -> Iterator[tuple[SlideToTile, TiledSlide]]:
    """Each slide with what became of it, in the order in which they are done."""
    workers = min(job.workers, len(slides))
    if workers == 1:
        yield from ((slide, tile_one(job, slide)) for slide in slides)
        return
    for slide, done in shared_out(partial(tile_one, job), slides, workers=workers):
        if done is None:
            forget_stale(job, slide)
            why = (
                "the process that tiled it died; was it memory? take fewer --workers, or leave the slide out"
            )
            done = TiledSlide.failed(slide, why)
        yield slide, done


def _write_table(path: Path, tiled: Mapping[str, TiledSlide], slide_ids: Sequence[str]) -> None:
    with whole_table(path) as writer:
        writer.writerow(["slide_id", "n_patches", "status", "error", "note"])
        for slide_id in slide_ids:
            done = tiled[slide_id]
            status = "failed" if done.error else "ok"
            writer.writerow([slide_id, done.n_patches, status, one_line(done.error), done.note])
