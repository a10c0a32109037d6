"""``tile``: tissue, patch coordinates and contours; no model."""

import csv
from pathlib import Path

from wsi_ips.commands.inputs import given_mpp, slides_by_id
from wsi_ips.commands.outcome import Outcome
from wsi_ips.errors import ConfigError, WsiIpsError
from wsi_ips.files import sweep, whole_file
from wsi_ips.heatmaps.tissue_preview import write_preview
from wsi_ips.location import Location
from wsi_ips.progress import Progress
from wsi_ips.recipe import TileJob
from wsi_ips.slides.base import SlideInfo
from wsi_ips.slides.registry import open_slide
from wsi_ips.slides.resolution import SlideMpp
from wsi_ips.tiling.contour_tissue import ContourFolder, outlined_tissue
from wsi_ips.tiling.contours import tissue_contours, write_geojson
from wsi_ips.tiling.coords import write_coords
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.no_patches import no_patches
from wsi_ips.tiling.tile import tile_slide
from wsi_ips.tiling.tissue import TissueMask
from wsi_ips.tiling.upsampling import upsampling_note
from wsi_ips.units import Mpp


def tile(job: TileJob, progress: Progress) -> Outcome:
    """Write ``patches/*.h5``, ``contours_geojson/*.geojson`` (unless contours are given) and ``tiles.csv``;
    with ``mask_preview`` ``previews/*.jpg``, also of slides without tissue.

    In a folder a bad slide becomes a row; a slide given by itself raises.
    """
    if job.contours is not None and not job.contours.is_dir():
        raise ConfigError(f"--contours {job.contours}: no such folder")
    slides = slides_by_id(job.slides)
    slide_mpp = given_mpp(job.slide_mpp, job.mpp_csv, slides)
    for folder in (job.out, job.out / "patches", job.out / "contours_geojson", job.out / "previews"):
        sweep(folder)
    rows: list[tuple[str, int, str, str, str]] = []
    with progress("Tiling", total=len(slides)) as advance:
        for slide_id, path in slides.items():
            try:
                _forget(job, slide_id)
                coords = _tile_one(job, slide_id, path, slide_mpp)
                rows.append((slide_id, len(coords), "ok", "", upsampling_note(coords)))
            except WsiIpsError as error:
                if path == job.slides:
                    raise
                rows.append((slide_id, 0, "failed", str(error), ""))
            advance(slide_id)
    with (
        whole_file(job.out / "tiles.csv") as partial,
        partial.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["slide_id", "n_patches", "status", "error", "note"])
        writer.writerows(rows)
    failures = [error for _, _, status, error, _ in rows if status == "failed"]
    patches = sum(n for _, n, *_ in rows)
    return Outcome.of_slides(
        failures, f"{patches} patches of {len(rows) - len(failures)} slides in {job.out / 'patches'}"
    )


def _coords_path(job: TileJob, slide_id: str) -> Path:
    return job.out / "patches" / (f"{slide_id}.h5" if job.layout == "clam" else f"{slide_id}_patches.h5")


def _preview_path(job: TileJob, slide_id: str) -> Path:
    return job.out / "previews" / f"{slide_id}.jpg"


def _forget(job: TileJob, slide_id: str) -> None:
    """No coordinates of an earlier run beside a failure of this one: ``--from-coords`` would believe them."""
    _coords_path(job, slide_id).unlink(missing_ok=True)
    (job.out / "contours_geojson" / f"{slide_id}.geojson").unlink(missing_ok=True)
    _preview_path(job, slide_id).unlink(missing_ok=True)


def _tile_one(job: TileJob, slide_id: str, path: Location, slide_mpp: SlideMpp) -> PatchCoords:
    with open_slide(path) as slide:
        mpp, info = slide_mpp(slide_id), slide.info
        given = None if job.contours is None else _given_tissue(job.contours, job, slide_id, info, mpp)
        coords, mask = tile_slide(slide, job.tiling, slide_id=slide_id, mpp=mpp, mask=given)
        contours = tissue_contours(mask) if given is None or job.mask_preview else []
        if job.mask_preview:
            # Before anything is said of missing tissue: then it is needed most.
            write_preview(_preview_path(job, slide_id), slide, coords, mask, contours)
    if not len(coords):
        raise no_patches(path, coords, mask, job.tiling)
    write_coords(_coords_path(job, slide_id), coords, layout=job.layout, info=info)
    if given is None:
        write_geojson(job.out / "contours_geojson" / f"{slide_id}.geojson", contours)
    return coords


def _given_tissue(folder: Path, job: TileJob, slide_id: str, info: SlideInfo, mpp: Mpp | None) -> TissueMask:
    return outlined_tissue(
        ContourFolder(folder).polygons(slide_id, l0_size=info.l0_size),
        l0_size=info.l0_size,
        slide_mpp=mpp or info.known_mpp(),
        thumbnail_mpp=job.tiling.tissue.thumbnail_mpp,
    )
