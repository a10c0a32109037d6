"""The whole package on slides that it draws itself: :func:`run_demo`."""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.annotations import lesion_area
from wsi_ips.datasets.manifest import SlideRecord, read_manifest
from wsi_ips.drawn.config import DemoConfig
from wsi_ips.drawn.synthetic import make_camelyon_like
from wsi_ips.errors import ResultsError
from wsi_ips.evaluation.slide_level import (
    attention_auc_or_nan,
    auc_or_nan,
    lesion_share_of_patches,
    mean_defined,
)
from wsi_ips.heatmaps.overlay import write_overlay
from wsi_ips.inference.label import predict_slides
from wsi_ips.inference.predict import Predictor
from wsi_ips.inference.results import SlideResult, read_result
from wsi_ips.inference.run_folder import RunFolder, describe_run
from wsi_ips.inference.slide_work import SlideJob
from wsi_ips.models.checkpoint import checkpoint_sha256, load_checkpoint
from wsi_ips.progress import Progress, silent
from wsi_ips.report.run_summary import write_summary
from wsi_ips.report.stored_run import run_of_tables
from wsi_ips.slides.registry import open_slide
from wsi_ips.slides.resolution import SlideMpp
from wsi_ips.storage.files import whole_file
from wsi_ips.training.fit import finetune
from wsi_ips.training.run_state import forget_run


@dataclass(frozen=True, slots=True)
class DemoScore:
    """The demo's results.

    Attributes:
        slide_auc: The AUC over the held-out slides. None if all of them have the same label.
        patch_auc: How well attention ranks lesion patches above normal tissue in the held-out tumour slides. None
            if no such slide has both a patch that is at least half lesion and one without any.
        seconds: The duration of the whole demo.
        slides: The number of held-out slides.
        patches_per_second: The speed of prediction.
    """

    slide_auc: float | None
    patch_auc: float | None
    seconds: float
    slides: int
    patches_per_second: float


def run_demo(
    config: DemoConfig, out: Path, *, device: torch.device, progress: Progress = silent
) -> DemoScore:
    """Draw slides, fine-tune on them, predict and score.

    This leaves ``data/``, ``model/``, ``predictions/`` with overlays, and ``metrics.json`` in ``out``.

    Raises :class:`ResultsError` if a slide cannot be predicted, and the errors of drawing and training.
    """
    started = time.perf_counter()
    task = config.model.tasks[0]
    data = make_camelyon_like(out / "data", config.data, progress=progress)
    manifest = read_manifest(data, tasks=config.model.tasks)
    forget_run(out / "model")  # the demo measures the whole, every time
    report = finetune(manifest, config, out / "model", device=device, slide_mpp=SlideMpp(), progress=progress)
    run = RunFolder(out / "predictions")
    held_out = manifest.split("test")
    net, pipeline = load_checkpoint(report.checkpoint)
    sha256 = checkpoint_sha256(report.checkpoint)
    predictor = Predictor(net, pipeline, streaming=config.streaming, device=device, checkpoint=sha256)
    # As predict does: what the checkpoint says of the model, which training completed.
    described = {**config.model_dump(mode="json"), **pipeline.model_dump(mode="json")}
    describe_run(run, config=described, checkpoint=report.checkpoint, sha256=sha256)
    outlines = {record.slide_id: _annotation(record, data) for record in held_out}

    def draw(result: SlideResult, path: Path, fingerprint: str) -> None:
        annotation = outlines[result.coords.slide_id]
        lesions = lesion_area(annotation).geoms if annotation else ()
        with open_slide(result.slide_path) as slide:
            write_overlay(path, slide, result, outlines=lesions, fingerprint=fingerprint)

    jobs = [SlideJob(record.slide_id, record.path) for record in held_out]
    tables = predict_slides(jobs, predictor, run, draw=draw, progress=progress)
    failed = [row for row in tables.rows if row.status != "ok" or row.error]
    if failed:
        raise ResultsError(run.predictions, f"slide {failed[0].slide_id} failed: {failed[0].error}")
    write_summary(run_of_tables(run, config.model.tasks, tables.rows, tables.slides))
    results = [read_result(run.attention(record.slide_id)) for record in held_out]
    score = DemoScore(
        slide_auc=_slide_auc(results, held_out, task=task),
        patch_auc=_patch_auc(results, held_out, data),
        seconds=time.perf_counter() - started,
        slides=len(results),
        patches_per_second=sum(t.patches for t in tables.measured) / sum(t.seconds for t in tables.measured),
    )
    _write_metrics(out / "metrics.json", score)
    return score


def _slide_auc(results: list[SlideResult], records: list[SlideRecord], *, task: TaskConfig) -> float | None:
    positive = task.classes[-1]
    scores = [result.probabilities[task.name][positive] for result in results]
    return _defined(
        auc_or_nan(np.array(scores), np.array([r.labels[task.column_name] == positive for r in records]))
    )


def _patch_auc(results: list[SlideResult], records: list[SlideRecord], data: Path) -> float | None:
    """Mean AUC over the tumour slides that have lesion patches and normal ones: attention sums to 1 in each slide,
    so that values do not compare across slides. Small slides may have patches of one kind only.
    """
    aucs = []
    for result, record in zip(results, records, strict=True):
        annotation = _annotation(record, data)
        if annotation is None:
            continue
        coords = result.coords
        share_N = lesion_share_of_patches(coords.l0_xy_N2, coords.l0_patch, lesion_area(annotation))
        aucs.append(attention_auc_or_nan(result.attention_NHT.mean(axis=(1, 2)), share_N))
    return _defined(mean_defined(np.array(aucs)))


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def _annotation(record: SlideRecord, manifest: Path) -> Path | None:
    path = manifest.parent / "annotations" / f"{record.slide_id}.xml"
    return path if path.exists() else None


def _write_metrics(path: Path, score: DemoScore) -> None:
    metrics = {
        "slide_auc": score.slide_auc,
        "patch_auc": score.patch_auc,
        "seconds": score.seconds,
        "held_out_slides": score.slides,
        "patches_per_second": score.patches_per_second,
    }
    with whole_file(path) as partial:
        partial.write_text(json.dumps(metrics, indent=2) + "\n")
