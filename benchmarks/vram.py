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
from dataclasses import asdict, dataclass
from typing import Any

import torch

from wsi_ips.config import EncoderConfig, FinetuneConfig
from wsi_ips.planning.simulated import Counted, Simulated, peaks_of, without_weights

GIB = 2**30
PAPER_GB = 5.0
"""What the paper names for a ResNet-18 at B = 16."""
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
    peaks = peaks_of(config, Simulated if device == "simulated" else Counted)
    return Peak(peaks.selection / GIB, peaks.step / GIB, peaks.weights / 1e6, peaks.learning / 1e6)


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
            "tiling": {"patch_px": case.px},
            "streaming": {"batch": case.micro_batch},
            "model": {"encoder": encoder},
            "training": {
                "micro_batch": case.micro_batch,
                "slides_per_step": case.bags,
                "precision": case.precision,
            },
        }
    )
    return without_weights(config)


if __name__ == "__main__":
    main()
