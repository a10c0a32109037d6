"""What a row of a table does beside its work on slides, measured: :func:`measured_job`.

A new process stores features of one slide under several names, trains on them, labels them and evaluates what was
said, with the functions that a table calls. What is random are the features and the weights, which cost no other
time than real ones.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from shapely import box

from wsi_ips.commands.evaluate import EvaluateJob, evaluate
from wsi_ips.config import FinetuneConfig
from wsi_ips.datasets.annotations import write_asap
from wsi_ips.datasets.manifest import Manifest, SlideRecord, read_manifest, write_manifest
from wsi_ips.inference.held_out import predict_slides
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import save_checkpoint
from wsi_ips.planning.measure import HEAD_RUNS, head_rates, peak_mb, train_on
from wsi_ips.planning.rates import Clock, JobRates
from wsi_ips.planning.simulated import Counted
from wsi_ips.planning.survey import Sample
from wsi_ips.progress import silent
from wsi_ips.storage.hdf5 import whole_hdf5
from wsi_ips.streaming.device import calculating, pick_device
from wsi_ips.tiling.coords import put_coords
from wsi_ips.training.feature_bags import FeatureBag, feature_bag

SCORED = 24
"""Slides that are labelled and scored. A test split of so many or fewer is scored as it is; of a larger one so
many and half of them tell what each slide costs."""
LESION = 6
"""Side of a lesion that is drawn for FROC, in patches."""


@dataclass(frozen=True, slots=True)
class JobWanted:
    """What is to be measured.

    Attributes:
        config: The settings of the row, reading features (``model.encoder.features``).
        learns: Whether it is trained on them.
        sample: A slide: the places of its patches.
        mean_patches: Patches of a slide in the mean, to which times are scaled.
        test: Slides that are scored, or some of them, see :func:`scored_sample`.
        slides: How many are scored in all.
        lesions: Whether lesions are found (FROC).
        bootstrap: Resamples.
        device: Where the network runs.
        clock: ``wall``, or ``cpu``.
        begun: When the process was asked for, by ``time.time``.
    """

    config: FinetuneConfig
    learns: bool
    sample: Sample
    mean_patches: float
    test: tuple[SlideRecord, ...]
    slides: int
    lesions: bool
    bootstrap: int
    device: str
    clock: Clock = "wall"
    begun: float = 0.0


def scored_sample(records: Sequence[SlideRecord], column: str) -> tuple[SlideRecord, ...]:
    """All of these slides, or about :data:`SCORED` of them: whole cases, of every label in turn."""
    if len(records) <= SCORED:
        return tuple(records)
    cases: dict[str, list[SlideRecord]] = {}
    for record in records:
        cases.setdefault(record.case_id, []).append(record)
    of_label: dict[str, list[list[SlideRecord]]] = {}
    for its in cases.values():
        of_label.setdefault(its[0].labels.get(column, ""), []).append(its)
    chosen: list[SlideRecord] = []
    for turn in range(max(map(len, of_label.values()))):
        for theirs in of_label.values():
            if turn < len(theirs) and len(chosen) < SCORED:
                chosen += theirs[turn]
    return tuple(chosen)


def measured_job(wanted: JobWanted) -> JobRates:
    """Measure in a process of its own. Raises ``BrokenProcessPool`` where it dies, or what a table would."""
    before = os.times()
    # A process as a table starts one for each job, because it also takes seconds to end.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        rates, used_s, done = pool.submit(_measure, replace(wanted, begun=time.time())).result()
    after = os.times()
    children_s = after.children_user + after.children_system - before.children_user - before.children_system
    end_s = children_s - used_s if wanted.clock == "cpu" else time.time() - done
    return rates.model_copy(update={"end_s": max(0.0, end_s)})


def _measure(wanted: JobWanted) -> tuple[JobRates, float, float]:
    with (
        calculating(deterministic=wanted.config.training.deterministic),
        tempfile.TemporaryDirectory(prefix="wsi_ips_plan_") as folder,
    ):
        rates = _Job(wanted, Path(folder)).rates()
    return rates, time.process_time(), time.time()


class _Job:
    """A small table of one row."""

    def __init__(self, wanted: JobWanted, folder: Path) -> None:
        self._wanted, self._folder = wanted, folder
        self._device = pick_device(wanted.device)
        cpu = wanted.clock == "cpu"
        self._now = time.process_time if cpu else time.perf_counter
        self._start_s = time.process_time() if cpu else max(0.0, time.time() - wanted.begun)
        self._stored = self._store()

    def rates(self) -> JobRates:
        """Train, label, score."""
        wanted = self._wanted
        scale = wanted.mean_patches / max(1, len(wanted.sample.coords))
        head = None
        if wanted.learns:
            train, val, epochs = HEAD_RUNS[0]
            cold = self._train(self._epochs(epochs), train, val)
            head = head_rates(wanted.config, self._train, cold=cold)
            head = head.model_copy(update={"bag_s": head.bag_s * scale})
        label_s, score_s, score_slide_s = self._labels_and_scores()
        return JobRates(
            device=self._device.type,
            clock=wanted.clock,
            start_s=self._start_s,
            head=head,
            label_s=label_s * scale if wanted.learns else None,
            score_s=score_s,
            score_slide_s=score_slide_s,
            peak_mb=peak_mb(),
        )

    def _store(self) -> Path:
        """Features of the slide, in the layout that a table stores."""
        path, coords = self._folder / "stored.h5", self._wanted.sample.coords
        width = self._wanted.config.model.encoder.features
        assert width is not None
        rng = np.random.default_rng(0)
        with whole_hdf5(path) as file:
            file["features"] = rng.standard_normal((len(coords), width), dtype=np.float32)
            put_coords(file, coords, layout="trident")
        return path

    def _epochs(self, epochs: int) -> FinetuneConfig:
        config = self._wanted.config
        return config.model_copy(
            update={"training": config.training.model_copy(update={"epochs": epochs, "restarts": 1})}
        )

    def _train(self, config: FinetuneConfig, train: int, val: int) -> float:
        bags = [self._bag(number, config) for number in range(train + val)]
        return train_on(bags, train, config, self._device, self._now)

    def _bag(self, number: int, config: FinetuneConfig) -> FeatureBag:
        tasks, width = config.model.tasks, config.model.encoder.features
        assert width is not None
        record = SlideRecord(f"bag{number}", f"bag{number}", {}, "train", self._stored)
        bag = feature_bag(record, self._stored, tasks=(), width=width)
        return bag.labelled({task.name: Counted(self._device).target(task, number) for task in tasks})

    def _labels_and_scores(self) -> tuple[float, float, float]:
        """Seconds for a slide that is labelled; for a run that is scored, and for each slide of it."""
        wanted = self._wanted
        if not wanted.test:
            return 0.0, 0.0, 0.0
        checkpoint = self._folder / "model.safetensors"
        save_checkpoint(checkpoint, build_net(wanted.config.model), wanted.config.pipeline)
        n = len(wanted.test)
        cold = self._labelled(wanted.test, checkpoint, "cold")
        if n == wanted.slides:
            return cold[0] / n, cold[1], 0.0
        half = scored_half(wanted.test)
        again, fewer = (
            self._labelled(its, checkpoint, name) for its, name in ((wanted.test, "all"), (half, "half"))
        )
        label_s, score_slide_s = (
            max(0.0, (more - less) / (n - len(half))) for more, less in zip(again, fewer, strict=True)
        )
        once = max(0.0, cold[0] - n * label_s) + max(0.0, cold[1] - n * score_slide_s)
        return label_s, once, score_slide_s

    def _labelled(self, records: Sequence[SlideRecord], checkpoint: Path, name: str) -> tuple[float, float]:
        """Seconds of labelling these slides, and of scoring them."""
        wanted, folder = self._wanted, self._folder / name
        folder.mkdir()
        features = folder / "features"
        features.mkdir()
        for record in records:
            (features / f"{record.slide_id}.h5").symlink_to(self._stored)
        write_manifest(folder / "manifest.csv", [replace(one, split="test") for one in records])
        manifest = self._manifest(folder / "manifest.csv")
        started = self._now()
        predict_slides(
            manifest, wanted.config, [(checkpoint, [one.slide_id for one in records])], folder / "run",
            checkpoint=checkpoint, features=features, device=wanted.device, slide_mpp=_unknown, progress=silent,
        )  # fmt: skip
        labelled = self._now()
        outlines = self._outlines(records, folder / "outlines") if wanted.lesions else None
        drawn = self._now()
        evaluate(
            EvaluateJob(
                run=folder / "run", manifest=folder / "manifest.csv", annotations=outlines,
                bootstrap=wanted.bootstrap, plots=False,
            ),
            silent,
        )  # fmt: skip
        return labelled - started, self._now() - drawn

    def _manifest(self, path: Path) -> Manifest:
        return read_manifest(path, tasks=self._wanted.config.model.tasks, need_slides=False)

    def _outlines(self, records: Sequence[SlideRecord], folder: Path) -> Path:
        """A lesion in every slide that is not of the first class, in the middle of the tissue."""
        coords = self._wanted.sample.coords
        x, y = map(float, coords.l0_xy_N2[len(coords) // 2])
        width, height = coords.l0_size
        side = LESION * coords.l0_patch
        lesion = box(x, y, min(x + side, width - 1.0), min(y + side, height - 1.0))
        task = self._wanted.config.model.tasks[0]
        for record in records:
            if task.classes and record.labels.get(task.column_name) != task.classes[0]:
                write_asap(folder / f"{record.slide_id}.xml", [lesion])
        return folder


def scored_half(records: Sequence[SlideRecord]) -> list[SlideRecord]:
    """Whole cases of about half of these slides, from the first on."""
    half: list[SlideRecord] = []
    for record in records:
        if len(half) < len(records) // 2 or record.case_id == half[-1].case_id:
            half.append(record)
    return half


def _unknown(slide_id: str) -> None:
    """No resolution is given by the user."""
