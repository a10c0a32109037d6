"""The checkpoints of a run: one, or several that read the same patches for the same tasks.

:class:`Checkpoints` are the files. :class:`EnsemblePredictor` labels a slide with several networks: the result
is the mean of what they say, and how far apart they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from wsi_ips.config import PipelineConfig, Section, TaskConfig, TurnsConfig
from wsi_ips.errors import CheckpointError, ConfigError
from wsi_ips.inference.results import Probabilities, SlideResult
from wsi_ips.inference.telemetry import SlideTelemetry
from wsi_ips.models.checkpoint_head import checkpoint_config, checkpoint_sha256
from wsi_ips.models.encoders.identity import FeaturesOrigin
from wsi_ips.models.encoders.registry import code_of, code_sha256
from wsi_ips.progress import Progress, silent
from wsi_ips.storage.held_folder import flat_settings
from wsi_ips.storage.location import Location
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.units import Mpp

if TYPE_CHECKING:
    from wsi_ips.inference.predict import Predictor, PreparedSlide

SAME = ("tiling", "selection")
"""Sections of the configuration that decide which patches are read, and so have to agree."""


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """The absolute path of a checkpoint, and its SHA-256."""

    path: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """One checkpoint or more. The attention that is stored is that of the first.

    Attributes:
        files: The files.
        code: The SHA-256 of each file ``FILE.py`` that an encoder ``FILE.py:FUNCTION`` of theirs is a function of,
            by the name of the encoder. A checkpoint holds weights and no code.
    """

    files: tuple[CheckpointFile, ...]
    code: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, paths: Sequence[Path]) -> Self:
        """The checkpoints at these paths. Raises :class:`ConfigError` if two files have the same content."""
        files = [CheckpointFile(path.absolute(), checkpoint_sha256(path)) for path in paths]
        seen: dict[str, Path] = {}
        for file in files:
            if file.sha256 in seen:
                raise ConfigError(
                    f"{file.path} and {seen[file.sha256]} are the same checkpoint, and counting a model twice "
                    "adds no second opinion: give each checkpoint once"
                )
            seen[file.sha256] = file.path
        return cls(tuple(files), code_of(checkpoint_config(path).model.encoder.name for path in paths))

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return len(self.files) > 1

    @property
    def sha256(self) -> str:
        """What results name their model by: the SHA-256 of the checkpoint; for several, one over all of theirs,
        in order.
        """
        if not self.several:
            return self.files[0].sha256
        return sha256(("mean of " + " ".join(file.sha256 for file in self.files)).encode()).hexdigest()

    def check(self) -> None:
        """Check that every file still has the content that it had, and the code of their encoders. Raises
        :class:`CheckpointError` if one is gone or changed.
        """
        for file in self.files:
            if not file.path.is_file() or checkpoint_sha256(file.path) != file.sha256:
                raise CheckpointError(
                    file.path,
                    "is missing or has other content where a worker runs",
                    "keep it where all workers can read it, and do not change it during a run",
                )
        for name, sha in self.code.items():
            if code_sha256(name) != sha:
                raise CheckpointError(
                    name,
                    "is code that is missing or has other content where a worker runs",
                    "keep the file where all workers can read it, and do not change it during a run",
                )

    def to_json(self) -> list[dict[str, str]]:
        """Path and SHA-256 of each, for ``run.json``."""
        return [{"path": str(file.path), "sha256": file.sha256} for file in self.files]


def same_patches_and_tasks(
    paths: Sequence[Path], selection: TurnsConfig | None = None
) -> list[PipelineConfig]:
    """The configuration of each checkpoint, after a check that their answers can be averaged.

    Args:
        paths: The checkpoints.
        selection: What is changed in the selection of each. None: nothing.

    Raises:
        ConfigError: The change does not go with a checkpoint.
        CheckpointError: A file cannot be read, or the tasks, tiling or selection of one differ from those of the
            first, or one reads pixels and another features, or features of another width.
    """
    asked = selection or TurnsConfig()
    first, *others = configs = [checkpoint_config(path).with_turns(asked) for path in paths]
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
    ours_of, theirs_of = (FeaturesOrigin.of_config(each.model.encoder) for each in (first, other))
    if (differs := ours_of.difference(theirs_of)) is not None:
        return f"it reads features of {differs[0]}, not of {differs[1]}"
    if first.bag != other.bag:
        return f"its bag is {other.bag}, not {first.bag}"
    for section in SAME:
        ours, theirs = (_all_settings(getattr(each, section)) for each in (first, other))
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            if ours.get(name) != theirs.get(name):
                return f"its {section}.{name} is {theirs.get(name)}, not {ours.get(name)}"
    return ""


def _all_settings(section: Section) -> dict[str, Any]:
    """Each setting by its dotted name, those too that are at a default that files leave out."""
    left_out = {name: value for name, value in section if not isinstance(value, Section)}
    return flat_settings({**left_out, **section.model_dump(mode="json")})


def _says(task: TaskConfig) -> str:
    """What the numbers of a task mean, as far as it has to be the same to average them."""
    if task.survival is not None:
        return f"survival in {task.survival.unit}, {task.survival.loss}"
    return task.activation if task.kind == "label" else f"{task.activation}, {task.kind}"


def _in_words(tasks: Sequence[tuple[str, tuple[str, ...], str]]) -> str:
    return "; ".join(f"{name} ({activation}: {', '.join(classes)})" for name, classes, activation in tasks)


def _read(width: int | None) -> str:
    return "slides" if width is None else f"features of width {width}"


class EnsemblePredictor:
    """Several networks that read the same patches for the same tasks. Each of them reads each slide once.

    Args:
        members: One predictor for each network.
        checkpoint: What results name all of them by together.
    """

    def __init__(self, members: "Sequence[Predictor]", *, checkpoint: str = "") -> None:
        self.members = tuple(members)
        self.checkpoint = checkpoint
        self.pipeline = members[0].pipeline
        self.device = members[0].device
        self.find_patches = members[0].find_patches

    def prepare(self, path: Location, *, slide_id: str, mpp: Mpp | None = None) -> "PreparedSlide":
        """Open a slide and find its patches, see :meth:`Predictor.prepare`."""
        return self.members[0].prepare(path, slide_id=slide_id, mpp=mpp)

    def opened(self, path: Location, coords: PatchCoords, *, seconds: float) -> "PreparedSlide":
        """Open a slide whose patches are known, see :meth:`Predictor.opened`."""
        return self.members[0].opened(path, coords, seconds=seconds)

    def read(self, prepared: "PreparedSlide", *, progress: Progress = silent) -> SlideResult:
        """Label a prepared slide by each network in turn, and close it. For the result see :func:`mean_result`."""
        with prepared.slide:
            results = [self.members[0].read_open(prepared, progress=progress)]
            again = replace(prepared, seconds=0.0)  # the slide was opened and segmented only once
            results += [member.read_open(again, progress=progress) for member in self.members[1:]]
        return mean_result(results, checkpoint=self.checkpoint)

    def read_case(
        self, slides: "Sequence[PreparedSlide]", *, case_id: str, progress: Progress = silent
    ) -> list[SlideResult]:
        """Label a case by each network in turn and leave its slides open, see :meth:`Predictor.read_case`."""
        told = [self.members[0].read_case(slides, case_id=case_id, progress=progress)]
        again = [replace(slide, seconds=0.0) for slide in slides]
        told += [member.read_case(again, case_id=case_id, progress=progress) for member in self.members[1:]]
        return [mean_result(results, checkpoint=self.checkpoint) for results in zip(*told, strict=True)]


def mean_result(results: Sequence[SlideResult], *, checkpoint: str) -> SlideResult:
    """The results of several networks for one slide as one result.

    Probabilities are means and ``spread`` their standard deviations; telemetry is that of all passes together;
    bad tiles are those that any pass met. Coordinates, attention, kept patches and contributions are those of
    the first network, because the logits of different networks have no common scale.
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
    """``{task: {class: mean}}`` and ``{task: {class: standard deviation}}`` over two networks or more.

    It is the sample standard deviation, which divides by the number of networks minus one.
    """
    values = {
        task: {name: np.array([one[task][name] for one in told], np.float64) for name in classes}
        for task, classes in told[0].items()
    }
    means = {task: {name: float(x.mean()) for name, x in its.items()} for task, its in values.items()}
    spread = {task: {name: float(x.std(ddof=1)) for name, x in its.items()} for task, its in values.items()}
    return means, spread
