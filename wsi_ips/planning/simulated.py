"""The memory and the arithmetic of selection and learning, counted without a card and without computing anything.

:func:`simulated_peaks` adds up the bytes of every tensor of a selection pass and of a training step (PyTorch's
FakeTensorMode and MemTracker); :func:`encoder_flops` counts the floating-point operations of the encoder. What an
allocator and a CUDA context add (about 0.5 GiB) is not counted. ``benchmarks/vram.py`` runs the same code on a
card and asks the allocator for its peak.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed._tools.mod_tracker import ModTracker
from torch.utils.flop_counter import FlopCounterMode

from wsi_ips.config import FinetuneConfig
from wsi_ips.models.build import build_net
from wsi_ips.models.encoders.network import Compute, Settled, compute_in
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.models.ips_net import IPSNet
from wsi_ips.selection.memory import TopMBuffer
from wsi_ips.selection.slide_reading import select
from wsi_ips.streaming.patch_source import Chunk
from wsi_ips.training import learning
from wsi_ips.training.learning import backward_in_parts, bag_loss, make_optimizer

SELECTED_CHUNKS = 2
"""Chunks of a selection pass beyond the first M patches: memory is the same in each."""
SIMULATED_PARTS = 2
"""Micro-batches of a step that a simulation takes back through the encoder."""
COUNTED_PATCHES = 4
"""Patches whose arithmetic is counted; it is the same for each."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """The most bytes held at a time, weights included, and the weights.

    Attributes:
        selection: Bytes of a selection pass.
        step: Bytes of a training step, with the memory of the optimiser.
        weights: Number of weights.
        learning: Number of those that learn.
        width: Width of a patch's features.
    """

    selection: int
    step: int
    weights: int
    learning: int
    width: int


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point operations of the encoder for one patch; a multiply-add is two.

    Attributes:
        forward: Of a forward pass.
        learn: Of a forward pass and the backward pass behind it; ``forward`` where the encoder does not learn.
        convolutions: The share of ``forward`` in convolutions, which compute in TF32 on NVIDIA cards where the
            precision is float32.
    """

    forward: float
    learn: float
    convolutions: float


class Simulations:
    """Simulated memory of configurations, each simulated once: what differs in nothing that memory depends on
    is not
    simulated again. ``learning`` is False where there is no training step.
    """

    def __init__(self, *, learning: bool) -> None:
        self._learning = learning
        self._selections: dict[tuple[object, ...], int] = {}
        self._steps: dict[tuple[object, ...], int] = {}

    def __call__(self, config: FinetuneConfig) -> Peaks:
        """The peaks of a configuration."""
        training, selection = config.training, config.selection
        network = (training.precision, config.tiling.patch_px, training.encoder_checkpointing)
        selecting = (config.streaming.batch, selection.memory_size, *network)
        kept = selection.memory_size * training.slides_per_step
        step = (kept, training.micro_batch, *network)
        if selecting not in self._selections or step not in self._steps or not hasattr(self, "_last"):
            self._last = simulated_peaks(config, learning=self._learning)
            self._selections[selecting], self._steps[step] = self._last.selection, self._last.step
        return replace(self._last, selection=self._selections[selecting], step=self._steps[step])


def simulated_peaks(config: FinetuneConfig, *, learning: bool = True) -> Peaks:
    """Memory of a selection pass and of the second training step, whose optimiser has its memory already.

    Random weights stand for those that ``config`` names: what they are changes no size, and nothing is downloaded.
    Patches that are kept beyond one batch are added to the selection by their size, which saves most of the time.
    """
    most = config.selection.memory_size
    m = min(most, config.streaming.batch)
    # The rule ``global`` compares values, which a simulation does not have. On the device it holds what ``buffer``
    # does; the logits of all patches, which it needs beside that, are counted where memory grows with the slides.
    selection = config.selection.model_copy(update={"memory_size": m, "rule": "buffer"})
    small = config.model_copy(update={"selection": selection})
    peaks = peaks_of(without_weights(small), Simulated, learn_from=without_weights(config), learning=learning)
    return replace(peaks, selection=peaks.selection + 2 * 4 * peaks.width * (most - m))


def peaks_of(
    config: FinetuneConfig,
    counted_by: "type[Counted]",
    *,
    learn_from: FinetuneConfig | None = None,
    learning: bool = True,
) -> Peaks:
    """The same on whatever counts: a simulation, or a card. ``learn_from`` are other settings of the step; without
    ``learning`` none is taken, and its memory is 0.
    """
    step_config = learn_from or config
    with counting(counted_by) as counted:
        net = counted.net(config)
        compute_in(net, Compute(_precision(config)))
        if config.training.encoder_checkpointing and isinstance(net.encoder, TimmEncoder):
            net.encoder.save_memory()
        optimizer = make_optimizer(net, config.training)
        with counted.peak(net) as selection:
            select(net, counted.chunks(config), config.selection)
        step = [0]
        if learning:
            step_of(net, step_config, counted, optimizer)
            with counted.peak(net, optimizer) as step:
                step_of(net, step_config, counted, optimizer)
        weights = [(weight.numel(), weight.requires_grad) for weight in net.parameters()]
    learning_weights = sum(count for count, learns in weights if learns)
    return Peaks(
        selection[0], step[0], sum(count for count, _ in weights), learning_weights, net.feature_width
    )


def encoder_flops(config: FinetuneConfig) -> Flops:
    """What the encoder computes for one patch, forwards and with the backward pass."""
    config = without_weights(config)
    with counting(Simulated) as counted:
        net = counted.net(config)
        pixels = counted.pixels(COUNTED_PATCHES, config.tiling.patch_px)
        net.eval()
        with torch.no_grad(), FlopCounterMode(display=False) as forward:
            net.encoder(pixels)
        learn = forward
        if any(weight.requires_grad for weight in net.encoder.parameters()):
            net.train()
            with FlopCounterMode(display=False) as learn:
                net.encoder(pixels).sum().backward()
    of_all = forward.get_flop_counts().get("Global", {})
    convolutions = sum(count for name, count in of_all.items() if "conv" in str(name))
    total = forward.get_total_flops()
    each = [counter.get_total_flops() / COUNTED_PATCHES for counter in (forward, learn)]
    return Flops(each[0], each[1], convolutions / total if total else 0.0)


def without_weights(config: FinetuneConfig) -> FinetuneConfig:
    """The same network with random weights, also under adapters."""
    random = config.model.encoder.model_copy(update={"weights": "none"})
    return config.model_copy(update={"model": config.model.model_copy(update={"encoder": random})})


def _precision(config: FinetuneConfig) -> Settled:
    return config.training.precision


def step_of(
    net: IPSNet, config: FinetuneConfig, counted: "Counted", optimizer: torch.optim.Optimizer
) -> None:
    """One step as :class:`wsi_ips.training.learning.Learner` takes it, whose features come from the selection."""
    net.train()
    optimizer.zero_grad()
    bags, m = config.training.slides_per_step, config.selection.memory_size
    patches = bags * m
    at_once = config.training.micro_batch or patches
    targets = [{task.name: counted.target(task, bag) for task in config.model.tasks} for bag in range(bags)]
    places_K = counted.places(patches, net.place_kind)

    def parts() -> Iterator[Tensor]:
        for first in range(0, patches, at_once):
            yield counted.patches(min(at_once, patches - first), config)

    def loss_of(features_KC: Tensor) -> Tensor:
        reading = net.read_features(features_KC, places_K, [m] * bags)
        weights: dict[str, Tensor | None] = {task.name: None for task in config.model.tasks}
        return bag_loss(reading, targets, config.model.tasks, weights=weights)

    learns = any(weight.requires_grad for weight in net.encoder.parameters())
    features_KC = counted.features(patches, net.feature_width)
    backward_in_parts(net.encoder, parts, loss_of, features_KC=features_KC, learn_encoder=learns)
    optimizer.step()


class Counted:
    """Where tensors are made, and how their bytes are counted: on a card. Without counting, on any device."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cuda")

    def net(self, config: FinetuneConfig) -> IPSNet:
        """The network, in memory."""
        return build_net(config.model).to(self.device)

    def pixels(self, n: int, px: int) -> Tensor:
        """(n, 3, px, px) uint8, in the order in which a stream hands them out."""
        pixels = torch.zeros(n, 3, px, px, dtype=torch.uint8, device=self.device)
        return pixels.contiguous(memory_format=torch.channels_last)

    def patches(self, n: int, config: FinetuneConfig) -> Tensor:
        """What the network reads of ``n`` patches: their pixels, or features where it reads stored ones."""
        width = config.model.encoder.features
        return self.pixels(n, config.tiling.patch_px) if width is None else self.features(n, width)

    def places(self, n: int, kind: str | None) -> Tensor:
        """Where patches lie, in the form that the network wants."""
        return torch.zeros(n, 2, dtype=torch.float64) if kind == "um" else torch.arange(n)

    def target(self, task: Any, bag: int) -> Any:
        """A target of the task."""
        if task.survival is not None:
            return (1.0 + bag, 1.0)
        if task.activation == "softmax":
            return bag % max(1, len(task.classes))
        return tuple(float(bag % 2) for _ in task.classes) or (0.0,)

    def features(self, n: int, width: int) -> Tensor:
        """Features of kept patches, as the selection leaves them."""
        return torch.randn(n, width, device=self.device)

    def chunks(self, config: FinetuneConfig) -> "Chunks":
        """The stream of a slide."""
        return Chunks(self, config)

    @contextmanager
    def peak(self, net: nn.Module, *optimizers: torch.optim.Optimizer) -> Iterator[list[int]]:
        """Yields a list that gets the most bytes that were held at a time in the block, weights included."""
        del net, optimizers  # the allocator knows of them
        found: list[int] = []
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        yield found
        torch.cuda.synchronize()
        found.append(torch.cuda.max_memory_allocated())


class Simulated(Counted):
    """Tensors without memory on the CPU, whose bytes are added up. They have no values."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))

    def net(self, config: FinetuneConfig) -> IPSNet:
        """The network without memory."""
        with unset_fake_temporarily(), torch.device("meta"), torch.random.fork_rng(devices=[]):
            net = build_net(config.model)
        for module in net.modules():
            for name, weight in list(module._parameters.items()):
                if weight is not None:
                    held = torch.empty(weight.shape, dtype=weight.dtype, device=self.device)
                    module._parameters[name] = nn.Parameter(held, requires_grad=weight.requires_grad)
            for name, buffer in list(module._buffers.items()):
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=self.device)
        return net

    @contextmanager
    def peak(self, net: nn.Module, *optimizers: torch.optim.Optimizer) -> Iterator[list[int]]:
        """The same, as the tracker of tensors adds them up."""
        found: list[int] = []
        tracker = MemTracker()
        tracker.track_external(net, *optimizers)
        with tracker:
            yield found
        found.append(int(tracker.get_tracker_snapshot("peak")[self.device]["Total"]))


class Chunks:
    """A stream of patches of a slide: M and some more."""

    def __init__(self, counted: Counted, config: FinetuneConfig) -> None:
        self._counted, self._config = counted, config

    def __iter__(self) -> Iterator[Chunk]:
        size = self._config.streaming.batch
        for first in range(0, self._config.selection.memory_size + SELECTED_CHUNKS * size, size):
            ids_n = torch.arange(first, first + size)
            yield self.read(ids_n)

    def ids(self) -> Tensor:
        """The ids of all patches."""
        return torch.arange(
            self._config.selection.memory_size + SELECTED_CHUNKS * self._config.streaming.batch
        )

    def read(self, ids_n: Tensor) -> Chunk:
        """Some patches again."""
        pixels = self._counted.patches(len(ids_n), self._config)
        return Chunk(ids_n, ids_n[:, None].repeat(1, 2), pixels)

    def places(self, ids_n: Tensor, kind: str) -> Tensor:
        """Where these patches lie."""
        return self._counted.places(len(ids_n), kind)


@contextmanager
def counting(counted_by: type[Counted]) -> Iterator[Counted]:
    """What counts. In a simulation nobody looks at values, and the encoder goes back through the first
    micro-batches
    only, because all of them need the same memory.
    """
    if not issubclass(counted_by, Simulated):
        yield counted_by()
        return
    back = learning._backward_to_encoder

    def few_back(encode: Any, parts: Any, grad_KC: Tensor, states: Any) -> None:
        pieces = list(islice(parts, SIMULATED_PARTS))
        back(encode, pieces, grad_KC[: sum(map(len, pieces))], states)

    with (
        FakeTensorMode(),
        patch.object(learning, "finite", lambda loss: loss),
        patch.object(learning, "_backward_to_encoder", few_back),
        patch.object(TopMBuffer, "_raise_if_not_finite", lambda buffer: None),
        # Which module a tensor belongs to is not asked: the tracker refuses a module that is called twice.
        patch.object(ModTracker, "__enter__", lambda tracker: tracker),
        patch.object(ModTracker, "__exit__", lambda *_: None),
    ):
        yield counted_by()
