"""The checkpoints that a run is made with: one, or several that read the same patches for the same tasks.

One slide by several networks: the mean of what they say, and how far apart they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np

from wsi_ips.config import PipelineConfig, TaskConfig
from wsi_ips.errors import CheckpointError, ConfigError
from wsi_ips.inference.predict import Predictor, PreparedSlide
from wsi_ips.inference.results import Probabilities, SlideResult
from wsi_ips.inference.telemetry import SlideTelemetry
from wsi_ips.models.checkpoint import checkpoint_config, checkpoint_sha256
from wsi_ips.progress import Progress, silent
from wsi_ips.storage.location import Location
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.units import Mpp

SAME = ("tiling", "selection")
"""Sections that decide which patches are read, and so have to agree."""


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """A checkpoint's absolute path and its SHA-256."""

    path: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """One checkpoint or more. The first is the one whose attention is stored."""

    files: tuple[CheckpointFile, ...]

    @classmethod
    def of(cls, paths: Sequence[Path]) -> Self:
        """Those at these paths. Raises :class:`ConfigError` where two are the same file's content."""
        files = [CheckpointFile(path.absolute(), checkpoint_sha256(path)) for path in paths]
        seen: dict[str, Path] = {}
        for file in files:
            if file.sha256 in seen:
                raise ConfigError(
                    f"{file.path} and {seen[file.sha256]} are the same checkpoint, and a model that counts twice "
                    "is no second opinion: give each once"
                )
            seen[file.sha256] = file.path
        return cls(tuple(files))

    @property
    def several(self) -> bool:
        return len(self.files) > 1

    @property
    def sha256(self) -> str:
        """What results name their model by: the checkpoint's SHA-256; of several, one over all of theirs, in
        order."""
        if not self.several:
            return self.files[0].sha256
        return sha256(("mean of " + " ".join(file.sha256 for file in self.files)).encode()).hexdigest()

    def check(self) -> None:
        """Raises :class:`CheckpointError` where a file is gone, or is another one by now."""
        for file in self.files:
            if not file.path.is_file() or checkpoint_sha256(file.path) != file.sha256:
                raise CheckpointError(
                    file.path,
                    "is not there, or another one, for a worker",
                    "keep it where all workers read it",
                )

    def to_json(self) -> list[dict[str, str]]:
        return [{"path": str(file.path), "sha256": file.sha256} for file in self.files]


def same_patches_and_tasks(paths: Sequence[Path]) -> list[PipelineConfig]:
    """Each checkpoint's config, where they differ in nothing that the mean of their answers needs alike.

    Raises :class:`CheckpointError` as :func:`checkpoint_config`, and for one whose tasks, tiling or selection
    differ from the first's, or that reads features of another width where the first reads pixels.
    """
    first, *others = configs = [checkpoint_config(path) for path in paths]
    for path, config in zip(paths[1:], others, strict=True):
        if difference := _difference(first, config):
            raise CheckpointError(
                path,
                f"cannot be averaged with {paths[0]}: {difference}",
                "give checkpoints of the same tasks, tiling and selection",
            )
    return configs


def _difference(first: PipelineConfig, other: PipelineConfig) -> str:
    tasks = [[(task.name, task.classes, _says(task)) for task in one.model.tasks] for one in (first, other)]
    if tasks[0] != tasks[1]:
        return f"its tasks are {_in_words(tasks[1])}, not {_in_words(tasks[0])}"
    if first.model.encoder.features != other.model.encoder.features:
        return f"it reads {_read(other.model.encoder.features)}, not {_read(first.model.encoder.features)}"
    for section in SAME:
        ours = _flat(getattr(first, section).model_dump(mode="json"))
        theirs = _flat(getattr(other, section).model_dump(mode="json"))
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            if ours.get(name) != theirs.get(name):
                return f"its {section}.{name} is {theirs.get(name)}, not {ours.get(name)}"
    return ""


def _says(task: TaskConfig) -> str:
    """What its numbers mean, as far as they must mean the same to be averaged."""
    if task.survival is not None:
        return f"survival in {task.survival.unit}, {task.survival.loss}"
    return task.activation if task.kind == "label" else f"{task.activation}, {task.kind}"


def _in_words(tasks: Sequence[tuple[str, tuple[str, ...], str]]) -> str:
    return "; ".join(f"{name} ({activation}: {', '.join(classes)})" for name, classes, activation in tasks)


def _read(width: int | None) -> str:
    return "slides" if width is None else f"features of width {width}"


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {above + name: value}
    return flat


class EnsemblePredictor:
    """Several networks that read the same patches for the same tasks. Each slide is read once by each of them."""

    def __init__(self, members: Sequence[Predictor], *, checkpoint: str = "") -> None:
        """``checkpoint``: what results name all of them by together."""
        self.members = tuple(members)
        self.checkpoint = checkpoint
        self.pipeline = members[0].pipeline
        self.device = members[0].device
        self.find_patches = members[0].find_patches

    def prepare(self, path: Location, *, slide_id: str, mpp: Mpp | None = None) -> PreparedSlide:
        """See :meth:`Predictor.prepare`."""
        return self.members[0].prepare(path, slide_id=slide_id, mpp=mpp)

    def opened(self, path: Location, coords: PatchCoords, *, seconds: float) -> PreparedSlide:
        """See :meth:`Predictor.opened`."""
        return self.members[0].opened(path, coords, seconds=seconds)

    def read(self, prepared: PreparedSlide, *, progress: Progress = silent) -> SlideResult:
        """Label a prepared slide by each network in turn, and close it. See :func:`mean_result`."""
        with prepared.slide:
            results = [self.members[0].read_open(prepared, progress=progress)]
            again = replace(prepared, seconds=0.0)  # opened and segmented once
            results += [member.read_open(again, progress=progress) for member in self.members[1:]]
        return mean_result(results, checkpoint=self.checkpoint)


def mean_result(results: Sequence[SlideResult], *, checkpoint: str) -> SlideResult:
    """Several networks' results of one slide as one.

    Probabilities are means, ``spread`` their standard deviations, telemetry is that of all passes together, bad
    tiles are those that any pass met. Coordinates, attention, kept patches and contributions are the first
    network's: logits of different networks have no common scale.
    """
    probabilities, spread = mean_and_spread([result.probabilities for result in results])
    return replace(
        results[0],
        checkpoint=checkpoint,
        probabilities=probabilities,
        spread=spread,
        telemetry=SlideTelemetry.total(result.telemetry for result in results),
        bad_tiles=tuple(dict.fromkeys(name for result in results for name in result.bad_tiles)),
    )


def mean_and_spread(
    told: Sequence[Probabilities],
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """{task: {class: mean}} and {task: {class: standard deviation}} over two networks or more.

    The deviation is the sample's, with the number of networks less one below the line.
    """
    values = {
        task: {name: np.array([one[task][name] for one in told], np.float64) for name in classes}
        for task, classes in told[0].items()
    }
    means = {task: {name: float(x.mean()) for name, x in its.items()} for task, its in values.items()}
    spread = {task: {name: float(x.std(ddof=1)) for name, x in its.items()} for task, its in values.items()}
    return means, spread
