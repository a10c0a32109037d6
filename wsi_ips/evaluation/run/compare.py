"""Trainings that are to be compared: each entry with each seed, what they cost, and what they predicted.

Start with :func:`run_all`; :mod:`wsi_ips.evaluation.run.compare_table` says what came of it.
"""

import json
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from wsi_ips.config import FinetuneConfig
from wsi_ips.datasets.manifest import Manifest, SlideRecord
from wsi_ips.errors import ConfigError, TrainingError
from wsi_ips.inference.held_out import predict_slides
from wsi_ips.inference.predictions import PredictionRow, read_predictions
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.telemetry import peak_rss_mb
from wsi_ips.models.build import ATS_ENCODERS
from wsi_ips.models.encoders.registry import allow_code
from wsi_ips.models.encoders.timm_encoder import FeatureEncoder, TimmEncoder
from wsi_ips.progress import Progress, silent
from wsi_ips.storage.files import whole_file
from wsi_ips.streaming.device import pick_device
from wsi_ips.tiling.kept_coords import patches_from
from wsi_ips.training.cross_validation import run_fingerprint
from wsi_ips.training.feature_bags import finetune_features
from wsi_ips.training.fit import finetune
from wsi_ips.training.learned_from import LearnedFrom, slide_fingerprints
from wsi_ips.training.run_state import STATE_NAME, forget_run, training_folder
from wsi_ips.units import Mpp

DONE_NAME = "done.json"
"""File that says what was trained and what it cost. It exists once training and predictions are complete."""
PREDICTIONS = "predictions"
"""Folder of the predictions, below that of the training."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What one training and its predictions cost. None: not known.

    Attributes:
        train_passes, predict_passes: Patches that went through the encoder, every time counted; on stored
            features, rows that were read. ``train_passes`` includes those of validation and head start.
        train_seconds, predict_seconds: By the clock. None where the training was interrupted.
        peak_memory: Bytes, the most that its process held, the program itself included; on a CUDA device the most
            of the device. None without a process of its own.
        bytes_written: Size of all files that it left.
    """

    train_passes: int | None
    predict_passes: int
    train_seconds: float | None
    predict_seconds: float
    peak_memory: int | None
    bytes_written: int


@dataclass(frozen=True, slots=True)
class Planned:
    """One training of the comparison.

    Attributes:
        entry: Name of the entry.
        config: All its settings; ``training.seed`` is the seed.
        manifest: The slides and their labels.
        features: Folder of stored features, or None.
        out: Folder to write to.
        split: The slides that are predicted.
        device: Where it runs.
        mpp: ``{slide_id: µm per pixel}`` of slides whose resolution the user knows better than the file.
        coords: Folder in which the coordinates of patches are kept for all trainings; None: nowhere.
    """

    entry: str
    config: FinetuneConfig
    manifest: Manifest
    features: Path | None
    out: Path
    split: str
    device: str
    mpp: Mapping[str, Mpp] = field(default_factory=dict)
    coords: Path | None = None

    @property
    def seed(self) -> int:
        return self.config.training.seed

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides what it predicts."""
        what = [run_fingerprint(self.manifest, self.config), str(self.features and self.features.absolute())]
        mpp = {slide_id: float(value) for slide_id, value in self.mpp.items()}
        return sha256(json.dumps([*what, self.split, mpp], sort_keys=True).encode()).hexdigest()

    @property
    def records(self) -> list[SlideRecord]:
        """The slides that it learns from, chooses its epoch on, or predicts."""
        return [record for record in self.manifest.records if record.split in {"train", "val", self.split}]

    def learned_from(self, slides: Mapping[str, str] | None = None) -> LearnedFrom:
        """The content of the files that decide what it predicts, as they are now. ``slides``: the fingerprints of
        :attr:`records`, where they are known already.
        """
        return LearnedFrom.now(
            self.records, self.config, features=self.features, slide_mpp=self.mpp.get, slides=slides
        )


@dataclass(frozen=True, slots=True)
class Finished:
    """A training that is complete.

    Attributes:
        planned: What was planned.
        costs: What it cost.
        bad: ``{slide_id: why}`` of the slides that were left out of training.
        rows: What it predicted.
        skipped: Whether it was complete before.
    """

    planned: Planned
    costs: Costs
    bad: Mapping[str, str]
    rows: tuple[PredictionRow, ...]
    skipped: bool

    @classmethod
    def read(cls, planned: Planned, *, skipped: bool, now: LearnedFrom | None = None) -> Self:
        """Read what :func:`do_planned` left.

        Args:
            planned: What was planned.
            skipped: Whether it was complete before.
            now: The content of its files now, to be compared with what it learned from. Records of earlier
                versions do not say that. None: nothing is compared.

        Raises:
            ConfigError: The folder holds another training, or one whose slides or features have changed since, or
                its record cannot be read.
            ResultsError: Its predictions cannot be read.
        """
        path = planned.out / DONE_NAME
        try:
            held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            run, costs = str(held["run"]), Costs(**held["costs"])
            bad = {str(slide_id): str(why) for slide_id, why in held["bad"].items()}
            before = held.get("learned_from")
            changed = "" if now is None or before is None else LearnedFrom.from_json(before).difference(now)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ConfigError(
                f"{path}: cannot be read ({error}); delete it to train this entry and seed again, or give "
                "--restart to train everything anew"
            ) from None
        if run != planned.fingerprint:
            raise ConfigError(
                f"{planned.out}: holds a training with other settings, slides or features; write to another "
                "folder, call the entry something else, or give --restart"
            )
        if changed:
            raise ConfigError(
                f"{planned.out}: holds a training that learned from other files ({changed}); give --restart to "
                "train everything anew, or write to another folder"
            )
        table = RunFolder(planned.out / PREDICTIONS).predictions
        rows = read_predictions(table, tasks=planned.config.model.tasks)
        return cls(planned, costs, bad, tuple(rows), skipped)


def run_all(
    planned: Sequence[Planned], *, isolate: bool, restart: bool = False, progress: Progress = silent
) -> list[Finished]:
    """Train and predict everything that is not complete yet, in the order given.

    Args:
        planned: The trainings.
        isolate: Each in a process of its own.
        restart: Forget what is there.
        progress: Shows how far it is.

    Raises:
        ConfigError: A folder holds another training. This is found before anything is trained.
        TrainingError: A process died; what was complete is kept. Other errors are those of the trainings.
    """
    content = ContentNow()
    done = {
        each.out: Finished.read(each, skipped=True, now=content.of(each))
        for each in planned
        if not restart and is_done(each)
    }
    finished = []
    with progress("Comparing", total=len(planned)) as advance:
        for each in planned:
            label = f"{each.entry}, seed {each.seed}"
            if each.out not in done:
                if restart:
                    (each.out / DONE_NAME).unlink(missing_ok=True)
                    forget_run(each.out)
                _in_own_process(each) if isolate else do_planned(each, isolated=False, progress=progress)
            finished.append(done.get(each.out) or Finished.read(each, skipped=False))
            advance(f"{label}: was complete already" if each.out in done else label)
    return finished


@dataclass(frozen=True, slots=True)
class ContentNow:
    """The content of the files that trainings learn from. Those of the same slides are read once."""

    _known: dict[tuple[Path | None, tuple[tuple[str, str], ...]], dict[str, str]] = field(
        default_factory=dict
    )

    def of(self, planned: Planned) -> LearnedFrom:
        """What this training would learn from now. Raises :class:`FeaturesError` if features are missing."""
        read = planned.records
        key = planned.features, tuple((record.slide_id, str(record.path)) for record in read)
        if key not in self._known:
            self._known[key] = slide_fingerprints(read, planned.features)
        return planned.learned_from(self._known[key])


def is_done(planned: Planned) -> bool:
    """Whether the folder holds a complete training, of these settings or of others."""
    return (planned.out / DONE_NAME).is_file()


def do_planned(planned: Planned, *, isolated: bool, progress: Progress = silent) -> None:
    """Train, predict, and record what it cost. An interrupted training is continued.

    ``isolated``: whether this process does nothing else, so that its peak memory is that of the training.
    """
    config, device = planned.config, pick_device(planned.device)
    allow_code(config.model.encoder.name)
    find = patches_from(config.tiling, coords=planned.coords)
    with training_folder(planned.out):
        whole = not any(planned.out.rglob(STATE_NAME))
        learned_from = planned.learned_from()  # before anything is read
        started = perf_counter()
        with counted_passes() as train:
            if planned.features is not None:
                report = finetune_features(
                    planned.manifest, config, planned.features, planned.out, device=device, progress=progress
                )
            else:
                report = finetune(
                    planned.manifest, config, planned.out, device=device, slide_mpp=planned.mpp.get,
                    find_patches=find, progress=progress,
                )  # fmt: skip
        trained = perf_counter()
        slides = [record.slide_id for record in planned.manifest.split(planned.split)]
        with counted_passes() as predict:
            predict_slides(
                planned.manifest, config, [(report.checkpoint, slides)], planned.out / PREDICTIONS,
                checkpoint=report.checkpoint, features=planned.features, device=planned.device,
                slide_mpp=planned.mpp.get, find_patches=find, progress=progress,
            )  # fmt: skip
        costs = Costs(
            train_passes=train.patches if whole else None,
            predict_passes=predict.patches,
            train_seconds=trained - started if whole else None,
            predict_seconds=perf_counter() - trained,
            peak_memory=peak_memory(device) if isolated else None,
            bytes_written=sum(path.stat().st_size for path in planned.out.rglob("*") if path.is_file()),
        )
        held = {"run": planned.fingerprint, "costs": asdict(costs), "bad": dict(report.bad),
                "learned_from": learned_from.to_json()}  # fmt: skip
        with whole_file(planned.out / DONE_NAME) as partial:
            partial.write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")


def _in_own_process(planned: Planned) -> None:
    # spawn: a fork of a process with threads, or with a CUDA context, may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        try:
            pool.submit(do_planned, planned, isolated=True).result()
        except BrokenProcessPool:
            raise TrainingError(
                f"{planned.entry}, seed {planned.seed}: its process was killed, perhaps for want of memory; start "
                "again to go on from here"
            ) from None


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process held so far, on a CUDA device or in memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return round(peak_rss_mb() * 2**20)


@dataclass(slots=True)
class Passes:
    """How many patches went through an encoder."""

    patches: int = 0


@contextmanager
def counted_passes() -> Iterator[Passes]:
    """Count the patches that go through the encoder of whatever network runs within the ``with`` block."""
    kinds, passes = (TimmEncoder, FeatureEncoder, *ATS_ENCODERS.values()), Passes()

    def count(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, kinds):
            passes.patches += len(inputs[0])

    handle = register_module_forward_pre_hook(count)
    try:
        yield passes
    finally:
        handle.remove()
