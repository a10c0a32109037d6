"""Memory of a training step: does it grow with M, the patches that are learned from?

    python benchmarks/learning_memory.py SLIDE.tif [--json] [--m 16 1024] [--bags 4] [--patches 2048]
        [--encoder resnet18] [--patch-px 128] [--micro-batch 16] [--device cpu]

One step of end-to-end fine-tuning, selection included, in a fresh process for each M: ``--bags`` slides of
``--patches`` patches each (windows of one slide, so that a single file will do). On a CPU the figure is the peak
of the resident memory above that of the process with the model in it, on a GPU the peak of the memory that
torch gave out. ``m_growth``: the last M's figure over the first's.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Nothing heavy here: a child's ru_maxrss starts from its parent's size (Linux carries it over exec).


@dataclass(frozen=True, slots=True)
class StepMemory:
    """model_mb: with the model on the device, before the step. peak_mb: above that, during it."""

    m: int
    model_mb: float
    peak_mb: float
    seconds: float


def main() -> None:
    """Measure every M, and print a table or one JSON object; or, as a child, measure one."""
    arguments = parsed()
    if arguments.child:
        print(json.dumps(asdict(measured(arguments, arguments.m[0]))))
        return
    steps = [in_fresh_process(arguments, m) for m in arguments.m]
    figures: dict[str, Any] = {"m_growth": steps[-1].peak_mb / steps[0].peak_mb}
    for step in steps:
        figures |= {f"m{step.m}_{name}": value for name, value in asdict(step).items() if name != "m"}
    if arguments.device != "cpu":
        figures["vram_gb"] = max(step.model_mb + step.peak_mb for step in steps) / 1024
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:24} {value:10.2f}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path, help="a slide; benchmarks/make_gigapixel.py draws one")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--m", type=int, nargs="+", default=[16, 1024])
    parser.add_argument("--bags", type=int, default=4, help="slides of the step (the paper's B)")
    parser.add_argument("--patches", type=int, default=2048, help="patches of a slide (N)")
    parser.add_argument("--encoder", default="resnet18", help="timm model, untrained")
    parser.add_argument("--patch-px", type=int, default=128)
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32", choices=("32", "bf16"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.slide.is_file():
        parser.error(f"{arguments.slide}: no such file; benchmarks/make_gigapixel.py draws one")
    return arguments


def in_fresh_process(arguments: argparse.Namespace, m: int) -> StepMemory:
    """One M in a process of its own. Ends this one where that fails."""
    names = ("bags", "patches", "encoder", "patch_px", "micro_batch", "device", "precision")
    options = [f"--{name.replace('_', '-')}={getattr(arguments, name)}" for name in names]
    command = [sys.executable, __file__, str(arguments.slide), "--child", "--m", str(m), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return StepMemory(**json.loads(done.stdout))


def measured(arguments: argparse.Namespace, m: int) -> StepMemory:
    """One step in this process."""
    import torch

    from wsi_ips.models.build import build_net
    from wsi_ips.models.encoders.network import Compute, compute_in
    from wsi_ips.training.kept_patches import PatchKeeper
    from wsi_ips.training.learning import Learner, make_optimizer

    config = settings(arguments, m)
    device = torch.device(arguments.device)
    net = build_net(config.model).to(device).train()
    compute_in(net, Compute(arguments.precision))
    optimizer = make_optimizer(net, config.training)
    keeper = PatchKeeper(net, config)
    bags = windows(arguments, config)
    before = memory_mb(device)
    started = time.perf_counter()
    kept = [keeper.keep(bag, epoch=0, device=device) for bag in bags]
    Learner(net, config, keeper).learn(kept, epoch=0, device=device, share=1)
    optimizer.step()
    seconds = time.perf_counter() - started
    return StepMemory(m, before, memory_mb(device, peak=True) - before, seconds)


def settings(arguments: argparse.Namespace, m: int) -> Any:
    from wsi_ips.config import FinetuneConfig

    return FinetuneConfig.model_validate(
        {
            "tiling": {"patch_px": arguments.patch_px, "patch_mpp": 0.5},
            "selection": {"m": m, "i": m},
            "streaming": {"batch": arguments.micro_batch},
            "model": {"encoder": {"name": arguments.encoder, "weights": "none"}},
            "training": {"micro_batch": arguments.micro_batch},
        }
    )


def windows(arguments: argparse.Namespace, config: Any) -> list[Any]:
    """Bags of neighbouring patches of the one slide, tissue or not, a run of its grid each."""
    import numpy as np

    from wsi_ips.datasets.manifest import SlideRecord
    from wsi_ips.slides.registry import open_slide
    from wsi_ips.tiling.grid import PatchCoords, PatchGrid
    from wsi_ips.training.bags import SlideBag

    bags = []
    with open_slide(arguments.slide) as slide:
        mpp, l0_size = slide.info.known_mpp(), slide.info.l0_size
    tiling = config.tiling.model_copy(update={"patch_mpp": mpp})
    grid = PatchGrid.cover(l0_size, slide_mpp=mpp, tiling=tiling)
    middle = grid.g_cols * grid.g_rows // 2
    for number in range(arguments.bags):
        first = (middle + number * arguments.patches) % (grid.g_cols * grid.g_rows - arguments.patches + 1)
        ids_N = np.arange(first, first + arguments.patches)
        tissue_N = np.ones(len(ids_N), np.float32)
        coords = PatchCoords.on_grid(
            grid,
            ids_N,
            slide_id=f"{number}",
            l0_size=l0_size,
            slide_mpp=mpp,
            tiling=tiling,
            tissue_N=tissue_N,
        )
        record = SlideRecord(f"{number}", f"{number}", {}, "train", arguments.slide)
        bags.append(SlideBag(record, coords, {"label": number % 2}))
    return bags


def memory_mb(device: Any, *, peak: bool = False) -> float:
    """Of this process on the device, now or at most so far. A GPU's peak starts with the first call."""
    import torch

    if device.type == "cuda":
        if not peak:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
