"""Megapixel MNIST: IPS against a cascade, attention sampling, the mean of all patches and M random patches.

    python benchmarks/megapixel_mnist.py --mnist DIR [--only METHOD …] [--heads HEAD …] [--seed N] [--json]
                                         [--table] [--out DIR] [--epochs N] [--device auto] [--full] [--quick]
                                         [--again]

CPU size: 192 x 192 px with four line patterns, 121 patches of 32 px that overlap by half, of which M = 12
are kept; 8,000 images to learn from, 300 to choose the epoch by, 1,000 to test on, once. All methods have
the same small encoder, tasks, optimiser and epochs, but mean pooling has fewer epochs: each of its steps
takes all 121 patches back through the encoder. HEAD is the published block (paper) or the project's default
(direct); mean pooling and attention sampling have neither. The cascade encodes and ranks a third of the
patches, which a small network chooses at a quarter of the resolution; attention sampling draws M patches by
such a network. ``--full`` is the paper's size and network by pipelines/megapixel_mnist.yaml, IPS alone, for a
GPU. DIR holds MNIST as torchvision keeps it.

What a method reaches is a small JSON, mnist_<method>_<head>_seed<N>.json: of MNIST, with the usual size and
epochs and on a CPU, in benchmarks/results, committed; otherwise below --out. Nothing is run twice. --table prints
Markdown over all seeds that were run, without running any.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, Python looks beside it, not in the repository's root

from benchmarks.image_baselines import MeanPooling, RandomPatches, fit  # noqa: E402
from benchmarks.kept_results import (  # noqa: E402
    COMMITTED,
    MNIST_DIGEST,
    digest_of,
    folder_of_results,
    mean_and_deviation,
    read_result,
    run_once,
    tell,
)
from wsi_ips.commands.progress_bars import RichProgress  # noqa: E402
from wsi_ips.commands.recipe import load_recipe, make_job, shipped_recipe  # noqa: E402
from wsi_ips.config import FinetuneConfig, settings_fingerprint  # noqa: E402
from wsi_ips.images.command import ImagesJob  # noqa: E402
from wsi_ips.images.config import MegapixelMnistConfig  # noqa: E402
from wsi_ips.images.image_sets import ImageSplits, image_splits  # noqa: E402
from wsi_ips.images.learning import score_bags  # noqa: E402
from wsi_ips.models.checkpoint import load_checkpoint  # noqa: E402
from wsi_ips.streaming.device import pick_device  # noqa: E402
from wsi_ips.training.fit import train_bags  # noqa: E402

METHODS = ("ips", "cascade", "sampling", "random", "mean_pool")
HEADS = ("paper", "direct")
HEADLESS = ("sampling", "mean_pool")
"""The methods whose classifier reads a mean of embeddings, without a head of attention."""
NAMES = {
    "ips": "IPS",
    "cascade": "cascade",
    "sampling": "attention sampling",
    "random": "random patches",
    "mean_pool": "mean of all patches",
}
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
ATTENTION: dict[str, dict[str, Any]] = {
    "paper": {"heads": 8, "key_dim": 16, "value_dim": 16, "inner_dim": 512, "positions": "raster"},
    # The LayerNorm is what training decides by itself for an encoder of random weights; random patches get it too.
    "direct": {"block": "direct", "heads": 8, "key_dim": 16, "layer_norm": True, "positions": "raster"},
}
SELECTION: dict[str, dict[str, Any]] = {
    "cascade": {"selector": "cascade", "coarse": {"mpp": 4, "share": 1 / 3}},
    "sampling": {"selector": "attention_sampling", "sampling": {"samples": 12}, "coarse": {"mpp": 4}},
}
"""What selects, in place of IPS."""


def main() -> None:
    """Run what is missing, and print a table or one JSON object."""
    arguments = parsed()
    if arguments.table:
        print(markdown(read_seeds(COMMITTED)))
        return
    device = pick_device(arguments.device)
    digits = digest_of((arguments.mnist / "MNIST" / "raw").glob("*-ubyte"))
    usual = not (arguments.quick or arguments.full or arguments.epochs) and device.type == "cpu"
    results = folder_of_results(arguments.out, shared=usual and digits == MNIST_DIGEST)
    figures: dict[str, Any] = {}
    for method, head in wanted(arguments):
        job = job_of(arguments, method, head)
        held = run_once(
            results / f"{file_name(method, head, full=arguments.full)}_seed{arguments.seed}.json",
            {**asked_of(arguments, method, head), "mnist": digits},
            lambda method=method, job=job: result(method, job, device=device),  # type: ignore[misc]
            seed=arguments.seed,
            again=arguments.again,
        )
        found = {key: held[key] for key in (*TASKS, "encoder_passes", "seconds", "cpu_seconds")}
        prefix = prefix_of(method, head, full=arguments.full)
        figures |= {f"{prefix}_{key}": value for key, value in found.items()}
        figures["mnist_full_size" if arguments.full else "mnist_size"] = held["size"]
    if arguments.full:
        figures["mnist_full"] = {task: figures[f"mnist_full_{task}"] for task in TASKS}
    tell(figures, as_json=arguments.json)


def wanted(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """(method, head); the head of a method without attention is empty."""
    if arguments.full:
        yield "ips", "paper"
        return
    for method in arguments.only:
        if method in HEADLESS:
            yield method, ""
            continue
        for head in arguments.heads:
            yield method, head


def prefix_of(method: str, head: str, *, full: bool = False) -> str:
    """What the keys of a method's figures begin with; IPS and the paper's head are not named."""
    names = ["mnist_full" if full else "mnist", "" if method == "ips" else method, head.replace("paper", "")]
    return "_".join(filter(None, names))


def file_name(method: str, head: str, *, full: bool = False) -> str:
    return "_".join(filter(None, ["mnist_full" if full else "mnist", method, head]))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mnist", type=Path, help="folder with torchvision's MNIST/raw; not for --table")
    parser.add_argument("--out", type=Path, default=Path("megapixel_mnist_run"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=HEADS, metavar="HEAD")
    parser.add_argument("--table", action="store_true", help="print the table of what was run")
    parser.add_argument("--again", action="store_true", help="train anew")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the networks, not of the images")
    parser.add_argument("--full", action="store_true", help="the paper's size; for a GPU")
    parser.add_argument("--quick", action="store_true", help="a few images: does it run at all?")
    arguments = parser.parse_args()
    if not arguments.table and not (arguments.mnist and (arguments.mnist / "MNIST" / "raw").is_dir()):
        parser.error(f"{arguments.mnist}: holds no MNIST/raw; let torchvision download it there")
    return arguments


def job_of(arguments: argparse.Namespace, method: str, head: str) -> ImagesJob:
    """A method's job with its seed."""
    job = full_job(arguments) if arguments.full else small_job(arguments, method, head)
    return job.model_copy(update={"training": job.training.model_copy(update={"seed": arguments.seed})})


def small_job(arguments: argparse.Namespace, method: str, head: str) -> ImagesJob:
    """The CPU size."""
    settings = small_settings(arguments, method, head)
    data = MegapixelMnistConfig(mnist=arguments.mnist, **settings.pop("data"))
    return ImagesJob.model_validate({**settings, "data": data, "out": arguments.out})


def small_settings(arguments: argparse.Namespace, method: str, head: str) -> dict[str, Any]:
    """The settings of a method in the CPU size, but for its seed and for where files lie."""
    settings: dict[str, Any] = json.loads(json.dumps(FINETUNE))
    if method != "sampling":
        settings["model"]["attention"] = ATTENTION[head or "paper"]  # mean pooling does not look at it
    settings["selection"] |= SELECTION.get(method, {})
    epochs = arguments.epochs or (1 if arguments.quick else None)
    settings["training"] |= {"epochs": epochs} if epochs else {}
    return {**settings, "data": QUICK_DATA if arguments.quick else DATA}


def asked_of(arguments: argparse.Namespace, method: str, head: str) -> dict[str, Any]:
    """All that decides what a method reaches, but for the digits and its seed."""
    if arguments.full:
        return {"method": method, "full": True, "quick": arguments.quick, "epochs": arguments.epochs}
    return {"method": method, **small_settings(arguments, method, head)}


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


def result(method: str, job: ImagesJob, *, device: torch.device) -> dict[str, Any]:
    """{task: accuracy on the test images, encoder_passes, size}."""
    with RichProgress() as progress:
        splits = image_splits(
            job.data, job.out / "data", tasks=job.model.tasks, tiling=job.tiling, progress=progress
        )
        if method in ("ips", *SELECTION):
            figures, passes = selecting(method, job, splits, device=device, progress=progress)
        else:
            figures, passes = baseline(method, job, splits, device=device)
    found = {task: figures[f"{task}_accuracy"] for task in TASKS}
    return {**found, "encoder_passes": passes, "size": size(job, splits)}


def selecting(
    method: str, job: ImagesJob, splits: ImageSplits, *, device: torch.device, progress: RichProgress
) -> tuple[Mapping[str, float], int]:
    """What users run: ``train_bags``, its best checkpoint, the test images once. A killed training goes on."""
    out = job.out / f"{method}-{settings_fingerprint(job)}"
    report = train_bags(splits["train"], splits["val"], job, out, device=device, progress=progress)
    net, pipeline = load_checkpoint(report.checkpoint)
    scores = score_bags(
        net, splits["test"], pipeline, streaming=job.streaming, device=device, progress=progress
    )
    n, m, epochs = len(splits["train"][0]), job.selection.memory_size, len(report.history)
    counts = {name: len(bags) for name, bags in splits.items()}
    if method == "ips":
        return scores.figures, epochs * (counts["train"] * (n + m) + counts["val"] * n) + counts["test"] * n
    if method == "sampling":
        drawn = job.selection.sampling.samples
        return scores.figures, drawn * (epochs * (counts["train"] + counts["val"]) + counts["test"])
    # The first epochs look at all patches in training, and calibration does once on the validation images.
    seen = math.ceil(float(net.looks_from_afar.share) * n)
    full = min(job.selection.coarse.full_epochs, epochs)
    train = counts["train"] * (epochs * (seen + m) + full * (n - seen))
    return scores.figures, train + counts["val"] * (epochs * seen + n) + counts["test"] * seen


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


Seeds = Mapping[tuple[str, str], Mapping[int, Mapping[str, Any]]]
"""{(method, head): {seed: what was found}}"""


def read_seeds(folder: Path) -> Seeds:
    """All results of MNIST with the settings of today."""
    found: dict[tuple[str, str], dict[int, Any]] = {}
    usual = argparse.Namespace(only=METHODS, heads=HEADS, full=False, quick=False, epochs=None)
    for method, head in wanted(usual):
        asked = {**asked_of(usual, method, head), "mnist": MNIST_DIGEST}
        for path in sorted(folder.glob(f"{file_name(method, head)}_seed*.json")):
            held = read_result(path, asked)
            if held is not None:
                found.setdefault((method, head), {})[held["seed"]] = held
    return found


def markdown(found: Seeds) -> str:
    """A row for each method and head: the accuracy of each task, mean and deviation over the seeds."""
    titles = [
        "",
        "head",
        "seeds",
        "majority",
        "largest",
        "top",
        "all ten labels",
        "encoder passes",
        "CPU minutes",
    ]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for (method, head), seeds in found.items():
        runs = list(seeds.values())
        cells = [
            NAMES[method],
            head,
            str(len(runs)),
            *(mean_and_deviation([run[task] for run in runs]) for task in TASKS),
        ]
        passes, minutes = (
            statistics.fmean(run[name] for run in runs) for name in ("encoder_passes", "cpu_seconds")
        )
        lines.append("| " + " | ".join([*cells, f"{passes:,.0f}", f"{minutes / 60:.0f}"]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
