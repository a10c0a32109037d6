"""``detect``: a detector over the patches that IPS kept of each slide, or over all of its tissue."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import nn

from wsi_ips.commands.options import Outcome
from wsi_ips.commands.slides import given_mpp, slides_by_id
from wsi_ips.config import TilingConfig
from wsi_ips.errors import ConfigError, count, one_line
from wsi_ips.heatmaps.maps import check_same_slide
from wsi_ips.inference.in_hand import SlidesInHand
from wsi_ips.inference.results import read_result
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.slide_rows import SlideRows
from wsi_ips.inference.slide_work import SlideJob, reason, unreadable
from wsi_ips.nuclei.command import DetectJob
from wsi_ips.nuclei.config import DetectorConfig
from wsi_ips.nuclei.detect import detect_in_slide
from wsi_ips.nuclei.found_files import write_found_csv, write_found_geojson
from wsi_ips.nuclei.models import load_detector, set_score_threshold
from wsi_ips.progress import Progress
from wsi_ips.slides.base import SlideReader, named
from wsi_ips.slides.registry import open_slide
from wsi_ips.storage.files import whole_file
from wsi_ips.storage.held_folder import held
from wsi_ips.streaming.device import calculating, pick_device
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.patches import PatchesInTissue, check_upsampling, enlarged_note, joined_notes
from wsi_ips.units import Mpp

COLUMNS = ("n_patches", "n_objects", "status", "error", "note")


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

    In a folder a bad slide becomes a row; a slide given by itself raises. A slide that an earlier start died of is
    tried once more in a process of its own. Raises :class:`CheckpointError` for what is no detector,
    :class:`ConfigError` for a run that is not there, and for outlines of a detector that finds boxes,
    :class:`ResultsError` while another process writes into the folder.
    """
    if job.run is not None and not (job.run / "attention").is_dir():
        raise ConfigError(f"--run {job.run}: holds no attention/; name the folder that predict wrote")
    slides = slides_by_id(job.slides)
    slide_mpp = given_mpp(job.slide_mpp, job.mpp_csv, slides)
    jobs = [SlideJob(slide_id, path, slide_mpp(slide_id)) for slide_id, path in slides.items()]
    detector = _Detector.of(job)
    objects, table = job.out / "objects", job.out / "detections.csv"
    written = SlideRows(
        table, COLUMNS, list(slides), is_there=lambda slide_id: _objects(job.out, slide_id, ".csv").is_file()
    )
    with (
        held(job.out, below=(objects,), undo=(table,), results="objects/*.csv"),
        SlidesInHand(job.out) as in_hand,
    ):
        rows = _detect_in_all(jobs, detector, in_hand, written, progress)
    done = [row for row in rows.values() if row.status == "ok"]
    return Outcome.of_slides(
        [rows[slide_id].error for slide_id in slides if rows[slide_id].error],
        f"{count(sum(row.n_found or 0 for row in done), 'object')} in "
        f"{count(sum(row.n_patches or 0 for row in done), 'patch', 'patches')} "
        f"of {len(done)} of {count(len(rows), 'slide')} in {job.out}",
    )


@dataclass(frozen=True, slots=True)
class _Detector:
    """A detector on its device. It is made from the job alone, the same in any process."""

    job: DetectJob
    module: nn.Module
    config: DetectorConfig
    device: torch.device

    @classmethod
    def of(cls, job: DetectJob) -> Self:
        module, config = load_detector(job.detector)
        if job.shape == "outline" and config.model != "mask_rcnn":
            raise ConfigError(
                f"--shape outline: {job.detector} finds boxes; train one with --model mask_rcnn"
            )
        if job.score_threshold is not None:
            config = config.model_copy(update={"score_threshold": job.score_threshold})
            set_score_threshold(module, job.score_threshold)
        device = pick_device(job.device)
        return cls(job, module.to(device).eval(), config, device)

    def find(self, slide_job: SlideJob) -> _Row:
        """Find a slide's objects and write them. What an earlier start wrote stays until all of it is whole."""
        slide_id, classes, job = slide_job.slide_id, self.config.classes, self.job
        with open_slide(slide_job.path) as slide:
            coords = _coords(slide, slide_job, job, Mpp(self.config.mpp))
            with calculating(deterministic=job.deterministic):
                found, bad_tiles = detect_in_slide(
                    self.module, slide, coords, self.config, streaming=job.streaming, device=self.device
                )
            table, outlines = (_objects(job.out, slide_id, suffix) for suffix in (".csv", ".geojson"))
            shape = job.shape or ("box" if found.l0_outlines_N is None else "outline")
            with whole_file(outlines) as new_outlines, whole_file(table) as new_table:
                write_found_csv(new_table, found, classes=classes)
                write_found_geojson(
                    new_outlines, found, slide.info, slide_id=slide_id, classes=classes, shape=shape
                )
                # Old outlines never lie beside a new table, whenever the process dies.
                outlines.unlink(missing_ok=True)
        error = unreadable(slide_id, bad_tiles) if bad_tiles else ""
        enlarged = enlarged_note(slide_mpp=coords.slide_mpp, patch_mpp=Mpp(self.config.mpp))
        note = joined_notes(enlarged, coords.note)
        return _Row(slide_id, len(coords), len(found), "ok", error, note)


def _detect_in_all(
    slides: Sequence[SlideJob],
    detector: _Detector,
    in_hand: SlidesInHand,
    table: SlideRows,
    progress: Progress,
) -> dict[str, _Row]:
    """{slide_id: what became of it}. Slides that an earlier start died of come last, and alone."""
    rows: dict[str, _Row] = {}
    others, suspects = in_hand.apart(slides, lambda slide: slide.slide_id)
    with table, progress("Detecting", total=len(slides)) as advance:
        for slide in (*others, *suspects):
            slide_id = slide.slide_id
            try:
                if in_hand.suspected(slide_id):
                    row = in_hand.alone(slide_id, slide.path, _find_alone, (detector.job, slide))
                else:
                    in_hand.begin(slide_id)
                    row = detector.find(slide)
            except Exception as error:  # whatever a decoder may raise is this slide's failure, not the run's
                _forget(detector.job.out, slide_id)
                if slide.path == detector.job.slides:
                    raise
                row = _Row(slide_id, None, None, "failed", named(slide_id, reason(slide, error)))
            rows[slide_id] = row
            table.add(slide_id, [row.n_patches, row.n_found, row.status, one_line(row.error), row.note])
            if not in_hand.suspected(slide_id):
                in_hand.end(slide_id)
            advance(f"{slide_id}: {row.status}")
    return rows


def _find_alone(task: tuple[DetectJob, SlideJob]) -> _Row:
    job, slide = task
    return _Detector.of(job).find(slide)


def _coords(slide: SlideReader, slide_job: SlideJob, job: DetectJob, mpp: Mpp) -> PatchCoords:
    """The patches that the run kept of this slide; without a run, those of its tissue."""
    if job.run is None:
        tiling = TilingConfig(patch_px=job.patch_px, patch_mpp=mpp, min_tissue=job.min_tissue)
        return PatchesInTissue(job.tiling.added_to(tiling))(
            slide, slide_id=slide_job.slide_id, mpp=slide_job.mpp
        )
    result = read_result(RunFolder(job.run).attention(slide_job.slide_id))
    check_same_slide(slide, result)
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
