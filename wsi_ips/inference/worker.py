"""What runs in a worker process: the network, loaded once, and the slides and parts of slides it is given."""

import platform
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from wsi_ips.config import StreamingConfig
from wsi_ips.errors import ClusterError, ResultsError
from wsi_ips.inference.checkpoints import CheckpointFile, Checkpoints, EnsemblePredictor
from wsi_ips.inference.predict import Predictor, ScoredPart
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.slide_work import Done, Draw, SlideJob, SlideRecorder, SlideWork
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.progress import silence_libraries
from wsi_ips.storage.fingerprint import versions
from wsi_ips.streaming.device import pick_device
from wsi_ips.tiling.patches import FindPatches

T = TypeVar("T")

SAME = ("wsi_ips", "torch")
"""Packages whose versions decide what a network says."""


def check_versions(theirs: Mapping[str, str], ours: Mapping[str, str], *, where: str) -> None:
    """Raises :class:`ClusterError` for a worker that would give other results."""
    for name in SAME:
        if theirs[name] != ours[name]:
            raise ClusterError(
                f"worker {where} has {name} {theirs[name]}, here is {ours[name]}; install the same there"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """All that a worker has to know; it is sent there, so it is data. Paths are absolute, on a disk that all
    workers share.

    models: the run's checkpoints. threads: CPU threads that compute and decode; None: as many as torch likes
    compute, and ``streaming.threads`` decode. shard_patches: slides of more patches are scored in parts.
    find_patches, deterministic: see :class:`Predictor`. start: see :class:`SlideRecorder`. versions: those that
    the run began with, which a worker that comes later has to have too.
    """

    models: Checkpoints
    run: RunFolder
    streaming: StreamingConfig
    device: str = "auto"
    threads: int | None = None
    shard_patches: int | None = None
    draw: Draw | None = None
    embeddings: bool = False
    find_patches: FindPatches | None = None
    start: str | None = None
    deterministic: bool = False
    versions: Mapping[str, str] = field(default_factory=versions)

    def recorder(self) -> SlideRecorder:
        return SlideRecorder(
            self.run,
            checkpoint=self.models.sha256,
            draw=self.draw,
            embeddings=self.embeddings,
            start=self.start,
            streaming=self.streaming,
            find_patches=self.find_patches,
        )

    def load(self, place: int) -> SlideWork:
        """The network on this process's device. ``place``: its number among the workers of one machine.

        Raises :class:`CheckpointError` for a checkpoint that is not the one that was meant,
        :class:`ResultsError` where the run's folder is not there, :class:`ClusterError` for other versions.
        """
        silence_libraries()
        check_versions(versions(), self.versions, where=platform.node())
        if not self.run.description.is_file():
            raise ResultsError(
                self.run.root, "is not there for a worker", "write to a folder that all workers share"
            )
        self.models.check()
        streaming = self.streaming
        if self.threads is not None:
            torch.set_num_threads(self.threads)
            streaming = streaming.model_copy(update={"threads": self.threads})
        device = pick_device(self.device)
        if str(device) == "cuda":  # none in particular
            device = torch.device("cuda", place % torch.cuda.device_count())
        predictor = load_predictor(
            self.models,
            streaming=streaming,
            device=device,
            find_patches=self.find_patches,
            deterministic=self.deterministic,
        )
        return SlideWork(predictor, self.recorder())


def load_predictor(
    models: Checkpoints,
    *,
    streaming: StreamingConfig,
    device: torch.device,
    find_patches: FindPatches | None = None,
    deterministic: bool = False,
) -> Predictor | EnsemblePredictor:
    """The networks of these checkpoints on one device: one, or several whose mean is told.

    find_patches, deterministic: see :class:`Predictor`. Raises :class:`CheckpointError` for a file that is none.
    """

    def member(file: CheckpointFile) -> Predictor:
        net, pipeline = load_checkpoint(file.path)
        return Predictor(
            net,
            pipeline,
            streaming=streaming,
            device=device,
            checkpoint=file.sha256,
            find_patches=find_patches,
            deterministic=deterministic,
        )

    members = [member(file) for file in models.files]
    return EnsemblePredictor(members, checkpoint=models.sha256) if models.several else members[0]


@dataclass(frozen=True, slots=True)
class Cut:
    """A slide that one worker should not take alone, and its parts."""

    parts: tuple[range, ...]


class SlideWorker:
    """One process's share of a run. Takes one order at a time, whatever threads the process has.

    An error of a slide becomes its :class:`Done`; what is raised would befall every slide.
    """

    def __init__(self, setup: WorkerSetup, place: int) -> None:
        self._setup = setup
        self._place = place
        self._work: SlideWork | None = None
        self._one_at_a_time = threading.Lock()

    def label(self, job: SlideJob) -> Done | Cut:
        """Label a slide, or say how it is to be cut. One that was labelled already, here by a worker that died or
        by an earlier start, gets its picture."""
        with self._one_at_a_time:
            work = self._loaded()
            if (done := work.recorder.found(job)) is not None:
                return done
            most = self._setup.shard_patches
            if most is None:
                return work.label(job)
            try:
                prepared = work.prepare(job)
            except Exception as error:  # noqa: BLE001 - see SlideWork.label
                return work.recorder.failed(job, error)
            n_patches = len(prepared.coords)
            if n_patches <= most:
                return work.label(job, lambda: prepared)
            prepared.slide.close()
            return Cut(tuple(_one_net(work).parts(n_patches, most=most)))

    def score(self, job: SlideJob, part: range) -> ScoredPart | Done:
        """Score a part of a slide; where that fails, the slide has failed."""
        return self._of_slide(job, lambda work: _one_net(work).score_part(work.prepare(job), part))

    def join(self, job: SlideJob, parts: Sequence[ScoredPart]) -> Done:
        """Label a slide whose parts are scored."""
        return self._of_slide(
            job, lambda work: work.recorder.write(job, _one_net(work).read_parts(work.prepare(job), parts))
        )

    def _of_slide(self, job: SlideJob, what: Callable[[SlideWork], T]) -> T | Done:
        with self._one_at_a_time:
            work = self._loaded()
            try:
                return what(work)
            except Exception as error:  # noqa: BLE001 - see SlideWork.label
                return work.recorder.failed(job, error)

    def _loaded(self) -> SlideWork:
        if self._work is None:
            self._work = self._setup.load(self._place)
        return self._work


def _one_net(work: SlideWork) -> Predictor:
    """Slides are cut for one network only; the job sees to it."""
    assert isinstance(work.predictor, Predictor)
    return work.predictor
