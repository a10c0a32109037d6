"""A run folder as ``predict`` leaves it, and a manifest with its labels, made of nothing but numbers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely

from wsi_ips.config import ModelConfig, TaskConfig, TilingConfig, task_queries
from wsi_ips.datasets.annotations import write_asap
from wsi_ips.inference.predictions import PredictionRow, write_predictions
from wsi_ips.inference.results import SlideResult, write_result
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.tiling.grid import PatchCoords, PatchGrid
from wsi_ips.units import Mpp

SIDE, PATCH, MPP = 8000, 512, Mpp(0.25)
"""Slides of 8000 level-0 pixels, 2 mm, in patches of 128 µm."""


@dataclass(frozen=True)
class Slide:
    """probabilities: {task: {class: probability}}; cells: {column: what the manifest says}; none: it failed.

    lesion: (x, y, radius) of a disc in level-0 pixels. hot: where attention lies, likewise (x, y, attention).
    adds: what patches add to the default task's last class, likewise (x, y, logits); none: the head does not tell.
    """

    slide_id: str
    probabilities: Mapping[str, Mapping[str, float]] | None
    cells: Mapping[str, str]
    case_id: str = ""
    split: str = "test"
    lesion: tuple[int, int, int] | None = None
    hot: tuple[tuple[int, int, float], ...] = ()
    adds: tuple[tuple[int, int, float], ...] | None = None


def tumor(slide_id: str, probability: float | None, label: str, **rest: object) -> Slide:
    """A slide of the default task."""
    chances = None if probability is None else {"label": {"normal": 1 - probability, "tumor": probability}}
    return Slide(slide_id, chances, {"label": label}, **rest)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Made:
    run: Path
    manifest: Path
    annotations: Path


def make_run(folder: Path, slides: Sequence[Slide], tasks: Sequence[TaskConfig] = (TaskConfig(),)) -> Made:
    """Write the run, the manifest, empty files for slides, and outlines as ASAP XML."""
    made = Made(folder / "run", folder / "labels.csv", folder / "annotations")
    run = RunFolder(made.run)
    columns = list(dict.fromkeys(column for slide in slides for column in slide.cells))
    lines = [",".join(["slide_id", "case_id", *columns, "split", "path"])]
    rows = []
    folder.mkdir(parents=True, exist_ok=True)
    for slide in slides:
        (folder / f"{slide.slide_id}.tif").touch()
        cells = [slide.cells.get(column, "") for column in columns]
        lines.append(
            ",".join(
                [
                    slide.slide_id,
                    slide.case_id or slide.slide_id,
                    *cells,
                    slide.split,
                    f"{slide.slide_id}.tif",
                ]
            )
        )
        if slide.probabilities is None:
            rows.append(PredictionRow.failed(slide.slide_id, "cannot be decoded"))
            continue
        result = _result(slide, tasks)
        rows.append(PredictionRow.done(result))
        write_result(run.attention(slide.slide_id), result)
        if slide.lesion:
            x, y, radius = slide.lesion
            write_asap(made.annotations / f"{slide.slide_id}.xml", [shapely.Point(x, y).buffer(radius)])
    made.manifest.write_text("\n".join(lines) + "\n")
    write_predictions(run.predictions, rows, tasks=tasks)
    model = ModelConfig(tasks=tuple(tasks)).model_dump(mode="json")
    run.description.write_text(json.dumps({"command": "predict", "config": {"model": model}}))
    return made


def _result(slide: Slide, tasks: Sequence[TaskConfig]) -> SlideResult:
    tiling = TilingConfig(patch_px=256, patch_mpp=0.5)
    grid = PatchGrid.cover((SIDE, SIDE), slide_mpp=MPP, tiling=tiling)
    ids = np.arange(grid.g_cols * grid.g_rows)
    coords = PatchCoords.on_grid(
        grid, ids, slide_id=slide.slide_id, l0_size=(SIDE, SIDE), slide_mpp=MPP, tiling=tiling,
        tissue_N=np.ones(len(ids), np.float32),
    )  # fmt: skip
    attention = np.full(len(ids), 1e-6, np.float32)
    for x, y, value in slide.hot:
        attention[y // PATCH * grid.g_cols + x // PATCH] = value
    queries = task_queries(tasks)
    attention_NHT = np.repeat(attention[:, None, None], max(queries.values()) + 1, axis=2)
    assert slide.probabilities is not None
    kept, told = ids[:2], None
    if slide.adds is not None:
        kept = np.array([y // PATCH * grid.g_cols + x // PATCH for x, y, _ in slide.adds])
        tumor = np.array([value for _, _, value in slide.adds], np.float32)
        told = np.stack([-tumor, tumor], axis=1)
    return SlideResult(
        slide_path=f"{slide.slide_id}.tif", coords=coords, logits_NHT=attention_NHT, attention_NHT=attention_NHT,
        kept_ids_M=kept, kept_scores_M=attention[kept], probabilities=slide.probabilities,
        kept_contributions_MK=told, task_queries=queries,
    )  # fmt: skip
