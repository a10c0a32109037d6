"""``features``: what an encoder makes of every patch, in CLAM's or TRIDENT's layout; nothing is learned."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wsi_ips.commands.inputs import given_mpp, slides_by_id, stored_patches
from wsi_ips.commands.outcome import Outcome
from wsi_ips.config import TilingConfig, UpsamplingConfig
from wsi_ips.errors import ConfigError, one_line
from wsi_ips.files import whole_table
from wsi_ips.inference.feature_export import FeatureExport
from wsi_ips.inference.features_folder import FeaturesFolder
from wsi_ips.inference.made_from import MadeFrom
from wsi_ips.inference.slide_work import SlideJob, reason, unreadable
from wsi_ips.models.checkpoint import checkpoint_sha256, load_checkpoint
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.progress import Progress
from wsi_ips.recipe import FeaturesJob
from wsi_ips.slides.failures import named
from wsi_ips.slides.registry import open_slide
from wsi_ips.streaming.device import pick_device
from wsi_ips.streaming.numerics import calculating, numerics
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.tiling.find_patches import FindPatches, PatchesInTissue


@dataclass(frozen=True, slots=True)
class _Encoder:
    """An encoder with the tiling that it is given, and what tells it from others."""

    module: nn.Module
    width: int
    name: str
    tiling: TilingConfig
    settings: dict[str, Any]


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
    same settings finished are left alone.
    """
    slides = slides_by_id(job.slides)
    slide_mpp = given_mpp(job.slide_mpp, job.mpp_csv, slides)
    device = pick_device(job.device)
    encoder = _of_checkpoint(job.checkpoint, job) if job.checkpoint else _of_config(job)
    find: FindPatches = PatchesInTissue(encoder.tiling)
    if job.from_coords is not None:
        find = stored_patches(job.from_coords, encoder.tiling)
    folder = FeaturesFolder(job.out, job.layout, encoder.name)
    export = FeatureExport(
        encoder=encoder.module.to(device).eval(),
        width=encoder.width,
        name=encoder.name,
        folder=folder,
        half=job.half,
    )
    settings, how = _settings(job, encoder), numerics(deterministic=job.deterministic)
    rows: list[_Row] = []
    with folder.claimed(settings, numerics=how), progress("Encoding", total=len(slides)) as advance:
        for slide_id, path in slides.items():
            location = path.absolute() if isinstance(path, Path) else path
            slide = SlideJob(slide_id, location, slide_mpp(slide_id))
            try:
                with calculating(deterministic=job.deterministic):
                    row = _store_one(slide, job, export, find, progress)
            except Exception as error:  # whatever a decoder may raise is this slide's failure, not the run's
                if path == job.slides:
                    raise
                row = _Row(slide_id, None, "failed", named(slide_id, reason(slide, error)))
            rows.append(row)
            _write_table(folder.table, rows)
            advance(f"{slide_id}: {row.status}")
    stored = sum(row.status == "ok" for row in rows)
    patches = sum(row.n_patches or 0 for row in rows)
    return Outcome.of_slides(
        [row.error for row in rows if row.error],
        f"features of {patches} patches of {stored} of {len(rows)} slides in {folder.root}",
    )


def _settings(job: FeaturesJob, encoder: _Encoder) -> dict[str, Any]:
    """What decides over the features of a slide, as JSON."""
    return {
        **encoder.settings,
        # What is allowed changes no slide's features.
        "tiling": encoder.tiling.model_dump(mode="json", exclude={"allow_upsampling"}),
        **job.model_dump(mode="json", include={"layout", "half", "slide_mpp"}),
        "--from-coords": "given" if job.from_coords else "not given",
        "streaming": {"decode": job.streaming.decode},
        # Only where it is set, so that folders of earlier versions are gone on with.
        **({"deterministic": True} if job.deterministic else {}),
    }


def _store_one(
    slide_job: SlideJob, job: FeaturesJob, export: FeatureExport, find: FindPatches, progress: Progress
) -> _Row:
    slide_id = slide_job.slide_id
    now = MadeFrom.now(
        slide_job.path, slide_id=slide_id, mpp=slide_job.mpp, streaming=job.streaming, find_patches=find
    )
    stored = export.done(slide_id, slide_job.path, now)
    if stored is None:
        export.folder.forget(slide_id)
        with open_slide(slide_job.path) as slide:
            coords = find(slide, slide_id=slide_id, mpp=slide_job.mpp)
            stream = PatchStream(slide, coords, config=job.streaming, device=pick_device(job.device))
            stored = export.write(stream, coords, slide.info, made_from=now, progress=progress)
    error = unreadable(slide_id, stored.bad_tiles) if stored.bad_tiles else ""
    return _Row(slide_id, stored.n_patches, "ok", error, stored.note)


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
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", job.encoder.name.removeprefix("hf-hub:"))
    weights = Path(job.encoder.weights)
    # Another file under the same name is another encoder.
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None
    settings = {"encoder": job.encoder.model_dump(mode="json"), "weights_sha256": sha256}
    return _Encoder(encoder, encoder.dim, name, job.tiling or TilingConfig(), settings)


def _write_table(path: Path, rows: list[_Row]) -> None:
    with whole_table(path) as writer:
        writer.writerow(["slide_id", "n_patches", "status", "error", "note"])
        for row in rows:
            n_patches = "" if row.n_patches is None else row.n_patches
            writer.writerow([row.slide_id, n_patches, row.status, one_line(row.error), row.note])
