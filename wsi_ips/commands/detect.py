"""``detect``: a detector over the patches that IPS kept of each slide, or over all of its tissue."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from wsi_ips.commands.inputs import given_mpp, slides_by_id
from wsi_ips.commands.outcome import Outcome
from wsi_ips.config import DetectorConfig, TilingConfig
from wsi_ips.errors import ConfigError, one_line
from wsi_ips.files import sweep, whole_table
from wsi_ips.heatmaps.maps import check_same_slide
from wsi_ips.inference.detect import detect_in_slide
from wsi_ips.inference.found_files import write_found_csv, write_found_geojson
from wsi_ips.inference.results import read_result
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.slide_work import SlideJob, reason, unreadable
from wsi_ips.models.detection.build import set_score_threshold
from wsi_ips.models.detection.checkpoint import load_detector
from wsi_ips.progress import Progress
from wsi_ips.recipe import DetectJob
from wsi_ips.slides.base import SlideReader
from wsi_ips.slides.failures import named
from wsi_ips.slides.registry import open_slide
from wsi_ips.streaming.device import pick_device
from wsi_ips.streaming.numerics import calculating
from wsi_ips.tiling.find_patches import PatchesInTissue
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.upsampling import check_upsampling, note_of
from wsi_ips.units import Mpp


@dataclass(frozen=True, slots=True)
class _Detector:
    module: nn.Module
    config: DetectorConfig
    device: torch.device


@dataclass(frozen=True, slots=True)
class _Row:
    slide_id: str
    n_patches: int | None
    n_found: int | None
    status: str
    error: str = ""
    note: str = ""


def detect(job: DetectJob, progress: Progress) -> Outcome:
    """Write ``objects/<slide_id>.csv`` and ``.geojson`` of every slide, and ``detections.csv``.

    In a folder a bad slide becomes a row; a slide given by itself raises. Raises :class:`CheckpointError` for
    what is no detector, :class:`ConfigError` for a run that is not there, and for outlines of a detector that
    finds boxes.
    """
    if job.run is not None and not (job.run / "attention").is_dir():
        raise ConfigError(f"--run {job.run}: holds no attention/; name the folder that predict wrote")
    slides = slides_by_id(job.slides)
    slide_mpp = given_mpp(job.slide_mpp, job.mpp_csv, slides)
    module, config = load_detector(job.detector)
    if job.shape == "outline" and config.model != "mask_rcnn":
        raise ConfigError(f"--shape outline: {job.detector} finds boxes; train one with --model mask_rcnn")
    if job.score_threshold is not None:
        config = config.model_copy(update={"score_threshold": job.score_threshold})
        set_score_threshold(module, job.score_threshold)
    device = pick_device(job.device)
    detector = _Detector(module.to(device).eval(), config, device)
    sweep(job.out / "objects")
    rows: list[_Row] = []
    with progress("Detecting", total=len(slides)) as advance:
        for slide_id, path in slides.items():
            slide_job = SlideJob(slide_id, path, slide_mpp(slide_id))
            _forget(job.out, slide_id)
            try:
                with calculating(deterministic=job.deterministic):
                    row = _detect_one(slide_job, job, detector)
            except Exception as error:  # whatever a decoder may raise is this slide's failure, not the run's
                if path == job.slides:
                    raise
                row = _Row(slide_id, None, None, "failed", named(slide_id, reason(slide_job, error)))
            rows.append(row)
            _write_table(job.out / "detections.csv", rows)
            advance(f"{slide_id}: {row.status}")
    done = [row for row in rows if row.status == "ok"]
    return Outcome.of_slides(
        [row.error for row in rows if row.error],
        f"{sum(row.n_found or 0 for row in done)} objects in {sum(row.n_patches or 0 for row in done)} patches "
        f"of {len(done)} of {len(rows)} slides in {job.out}",
    )


def _detect_one(slide_job: SlideJob, job: DetectJob, detector: _Detector) -> _Row:
    slide_id, classes = slide_job.slide_id, detector.config.classes
    with open_slide(slide_job.path) as slide:
        coords = _coords(slide, slide_job, job, Mpp(detector.config.mpp))
        found, bad_tiles = detect_in_slide(
            detector.module,
            slide,
            coords,
            detector.config,
            streaming=job.streaming,
            device=detector.device,
        )
        write_found_csv(_objects(job.out, slide_id, ".csv"), found, classes=classes)
        path = _objects(job.out, slide_id, ".geojson")
        shape = job.shape or ("box" if found.l0_outlines_N is None else "outline")
        write_found_geojson(path, found, slide.info, slide_id=slide_id, classes=classes, shape=shape)
    error = unreadable(slide_id, bad_tiles) if bad_tiles else ""
    note = note_of(slide_mpp=coords.slide_mpp, patch_mpp=Mpp(detector.config.mpp))
    return _Row(slide_id, len(coords), len(found), "ok", error, note)


def _coords(slide: SlideReader, slide_job: SlideJob, job: DetectJob, mpp: Mpp) -> PatchCoords:
    """The patches that the run kept of this slide; without a run, those of its tissue."""
    if job.run is None:
        tiling = TilingConfig(patch_px=job.patch_px, patch_mpp=mpp, min_tissue=job.min_tissue)
        return PatchesInTissue(job.tiling.added_to(tiling))(
            slide, slide_id=slide_job.slide_id, mpp=slide_job.mpp
        )
    result = read_result(RunFolder(job.run).attention(slide_job.slide_id))
    check_same_slide(slide, result.coords)
    check_upsampling(
        slide.info.path,
        slide_mpp=result.coords.slide_mpp,
        patch_mpp=mpp,
        allowed=job.tiling.allow_upsampling,
    )
    return result.coords.only(np.sort(result.kept_ids_M))


def _objects(out: Path, slide_id: str, suffix: str) -> Path:
    return out / "objects" / f"{slide_id}{suffix}"


def _forget(out: Path, slide_id: str) -> None:
    """No objects of an earlier start beside a failure of this one."""
    for suffix in (".csv", ".geojson"):
        _objects(out, slide_id, suffix).unlink(missing_ok=True)


def _write_table(path: Path, rows: list[_Row]) -> None:
    with whole_table(path) as writer:
        writer.writerow(["slide_id", "n_patches", "n_objects", "status", "error", "note"])
        for row in rows:
            counts = ["" if count is None else count for count in (row.n_patches, row.n_found)]
            writer.writerow([row.slide_id, *counts, row.status, one_line(row.error), row.note])
