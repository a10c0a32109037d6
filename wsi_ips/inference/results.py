"""The result of one slide (:class:`SlideResult`) and its HDF5 file (:func:`write_result`, :func:`read_result`).

The file holds, patch by patch in grid order, TRIDENT's ``coords`` (so that its readers and CLAM's find the
patches) and the datasets

    logits         (N, H, T) float32, attention logits per head and query
    attention      (N, H, T) float32, one softmax over all N: raw values, comparable across the slide
    kept_ids       (M,) int64, raster indices of the kept patches in memory order
    kept_scores    (M,) float32, their selection scores
    kept_embeddings  (M, D) float32, their embeddings; on request only
    kept_contributions  (M, K) float32, what each of them adds to each of the K outputs, tasks and classes in the
                   order of ``probabilities``; only for models whose aggregator can tell. For a softmax task: to
                   the logit of the class relative to the mean of the task's logits; otherwise to the output before
                   the sigmoid. With the bias of the classifier they add up to what the label was read from; other
                   patches add nothing.
    kept_gradients  (M, K) float32, gradient times input of each of them for each of the K outputs, relative to the
                   mean of the logits in the same way (:meth:`wsi_ips.models.ips_net.IPSNet.gradients`); on request
                   only

    about          a text, JSON: slide_id, slide_path, probabilities ({task: {class: probability}}), checkpoint
                   (SHA-256), made_from (what was read, with which resolution and settings, see
                   :class:`wsi_ips.inference.made_from.MadeFrom`; or null), bad_tiles (names of tiles that were
                   unreadable and white), task_queries ({task: the query that it reads}), query_names (names of the
                   queries, for aggregators with an attention row for every class), number_tasks (names of the
                   tasks whose outputs are numbers and not classes; only where there are some), coarse (how much a
                   coarse scorer let through, see :class:`wsi_ips.selection.coarse_report.CoarseReport`; or null).
                   For several models, whose mean ``probabilities`` is, also spread ({task: {class: standard
                   deviation}}); all datasets are then those of the first model, and checkpoint names all of them.
                   For a slide that was read as a part of its case also case (case_id, slides, share, patches, see
                   :class:`wsi_ips.inference.results.PartOfCase`): probabilities are then those of the case,
                   and attention sums to 1 over all slides of the case, over this slide to about the share

and the root attribute ``schema_version``. For a cascade and for random patches, N are the patches that were read;
the others have no attention. What differs from run to run, above all times, is in ``slides.csv`` and not here, so
the same slide and checkpoint give the same bytes. The file is not compressed: gzip saves 7 % of such floats at 60
times the writing time (250 000 patches, 8 heads: 16.0 MB in 7 ms).

What a slide's result says of the case (patient) that it was read with as one bag: :class:`PartOfCase`.

Shape suffixes: N patches, H heads, T queries, M kept patches, D embedding width, C classes of a task, K
outputs.
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

if TYPE_CHECKING:
    from torch import Tensor

    from wsi_ips.selection.score_store import Normalisers
    from wsi_ips.selection.slide_reading import SlideReading


@dataclass(frozen=True, slots=True)
class PartOfCase:
    """A slide as a part of its case, where all slides of a case are one bag.

    Attributes:
        case_id: The case.
        slides: The slides that were read together, in the order in which they were read. Empty if not known.
        share: The slide's share of the attention of the case, averaged over heads and queries; over the slides
            of a case the shares sum to 1. NaN for a slide that could not be read.
        patches: How many patches of all slides were read together; 0 if not known. An even share of the case's
            attention is 1 over this number.
    """

    case_id: str
    slides: tuple[str, ...] = ()
    share: float = math.nan
    patches: int = 0

    def to_json(self) -> dict[str, Any]:
        """The values by name."""
        return {
            "case_id": self.case_id,
            "slides": list(self.slides),
            "share": self.share,
            "patches": self.patches,
        }

    @classmethod
    def from_json(cls, stored: Any) -> Self:
        """The object that :meth:`to_json` wrote. Raises ``KeyError``, ``TypeError`` or ``ValueError`` for
        anything else.
        """
        patches = int(stored.get("patches", 0))  # results of version 4 had none at first
        if patches < 0:
            raise ValueError(f"{patches} patches")
        return cls(
            str(stored["case_id"]),
            tuple(str(name) for name in stored["slides"]),
            float(stored["share"]),
            patches,
        )


SCHEMA_VERSION = 4
"""Version of the file. A file of another version is refused."""
MOST_NAMED = 1000
"""How many unreadable tiles are named. An HDF5 attribute, where features keep them, holds 64 KB."""

LARGEST_DATASET_BYTES = 2**31
"""Largest dataset that is read."""

DATASETS = (
    "coords",
    "wsi_ips_patch_ids",
    "wsi_ips_tissue",
    "logits",
    "attention",
    "kept_ids",
    "kept_scores",
)
"""Datasets that every result has."""
EMBEDDINGS = "kept_embeddings"
"""Dataset of the embeddings of the kept patches."""
CONTRIBUTIONS = "kept_contributions"
"""Dataset of the contributions of the kept patches."""
GRADIENTS = "kept_gradients"
"""Dataset of gradient times input of the kept patches."""
PREDICT_AGAIN = "write it again with wsi-ips predict"
"""What a message about an unusable result advises."""

Probabilities = Mapping[str, Mapping[str, float]]
"""``{task: {class: probability}}``, tasks and classes in the order of the model."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlideResult:
    """What the network says of one slide.

    Attributes:
        slide_path: The slide, as it was given.
        coords: Where the N patches lie.
        logits_NHT: float32, attention logits.
        attention_NHT: float32, sums to 1 over N for each head and query.
        kept_ids_M: int64, raster indices of the kept patches in memory order.
        kept_scores_M: Their selection scores.
        probabilities: ``{task: {class: probability}}``.
        checkpoint: SHA-256 of the weights. May be empty.
        made_from: What was read and how, if known.
        kept_emb_MD: float32, the embeddings of the kept patches, if known.
        kept_contributions_MK: float32, what the kept patches add to the outputs, if the aggregator can tell.
        kept_gradients_MK: float32, gradient times input of the kept patches for the outputs, if it was asked for.
        telemetry: Where the time went. It is not stored with the result.
        bad_tiles: Names of tiles that were unreadable and white.
        task_queries: ``{task: the query that it reads}``; empty if unknown.
        query_names: The name of each query, if the aggregator names them; otherwise empty.
        number_tasks: Names of the tasks whose outputs are numbers (regression), of which none is the likeliest.
            Empty also for a file of an earlier version, which did not say so.
        coarse: What a coarse scorer let through, if there was one.
        spread: The standard deviation of each probability over several models; empty for one.
        case: If the slide was read as a part of its case, what it is in it. ``probabilities`` are then those of
            the case, and ``attention_NHT`` sums to 1 over all slides of the case.

    Raises:
        ValueError: The parts do not fit together.
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
    kept_gradients_MK: NDArray[np.float32] | None = None
    telemetry: SlideTelemetry = field(default_factory=SlideTelemetry)
    bad_tiles: tuple[str, ...] = ()
    task_queries: Mapping[str, int] = field(default_factory=dict)
    query_names: tuple[str, ...] = ()
    number_tasks: tuple[str, ...] = ()
    coarse: CoarseReport | None = None
    spread: Probabilities = field(default_factory=dict)
    case: PartOfCase | None = None

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
        gradients: "Mapping[str, Tensor] | None" = None,
        normalisers: "Normalisers | None" = None,
        case: PartOfCase | None = None,
    ) -> Self:
        """The result of one pass over a slide.

        Args:
            reading: What the pass found.
            coords: Where its patches lie.
            tasks: The tasks, as the network has them.
            slide_path: The slide, as it was given.
            checkpoint: SHA-256 of the weights.
            telemetry: Where the time went.
            bad_tiles: Names of tiles that were unreadable and white.
            gradients: Gradient times input of the kept patches for each task, (M, classes), if it was asked for.
            normalisers: Those of the whole case, if the slide was read as a part of one.
            case: What the slide is in its case, if it was read as a part of one.
        """
        rows, names = _rows(reading, tasks)
        return cls(
            slide_path=slide_path,
            coords=coords,
            logits_NHT=reading.store.logits().numpy(),
            attention_NHT=reading.store.attention(normalisers).numpy(),
            kept_ids_M=reading.kept.ids_M.cpu().numpy(),
            kept_scores_M=reading.kept.scores_M.cpu().numpy(),
            kept_emb_MD=reading.emb_MD.float().cpu().numpy(),
            kept_contributions_MK=by_output(reading.bag.contributions, tasks),
            kept_gradients_MK=by_output(gradients, tasks),
            probabilities=named_probabilities(reading, tasks),
            checkpoint=checkpoint,
            telemetry=telemetry or SlideTelemetry(),
            bad_tiles=tuple(bad_tiles),
            task_queries=rows,
            query_names=names,
            number_tasks=tuple(
                task.name for task in tasks if task.activation == "linear" and task.survival is None
            ),
            coarse=reading.coarse,
            case=case,
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
        for name, told_MK in (
            ("contributions", self.kept_contributions_MK),
            ("gradients", self.kept_gradients_MK),
        ):
            if told_MK is not None and told_MK.shape != shape:
                raise ValueError(f"{name} {told_MK.shape}, not {shape}")
            if told_MK is not None and len(np.unique(self.kept_ids_M)) < len(self.kept_ids_M):
                raise ValueError(f"a patch is kept twice, so its {name} are not known")

    def contribution(self, task: str, name: str) -> NDArray[np.float32]:
        """What each patch adds to an output, (N,) float32 in logits; 0 for patches that were not kept.

        Args:
            task: Name of the task.
            name: Name of the class.

        Raises:
            KeyError: The model has no such output, or its aggregator cannot tell.
        """
        if self.kept_contributions_MK is None:
            raise KeyError("this model's head does not tell what a patch contributes")
        return self._of_all(self.kept_contributions_MK, task, name)

    def gradient(self, task: str, name: str) -> NDArray[np.float32]:
        """Gradient times input of each patch for an output, (N,) float32; 0 for patches that were not kept.

        Args:
            task: Name of the task.
            name: Name of the class.

        Raises:
            KeyError: The model has no such output, or gradients were not asked for.
        """
        if self.kept_gradients_MK is None:
            raise KeyError("gradients were not asked for when this result was made")
        return self._of_all(self.kept_gradients_MK, task, name)

    def kept_rows(self) -> NDArray[np.intp]:
        """The rows (M,) of the kept patches among the N patches of the slide."""
        order = np.argsort(self.coords.ids_N)  # a file may hold them in any order
        return np.asarray(order[np.searchsorted(self.coords.ids_N, self.kept_ids_M, sorter=order)])

    def _of_all(self, told_MK: NDArray[np.float32], task: str, name: str) -> NDArray[np.float32]:
        """One output's values for all patches, (N,), from those of the kept ones."""
        outputs = [(each, of) for each, classes in self.probabilities.items() for of in classes]
        if (task, name) not in outputs:
            raise KeyError(f"no output {name!r} of task {task!r}")
        told_N = np.zeros(len(self.coords), np.float32)
        told_N[self.kept_rows()] = told_MK[:, outputs.index((task, name))]
        return told_N


def write_result(path: Path, result: SlideResult, *, embeddings: bool = False) -> None:
    """Write the HDF5 file of a slide, completely or not at all.

    Args:
        path: The file to write.
        result: The result.
        embeddings: Also store the embeddings of the kept patches, if they are known.
    """
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
        if result.number_tasks:
            about["number_tasks"] = list(result.number_tasks)
        if result.spread:
            about["spread"] = {task: dict(classes) for task, classes in result.spread.items()}
        if result.case is not None:
            about["case"] = result.case.to_json()
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
        if result.kept_gradients_MK is not None:
            file[GRADIENTS] = result.kept_gradients_MK.astype(np.float32)


def read_result(path: Path) -> SlideResult:
    """Read what :func:`write_result` wrote.

    Raises:
        ResultsError: The file is missing, damaged, or something else.
    """
    if not path.is_file():
        raise ResultsError(path, "does not exist", "name a file that wsi-ips predict wrote")
    try:
        with opened_hdf5(path) as file:
            return _take_result(file, path)
    except CoordsError as error:
        raise ResultsError(path, error.args[1], PREDICT_AGAIN) from None
    # h5py has no error of its own: a damaged file shows as any of these.
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError) as error:
        if cause := outside_cause(error):
            raise ResultsError(path, cause.problem, cause.fix) from None
        if not h5py.is_hdf5(path):
            raise ResultsError(path, "is not an HDF5 file", PREDICT_AGAIN) from None
        raise ResultsError(path, f"is damaged ({one_line(error)})", PREDICT_AGAIN) from None


def _take_result(file: Any, path: Path) -> SlideResult:
    _check_version(file, path)
    more = [name for name in (EMBEDDINGS, CONTRIBUTIONS, GRADIENTS) if name in file]
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
        kept_gradients_MK=floats.get(GRADIENTS),
        bad_tiles=tuple(str(name) for name in about["bad_tiles"]),
        task_queries=_task_queries(about["task_queries"]),
        query_names=tuple(str(name) for name in about.get("query_names", [])),
        number_tasks=tuple(str(name) for name in about.get("number_tasks", [])),
        coarse=None if about["coarse"] is None else CoarseReport.from_json(about["coarse"]),
        spread=_probabilities(about.get("spread", {})),
        case=None if about.get("case") is None else PartOfCase.from_json(about["case"]),
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
    """Refuse a dataset that reaches into other files, or claims more memory than a slide can need."""
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


def _rows(reading: "SlideReading", tasks: Sequence[TaskConfig]) -> tuple[dict[str, int], tuple[str, ...]]:
    """``{task: its row of the stored maps}``, and the names of the rows if they have any.

    A selector that ranks by one score for all classes stores one row, whatever the aggregator reads afterwards.
    """
    rows = reading.bag.task_rows
    if rows is None:
        return task_queries(tasks), ()
    stored = reading.store.logits().shape[2]
    if stored != (len(reading.bag.row_names) or reading.bag.attention_BHTM.shape[2]):
        return dict.fromkeys(rows, 0), ()
    return dict(rows), reading.bag.row_names


def named_probabilities(reading: "SlideReading", tasks: Sequence[TaskConfig]) -> dict[str, dict[str, float]]:
    """What the network says of a slide, ``{task: {class: probability}}``."""
    return {
        task.name: dict(zip(task.classes, reading.bag.probabilities[task.name][0].tolist(), strict=True))
        for task in tasks
    }


def by_output(told: "Mapping[str, Tensor] | None", tasks: Sequence[TaskConfig]) -> NDArray[np.float32] | None:
    """What is told of the kept patches by task, (M, classes) each, as :class:`SlideResult` has it: (M, K) float32.

    For a softmax task each value is taken relative to the mean over the classes of the task. None stays None.
    """
    if told is None:
        return None
    columns = []
    for task in tasks:
        share_MC = told[task.name].float().cpu().numpy()
        if task.activation == "softmax":  # a softmax does not change if all of its logits are shifted
            share_MC = share_MC - share_MC.mean(axis=1, keepdims=True)
        columns.append(share_MC)
    return np.concatenate(columns, axis=1)
