"""A minute's measurement on this machine: :func:`measured_rates`.

A new process does each part of the run once, with the program's own code, on real tiles of one of the slides
and at the recipe's batch sizes: it decodes, encodes, selects, learns, stores and draws. How long that took,
and the most memory that the process held, are the :class:`wsi_ips.planning.rates.Rates`. The encoder has
random weights, which compute as long as others do, so that nothing is downloaded.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsi_ips.config import FinetuneConfig, StreamingConfig
from wsi_ips.datasets.manifest import Target
from wsi_ips.inference.in_hand import alone
from wsi_ips.models.build import build_selecting_net
from wsi_ips.models.checkpoint import save_checkpoint
from wsi_ips.models.encoders.network import Compute, compute_in
from wsi_ips.models.ips_net import IPSNet, scoring
from wsi_ips.planning.rates import Clock, HeadRates, Rates
from wsi_ips.planning.simulated import Counted, without_weights
from wsi_ips.planning.survey import Sample, tile_megapixels
from wsi_ips.planning.work import Kind
from wsi_ips.selection.reading import read_bag
from wsi_ips.slides.base import SlideReader
from wsi_ips.slides.registry import open_slide
from wsi_ips.storage.system import load_average, peak_memory_since_start, usable_processors
from wsi_ips.streaming.device import calculating, pick_device
from wsi_ips.streaming.patch_source import Chunk, PatchSource
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.training.augment import augment
from wsi_ips.training.bags import Bag
from wsi_ips.training.fit import train_bags
from wsi_ips.training.head_start import ROWS_AT_ONCE, head_start_config
from wsi_ips.training.learning import backward_in_parts, bag_loss, make_optimizer
from wsi_ips.training.module import save_memory
from wsi_ips.units import PlaceKind

BUDGET_S = 5.0
"""Seconds for each part."""
MOST_REPEATS = 200
HEAD_RUNS = ((4, 1, 2), (4, 1, 6), (12, 3, 6))
"""Short trainings on features: (training bags, validation bags, epochs). Three of them tell a bag from an
epoch from the start."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be measured.

    Attributes:
        kind: The kind of work.
        config: Its settings.
        sample: A slide.
        device: Where the network runs.
        overlays: Whether pictures are drawn.
        labels: Whether a training also labels slides, in the same process.
        mean_patches: Patches of a slide in the mean, for learning on features.
        clock: ``wall``, or ``cpu``: seconds of a core, whatever else the machine does meanwhile.
        stream_only: Measure what the CPU of a machine with a card does: reading, decoding, storing.
        begun: When the process was asked for, by ``time.time``.
        budget_s: Seconds for each part.
    """

    kind: Kind
    config: FinetuneConfig
    sample: Sample
    device: str
    overlays: bool
    mean_patches: int
    clock: Clock = "wall"
    stream_only: bool = False
    begun: float = 0.0
    budget_s: float = BUDGET_S
    labels: bool = False


def measured_rates(wanted: Wanted) -> Rates:
    """Measure in a process of its own. Raises the error of the slide, or
    :class:`wsi_ips.inference.in_hand.Died`.
    """
    return alone(_measure, replace(wanted, begun=time.time()))


def peak_mb() -> float:
    """The most MiB that this process held. A new process begins at 0, which ``ru_maxrss`` does not on Linux."""
    return peak_memory_since_start() / 2**20


def _measure(wanted: Wanted) -> Rates:
    base_mb = peak_mb()
    with calculating(deterministic=wanted.config.training.deterministic):
        return _Measurement(wanted, base_mb).rates()


class _Measurement:
    """Does each part once, on one slide."""

    def __init__(self, wanted: Wanted, base_mb: float) -> None:
        self._wanted = wanted
        self._config = without_weights(wanted.config)
        self._device = pick_device(wanted.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._net = build_selecting_net(self._config.model, self._config.selection)
        compute_in(self._net, Compute(self._config.training.precision))
        self._net.to(self._device)
        self._coords = wanted.sample.coords
        self._thread_s = 0.0
        self._found: dict[str, Any] = {
            "device": _name_of(self._device),
            "how": "measured",
            "clock": wanted.clock,
            "cores": 1 if wanted.clock == "cpu" else usable_processors(),
            "base_mb": base_mb,
        }
        if self._device.type == "cuda":
            self._found["device_gb"] = torch.cuda.get_device_properties(self._device).total_memory / 1e9
        self._now = time.process_time if wanted.clock == "cpu" else time.perf_counter
        # The clock of the system may be set while a process starts.
        since = max(0.0, time.time() - wanted.begun)
        self._found["start_s"] = time.process_time() if wanted.clock == "cpu" else since

    def rates(self) -> Rates:
        """Measure all that the kind of work needs."""
        path = self._wanted.sample.path
        self._found["open_s"] = self._timed(lambda: open_slide(path).close(), most=3)
        with open_slide(path) as slide:
            pixels = self._decode(slide)
            if self._wanted.stream_only:
                if self._wanted.kind == "finetune":
                    self._read_again(slide)
                return self._told()
            self._encode(pixels)
            self._pass_over(slide)
            if self._wanted.kind == "finetune":
                self._read_again(slide)
                self._learn(pixels)
            if self._wanted.kind == "predict" or self._wanted.labels:
                self._label(slide)
        if self._wanted.kind == "finetune":
            self._head_start()
            self._save()
        self._found["peak_mb"] = peak_mb()
        return self._told()

    def _told(self) -> Rates:
        """What was found, and whether the machine was busy with something else."""
        load = load_average()
        if load > 1.5 * usable_processors() and self._wanted.clock == "wall":
            self._found["notes"] = (
                f"this machine had other work while it was measured ({load:.1f} processes on "
                f"{usable_processors()} cores): "
                "times are those of a machine as busy as that; --clock cpu counts seconds of a core instead",
            )
        if self._wanted.clock == "cpu":
            self._found["notes"] = ("times are seconds of a core, which several cores share between them",)
        return Rates.model_validate(self._found)

    def _stream(self, slide: SlideReader, n: int) -> PatchStream:
        """The first ``n`` patches from the slide's middle on, where there is tissue in a row."""
        total = len(self._coords)
        first = max(0, min(total // 2, total - n))
        coords = self._coords.only(self._coords.ids_N[first : first + n])
        return PatchStream(slide, coords, config=self._config.streaming, device=self._device)

    def _decode(self, slide: SlideReader) -> Tensor:
        """Reading and decoding alone: passes over the slide, or a part of one, as the time allows. Returns a batch
        of pixels.

        The first pass of a process also imports and prepares, which small slides would count as theirs. It belongs
        to the start.
        """
        began = self._now()
        for _ in (first := self._stream(slide, self._config.streaming.batch)):
            pass
        cold_s = self._now() - began
        held: Tensor | None = None
        wall = megapixels = in_tiles = beside = 0.0
        patches, begun = 0, time.perf_counter()
        while held is None or time.perf_counter() < begun + self._wanted.budget_s / 4:
            stream = self._stream(slide, len(self._coords))
            started = self._now()
            for chunk in stream:
                held = chunk.pixels_n3PP if held is None else held
                if time.perf_counter() > begun + self._wanted.budget_s:
                    break
            wall += self._now() - started
            done = stream.telemetry
            patches += done.patches
            megapixels += done.tiles_decoded * tile_megapixels(slide, self._coords)
            in_tiles += done.read_s + done.decode_s
            beside += done.assemble_s + done.resample_s
        threads = min(self._config.streaming.threads, self._found["cores"])
        share = in_tiles / (in_tiles + beside) if in_tiles + beside else 1.0
        self._thread_s = wall * threads / patches
        self._found["megapixel_s"] = share * wall * threads / megapixels if megapixels else 0.0
        self._found["patch_s"] = (1 - share) * self._thread_s
        self._found["start_s"] += max(0.0, cold_s - wall / patches * first.telemetry.patches)
        return held.clone()

    def _encode(self, pixels: Tensor) -> None:
        with torch.no_grad(), scoring(self._net):
            self._found["forward_s"] = self._timed(lambda: self._net.encoder(pixels)) / len(pixels)

    def _pass_over(self, slide: SlideReader) -> None:
        """Selection over a part of the slide, so that it is known how much of decoding takes no time."""
        found, threads = self._found, min(self._config.streaming.threads, self._found["cores"])
        decoding = self._thread_s / threads
        each = found["forward_s"] + decoding
        batch = self._config.streaming.batch
        n = min(len(self._coords), max(2 * batch, int(self._wanted.budget_s / each)))
        stream = self._stream(slide, n)
        started = self._now()
        if self._wanted.kind == "features":
            with torch.no_grad(), scoring(self._net):
                for chunk in stream:
                    self._net.encoder(chunk.pixels_n3PP)
        else:
            read_bag(self._net, stream, self._config.selection)
        self._synchronise()
        wall = (self._now() - started) / n
        longer, shorter = sorted((found["forward_s"], decoding), reverse=True)
        found["hidden"] = min(1.0, max(0.0, 1 - (wall - longer) / shorter)) if shorter > 0 else 1.0
        if self._wanted.clock == "cpu":  # nothing is done at the same time on one core
            found["hidden"] = 0.0
        # What the pass took beyond its parts belongs to the encoder: the selection, and caches that are shared.
        excess = wall - longer - (1 - found["hidden"]) * shorter
        found["forward_s"] += max(0.0, excess)

    def _read_again(self, slide: SlideReader) -> None:
        """Kept patches lie apart, so each costs the tiles under it."""
        at_once = min(
            self._config.training.micro_batch or 32, self._config.selection.memory_size, len(self._coords)
        )
        rng = np.random.default_rng(0)
        stream = self._stream(slide, len(self._coords))

        def again() -> None:
            ids_n = rng.choice(self._coords.ids_N, size=at_once, replace=False)
            stream.read(torch.from_numpy(np.sort(ids_n)))

        self._found["reread_s"] = self._timed(again, at_most_s=self._wanted.budget_s / 4) / at_once

    def _learn(self, pixels: Tensor) -> None:
        """Micro-batches forwards and backwards, a step of the optimiser, and augmentation."""
        config, training = self._config, self._config.training
        at_once = min(training.micro_batch or 32, training.slides_per_step * config.selection.memory_size)
        batch = pixels.repeat(-(-at_once // len(pixels)), 1, 1, 1)[:at_once]
        batch = batch.contiguous(memory_format=torch.channels_last)
        ids_n = torch.arange(at_once)
        self._found["shown_s"] = (
            self._timed(
                lambda: augment(batch, ids_n, key="plan", config=training.augment, flips=training.flips),
                at_most_s=self._wanted.budget_s / 4,
            )
            / at_once
        )
        net = self._net
        if not isinstance(net, IPSNet):
            return
        if training.encoder_checkpointing:
            save_memory(net)
        optimizer = make_optimizer(net, training)
        net.train()
        learns = any(weight.requires_grad for weight in net.encoder.parameters())
        if learns:
            with torch.no_grad():
                self._found["relearn_s"] = self._timed(
                    lambda: net.encoder(batch), at_most_s=self._wanted.budget_s / 4
                ) / at_once  # fmt: skip
        parts = 2
        places = Counted(self._device).places(parts * at_once, net.place_kind)
        targets = [{task.name: Counted(self._device).target(task, 0) for task in config.model.tasks}]

        def loss_of(features_KC: Tensor) -> Tensor:
            reading = net.read_features(features_KC, places, [parts * at_once])
            weights: dict[str, Tensor | None] = {task.name: None for task in config.model.tasks}
            return bag_loss(reading, targets, config.model.tasks, weights=weights)

        known = torch.randn(parts * at_once, net.feature_width, device=self._device)
        self._found["learn_s"] = self._timed(
            lambda: backward_in_parts(
                net.encoder, lambda: [batch] * parts, loss_of, features_KC=known, learn_encoder=learns
            ),
            at_most_s=2 * self._wanted.budget_s,
        ) / (parts * at_once)
        self._found["optimizer_s"] = self._timed(optimizer.step, at_most_s=self._wanted.budget_s / 4)

    def _label(self, slide: SlideReader) -> None:
        """What is done with a slide's result: it is stored, and drawn."""
        # Imported here, because a training does not hold them in memory.
        from wsi_ips.heatmaps.overlay import write_overlay
        from wsi_ips.inference.predict import Predictor, PreparedSlide
        from wsi_ips.inference.results import write_result

        n = min(len(self._coords), 2 * self._config.streaming.batch)
        predictor = Predictor(
            self._net, self._config.pipeline, streaming=self._config.streaming, device=self._device,
            checkpoint="0" * 64, compute=Compute(self._config.training.precision),
        )  # fmt: skip
        coords = self._coords.only(self._coords.ids_N[:n])
        result = predictor.read_open(PreparedSlide(slide, self._wanted.sample.path, coords, 0.0))
        with tempfile.TemporaryDirectory(prefix="wsi_ips_plan_") as folder:
            self._found["store_s"] = self._timed(
                lambda: write_result(Path(folder) / "result.h5", result), most=3
            )
            if self._wanted.overlays:
                self._found["overlay_s"] = self._timed(
                    lambda: write_overlay(Path(folder) / "overlay.png", slide, result), most=3
                )

    def _head_start(self) -> None:
        """Whole short trainings on features out of memory."""
        config = self._wanted.config
        if not config.head_start_epochs:
            return
        width = self._net.feature_width
        head = head_start_config(config, width=width)
        features = torch.randn(max(1, self._wanted.mean_patches), width)

        def train_for(settings: FinetuneConfig, train: int, val: int) -> float:
            bags = [self._bag(number, features) for number in range(train + val)]
            return train_on(bags, train, settings, self._device, self._now)

        self._found["head"] = head_rates(head, train_for)

    def _bag(self, number: int, features_NC: Tensor) -> "SharedFeatures":
        tasks = self._config.model.tasks
        targets = {task.name: Counted(self._device).target(task, number) for task in tasks}
        return SharedFeatures(f"bag{number}", features_NC, targets)

    def _save(self) -> None:
        with tempfile.TemporaryDirectory(prefix="wsi_ips_plan_") as folder:
            path = Path(folder) / "model.safetensors"
            self._found["save_s"] = self._timed(
                lambda: save_checkpoint(path, self._net, self._wanted.config.pipeline), most=3
            )

    def _timed(
        self, work: Callable[[], object], *, at_most_s: float | None = None, most: int = MOST_REPEATS
    ) -> float:
        """The median of the seconds that ``work`` takes, after once for nothing."""
        work()
        self._synchronise()
        seconds: list[float] = []
        until = time.perf_counter() + (self._wanted.budget_s if at_most_s is None else at_most_s)
        while len(seconds) < 3 or (time.perf_counter() < until and len(seconds) < most):
            started = self._now()
            work()
            self._synchronise()
            seconds.append(self._now() - started)
            if time.perf_counter() > until + 2 * self._wanted.budget_s:  # slow work is not done thrice
                break
        return statistics.median(seconds)

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def head_rates(
    config: FinetuneConfig,
    train_for: Callable[[FinetuneConfig, int, int], float],
    *,
    cold: float | None = None,
) -> HeadRates:
    """Rates of learning on features, from three short trainings that tell a bag from an epoch from the start.

    Args:
        config: The settings of the training.
        train_for: Trains with these settings on so many training and validation bags, and says how many seconds
            that took.
        cold: Seconds of the first of them where nothing was imported yet, which is how a process begins. None: the
            start is that of a process that has trained before.
    """
    seconds = []
    for train, val, epochs in HEAD_RUNS:
        training = config.training.model_copy(update={"epochs": epochs, "restarts": 1})
        seconds.append(train_for(config.model_copy(update={"training": training}), train, val))
    (_, _, few), (train, val, more), (train_2, val_2, _) = HEAD_RUNS
    bag_s = (seconds[2] - seconds[1]) / (more * (train_2 + val_2 - train - val))
    epoch_s = (seconds[1] - seconds[0]) / (more - few) - (train + val) * bag_s
    start_s = (seconds[0] if cold is None else cold) - few * (epoch_s + (train + val) * bag_s)
    return HeadRates(bag_s=max(0.0, bag_s), epoch_s=max(0.0, epoch_s), start_s=max(0.0, start_s))


def train_on(
    bags: Sequence[Bag], train: int, config: FinetuneConfig, device: torch.device, now: Callable[[], float]
) -> float:
    """Seconds by the clock ``now`` of a training on the first ``train`` bags, validated on the others."""
    alone_ = config.model_copy(update={"training": config.training.model_copy(update={"devices": 1})})
    with tempfile.TemporaryDirectory(prefix="wsi_ips_plan_") as folder:
        started = now()
        train_bags(bags[:train], bags[train:], alone_, Path(folder) / "run", device=device)
        return now() - started


@dataclass(frozen=True, slots=True)
class SharedFeatures:
    """A bag of features in memory, which other bags share. It is a :class:`wsi_ips.training.bags.Bag`."""

    bag_id: str
    features_NC: Tensor
    targets: Mapping[str, Target]

    def __len__(self) -> int:
        return len(self.features_NC)

    @contextmanager
    def open(self, streaming: StreamingConfig, device: torch.device) -> Iterator["_InMemory"]:
        """The features in chunks as a head start gives them."""
        yield _InMemory(self.features_NC, device)


class _InMemory(PatchSource):
    def __init__(self, features_NC: Tensor, device: torch.device) -> None:
        self._features_NC, self._device = features_NC, device

    def __iter__(self) -> Iterator[Chunk]:
        return map(self.read, self.ids().split(ROWS_AT_ONCE))

    def ids(self) -> Tensor:
        return torch.arange(len(self._features_NC))

    def read(self, ids_n: Tensor) -> Chunk:
        features_nC = self._features_NC[ids_n.cpu()].to(self._device)
        return Chunk(ids_n, torch.stack([ids_n, ids_n], dim=1), features_nC)

    def places(self, ids_n: Tensor, kind: PlaceKind) -> Tensor:
        return ids_n if kind == "ids" else torch.stack([ids_n, ids_n], dim=1).double()


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {usable_processors()} cores"
