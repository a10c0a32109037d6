"""What a network says of a slide, as HDF5, and how it is read back.

The HDF5 holds, patch by patch in grid order, TRIDENT's ``coords`` (so that its readers and CLAM's find the
patches) and beside it the datasets

    logits         (N, H, T) float32, pre-softmax attention per head and query
    attention      (N, H, T) float32, one softmax over all N: raw values, comparable across the slide
    kept_ids       (M,) int64, raster indices of the kept patches in memory order
    kept_scores    (M,) float32, their selection scores
    kept_embeddings  (M, D) float32, what the encoder made of them; on request only
    kept_contributions  (M, K) float32, what each of them adds to each of the K outputs, tasks and classes in the
                   order of ``probabilities``; of models with the direct block only. Of a softmax task: to the
                   class's logit against the mean of the task's logits; else to the output before the sigmoid.
                   With the classifier's bias they add up to what the label was read from; other patches add
                   nothing.

    about          a text, JSON: slide_id, slide_path, probabilities ({task: {class: probability}}), checkpoint
                   (SHA-256), made_from (what was read, with which resolution and settings:
                   :class:`wsi_ips.inference.made_from.MadeFrom`; else null), bad_tiles (names of tiles that were
                   unreadable and white), task_queries ({task: the query that it reads}), query_names (names of the
                   queries, of aggregators with an attention row for every class), coarse (where a
                   look from afar chose what was read closely, how much that was:
                   :class:`wsi_ips.selection.coarse_report.CoarseReport`; else null); of several models, whose mean
                   ``probabilities`` are, also spread ({task: {class: their standard deviation}}): all datasets are
                   the first model's then, and checkpoint names them all

and the root attribute ``schema_version``. Of a cascade N are the patches that were let through: the others have
no attention. What differs from run to run, times above all, is not in it
(``slides.csv`` has it): the same slide and checkpoint give the same bytes. It is not compressed: gzip saves 7 %
of such floats at 60 times the writing time (250 000 patches, 8 heads: 16.0 MB in 7 ms).

Shape suffixes: N patches, H heads, T queries, M kept patches.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import TaskConfig, task_queries
from wsi_ips.errors import CoordsError, ResultsError, one_line
from wsi_ips.inference.made_from import MadeFrom
from wsi_ips.inference.telemetry import SlideTelemetry
from wsi_ips.selection.coarse_report import CoarseReport
from wsi_ips.storage.files import outside_cause
from wsi_ips.storage.hdf5 import (
    ABOUT,
    check_stored,
    opened_hdf5,
    plain_dataset,
    put_about,
    small_numbers,
    take_about,
    whole_hdf5,
)
from wsi_ips.tiling.coords import put_coords, take_coords
from wsi_ips.tiling.grid import PatchCoords

if TYPE_CHECKING:  # who draws stored attention does not load torch: half a gigabyte
    from wsi_ips.selection.slide_reading import SlideReading

SCHEMA_VERSION = 4
MOST_NAMED = 1000
"""Unreadable tiles that are named: an attribute, where features keep them, holds 64 KB."""

LARGEST_DATASET_BYTES = 2**31

DATASETS = (
    "coords",
    "wsi_ips_patch_ids",
    "wsi_ips_tissue",
    "logits",
    "attention",
    "kept_ids",
    "kept_scores",
)
EMBEDDINGS = "kept_embeddings"
CONTRIBUTIONS = "kept_contributions"
PREDICT_AGAIN = "write it again with wsi-ips predict"

Probabilities = Mapping[str, Mapping[str, float]]
"""{task: {class: probability}}, tasks and classes in the model's order."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlideResult:
    """What the network says of one slide.

    coords: the N patches. logits_NHT: float32, pre-softmax. attention_NHT: float32, sums to 1 over N per head
    and query. kept_ids_M: int64 raster indices in memory order, kept_scores_M their selection scores.
    kept_emb_MD: float32, their embeddings, where they are known. kept_contributions_MK: float32, what they add
    to the outputs, where the head tells. slide_path: as it was given. checkpoint: fingerprint of the weights,
    may be empty. task_queries: {task: the query that it reads}, empty where unknown. query_names: of each query,
    where the aggregator names them; else empty. made_from: what was read
    and how, where that is known. coarse: what a look from afar let through, where there was one. telemetry:
    where the time went; it is not stored with the result. spread: of several models, each probability's
    standard deviation over them; empty of one. Raises ``ValueError`` for parts that do not fit together.
    """

    slide_path: str
    coords: PatchCoords
    logits_NHT: NDArray[np.float32]
    attention_NHT: NDArray[np.float32]
    kept_ids_M: NDArray[np.int64]
    kept_scores_M: NDArray[np.float32]
    probabilities: Probabilities
    checkpoint: str = ""
    made_from: MadeFrom | None = None
    kept_emb_MD: NDArray[np.float32] | None = None
    kept_contributions_MK: NDArray[np.float32] | None = None
    telemetry: SlideTelemetry = field(default_factory=SlideTelemetry)
    bad_tiles: tuple[str, ...] = ()
    task_queries: Mapping[str, int] = field(default_factory=dict)
    query_names: tuple[str, ...] = ()
    coarse: CoarseReport | None = None
    spread: Probabilities = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        reading: "SlideReading",
        coords: PatchCoords,
        *,
        tasks: Sequence[TaskConfig],
        slide_path: str,
        checkpoint: str,
        telemetry: SlideTelemetry | None = None,
        bad_tiles: Iterable[str] = (),
    ) -> Self:
        """What one pass over a slide found, with ``tasks`` as the network has them."""
        rows, names = _rows(reading, tasks)
        return cls(
            slide_path=slide_path,
            coords=coords,
            logits_NHT=reading.store.logits().numpy(),
            attention_NHT=reading.store.attention().numpy(),
            kept_ids_M=reading.kept.ids_M.cpu().numpy(),
            kept_scores_M=reading.kept.scores_M.cpu().numpy(),
            kept_emb_MD=reading.emb_MD.float().cpu().numpy(),
            kept_contributions_MK=contributions(reading, tasks),
            probabilities=named_probabilities(reading, tasks),
            checkpoint=checkpoint,
            telemetry=telemetry or SlideTelemetry(),
            bad_tiles=tuple(bad_tiles),
            task_queries=rows,
            query_names=names,
            coarse=reading.coarse,
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
        if self.query_names and len(self.query_names) != len(queries):
            raise ValueError(f"{len(self.query_names)} query_names for {len(queries)} queries")
        if self.kept_emb_MD is not None and len(self.kept_emb_MD) != len(self.kept_ids_M):
            raise ValueError(f"{len(self.kept_emb_MD)} embeddings of {len(self.kept_ids_M)} kept patches")
        outputs = sum(len(classes) for classes in self.probabilities.values())
        shape = (len(self.kept_ids_M), outputs)
        if self.kept_contributions_MK is not None and self.kept_contributions_MK.shape != shape:
            raise ValueError(f"contributions {self.kept_contributions_MK.shape}, not {shape}")
        if self.kept_contributions_MK is not None and len(np.unique(self.kept_ids_M)) < len(self.kept_ids_M):
            raise ValueError("a patch is kept twice, so what it contributes is not known")

    def contribution(self, task: str, name: str) -> NDArray[np.float32]:
        """(N,) float32, logits: what each patch adds to this output; 0 for patches that were not kept.

        Raises ``KeyError`` for an output that the model does not have, and where the head does not tell.
        """
        if self.kept_contributions_MK is None:
            raise KeyError("this model's head does not tell what a patch contributes")
        outputs = [(each, of) for each, classes in self.probabilities.items() for of in classes]
        if (task, name) not in outputs:
            raise KeyError(f"no output {name!r} of task {task!r}")
        contribution_N = np.zeros(len(self.coords), np.float32)
        order = np.argsort(self.coords.ids_N)  # a file may hold them in any order
        rows_M = order[np.searchsorted(self.coords.ids_N, self.kept_ids_M, sorter=order)]
        contribution_N[rows_M] = self.kept_contributions_MK[:, outputs.index((task, name))]
        return contribution_N


def _rows(reading: "SlideReading", tasks: Sequence[TaskConfig]) -> tuple[dict[str, int], tuple[str, ...]]:
    """{task: its row of the stored maps}, and the rows' names where they have any.

    A selector that ranks by one score for all classes stores one row, whatever the aggregator reads afterwards.
    """
    rows = reading.bag.task_rows
    if rows is None:
        return task_queries(tasks), ()
    stored = reading.store.logits().shape[2]
    if stored != reading.bag.attention_BHTM.shape[2]:
        return dict.fromkeys(rows, 0), ()
    return dict(rows), reading.bag.row_names


def named_probabilities(reading: "SlideReading", tasks: Sequence[TaskConfig]) -> dict[str, dict[str, float]]:
    """What the network says of a slide, by task and class."""
    return {
        task.name: dict(zip(task.classes, reading.bag.probabilities[task.name][0].tolist(), strict=True))
        for task in tasks
    }


def contributions(reading: "SlideReading", tasks: Sequence[TaskConfig]) -> NDArray[np.float32] | None:
    """(M, K) of the kept patches as :class:`SlideResult` has them; None where the head does not tell."""
    told = reading.bag.contributions
    if told is None:
        return None
    columns = []
    for task in tasks:
        share_MC = told[task.name].float().cpu().numpy()
        if task.activation == "softmax":  # which is the same whatever is added to all of its logits
            share_MC = share_MC - share_MC.mean(axis=1, keepdims=True)
        columns.append(share_MC)
    return np.concatenate(columns, axis=1)


def write_result(path: Path, result: SlideResult, *, embeddings: bool = False) -> None:
    """Write one slide's HDF5, whole or not at all; with the kept patches' ``embeddings``, where it has them."""
    with whole_hdf5(path) as file:
        file.attrs["schema_version"] = SCHEMA_VERSION
        about: dict[str, Any] = {
            "slide_id": result.coords.slide_id,
            "slide_path": result.slide_path,
            "probabilities": {task: dict(classes) for task, classes in result.probabilities.items()},
            "task_queries": dict(result.task_queries),
            "checkpoint": result.checkpoint,
            "made_from": None if result.made_from is None else result.made_from.to_json(),
            "bad_tiles": result.bad_tiles[:MOST_NAMED],
            "coarse": None if result.coarse is None else result.coarse.to_json(),
        }
        if result.query_names:
            about["query_names"] = list(result.query_names)
        if result.spread:
            about["spread"] = {task: dict(classes) for task, classes in result.spread.items()}
        put_about(file, about)
        put_coords(file, result.coords, layout="trident")
        file["logits"] = result.logits_NHT.astype(np.float32)
        file["attention"] = result.attention_NHT.astype(np.float32)
        file["kept_ids"] = result.kept_ids_M.astype(np.int64)
        file["kept_scores"] = result.kept_scores_M.astype(np.float32)
        if embeddings and result.kept_emb_MD is not None:
            file[EMBEDDINGS] = result.kept_emb_MD.astype(np.float32)
        if result.kept_contributions_MK is not None:
            file[CONTRIBUTIONS] = result.kept_contributions_MK.astype(np.float32)


def read_result(path: Path) -> SlideResult:
    """Read what :func:`write_result` wrote. Raises :class:`ResultsError` for anything else."""
    if not path.is_file():
        raise ResultsError(path, "does not exist", "name a file that wsi-ips predict wrote")
    try:
        with opened_hdf5(path) as file:
            return _take_result(file, path)
    except CoordsError as error:
        raise ResultsError(path, error.args[1], PREDICT_AGAIN) from None
    # h5py has no error of its own: a damaged file shows as any of these.
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        if cause := outside_cause(error):
            raise ResultsError(path, cause.problem, cause.fix) from None
        if not h5py.is_hdf5(path):
            raise ResultsError(path, "is not an HDF5 file", PREDICT_AGAIN) from None
        raise ResultsError(path, f"is damaged ({one_line(error)})", PREDICT_AGAIN) from None


def _take_result(file: Any, path: Path) -> SlideResult:
    _check_version(file, path)
    more = [name for name in (EMBEDDINGS, CONTRIBUTIONS) if name in file]
    for name in (*DATASETS, *more):
        _check_dataset(file, name, path)
    floats = {name: file[name][()].astype(np.float32, copy=False) for name in more}
    about = take_about(file, path, error=ResultsError, fix=PREDICT_AGAIN)
    return SlideResult(
        slide_path=str(about["slide_path"]),
        coords=take_coords(file, path),
        logits_NHT=file["logits"][()].astype(np.float32, copy=False),
        attention_NHT=file["attention"][()].astype(np.float32, copy=False),
        kept_ids_M=file["kept_ids"][()].astype(np.int64, copy=False),
        kept_scores_M=file["kept_scores"][()].astype(np.float32, copy=False),
        probabilities=_probabilities(about["probabilities"]),
        checkpoint=str(about["checkpoint"]),
        made_from=None if about["made_from"] is None else MadeFrom.from_json(about["made_from"]),
        kept_emb_MD=floats.get(EMBEDDINGS),
        kept_contributions_MK=floats.get(CONTRIBUTIONS),
        bad_tiles=tuple(str(name) for name in about["bad_tiles"]),
        task_queries=_task_queries(about["task_queries"]),
        query_names=tuple(str(name) for name in about.get("query_names", [])),
        coarse=None if about["coarse"] is None else CoarseReport.from_json(about["coarse"]),
        spread=_probabilities(about.get("spread", {})),
    )


def _check_version(file: Any, path: Path) -> None:
    version = small_numbers(file.attrs, ["schema_version"]).get("schema_version")
    if version is None and ABOUT in file and "wsi_ips_patch_ids" not in file:
        raise ResultsError(
            path,
            "is of features that do not say how large their patches are (CLAM's never do)",
            "it can be read, not drawn; predict from features in TRIDENT's layout, or from the slides",
        )
    if version is None:
        raise ResultsError(path, "has no schema_version", "is it a file that wsi-ips predict wrote?")
    if version != SCHEMA_VERSION:
        raise ResultsError(
            path, f"has schema version {version}; this wsi_ips reads {SCHEMA_VERSION}", PREDICT_AGAIN
        )


def _check_dataset(file: Any, name: str, path: Path) -> None:
    """Refuse what would reach into other files, or claims more memory than a slide can need."""
    if name not in file:
        raise ResultsError(path, f"has no dataset {name}", PREDICT_AGAIN)
    dataset = plain_dataset(file, name, path, error=ResultsError, fix=PREDICT_AGAIN)
    if dataset.dtype.kind not in "iuf":
        raise ResultsError(path, f"{name} holds {dataset.dtype}, not numbers", PREDICT_AGAIN)
    size = max(math.prod(dataset.shape), math.prod(dataset.chunks or ())) * dataset.dtype.itemsize
    if size > LARGEST_DATASET_BYTES:
        raise ResultsError(path, f"{name} claims {size} bytes", PREDICT_AGAIN)
    check_stored(dataset, path, error=ResultsError, fix=PREDICT_AGAIN)


def _probabilities(value: Any) -> dict[str, dict[str, float]]:
    if not isinstance(value, dict) or not all(isinstance(classes, dict) for classes in value.values()):
        raise ValueError("probabilities are not {task: {class: probability}}")
    return {task: {name: float(p) for name, p in classes.items()} for task, classes in value.items()}


def _task_queries(value: Any) -> dict[str, int]:
    if not isinstance(value, dict) or not all(type(query) is int for query in value.values()):
        raise ValueError("task_queries are not {task: query}")
    return value
