"""A run folder with slides that can be opened, as ``predict`` leaves it, made without a network."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.slides.tiff_files import tissue_like, write_pyramid
from wsi_ips.config import ModelConfig, TaskConfig, TilingConfig, task_queries
from wsi_ips.inference.predictions import PredictionRow, write_predictions
from wsi_ips.inference.results import SlideResult, write_result
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.telemetry import SlideRow, SlideTelemetry, Status, write_slide_table
from wsi_ips.report.stored_run import StoredRun, read_run
from wsi_ips.tiling.grid import PatchCoords, PatchGrid
from wsi_ips.units import Mpp, Size

L0_SIZE, SLIDE_MPP = (1000, 700), Mpp(0.25)
PATCH = 64
"""Level-0 pixels: 16 columns and 11 rows, the last of each beyond the edge."""


@dataclass(frozen=True)
class Slide:
    """probabilities: {task: {class: probability}}; None: it failed, or its status says another thing."""

    slide_id: str
    tumor: float | None = 0.8
    status: Status = "ok"
    error: str = ""
    probabilities: Mapping[str, Mapping[str, float]] | None = None
    hot: Mapping[int, float] = field(default_factory=lambda: {3: 0.5})
    seconds: float = 2.0

    @property
    def answers(self) -> Mapping[str, Mapping[str, float]] | None:
        if self.probabilities is not None or self.tumor is None or self.status != "ok":
            return self.probabilities
        return {"label": {"normal": 1 - self.tumor, "tumor": self.tumor}}


def coords_of(slide_id: str, l0_size: Size = L0_SIZE) -> PatchCoords:
    tiling = TilingConfig(patch_px=PATCH // 2, patch_mpp=0.5)
    grid = PatchGrid.cover(l0_size, slide_mpp=SLIDE_MPP, tiling=tiling)
    ids = np.arange(grid.g_cols * grid.g_rows)
    return PatchCoords.on_grid(
        grid, ids, slide_id=slide_id, l0_size=l0_size, slide_mpp=SLIDE_MPP, tiling=tiling,
        tissue_N=np.ones(len(ids), np.float32),
    )  # fmt: skip


def result_of(
    slide: Slide, path: Path | str, tasks: Sequence[TaskConfig] = (TaskConfig(),), l0_size: Size = L0_SIZE
) -> SlideResult:
    """Attention grows with the grid's ids, but where ``hot`` says otherwise."""
    coords = coords_of(slide.slide_id, l0_size)
    attention = np.linspace(0.001, 0.002, len(coords), dtype=np.float32)
    for place, value in slide.hot.items():
        attention[place] = value
    queries = task_queries(tasks)
    attention_NHT = np.repeat(attention[:, None, None], max(queries.values()) + 1, axis=2)
    assert slide.answers is not None
    return SlideResult(
        slide_path=str(path), coords=coords, logits_NHT=attention_NHT, attention_NHT=attention_NHT,
        kept_ids_M=coords.ids_N[:2], kept_scores_M=attention[:2], probabilities=slide.answers,
        task_queries=queries,
    )  # fmt: skip


def make_run(
    folder: Path,
    slides: Sequence[Slide],
    tasks: Sequence[TaskConfig] = (TaskConfig(),),
    *,
    files: bool = True,
    l0_size: Size = L0_SIZE,
) -> Path:
    """Write ``folder/run`` and, with ``files``, one drawn slide under all names in ``folder/slides``."""
    run = RunFolder(folder / "run")
    drawn = folder / "drawn.tif"
    if files:
        write_pyramid(drawn, tissue_like(*l0_size, seed=1), mpp=float(SLIDE_MPP), levels=2)
        (folder / "slides").mkdir(parents=True)
    rows, table = [], []
    for slide in slides:
        path = folder / "slides" / f"{slide.slide_id}.tif"
        if slide.status == "ok":
            if files:
                path.symlink_to(drawn)
            result = result_of(slide, path, tasks, l0_size)
            write_result(run.attention(slide.slide_id), result)
            rows.append(PredictionRow.done(result, error=slide.error))
        elif slide.status == "failed":
            rows.append(PredictionRow.failed(slide.slide_id, slide.error))
        telemetry = SlideTelemetry()
        if slide.status == "ok":
            telemetry = SlideTelemetry(
                threads=2, patches=176, seconds=slide.seconds, open_s=slide.seconds / 4,
                encode_s=slide.seconds / 2, decode_s=1.5, peak_rss_mb=512,
            )  # fmt: skip
        table.append(
            SlideRow(
                slide_id=slide.slide_id,
                path=str(path),
                status=slide.status,
                error=slide.error,
                attempts=1,
                telemetry=telemetry,
            )
        )
    write_predictions(run.predictions, rows, tasks=tasks)
    write_slide_table(run.slides, table)
    model = ModelConfig(tasks=tuple(tasks)).model_dump(mode="json")
    run.description.write_text(
        json.dumps(
            {
                "command": "predict",
                "config": {"model": model, "slides": str(folder / "slides"), "features": None},
                "checkpoint": {"path": "runs/a/model.safetensors", "sha256": "ab" * 32},
                "versions": {"wsi_ips": "0.1.0", "python": "3.11"},
                "host": "here",
                "started": "2026-01-02T03:04:05+00:00",
            }
        )
    )
    return run.root


def stored(folder: Path, slides: Sequence[Slide], tasks: Sequence[TaskConfig] = (TaskConfig(),)) -> StoredRun:
    return read_run(RunFolder(make_run(folder, slides, tasks, files=False)), tasks)
