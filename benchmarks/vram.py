"""How much memory of a card selection and training take, simulated without a card or measured on one.

    python benchmarks/vram.py [--json] [--models resnet18 vit_l ...] [--m 256 1024] [--bags 16]
        [--precisions 32 bf16] [--micro-batch 32] [--px 224] [--device simulated]

``--device simulated`` counts the bytes of every tensor of a pass (PyTorch's FakeTensorMode and MemTracker) without
allocating or computing any; it needs no card, and seconds. What an allocator and a CUDA context add (about 0.5
GiB) is not counted. ``--device cuda`` runs the same code and asks the allocator for its peak.

selection: ``select`` over chunks of ``--micro-batch`` patches with M patches in memory. step: the loss of B bags
of M kept patches, taken back through the gradient cache (``backward_in_parts``), and a step of AdamW, which is
the second one, so that the optimiser's memory is there. Sizes are in GiB. The paper (Bergner et al. 2023) names
5 GB for a ResNet-18 at B = 16.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed._tools.mod_tracker import ModTracker

from wsi_ips.config import EncoderConfig, FinetuneConfig
from wsi_ips.models.build import build_net
from wsi_ips.models.encoders.precision import Compute, compute_in
from wsi_ips.models.ips_net import IPSNet
from wsi_ips.selection.memory import TopMBuffer
from wsi_ips.selection.slide_reading import select
from wsi_ips.streaming.patch_source import Chunk
from wsi_ips.training import learning
from wsi_ips.training.learning import backward_in_parts, bag_loss, make_optimizer

GIB = 2**30
PAPER_GB = 5.0
"""What the paper names for a ResNet-18 at B = 16."""
SELECTED_CHUNKS = 3
"""Chunks of a selection pass beyond the first M patches: memory is the same in each."""
SIMULATED_PARTS = 3
"""Micro-batches of a step that a simulation takes back through the encoder."""
MODELS: dict[str, dict[str, Any]] = {
    "resnet18": {"name": "resnet18"},
    "resnet50": {"name": "resnet50"},
    "vit_s": {"name": "vit_small_patch16_224"},
    "vit_b": {"name": "vit_base_patch16_224"},
    "vit_l": {"name": "vit_large_patch16_224"},
    "vit_g": {"name": "vit_giant_patch14_reg4_dinov2", "img_size": 224},
}
"""The settings of each encoder. An encoder ``NAME_lora`` is the same with adapters of rank 8."""
LORA = {"rank": 8}
NOT_AVAILABLE = "not available"


@dataclass(frozen=True, slots=True)
class Case:
    """What is simulated: an encoder, its precision, and B bags of M patches."""

    model: str
    precision: str
    m: int
    bags: int
    px: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class Peak:
    """Peaks of the two passes in GiB, and the millions of weights in all and that learn."""

    selection_gb: float
    step_gb: float
    weights_m: float
    learning_m: float


def main() -> None:
    """Count every case, and print a table or one JSON object."""
    arguments = parsed()
    found: dict[Case, Peak | None] = {}
    for case in cases(arguments):
        found[case] = peak_of(case, device=arguments.device)
        if not arguments.json:
            print(row(case, found[case]), flush=True)
    if arguments.json:
        print(json.dumps(figures(found, device=arguments.device), indent=1))


def parsed() -> argparse.Namespace:
    names = [name for model in MODELS for name in (model, f"{model}_lora") if name not in RESNETS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--models", nargs="+", choices=names, default=names, metavar="MODEL")
    parser.add_argument("--precisions", nargs="+", choices=("32", "bf16"), default=["32", "bf16"])
    parser.add_argument("--m", nargs="+", type=int, default=[256, 1024], help="kept patches of a bag")
    parser.add_argument("--bags", type=int, default=16, help="bags of a step (the paper's B)")
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--micro-batch", type=int, default=32)
    parser.add_argument("--device", choices=("simulated", "cuda"), default="simulated")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no card here; --device simulated needs none")
    return arguments


RESNETS = ("resnet18_lora", "resnet50_lora")
"""Adapters are for transformers."""


def cases(arguments: argparse.Namespace) -> list[Case]:
    return [
        Case(model, precision, m, arguments.bags, arguments.px, arguments.micro_batch)
        for model in arguments.models
        for precision in arguments.precisions
        for m in arguments.m
    ]


def row(case: Case, peak: Peak | None) -> str:
    head = f"{case.model:14}{case.precision:6}B={case.bags:<4}M={case.m:<6}"
    if peak is None:
        return f"{head}{NOT_AVAILABLE}: these encoders have no adapters here"
    beside = f"  (the paper: {PAPER_GB:g})" if case.model == "resnet18" else ""
    return (
        f"{head}selection {peak.selection_gb:6.2f}  step {peak.step_gb:6.2f} GiB{beside}  "
        f"{peak.learning_m:.1f} of {peak.weights_m:.1f} M weights learn"
    )


def figures(found: dict[Case, Peak | None], *, device: str) -> dict[str, Any]:
    """The flat keys, and every case."""
    told: dict[str, Any] = {"device": device, "paper_gb": PAPER_GB}
    sizes = sorted({case.m for case in found})
    for key, model, precision in (
        ("vram_resnet18_gb", "resnet18", "32"),
        ("vram_vit_l_lora_gb", "vit_l_lora", "bf16"),
    ):
        peaks = [
            peak
            for case, peak in sorted(found.items(), key=lambda item: item[0].m)
            if (case.model, case.precision) == (model, precision)
        ]
        known = [max(peak.step_gb, peak.selection_gb) for peak in peaks if peak is not None]
        told[key] = known[0] if known else NOT_AVAILABLE
        if len(known) > 1:
            told[f"{key.removesuffix('_gb')}_m{sizes[-1]}_over_m{sizes[0]}"] = known[-1] / known[0]
    rows = [
        {**asdict(case), **(asdict(peak) if peak else {"lora": NOT_AVAILABLE})}
        for case, peak in found.items()
    ]
    return {**told, "cases": rows}


def peak_of(case: Case, *, device: str) -> Peak | None:
    """Both passes of a case. None: the encoder is one with adapters, and this version has none."""
    config = config_of(case)
    if config is None:
        return None
    with counting(device) as counted:
        net = counted.net(config)
        compute_in(net, Compute("bf16" if case.precision == "bf16" else "32"))
        optimizer = make_optimizer(net, config.training)
        with counted.peak(net) as selection:
            select(net, counted.chunks(case), config.selection)
        step_of(net, case, config, counted, optimizer)
        with counted.peak(net, optimizer) as step:
            step_of(net, case, config, counted, optimizer)
        weights = [(weight.numel(), weight.requires_grad) for weight in net.parameters()]
    return Peak(
        selection[0] / GIB,
        step[0] / GIB,
        sum(count for count, _ in weights) / 1e6,
        sum(count for count, learns in weights if learns) / 1e6,
    )


def config_of(case: Case) -> FinetuneConfig | None:
    """The settings of a run. None for adapters, where encoders have none."""
    encoder = {**MODELS[case.model.removesuffix("_lora")]}
    if case.model.endswith("_lora"):
        if "lora" not in EncoderConfig.model_fields:
            return None
        encoder["lora"] = LORA
    config = FinetuneConfig.model_validate(
        {
            "selection": {"m": case.m, "i": min(case.m, case.micro_batch)},
            "streaming": {"batch": case.micro_batch},
            "model": {"encoder": encoder},
            "training": {
                "micro_batch": case.micro_batch,
                "slides_per_step": case.bags,
                "precision": case.precision,
            },
        }
    )
    # Random weights, also under adapters: what they are changes no size, and nothing is downloaded.
    random = config.model.encoder.model_copy(update={"weights": "none"})
    return config.model_copy(update={"model": config.model.model_copy(update={"encoder": random})})


def step_of(
    net: IPSNet, case: Case, config: FinetuneConfig, counted: "Counted", optimizer: torch.optim.Optimizer
) -> None:
    """One step as :class:`wsi_ips.training.learning.Learner` takes it, whose features come from the selection."""
    net.train()
    optimizer.zero_grad()
    patches = case.bags * case.m
    targets = [{"label": bag % 2} for bag in range(case.bags)]
    places_K = counted.integers(patches)

    def parts() -> Iterator[Tensor]:
        for first in range(0, patches, case.micro_batch):
            yield counted.pixels(min(case.micro_batch, patches - first), case.px)

    def loss_of(features_KC: Tensor) -> Tensor:
        reading = net.read_features(features_KC, places_K, [case.m] * case.bags)
        return bag_loss(reading, targets, config.model.tasks, weights={"label": None})

    backward_in_parts(net.encoder, parts, loss_of, features_KC=counted.features(patches, net.feature_width))
    optimizer.step()


class Counted:
    """Where tensors are made, and how their bytes are counted: on a card. Without counting, on any device."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cuda")

    def net(self, config: FinetuneConfig) -> IPSNet:
        return build_net(config.model).to(self.device)

    def pixels(self, n: int, px: int) -> Tensor:
        pixels = torch.zeros(n, 3, px, px, dtype=torch.uint8, device=self.device)
        return pixels.contiguous(memory_format=torch.channels_last)

    def integers(self, n: int) -> Tensor:
        return torch.arange(n)

    def features(self, n: int, width: int) -> Tensor:
        """Features of kept patches, as the selection leaves them."""
        return torch.randn(n, width, device=self.device)

    def chunks(self, case: Case) -> "Chunks":
        return Chunks(self, case)

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
        found: list[int] = []
        tracker = MemTracker()
        tracker.track_external(net, *optimizers)
        with tracker:
            yield found
        found.append(int(tracker.get_tracker_snapshot("peak")[self.device]["Total"]))


class Chunks:
    """A stream of patches of a slide: M and some more."""

    def __init__(self, counted: Counted, case: Case) -> None:
        self._counted, self._case = counted, case

    def __iter__(self) -> Iterator[Chunk]:
        size = self._case.micro_batch
        for first in range(0, self._case.m + SELECTED_CHUNKS * size, size):
            ids_n = torch.arange(first, first + size)
            yield Chunk(ids_n, ids_n[:, None].repeat(1, 2), self._counted.pixels(size, self._case.px))


@contextmanager
def counting(device: str) -> Iterator[Counted]:
    """What counts on this device. In a simulation nobody looks at values, and the encoder goes back through the
    first micro-batches only, because all of them need the same memory.
    """
    if device != "simulated":
        yield Counted()
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
        yield Simulated()


if __name__ == "__main__":
    main()
