"""What a prediction run writes: attention and label of each slide as HDF5, one table of all.

Schema 1 of the HDF5: root attributes ``schema_version``, ``slide_id``, ``slide_path``, ``probabilities`` (JSON,
task to class to probability), ``seconds``; datasets ``coords`` (TRIDENT's layout and more, see
:mod:`wsi_ips.tiling.coords`), ``logits`` and ``attention`` (N, heads, queries) float32, ``kept_ids`` (M,) int64
and ``kept_scores`` (M,) float32 in memory order.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import TaskConfig
from wsi_ips.errors import ResultsError, WsiIpsError
from wsi_ips.files import whole_file
from wsi_ips.tiling.coords import put_coords, take_coords
from wsi_ips.tiling.grid import PatchCoords

SCHEMA_VERSION = 1

Probabilities = Mapping[str, Mapping[str, float]]
"""Task name to class name to probability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideResult:
    """One slide's prediction.

    logits_NHT: pre-softmax attention of every patch per head and query, float32. attention_NHT: the same after
    one softmax over all N. kept_ids_M: grid ids of the patches that the label was read from.
    """

    slide_path: str
    coords: PatchCoords
    logits_NHT: NDArray[np.float32]
    attention_NHT: NDArray[np.float32]
    kept_ids_M: NDArray[np.int64]
    kept_scores_M: NDArray[np.float32]
    probabilities: Probabilities
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionRow:
    """A line of ``predictions.csv``."""

    slide_id: str
    status: Literal["ok", "failed"]
    probabilities: Probabilities = field(default_factory=dict)
    n_patches: int = 0
    seconds: float = math.nan
    error: str = ""

    @classmethod
    def done(cls, result: SlideResult) -> "PredictionRow":
        return cls(
            slide_id=result.coords.slide_id,
            status="ok",
            probabilities=result.probabilities,
            n_patches=len(result.coords),
            seconds=result.seconds,
        )

    @classmethod
    def failed(cls, slide_id: str, error: str) -> "PredictionRow":
        return cls(slide_id=slide_id, status="failed", error=" ".join(error.split()))


def write_result(path: Path, result: SlideResult) -> None:
    """Write whole or not at all."""
    with whole_file(path) as partial, h5py.File(partial, "w") as file:
        file.attrs["schema_version"] = SCHEMA_VERSION
        file.attrs["slide_id"] = result.coords.slide_id
        file.attrs["slide_path"] = result.slide_path
        file.attrs["probabilities"] = json.dumps(result.probabilities)
        file.attrs["seconds"] = result.seconds
        put_coords(file, result.coords, layout="trident")
        file.create_dataset("logits", data=result.logits_NHT)
        file.create_dataset("attention", data=result.attention_NHT)
        file.create_dataset("kept_ids", data=result.kept_ids_M)
        file.create_dataset("kept_scores", data=result.kept_scores_M)


def read_result(path: Path) -> SlideResult:
    """Raises :class:`ResultsError` for a missing file, another schema, or one that lacks something."""
    if not path.is_file():
        raise ResultsError(path, "no such result", "run wsi-ips predict first")
    try:
        with h5py.File(path, "r") as file:
            version = file.attrs.get("schema_version")
            if version != SCHEMA_VERSION:
                raise ResultsError(
                    path,
                    f"has schema version {version}, this version reads {SCHEMA_VERSION}",
                    "predict again",
                )
            result = SlideResult(
                slide_path=str(file.attrs["slide_path"]),
                coords=take_coords(file, path),
                logits_NHT=file["logits"][:],
                attention_NHT=file["attention"][:],
                kept_ids_M=file["kept_ids"][:],
                kept_scores_M=file["kept_scores"][:],
                probabilities=json.loads(file.attrs["probabilities"]),
                seconds=float(file.attrs["seconds"]),
            )
    except WsiIpsError:
        raise
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ResultsError(path, f"is not a result that can be read ({reason})", "predict again") from None
    if not len(result.coords) == len(result.attention_NHT) == len(result.logits_NHT):
        raise ResultsError(path, "has coordinates and attention of different lengths", "predict again")
    return result


def write_predictions(path: Path, rows: Sequence[PredictionRow], *, tasks: Sequence[TaskConfig]) -> None:
    """``slide_id,prob_<class>...,pred,n_patches,seconds,status,error``; whole each time.

    With several tasks the columns are ``prob_<task>_<class>`` and ``pred_<task>``. A sigmoid task's ``pred``
    lists the classes of 0.5 and more, ``|`` between them.
    """
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        several = len(tasks) > 1
        columns = ["slide_id"]
        for task in tasks:
            mark = f"_{task.name}" if several else ""
            columns += [*(f"prob{mark}_{name}" for name in task.classes), f"pred{mark}"]
        writer.writerow([*columns, "n_patches", "seconds", "status", "error"])
        for row in rows:
            cells: list[object] = [row.slide_id]
            for task in tasks:
                chances = row.probabilities.get(task.name)
                cells += [chances[name] if chances else "" for name in task.classes]
                cells.append(predicted_class(task, chances) if chances else "")
            ok = row.status == "ok"
            seconds = f"{row.seconds:.3f}" if ok else ""
            writer.writerow([*cells, row.n_patches if ok else "", seconds, row.status, row.error])


def predicted_class(task: TaskConfig, chances: Mapping[str, float]) -> str:
    """The likeliest class; of a sigmoid task all classes of 0.5 and more."""
    if task.activation == "sigmoid":
        return "|".join(name for name in task.classes if chances[name] >= 0.5)
    return max(task.classes, key=lambda name: chances[name])
