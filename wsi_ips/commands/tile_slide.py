"""One slide of ``tile``: what is stored of it, and when that is made anew."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from wsi_ips.errors import CoordsError
from wsi_ips.heatmaps.tissue_preview import write_preview
from wsi_ips.recipe import TileJob
from wsi_ips.slides.base import SlideInfo, failure_in_words, named
from wsi_ips.slides.registry import open_slide
from wsi_ips.storage.location import Location
from wsi_ips.tiling.contours import ContourFolder, outlined_tissue, tissue_contours, write_geojson
from wsi_ips.tiling.coords import TiledFrom, read_coords, stored_tiled_from, write_coords
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.patches import no_patches, tile_slide, upsampling_note
from wsi_ips.tiling.tissue import TissueMask
from wsi_ips.units import Mpp


@dataclass(frozen=True, slots=True)
class SlideToTile:
    """A slide, and its resolution where the user gave one."""

    slide_id: str
    path: Location
    mpp: Mpp | None


@dataclass(frozen=True, slots=True)
class TiledSlide:
    """What became of a slide.

    error: why it failed, else empty. raised: the exception itself, of a slide that was given alone. was_there: its
    coordinates were stored already.
    """

    n_patches: int
    error: str = ""
    note: str = ""
    was_there: bool = False
    raised: Exception | None = None

    @classmethod
    def failed(cls, slide: SlideToTile, why: str, raised: Exception | None = None) -> Self:
        return cls(0, named(slide.slide_id, why), raised=raised)


def tile_one(job: TileJob, slide: SlideToTile, *, begin: Callable[[str], None] | None = None) -> TiledSlide:
    """Tile a slide, unless that is done already. Whatever it raises is its own failure. ``begin`` is told the
    slide's id before it is read.

    What an earlier run stored stays until its successor is written. Only where the slide fails is it removed: else
    ``--from-coords`` would believe coordinates of other settings.
    """
    try:
        now = _tiled_from(job, slide)
        stored = _stored(job, slide, now)
        if stored is None and begin is not None:
            begin(slide.slide_id)
        coords = _tile(job, slide, now) if stored is None else stored
    except Exception as error:  # noqa: BLE001 - whatever a decoder may raise is this slide's failure
        forget_stale(job, slide)
        raised = error if slide.path == job.slides else None
        return TiledSlide.failed(slide, failure_in_words(slide.slide_id, error), raised)
    return TiledSlide(len(coords), note=upsampling_note(coords), was_there=stored is not None)


def forget_stale(job: TileJob, slide: SlideToTile) -> None:
    """Remove stored coordinates and contours, unless they are as they would be made today."""
    stored = stored_tiled_from(_coords_path(job, slide))
    try:
        same = stored is not None and stored.may_be_same(_tiled_from(job, slide))
    except Exception:  # noqa: BLE001 - nothing is known of a slide whose headers cannot even be looked at
        same = False
    if not same:
        _coords_path(job, slide).unlink(missing_ok=True)
        _forget_contours(job, slide)


def _forget_contours(job: TileJob, slide: SlideToTile) -> None:
    """Remove the contours of our own segmentation; never those that the user gave, which may lie in ``out``."""
    path = _contours_path(job, slide)
    given = None if job.contours is None else ContourFolder(job.contours).file_of(slide.slide_id)
    if given is None or given.resolve() != path.resolve():
        path.unlink(missing_ok=True)


def _tiled_from(job: TileJob, slide: SlideToTile) -> TiledFrom:
    outlines = None if job.contours is None else ContourFolder(job.contours).file_of(slide.slide_id)
    return TiledFrom.now(slide.path, mpp=slide.mpp, tiling=job.tiling, outlines=outlines)


def _stored(job: TileJob, slide: SlideToTile, now: TiledFrom) -> PatchCoords | None:
    """The coordinates that an earlier run made of the same; None where something has to be made."""
    if not all(path.is_file() for path in _files_wanted(job, slide)):
        return None
    before = stored_tiled_from(_coords_path(job, slide))
    if before is None or not before.is_same(now):
        return None
    try:
        return read_coords(_coords_path(job, slide))
    except CoordsError:
        return None


def _tile(job: TileJob, slide: SlideToTile, now: TiledFrom) -> PatchCoords:
    """Find the slide's patches and write all that belongs to it, the coordinates last."""
    with open_slide(slide.path) as opened:
        info = opened.info
        given = None if job.contours is None else _given_tissue(job.contours, job, slide, info)
        coords, mask = tile_slide(opened, job.tiling, slide_id=slide.slide_id, mpp=slide.mpp, mask=given)
        contours = tissue_contours(mask) if given is None or job.mask_preview else []
        if job.mask_preview:
            # Before anything is said of missing tissue: then it is needed most.
            write_preview(_preview_path(job, slide), opened, coords, mask, contours)
        else:
            _preview_path(job, slide).unlink(missing_ok=True)  # it shows another mask
    if not len(coords):
        raise no_patches(slide.path, coords, mask, job.tiling)
    if given is None:
        write_geojson(_contours_path(job, slide), contours)
    write_coords(_coords_path(job, slide), coords, layout=job.layout, info=info, made_from=now)
    if given is not None:
        _forget_contours(job, slide)
    return coords


def _files_wanted(job: TileJob, slide: SlideToTile) -> Iterator[Path]:
    yield _coords_path(job, slide)
    if job.contours is None:
        yield _contours_path(job, slide)
    if job.mask_preview:
        yield _preview_path(job, slide)


def _coords_path(job: TileJob, slide: SlideToTile) -> Path:
    end = ".h5" if job.layout == "clam" else "_patches.h5"
    return job.out / "patches" / f"{slide.slide_id}{end}"


def _contours_path(job: TileJob, slide: SlideToTile) -> Path:
    return job.out / "contours_geojson" / f"{slide.slide_id}.geojson"


def _preview_path(job: TileJob, slide: SlideToTile) -> Path:
    return job.out / "previews" / f"{slide.slide_id}.jpg"


def _given_tissue(folder: Path, job: TileJob, slide: SlideToTile, info: SlideInfo) -> TissueMask:
    return outlined_tissue(
        ContourFolder(folder).polygons(slide.slide_id, l0_size=info.l0_size),
        l0_size=info.l0_size,
        slide_mpp=slide.mpp or info.known_mpp(),
        thumbnail_mpp=job.tiling.tissue.thumbnail_mpp,
    )
