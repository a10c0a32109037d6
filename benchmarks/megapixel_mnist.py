"""Megapixel MNIST: IPS against mean pooling of all patches and against M random patches.

    python benchmarks/megapixel_mnist.py --mnist DIR [--json] [--out DIR] [--only METHOD ...] [--epochs N]
                                         [--device auto] [--full] [--quick] [--seed 0]

CPU size: 192 x 192 px with four line patterns, 121 patches of 32 px that overlap by half, of which M = 12
are kept; 8,000 images to learn from, 300 to choose the epoch by, 1,000 to test on, once. All methods have
the same small encoder, tasks, optimiser and epochs, but mean pooling has fewer epochs: each of its steps
takes all 121 patches back through the encoder. ``--full`` is the paper's size and network by
pipelines/megapixel_mnist.yaml, IPS alone, for a GPU. DIR holds MNIST as torchvision keeps it. Results are
kept below --out: a run goes on where another stopped.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, Python looks beside it, not in the repository's root

from benchmarks.image_baselines import MeanPooling, RandomPatches, fit  # noqa: E402
from wsi_ips.commands.progress_bars import RichProgress  # noqa: E402
from wsi_ips.commands.recipe import load_recipe, make_job, shipped_recipe  # noqa: E402
from wsi_ips.config import FinetuneConfig, settings_fingerprint  # noqa: E402
from wsi_ips.images.command import ImagesJob  # noqa: E402
from wsi_ips.images.config import MegapixelMnistConfig  # noqa: E402
from wsi_ips.images.image_sets import ImageSplits, image_splits  # noqa: E402
from wsi_ips.images.learning import score_bags  # noqa: E402
from wsi_ips.models.checkpoint import load_checkpoint  # noqa: E402
from wsi_ips.storage.files import whole_file  # noqa: E402
from wsi_ips.streaming.device import pick_device  # noqa: E402
from wsi_ips.training.fit import train_bags  # noqa: E402

METHODS = ("ips", "random", "mean_pool")
TASKS = ("majority", "max", "top", "multi")
DIGITS = [str(digit) for digit in range(10)]
MEAN_POOL_EPOCHS = 1 / 3
"""Of the others' epochs, at least one: about what IPS takes in encoder time."""

DATA = {"side_px": 192, "train": 8000, "val": 300, "test": 1000, "noise": 4}
QUICK_DATA = {"side_px": 140, "train": 16, "val": 12, "test": 12, "noise": 2}
FINETUNE: dict[str, Any] = {
    "tiling": {"patch_px": 32, "overlap_px": 16},
    # One iteration holds all candidates: the exact top-M, and each patch is encoded once.
    "selection": {"rule": "buffer", "m": 12, "i": 128},
    "streaming": {"batch": 128},
    "model": {
        # A million multiplications a patch, 128 channels, 0.2 M weights; from scratch.
        "encoder": {
            "name": "test_byobnet",
            "weights": "none",
            "stage": 3,
            "in_channels": 1,
            "normalise": False,
            "batch_norm": "batch",
        },
        "attention": {"heads": 8, "key_dim": 16, "value_dim": 16, "inner_dim": 512, "positions": "raster"},
        "tasks": [
            {"name": name, "classes": DIGITS, "activation": "sigmoid" if name == "multi" else "softmax"}
            for name in TASKS
        ],
    },
    "training": {
        "epochs": 6,
        "warmup_epochs": 0.6,
        "slides_per_step": 16,
        "lr": 2e-3,
        "weight_decay": 0.05,
        "micro_batch": None,
        "flips": False,
    },
}


def main() -> None:
    """Run what is missing, and print a table or one JSON object."""
    arguments = parsed()
    device = pick_device(arguments.device)
    job = full_job(arguments) if arguments.full else small_job(arguments)
    job = job.model_copy(update={"training": job.training.model_copy(update={"seed": arguments.seed})})
    prefix = "mnist_full" if arguments.full else "mnist"
    figures: dict[str, Any] = {}
    with RichProgress() as progress:
        splits = image_splits(
            job.data, job.out / "data", tasks=job.model.tasks, tiling=job.tiling, progress=progress
        )
        for method in METHODS[:1] if arguments.full else arguments.only:
            found = result(method, job, splits, device=device, progress=progress)
            name = prefix if method == "ips" else f"{prefix}_{method}"
            figures |= {f"{name}_{key}": value for key, value in found.items()}
    if arguments.full:
        figures["mnist_full"] = {task: figures[f"mnist_full_{task}"] for task in TASKS}
    figures[f"{prefix}_size"] = size(job, splits)
    if arguments.json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        print(f"{key:34} {value:>12.4g}" if isinstance(value, float | int) else f"{key:34} {value}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mnist", type=Path, required=True, help="folder with torchvision's MNIST/raw")
    parser.add_argument("--out", type=Path, default=Path("megapixel_mnist_run"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the networks, not of the images")
    parser.add_argument("--full", action="store_true", help="the paper's size; for a GPU")
    parser.add_argument("--quick", action="store_true", help="a few images: does it run at all?")
    arguments = parser.parse_args()
    if not (arguments.mnist / "MNIST" / "raw").is_dir():
        parser.error(f"{arguments.mnist}: holds no MNIST/raw; let torchvision download it there")
    return arguments


def small_job(arguments: argparse.Namespace) -> ImagesJob:
    """The CPU size."""
    settings: dict[str, Any] = json.loads(json.dumps(FINETUNE))
    settings["training"]["epochs"] = arguments.epochs or (
        1 if arguments.quick else settings["training"]["epochs"]
    )
    data = {"mnist": arguments.mnist, **(QUICK_DATA if arguments.quick else DATA)}
    return ImagesJob.model_validate({**settings, "data": MegapixelMnistConfig(**data), "out": arguments.out})


def full_job(arguments: argparse.Namespace) -> ImagesJob:
    """The paper's recipe, with 500 images of our own to choose the epoch by."""
    given = [f"data.mnist={arguments.mnist}", f"out={arguments.out}", "data.val=500"]
    if arguments.epochs:
        given.append(f"training.epochs={arguments.epochs}")
    if arguments.quick:
        given += [f"data.{name}={value}" for name, value in QUICK_DATA.items()]
        given += ["training.epochs=1", "training.warmup_epochs=0"]
    job = make_job(load_recipe(shipped_recipe("megapixel_mnist"), given), source="megapixel_mnist.yaml")
    assert isinstance(job, ImagesJob)
    return job


def result(
    method: str, job: ImagesJob, splits: ImageSplits, *, device: torch.device, progress: RichProgress
) -> dict[str, float]:
    """{task: accuracy on the test images, seconds, encoder_passes}; of an earlier run with the same settings."""
    asked = settings_fingerprint(job)
    path = job.out / f"{method}-{asked}.json"
    if path.exists():
        held: dict[str, float] = json.loads(path.read_text())
        return held
    started = time.perf_counter()
    if method == "ips":
        figures, passes = ips(job, splits, asked, device=device, progress=progress)
    else:
        figures, passes = baseline(method, job, splits, device=device)
    found = {task: figures[f"{task}_accuracy"] for task in TASKS}
    found |= {"seconds": time.perf_counter() - started, "encoder_passes": passes}
    with whole_file(path) as partial:
        partial.write_text(json.dumps(found, indent=1) + "\n")
    return found


def ips(
    job: ImagesJob, splits: ImageSplits, asked: str, *, device: torch.device, progress: RichProgress
) -> tuple[Mapping[str, float], int]:
    """What users run: ``train_bags``, its best checkpoint, the test images once."""
    report = train_bags(
        splits["train"], splits["val"], job, job.out / f"ips-{asked}", device=device, progress=progress
    )
    net, pipeline = load_checkpoint(report.checkpoint)
    scores = score_bags(
        net, splits["test"], pipeline, streaming=job.streaming, device=device, progress=progress
    )
    n, m, epochs = len(splits["train"][0]), job.selection.memory_size, len(report.history)
    per_epoch = len(splits["train"]) * (n + m) + len(splits["val"]) * n
    return scores.figures, epochs * per_epoch + len(splits["test"]) * n


def baseline(
    method: str, job: ImagesJob, splits: ImageSplits, *, device: torch.device
) -> tuple[Mapping[str, float], int]:
    """The same encoder, tasks and optimiser without selection."""
    config = FinetuneConfig.model_validate(job.model_dump(include=set(FinetuneConfig.model_fields)))
    if method == "mean_pool":
        epochs = max(1, round(MEAN_POOL_EPOCHS * config.training.epochs))
        warmup = min(config.training.warmup_epochs, epochs / 4)
        changes = {"epochs": epochs, "warmup_epochs": warmup}
        config = config.model_copy(update={"training": config.training.model_copy(update=changes)})
    torch.manual_seed(config.training.seed)
    reader = MeanPooling(config) if method == "mean_pool" else RandomPatches(config)
    figures = fit(reader, splits, config, device=device)
    read = len(splits["train"][0]) if method == "mean_pool" else config.selection.memory_size
    per_epoch = read * (len(splits["train"]) + len(splits["val"]))
    return figures, config.training.epochs * per_epoch + read * len(splits["test"])


def size(job: ImagesJob, splits: ImageSplits) -> dict[str, int]:
    """What the figures were measured on."""
    counts = {name: len(bags) for name, bags in splits.items()}
    assert isinstance(job.data, MegapixelMnistConfig)
    return {
        "side_px": job.data.side_px,
        "noise": job.data.noise,
        "patches": len(splits["train"][0]),
        "patch_px": job.tiling.patch_px,
        "m": job.selection.memory_size,
        "epochs": job.training.epochs,
        **counts,
    }


if __name__ == "__main__":
    main()
