"""What a prediction run writes, and how it is read back: one HDF5 a slide, one CSV a run.

The HDF5 holds, patch by patch in grid order, TRIDENT's ``coords`` (so that its readers and CLAM's find the
patches) and beside it the datasets

    logits         (N, H, T) float32, pre-softmax attention per head and query
    attention      (N, H, T) float32, one softmax over all N: raw values, comparable across the slide
    kept_ids       (M,) int64, raster indices of the kept patches in memory order
    kept_scores    (M,) float32, their selection scores

and the root attributes ``schema_version``, ``slide_id``, ``slide_path``, ``probabilities`` (JSON, {task:
{class: probability}}), ``seconds``, ``checkpoint``, ``telemetry`` (JSON, {stage: number}), ``bad_tiles``
(JSON, the names of tiles that were unreadable and white) and ``task_queries`` (JSON, {task: the query that it
reads}); files without the last three can be read.
It is not compressed: gzip saves 7 % of such floats at 60 times the writing time (250 000 patches, 8 heads:
16.0 MB in 7 ms).

Shape suffixes: N patches, H heads, T queries, M kept patches.
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import TaskConfig, task_queries
from wsi_ips.errors import CoordsError, ResultsError
from wsi_ips.files import whole_file
from wsi_ips.hdf5 import plain_dataset
from wsi_ips.inference.telemetry import SlideTelemetry
from wsi_ips.selection.slide_reading import SlideReading
from wsi_ips.tiling.coords import put_coords, take_coords
from wsi_ips.tiling.grid import PatchCoords

SCHEMA_VERSION = 1
MOST_NAMED = 1000
"""Unreadable tiles that are named: an attribute holds 64 KB."""

LARGEST_DATASET_BYTES = 2**31
LARGEST_TABLE_BYTES = 2**28

DATASETS = (
    "coords",
    "wsi_ips_patch_ids",
    "wsi_ips_tissue",
    "logits",
    "attention",
    "kept_ids",
    "kept_scores",
)
PREDICT_AGAIN = "write it again with wsi-ips predict"

Probabilities = Mapping[str, Mapping[str, float]]
"""{task: {class: probability}}, tasks and classes in the model's order."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlideResult:
    """What the network says of one slide.

    coords: the N patches. logits_NHT: float32, pre-softmax. attention_NHT: float32, sums to 1 over N per head
    and query. kept_ids_M: int64 raster indices in memory order, kept_scores_M their selection scores.
    slide_path: as it was given. seconds: the whole slide's. checkpoint: fingerprint of the weights, may be
    empty. task_queries: {task: the query that it reads}, empty where unknown. Raises ``ValueError`` for parts
    that do not fit together.
    """

    slide_path: str
    coords: PatchCoords
    logits_NHT: NDArray[np.float32]
    attention_NHT: NDArray[np.float32]
    kept_ids_M: NDArray[np.int64]
    kept_scores_M: NDArray[np.float32]
    probabilities: Probabilities
    seconds: float
    checkpoint: str = ""
    telemetry: SlideTelemetry = field(default_factory=SlideTelemetry)
    bad_tiles: tuple[str, ...] = ()
    task_queries: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        reading: SlideReading,
        coords: PatchCoords,
        *,
        tasks: Sequence[TaskConfig],
        slide_path: str,
        seconds: float,
        checkpoint: str,
        telemetry: SlideTelemetry | None = None,
        bad_tiles: Sequence[str] = (),
    ) -> Self:
        """What one pass over a slide found, with ``tasks`` as the network has them."""
        return cls(
            slide_path=slide_path,
            coords=coords,
            logits_NHT=reading.store.logits().numpy(),
            attention_NHT=reading.store.attention().numpy(),
            kept_ids_M=reading.kept.ids_M.cpu().numpy(),
            kept_scores_M=reading.kept.scores_M.cpu().numpy(),
            probabilities=named_probabilities(reading, tasks),
            seconds=seconds,
            checkpoint=checkpoint,
            telemetry=telemetry or SlideTelemetry(),
            bad_tiles=tuple(bad_tiles),
            task_queries=task_queries(tasks),
        )

    def __post_init__(self) -> None:
        if self.logits_NHT.ndim != 3 or self.logits_NHT.shape != self.attention_NHT.shape:
            raise ValueError(f"logits {self.logits_NHT.shape}, attention {self.attention_NHT.shape}")
        if len(self.logits_NHT) != len(self.coords):
            raise ValueError(f"{len(self.logits_NHT)} logits for {len(self.coords)} patches")
        if self.kept_ids_M.ndim != 1 or self.kept_ids_M.shape != self.kept_scores_M.shape:
            raise ValueError(f"{self.kept_ids_M.shape} kept ids, {self.kept_scores_M.shape} scores")
        if not np.isin(self.kept_ids_M, self.coords.ids_N).all():
            raise ValueError("a kept patch is not one of the slide's patches")
        queries = range(self.logits_NHT.shape[2])
        if not all(query in queries for query in self.task_queries.values()):
            raise ValueError(f"task_queries {dict(self.task_queries)} for {len(queries)} queries")


def named_probabilities(reading: SlideReading, tasks: Sequence[TaskConfig]) -> dict[str, dict[str, float]]:
    """What the network says of a slide, by task and class."""
    return {
        task.name: dict(zip(task.classes, reading.bag.probabilities[task.name][0].tolist(), strict=True))
        for task in tasks
    }


def write_result(path: Path, result: SlideResult) -> None:
    """Write one slide's HDF5, whole or not at all."""
    with whole_file(path) as partial, h5py.File(partial, "w") as file:
        file.attrs["schema_version"] = SCHEMA_VERSION
        file.attrs["slide_id"] = result.coords.slide_id
        file.attrs["slide_path"] = result.slide_path
        file.attrs["probabilities"] = json.dumps(
            {task: dict(classes) for task, classes in result.probabilities.items()}
        )
        file.attrs["task_queries"] = json.dumps(dict(result.task_queries))
        file.attrs["seconds"] = float(result.seconds)
        file.attrs["checkpoint"] = result.checkpoint
        file.attrs["telemetry"] = json.dumps(result.telemetry.to_json())
        file.attrs["bad_tiles"] = json.dumps(result.bad_tiles[:MOST_NAMED])
        put_coords(file, result.coords, layout="trident")
        file["logits"] = result.logits_NHT.astype(np.float32)
        file["attention"] = result.attention_NHT.astype(np.float32)
        file["kept_ids"] = result.kept_ids_M.astype(np.int64)
        file["kept_scores"] = result.kept_scores_M.astype(np.float32)


def read_result(path: Path) -> SlideResult:
    """Read what :func:`write_result` wrote. Raises :class:`ResultsError` for anything else."""
    if not path.is_file():
        raise ResultsError(path, "does not exist", "name a file that wsi-ips predict wrote")
    if not h5py.is_hdf5(path):
        raise ResultsError(path, "is not an HDF5 file", PREDICT_AGAIN)
    try:
        with h5py.File(path, "r") as file:
            return _take_result(file, path)
    except CoordsError as error:
        raise ResultsError(path, error.args[1], PREDICT_AGAIN) from None
    # h5py has no error of its own: a damaged file shows as any of these.
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ResultsError(path, f"is damaged ({_one_line(str(error))})", PREDICT_AGAIN) from None


def _take_result(file: Any, path: Path) -> SlideResult:
    version = file.attrs.get("schema_version")
    if version is None:
        raise ResultsError(path, "has no schema_version", "is it a file that wsi-ips predict wrote?")
    if version != SCHEMA_VERSION:
        raise ResultsError(
            path, f"has schema version {version}; this wsi_ips reads {SCHEMA_VERSION}", PREDICT_AGAIN
        )
    for name in DATASETS:
        _check_dataset(file, name, path)
    return SlideResult(
        slide_path=str(file.attrs["slide_path"]),
        coords=take_coords(file, path),
        logits_NHT=file["logits"][()].astype(np.float32, copy=False),
        attention_NHT=file["attention"][()].astype(np.float32, copy=False),
        kept_ids_M=file["kept_ids"][()].astype(np.int64, copy=False),
        kept_scores_M=file["kept_scores"][()].astype(np.float32, copy=False),
        probabilities=_probabilities(json.loads(file.attrs["probabilities"])),
        seconds=float(file.attrs["seconds"]),
        checkpoint=str(file.attrs.get("checkpoint", "")),
        telemetry=SlideTelemetry.from_json(json.loads(file.attrs.get("telemetry", "{}"))),
        bad_tiles=tuple(str(name) for name in json.loads(file.attrs.get("bad_tiles", "[]"))),
        task_queries=_task_queries(json.loads(file.attrs.get("task_queries", "{}"))),
    )


def _check_dataset(file: Any, name: str, path: Path) -> None:
    """Refuse what would reach into other files, or claims more memory than a slide can need."""
    if name not in file:
        raise ResultsError(path, f"has no dataset {name}", PREDICT_AGAIN)
    dataset = plain_dataset(file, name, path, error=ResultsError, mend=PREDICT_AGAIN)
    if dataset.dtype.kind not in "iuf":
        raise ResultsError(path, f"{name} holds {dataset.dtype}, not numbers", PREDICT_AGAIN)
    size = max(math.prod(dataset.shape), math.prod(dataset.chunks or ())) * dataset.dtype.itemsize
    if size > LARGEST_DATASET_BYTES:
        raise ResultsError(path, f"{name} claims {size} bytes", PREDICT_AGAIN)


def _probabilities(value: Any) -> dict[str, dict[str, float]]:
    if not isinstance(value, dict) or not all(isinstance(classes, dict) for classes in value.values()):
        raise ValueError("probabilities are not {task: {class: probability}}")
    return {task: {name: float(p) for name, p in classes.items()} for task, classes in value.items()}


def _task_queries(value: Any) -> dict[str, int]:
    if not isinstance(value, dict) or not all(type(query) is int for query in value.values()):
        raise ValueError("task_queries are not {task: query}")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionRow:
    """One slide of ``predictions.csv``. A failed slide has its error, in one line, and no probabilities.

    A labelled slide may have an error too: what else was wanted of it and failed.
    """

    slide_id: str
    status: Literal["ok", "failed"]
    probabilities: Probabilities = field(default_factory=dict)
    n_patches: int | None = None
    seconds: float | None = None
    error: str = ""

    @classmethod
    def done(cls, result: SlideResult, *, error: str = "") -> Self:
        return cls(
            slide_id=result.coords.slide_id,
            status="ok",
            probabilities=result.probabilities,
            n_patches=len(result.coords),
            seconds=result.seconds,
            error=_one_line(error),
        )

    @classmethod
    def failed(cls, slide_id: str, error: str) -> Self:
        return cls(slide_id=slide_id, status="failed", error=_one_line(error))


def write_predictions(path: Path, rows: Sequence[PredictionRow], *, tasks: Sequence[TaskConfig]) -> None:
    """Write the table whole.

    Columns: ``slide_id, prob_<class>…, pred, n_patches, seconds, status, error``; with several tasks
    ``prob_<task>_<class>…, pred_<task>`` for each. ``pred`` is the likeliest class; of a sigmoid task, the
    classes from 0.5 on, joined by ``|``; of a linear task, its numbers. Numbers read back exactly.
    """
    # backslashreplace: a file name that is not UTF-8 must not cost the other slides' rows.
    with (
        whole_file(path) as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_columns(tasks))
        writer.writerows(_cells(row, tasks) for row in rows)


def read_predictions(path: Path, *, tasks: Sequence[TaskConfig]) -> list[PredictionRow]:
    """Read what :func:`write_predictions` wrote for these tasks. Raises :class:`ResultsError`."""
    if not path.is_file():
        raise ResultsError(path, "does not exist", "name a table that wsi-ips predict wrote")
    if path.stat().st_size > LARGEST_TABLE_BYTES:
        raise ResultsError(path, f"is larger than {LARGEST_TABLE_BYTES} bytes", "is it a table of slides?")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file, strict=True)
    except (csv.Error, UnicodeDecodeError, ValueError) as error:
        raise ResultsError(path, f"is not a CSV table ({error})", PREDICT_AGAIN) from None
    columns = _columns(tasks)
    if header != columns:
        raise ResultsError(path, f"has the columns {', '.join(header)}, not {', '.join(columns)}")
    rows = []
    for number, line in enumerate(lines, start=2):
        try:
            rows.append(_row(dict(zip(columns, line, strict=True)), tasks))
        except ValueError as error:
            raise ResultsError(path, f"row {number} is broken ({error})", PREDICT_AGAIN) from None
    return rows


def _columns(tasks: Sequence[TaskConfig]) -> list[str]:
    columns = ["slide_id"]
    for task in tasks:
        columns += [name for name, _ in _probability_columns(task, tasks)]
        columns.append("pred" if len(tasks) == 1 else f"pred_{task.name}")
    return [*columns, "n_patches", "seconds", "status", "error"]


def _probability_columns(task: TaskConfig, tasks: Sequence[TaskConfig]) -> Iterator[tuple[str, str]]:
    """(column, class) for every class of a task."""
    prefix = "prob_" if len(tasks) == 1 else f"prob_{task.name}_"
    return ((prefix + name, name) for name in task.classes)


def _cells(row: PredictionRow, tasks: Sequence[TaskConfig]) -> list[str]:
    cells = [row.slide_id]
    for task in tasks:
        probabilities = row.probabilities[task.name] if row.status == "ok" else None
        for name in task.classes:
            cells.append("" if probabilities is None else repr(float(probabilities[name])))
        cells.append("" if probabilities is None else _predicted(task, probabilities))
    n_patches = "" if row.n_patches is None else str(row.n_patches)
    seconds = "" if row.seconds is None else repr(float(row.seconds))
    return [*cells, n_patches, seconds, row.status, _one_line(row.error)]


def _predicted(task: TaskConfig, probabilities: Mapping[str, float]) -> str:
    if task.activation == "linear":
        return "|".join(f"{probabilities[name]:.6g}" for name in task.classes)
    if task.activation == "sigmoid":
        return "|".join(name for name in task.classes if probabilities[name] >= 0.5)
    return max(task.classes, key=lambda name: probabilities[name])


def _row(cells: Mapping[str, str], tasks: Sequence[TaskConfig]) -> PredictionRow:
    if cells["status"] not in ("ok", "failed"):
        raise ValueError(f"status {cells['status']!r}")
    ok = cells["status"] == "ok"
    probabilities = {}
    if ok:
        probabilities = {
            task.name: {name: float(cells[column]) for column, name in _probability_columns(task, tasks)}
            for task in tasks
        }
    return PredictionRow(
        slide_id=cells["slide_id"],
        status="ok" if ok else "failed",
        probabilities=probabilities,
        n_patches=int(cells["n_patches"]) if cells["n_patches"] else None,
        seconds=float(cells["seconds"]) if cells["seconds"] else None,
        error=cells["error"],
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
