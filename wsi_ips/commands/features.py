"""``features``: what an encoder makes of every patch, in CLAM's or TRIDENT's layout; nothing is learned."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from wsi_ips.commands.inputs import given_mpp, slides_by_id, stored_patches
from wsi_ips.commands.outcome import Outcome
from wsi_ips.commands.slide_rows import SlideRows
from wsi_ips.config import EncoderConfig, TilingConfig, TransformConfig, UpsamplingConfig
from wsi_ips.errors import ConfigError, ProcessDied, one_line
from wsi_ips.inference.feature_export import FeatureExport, FeaturesFolder, StoredFeatures
from wsi_ips.inference.in_hand import SlidesInHand
from wsi_ips.inference.made_from import MadeFrom
from wsi_ips.inference.slide_work import SlideJob, reason, unreadable
from wsi_ips.models.checkpoint import checkpoint_sha256, load_checkpoint
from wsi_ips.models.encoders.fitting import fitting_tiling
from wsi_ips.models.encoders.registry import code_file, entry_of
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.models.encoders.weights import fingerprint_of_weights, weights_file
from wsi_ips.progress import Progress, silent
from wsi_ips.recipe import FeaturesJob
from wsi_ips.slides.base import named
from wsi_ips.slides.registry import open_slide
from wsi_ips.streaming.device import calculating, numerics, pick_device
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.tiling.patches import FindPatches, PatchesInTissue

COLUMNS = ("n_patches", "status", "error", "note")


@dataclass(frozen=True, slots=True)
class _Encoder:
    """An encoder with the tiling that it is given, and what tells it from others."""

    module: nn.Module
    width: int
    name: str
    tiling: TilingConfig
    settings: dict[str, Any]
    stored_px: bool = False
    """Patches that somebody laid out keep their own pixels, and the encoder resizes them."""


@dataclass(frozen=True, slots=True)
class _Row:
    slide_id: str
    n_patches: int | None
    status: str
    error: str = ""
    note: str = ""


def store_features(job: FeaturesJob, progress: Progress) -> Outcome:
    """Write every slide's features, ``features.csv`` and ``run.json``.

    In a folder a bad slide becomes a row; a slide given by itself raises. Slides that an earlier start with the
    same settings finished are left alone, and one that it died of is tried once more in a process of its own.
    """
    slides = slides_by_id(job.slides)
    slide_mpp = given_mpp(job.slide_mpp, job.mpp_csv, slides)
    storing = _Storing.of(job)
    jobs = [
        SlideJob(slide_id, path.absolute() if isinstance(path, Path) else path, slide_mpp(slide_id))
        for slide_id, path in slides.items()
    ]
    alone = list(slides.values()) == [job.slides]
    folder = storing.export.folder
    how = numerics(deterministic=job.deterministic)
    with folder.claimed(storing.settings, numerics=how), SlidesInHand(folder.root) as in_hand:
        rows = _store_all(jobs, storing, in_hand, progress, raises=alone)
    stored = sum(row.status == "ok" for row in rows.values())
    patches = sum(row.n_patches or 0 for row in rows.values())
    return Outcome.of_slides(
        [rows[slide_id].error for slide_id in slides if rows[slide_id].error],
        f"features of {patches} patches of {stored} of {len(rows)} slides in {folder.root}",
    )


@dataclass(frozen=True, slots=True)
class _Storing:
    """All that it takes to store a slide's features. It is made from the job alone, the same in any process."""

    job: FeaturesJob
    export: FeatureExport
    find: FindPatches
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, job: FeaturesJob) -> Self:
        """Raises :class:`ConfigError`, :class:`CheckpointError`."""
        device = pick_device(job.device)
        encoder = _of_checkpoint(job.checkpoint, job) if job.checkpoint else _of_config(job)
        find: FindPatches = PatchesInTissue(encoder.tiling)
        if job.from_coords is not None:
            find = stored_patches(job.from_coords, encoder.tiling, own_px=encoder.stored_px)
        export = FeatureExport(
            encoder=encoder.module.to(device).eval(),
            width=encoder.width,
            name=encoder.name,
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
        return cls(job, export, find, settings)

    def store(
        self, slide: SlideJob, *, begin: Callable[[str], None] | None = None, progress: Progress = silent
    ) -> _Row:
        """Store a slide's features, unless that is done already. ``begin`` is told the slide's id before it is
        read. What an earlier start stored stays until its successor is whole; where the slide fails it goes."""
        now = self._made_from(slide)
        stored = self.export.done(slide.slide_id, slide.path, now)
        if stored is None:
            if begin is not None:
                begin(slide.slide_id)
            try:
                with calculating(deterministic=self.job.deterministic):
                    stored = self._make(slide, now, progress)
            except Exception:
                self.export.forget(slide.slide_id)
                raise
        error = unreadable(slide.slide_id, stored.bad_tiles) if stored.bad_tiles else ""
        return _Row(slide.slide_id, stored.n_patches, "ok", error, stored.note)

    def forget_stale(self, slide: SlideJob) -> None:
        """Remove stored features of a slide that has failed, unless they are as they would be made today."""
        if self.export.done(slide.slide_id, slide.path, self._made_from(slide)) is None:
            self.export.forget(slide.slide_id)

    def _make(self, slide_job: SlideJob, now: MadeFrom, progress: Progress) -> StoredFeatures:
        with open_slide(slide_job.path) as slide:
            coords = self.find(slide, slide_id=slide_job.slide_id, mpp=slide_job.mpp)
            stream = PatchStream(
                slide, coords, config=self.job.streaming, device=pick_device(self.job.device)
            )
            return self.export.write(stream, coords, slide.info, made_from=now, progress=progress)

    def _made_from(self, slide: SlideJob) -> MadeFrom:
        return MadeFrom.now(
            slide.path,
            slide_id=slide.slide_id,
            mpp=slide.mpp,
            streaming=self.job.streaming,
            find_patches=self.find,
        )


def _store_all(
    slides: Sequence[SlideJob], storing: _Storing, in_hand: SlidesInHand, progress: Progress, *, raises: bool
) -> dict[str, _Row]:
    """{slide_id: what became of it}. Slides that an earlier start died of come last, and alone. raises: a slide's
    error is the command's."""
    rows: dict[str, _Row] = {}
    table = SlideRows(storing.export.folder.table, COLUMNS, [slide.slide_id for slide in slides])
    others, suspects = in_hand.apart(slides, lambda slide: slide.slide_id)
    with progress("Encoding", total=len(slides)) as advance:
        for slide in (*others, *suspects):
            slide_id = slide.slide_id
            try:
                if in_hand.suspected(slide_id):
                    row = _alone(slide, storing, in_hand)
                else:
                    row = storing.store(slide, begin=in_hand.begin, progress=progress)
            except Exception as error:  # whatever a decoder may raise is this slide's failure, not the run's
                if raises:
                    raise
                row = _Row(slide_id, None, "failed", named(slide_id, reason(slide, error)))
            rows[slide_id] = row
            table.add(slide_id, [row.n_patches, row.status, one_line(row.error), row.note])
            if not in_hand.suspected(slide_id):
                in_hand.end(slide_id)
            advance(f"{slide_id}: {row.status}")
    return rows


def _alone(slide: SlideJob, storing: _Storing, in_hand: SlidesInHand) -> _Row:
    """Store the features of a slide that may kill whoever reads it."""
    try:
        return in_hand.alone(slide.slide_id, slide.path, _store_one, (storing.job, slide))
    except ProcessDied:
        storing.forget_stale(slide)
        raise


def _store_one(task: tuple[FeaturesJob, SlideJob]) -> _Row:
    job, slide = task
    return _Storing.of(job).store(slide)


def _of_checkpoint(path: Path, job: FeaturesJob) -> _Encoder:
    net, pipeline = load_checkpoint(path)
    if not isinstance(net.encoder, TimmEncoder):
        raise ConfigError(f"{path}: reads stored features, it has no encoder of its own")
    sha256 = checkpoint_sha256(path)
    allowed = UpsamplingConfig(allow_upsampling=job.tiling is not None and job.tiling.allow_upsampling)
    tiling = allowed.added_to(pipeline.tiling)
    return _Encoder(net.encoder, net.encoder.dim, f"wsi_ips_{sha256[:12]}", tiling, {"checkpoint": sha256})


def _of_config(job: FeaturesJob) -> _Encoder:
    assert job.encoder is not None  # the job sees to it
    with torch.random.fork_rng(devices=[]):
        # Random weights (``weights: none``) are the same whenever the command is started.
        torch.manual_seed(0)
        encoder = TimmEncoder(job.encoder)
    code = code_file(job.encoder.name)
    shown = job.encoder.name if code is None else f"{code.stem}_{job.encoder.name.rpartition(':')[2]}"
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", shown.removeprefix("hf-hub:"))
    weights = weights_file(job.encoder)
    # Another file under the same name is another encoder.
    sha256 = fingerprint_of_weights(weights) if weights else None
    settings = {"encoder": job.encoder.model_dump(mode="json"), "weights_sha256": sha256}
    if entry := entry_of(job.encoder.name):
        # What a name stands for may be corrected in a later version: then these are other features.
        settings["listed"] = {
            "transform": entry.transform.model_dump(mode="json"),
            "output": entry.output,
            "mean": list(entry.mean),
            "std": list(entry.std),
        }
    if code is not None:
        settings["code_sha256"] = fingerprint_of_weights(code)
    given = job.tiling or TilingConfig()
    stored_px = _resizes(job.encoder) and job.from_coords is not None and not _sizes_set(given)
    if stored_px:
        return _Encoder(
            encoder, encoder.dim, name, given, {**settings, "patches": "as stored"}, stored_px=True
        )
    return _Encoder(encoder, encoder.dim, name, fitting_tiling(given, job.encoder), settings)


def _resizes(encoder: EncoderConfig) -> bool:
    """Whether the encoder takes patches of any size, as its authors' transform does."""
    own = encoder.transform == "own" and entry_of(encoder.name) is not None
    return own or isinstance(encoder.transform, TransformConfig)


def _sizes_set(tiling: TilingConfig) -> bool:
    return bool(tiling.model_fields_set & {"patch_px", "patch_mpp"})
