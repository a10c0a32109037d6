"""What runs in a worker process: the network, loaded once, and the slides and parts of slides that it is given.

:class:`SlideWorker` carries out the orders; :class:`WorkerSetup` is all that it has to know.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from wsi_ips import timeline
from wsi_ips.config import StreamingConfig, TurnsConfig
from wsi_ips.errors import CheckpointError
from wsi_ips.inference.checkpoints import CheckpointFile, Checkpoints, EnsemblePredictor
from wsi_ips.inference.in_hand import looked_at_meanwhile
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.slide_tasks import Cut, check_shared, check_versions
from wsi_ips.inference.slide_work import Done, Draw, SlideJob, SlideRecorder, SlideWork
from wsi_ips.models.checkpoint_head import checkpoint_config
from wsi_ips.models.encoders.compute import Compute
from wsi_ips.progress import silence_libraries
from wsi_ips.storage.fingerprint import versions
from wsi_ips.tiling.patches import FindPatches, PatchesInTissue

if TYPE_CHECKING:
    import torch

    from wsi_ips.inference.predict import Predictor, PreparedSlide, ScoredPart

T = TypeVar("T")

BY_RULES = ("rules", "bright_field", "dark_field")
"""Segmenters that compute on the CPU and hold nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """All that a worker has to know. It is sent to the worker, so it is plain data.

    Paths are absolute, on a disk that all workers share.

    Attributes:
        models: The checkpoints of the run.
        run: The folder of the run.
        streaming: How slides are read.
        device: Name of the device, or ``auto``.
        threads: CPU threads that compute and decode. None: torch decides how many compute, and
            ``streaming.threads`` decode.
        shard_patches: Slides with more patches are scored in parts. None: none are.
        draw: Draws overlays, if given.
        embeddings: Also store the embeddings of the kept patches.
        gradients: Also store gradient times input of the kept patches.
        find_patches: How patches are found, see :class:`Predictor`.
        selection: What is changed in the selection of the checkpoints; nothing that they say themselves.
        start: Id of the start of the run, see :class:`SlideRecorder`.
        deterministic: See :class:`Predictor`.
        compute: What the encoder of each checkpoint computes in, and whether it is compiled. Empty: float32, not
            compiled.
        versions: The versions that the run began with. A worker that joins later has to have them too.
    """

    models: Checkpoints
    run: RunFolder
    streaming: StreamingConfig
    device: str = "auto"
    threads: int | None = None
    shard_patches: int | None = None
    draw: Draw | None = None
    embeddings: bool = False
    gradients: bool = False
    find_patches: FindPatches | None = None
    selection: TurnsConfig = field(default_factory=TurnsConfig)
    start: str | None = None
    deterministic: bool = False
    compute: tuple[Compute, ...] = ()
    versions: Mapping[str, str] = field(default_factory=versions)

    def recorder(self) -> SlideRecorder:
        """What writes the results of the run."""
        return SlideRecorder(
            self.run,
            checkpoint=self.models.sha256,
            draw=self.draw,
            embeddings=self.embeddings,
            gradients=self.gradients,
            start=self.start,
            streaming=self.streaming,
            find_patches=self.find_patches,
            precision=precision_of(self.compute),
            turns=self.selection.turns,
        )

    def on_worker(self, place: int) -> "SlideWorker":
        """What the worker with this number works with, see
        :class:`wsi_ips.inference.slide_tasks.SlideTask`."""
        return SlideWorker(self, place)

    def patch_finder(self) -> FindPatches | None:
        """What the predictor that :meth:`load` makes will find patches with, known without a network. None for a
        segmenter that is not ours, which may need the device or a thread of its own, and for a checkpoint that
        cannot be read, which :meth:`load` then says.
        """
        if self.find_patches is not None:
            return self.find_patches
        try:
            tiling = checkpoint_config(self.models.files[0].path).tiling
        except CheckpointError:
            return None
        return PatchesInTissue(tiling) if tiling.tissue.segmenter in BY_RULES else None

    def load(self, place: int) -> SlideWork:
        """Load the network on the device of this process. ``place`` is its number among the workers of one
        machine.

        Raises:
            CheckpointError: A checkpoint is missing, or has other content.
            ResultsError: The folder of the run is missing.
            ClusterError: The versions of the packages differ.
        """
        import torch  # a setup is made, and asked for its recorder, where nothing is left to compute

        from wsi_ips.streaming.device import device_of_worker

        silence_libraries()
        check_versions(versions(), self.versions, where=platform.node())
        check_shared(self.run.root, self.run.description)
        self.models.check()
        streaming = self.streaming
        if self.threads is not None:
            torch.set_num_threads(self.threads)
            streaming = streaming.model_copy(update={"threads": self.threads})
        device = device_of_worker(self.device, place)
        predictor = load_predictor(
            self.models,
            streaming=streaming,
            device=device,
            find_patches=self.find_patches,
            selection=self.selection,
            deterministic=self.deterministic,
            gradients=self.gradients,
            compute=self.compute,
        )
        return SlideWork(predictor, self.recorder())


def load_predictor(
    models: Checkpoints,
    *,
    streaming: StreamingConfig,
    device: "torch.device",
    find_patches: FindPatches | None = None,
    selection: TurnsConfig | None = None,
    deterministic: bool = False,
    gradients: bool = False,
    compute: Sequence[Compute] = (),
) -> "Predictor | EnsemblePredictor":
    """Load the networks of these checkpoints onto one device: one, or several whose mean is the result.

    Args:
        models: The checkpoints.
        streaming: How slides are read.
        device: Where the networks run.
        find_patches: How patches are found, see :class:`Predictor`.
        selection: What is changed in the selection of the checkpoints. None: nothing.
        deterministic: See :class:`Predictor`.
        gradients: See :class:`Predictor`.
        compute: What the encoder of each checkpoint computes in, see :class:`WorkerSetup`.

    Raises:
        CheckpointError: A file is not a checkpoint.
        ConfigError: Gradients or turns are asked for, and the selector of a checkpoint has none; or an encoder is
            to be compiled, and this machine has no compiler for it.
    """
    from wsi_ips.inference.predict import Predictor
    from wsi_ips.models.checkpoint import load_checkpoint
    from wsi_ips.models.encoders.network import check_compiles

    if any(each.compiled_batch for each in compute):
        check_compiles(device)

    def member(file: CheckpointFile, how: Compute) -> Predictor:
        net, pipeline = load_checkpoint(file.path, advance_rng=False)
        return Predictor(
            net,
            pipeline.with_turns(selection or TurnsConfig()),
            streaming=streaming,
            device=device,
            checkpoint=file.sha256,
            find_patches=find_patches,
            deterministic=deterministic,
            gradients=gradients,
            compute=how,
        )

    ways = compute or [Compute()] * len(models.files)
    members = [member(file, how) for file, how in zip(models.files, ways, strict=True)]
    return EnsemblePredictor(members, checkpoint=models.sha256) if models.several else members[0]


class SlideWorker:
    """What one process does in a run. It is called by one thread at a time.

    An error of a slide becomes its :class:`Done`; only what concerns every slide is raised.
    """

    def __init__(self, setup: WorkerSetup, place: int) -> None:
        self._setup = setup
        self._place = place
        self._work: SlideWork | None = None

    def work(self, job: SlideJob) -> Done | Cut:
        """Label a slide, or say how it is to be cut.

        If a worker that died, or an earlier start, has labelled it already, only its overlay is drawn, and no
        network is loaded for that.
        """
        recorder = self._setup.recorder() if self._work is None else self._work.recorder
        if (done := recorder.found(job)) is not None:
            return done
        work, prepare = self._ready_for(job, recorder)
        most = self._setup.shard_patches
        if most is None:
            return work.label(job, prepare)
        try:
            prepared = prepare()
        except Exception as error:  # noqa: BLE001 - see SlideWork.label
            return work.recorder.failed(job, error)
        n_patches = len(prepared.coords)
        if n_patches <= most:
            return work.label(job, lambda: prepared)
        prepared.slide.close()
        return Cut(tuple(_one_net(work).parts(n_patches, most=most)))

    def _ready_for(
        self, job: SlideJob, recorder: SlideRecorder
    ) -> "tuple[SlideWork, Callable[[], PreparedSlide]]":
        """The network, and a function that prepares the slide. While the network is loaded, which happens once,
        a thread finds the patches of the slide.
        """
        find = None if self._work is not None else self._setup.patch_finder()
        if find is None:
            work = self._loaded()
            return work, lambda: work.prepare(job)
        return looked_at_meanwhile(job, recorder, find, self._loaded)

    def score(self, job: SlideJob, part: range) -> "ScoredPart | Done":
        """Score a part of a slide. If that fails, the slide has failed."""
        with timeline.slide(job.slide_id):
            return self._of_slide(job, lambda work: _one_net(work).score_part(work.prepare(job), part))

    def join(self, job: SlideJob, parts: "Sequence[ScoredPart]") -> Done:
        """Label a slide whose parts have been scored."""

        def joined(work: SlideWork) -> Done:
            prepared = work.prepare(job)
            return work.recorder.write(job, _one_net(work).read_parts(prepared, parts), prepared.known_source)

        with timeline.slide(job.slide_id):
            return self._of_slide(job, joined)

    def _of_slide(self, job: SlideJob, what: Callable[[SlideWork], T]) -> T | Done:
        work = self._loaded()
        try:
            return what(work)
        except Exception as error:  # noqa: BLE001 - see SlideWork.label
            return work.recorder.failed(job, error)

    def _loaded(self) -> SlideWork:
        if self._work is None:
            self._work = self._setup.load(self._place)
        return self._work


def _one_net(work: SlideWork) -> "Predictor":
    """The predictor of one network. The job makes sure that slides are cut for one network only."""
    from wsi_ips.inference.predict import Predictor

    assert isinstance(work.predictor, Predictor)
    return work.predictor


def precision_of(compute: Sequence[Compute]) -> str:
    """What results say that their encoders computed in: the precision of all, or, where they differ, of each in
    turn.
    """
    told = [how.precision for how in compute] or ["32"]
    return told[0] if len(set(told)) == 1 else " ".join(told)
