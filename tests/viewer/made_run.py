"""A run as `predict` writes it, with attention that is known, and its slides."""

import json
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import TaskConfig, TilingConfig
from wsi_ips.datasets.annotations import write_asap
from wsi_ips.drawn.synthetic import write_pyramid
from wsi_ips.inference.predictions import PredictionRow, write_predictions
from wsi_ips.inference.results import SlideResult, read_result, write_result
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.telemetry import SlideRow, write_slide_table
from wsi_ips.nuclei.detect import FoundObjects
from wsi_ips.nuclei.found_files import write_found_csv
from wsi_ips.tiling.grid import PatchCoords, PatchGrid
from wsi_ips.units import Mpp

L0_SIZE, MPP = (3011, 2003), Mpp(0.5)
TISSUE, GLASS = (200, 150, 190), (244, 243, 242)
PATCH_PX = 200
TASKS = (TaskConfig(), TaskConfig(name="grade", classes=("low", "high")))
HOT = 37
"""Grid id of the patch with the most attention by far."""
HEADS = 2
OBJECT_CLASSES = ("nucleus", "mitosis")
CROWD = 4000
SLIDES = ("calm", "hot")
GONE, FAILED, WAITING = "gone away", "failed", "waiting"
PROBABILITIES = MappingProxyType(
    {
        "calm": {"label": {"normal": 0.9, "tumor": 0.1}, "grade": {"low": 0.7, "high": 0.3}},
        "hot": {"label": {"normal": 0.2, "tumor": 0.8}, "grade": {"low": 0.4, "high": 0.6}},
        GONE: {"label": {"normal": 0.6, "tumor": 0.4}, "grade": {"low": 0.5, "high": 0.5}},
    }
)


@dataclass(frozen=True)
class MadeRun:
    """A run of five slides: two whole, one whose file is gone, one that failed, one that waits. objects: as
    ``detect`` leaves them, elsewhere than the run."""

    root: Path
    images: Path
    manifest: Path
    objects: Path

    def result(self, slide_id: str) -> SlideResult:
        return read_result(RunFolder(self.root).attention(slide_id))


def make_run(folder: Path, *, seed: int = 0, name: str = "predictions") -> MadeRun:
    """Write slides, manifest and outlines to ``folder/images`` and beside it, and the run to ``folder/name``."""
    images, run = folder / "images", RunFolder(folder / name)
    run.root.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for slide_id in PROBABILITIES:
        path = images / f"{slide_id}.tif"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(slide_file())
        write_result(run.attention(slide_id), made_result(slide_id, path, rng, hot=slide_id == "hot"))
    (images / f"{GONE}.tif").unlink()
    rows = [
        PredictionRow(
            slide_id=each, status="ok", probabilities=PROBABILITIES[each], n_patches=len(grid_ids())
        )
        for each in PROBABILITIES
    ]
    rows.append(PredictionRow.failed(FAILED, "failed.tif: no tissue was found; lower tiling.min_tissue"))
    write_predictions(run.predictions, rows, tasks=TASKS)
    states = {**dict.fromkeys(PROBABILITIES, "ok"), FAILED: "failed", WAITING: "waiting"}
    table = [
        replace(SlideRow(slide_id=each, path=str(images / f"{each}.tif")), status=state)  # type: ignore[arg-type]
        for each, state in states.items()
    ]
    write_slide_table(run.slides, table)
    tasks = [task.model_dump() for task in TASKS]
    run.description.write_text(json.dumps({"command": "predict", "config": {"model": {"tasks": tasks}}}))
    return MadeRun(run.root, images, write_truth(folder), write_objects(folder / "found"))


@cache
def slide_file() -> bytes:
    """The file of :func:`drawn_slide`, which is made once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        write_pyramid(path, drawn_slide(), mpp=MPP)
        return path.read_bytes()


def drawn_slide() -> NDArray[np.uint8]:
    """Even tissue on even glass: what any pixel has to be is known."""
    width, height = L0_SIZE
    image = np.empty((height, width, 3), np.uint8)
    image[:] = GLASS
    image[200:1800, 200:2800] = TISSUE
    return image


def grid() -> PatchGrid:
    return PatchGrid.cover(L0_SIZE, slide_mpp=MPP, tiling=tiling())


def tiling() -> TilingConfig:
    return TilingConfig(patch_px=PATCH_PX, patch_mpp=MPP)


def grid_ids() -> NDArray[np.int64]:
    """The patches in tissue."""
    cells = grid()
    ids = np.arange(cells.g_cols * cells.g_rows, dtype=np.int64)
    l0_x, l0_y = cells.l0_corners(ids).T
    return ids[(l0_x >= 200) & (l0_x < 2800) & (l0_y >= 200) & (l0_y < 1800)]


def made_result(slide_id: str, path: Path, rng: np.random.Generator, *, hot: bool) -> SlideResult:
    ids_N = grid_ids()
    coords = PatchCoords.on_grid(
        grid(), ids_N, slide_id=slide_id, l0_size=L0_SIZE, slide_mpp=MPP, tiling=tiling(),
        tissue_N=np.ones(len(ids_N), np.float32),
    )  # fmt: skip
    attention_NHT = rng.uniform(0.5, 1.5, (len(ids_N), HEADS, len(TASKS)))
    if hot:
        attention_NHT[ids_N == HOT] = 40
    attention_NHT = (attention_NHT / attention_NHT.sum(axis=0)).astype(np.float32)
    kept_N = np.argsort(-attention_NHT.mean(axis=(1, 2)))[:4]
    return SlideResult(
        slide_path=str(path),
        coords=coords,
        logits_NHT=np.log(attention_NHT),
        attention_NHT=attention_NHT,
        kept_ids_M=ids_N[kept_N],
        kept_scores_M=np.ones(len(kept_N), np.float32),
        probabilities=PROBABILITIES[slide_id],
        task_queries={"label": 0, "grade": 1},
    )


def write_objects(folder: Path) -> Path:
    """Three objects of ``hot`` in the lower right, outlined; a crowd in ``calm`` without outlines, more than are
    drawn."""
    from shapely import Point, box

    corners = np.array([[2400.0, 1500, 2440, 1540], [2500, 1500, 2560, 1540], [2600, 1600, 2640, 1640]])
    outlines = np.array(
        [Point(2420, 1520).buffer(20), box(2500, 1500, 2560, 1540), box(2600, 1600, 2640, 1640)]
    )
    hot = FoundObjects(corners, np.array([0.9, 0.8, 0.7]), np.array([0, 1, 0]), outlines)
    write_found_csv(folder / "objects" / "hot.csv", hot, classes=OBJECT_CLASSES)
    places = np.stack(np.meshgrid(np.arange(100), np.arange(CROWD // 100)), axis=-1).reshape(-1, 2)
    starts = (1400, 1000) + places * np.array([12, 10])
    crowd = FoundObjects(
        np.concatenate([starts, starts + 6], axis=1).astype(np.float64), np.linspace(1, 0.5, CROWD),
        np.zeros(CROWD, np.int64),
    )  # fmt: skip
    write_found_csv(folder / "objects" / "calm.csv", crowd, classes=OBJECT_CLASSES)
    return folder


def write_truth(folder: Path) -> Path:
    """A manifest that contradicts the prediction of ``calm``, and outlines of one lesion of ``hot``."""
    from shapely import Polygon

    outline = Polygon(
        [(1000, 400), (1800, 400), (1800, 1000), (1000, 1000)], [[(1200, 600), (1400, 600), (1300, 800)]]
    )
    write_asap(folder / "annotations" / "hot.xml", [outline])
    manifest = folder / "manifest.csv"
    lines = ["slide_id,case_id,label,grade,split,path"]
    lines += [f"{each},{each},tumor,high,test,images/{each}.tif" for each in SLIDES]
    manifest.write_text("\n".join(lines) + "\n")
    return manifest
