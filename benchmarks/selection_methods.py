"""One method of benchmarks/selection.py, in a process of its own.

    python -m benchmarks.selection_methods METHOD SETTINGS.json

Learns on training bags, chooses the epoch by validation bags, and writes what it says of the test bags, and
what that took, to ``OUT/METHOD/result.json``. ``encoder_passes``: patches that went through the patch
encoder, training, validation, calibration and test; ``…_test``: to label the test bags.
``patches_decoded_test``: patches that were read in full resolution for that.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.image_baselines import RandomPatches as RandomImagePatches
from benchmarks.image_baselines import fit as fit_images
from wsi_ips.config import FinetuneConfig
from wsi_ips.images.config import MegapixelMnistConfig
from wsi_ips.images.image_sets import ImageSplits, image_splits
from wsi_ips.images.learning import score_bags
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.storage.files import whole_file
from wsi_ips.training.fit import train_bags

CPU = torch.device("cpu")


def main() -> None:
    """Run the method named on the command line."""
    name, settings = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    folder = Path(settings["out"]) / name
    started = time.perf_counter()
    figures = on_images(name.removeprefix("mnist_"), settings, folder)
    figures.setdefault("seconds", time.perf_counter() - started)
    with whole_file(folder / "result.json") as partial:
        partial.write_text(json.dumps(figures, indent=1) + "\n")


def on_images(method: str, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Megapixel MNIST, attention sampling's variant, which every method is given."""
    mnist = dict(settings["mnist"])
    data = MegapixelMnistConfig.model_validate(mnist.pop("data"))
    config = FinetuneConfig.model_validate({**mnist, "selection": settings["mnist_selection"][method]})
    drawn = Path(settings["drawn"])
    splits = image_splits(data, drawn, tasks=config.model.tasks, tiling=config.tiling)
    counts = {name: len(bags) for name, bags in splits.items()}
    size = {"side_px": data.side_px, "noise": data.noise, "patch_px": config.tiling.patch_px, **counts}
    size |= {
        "samples": config.selection.sampling.samples if method == "ats" else config.selection.memory_size
    }
    size |= {
        "epochs": config.training.epochs,
        "steps": -(-counts["train"] // config.training.slides_per_step),
    }
    figures = _learned_images(method, config, splits, folder)
    return figures | {"size": size}


def _learned_images(method: str, config: FinetuneConfig, splits: ImageSplits, folder: Path) -> dict[str, Any]:
    counts = {name: len(bags) for name, bags in splits.items()}
    if method == "random":
        torch.manual_seed(config.training.seed)
        found = fit_images(RandomImagePatches(config), splits, config, device=CPU)
        m = config.selection.memory_size
        passes = config.training.epochs * m * (counts["train"] + counts["val"]) + m * counts["test"]
        return {
            "accuracy": found["accuracy"],
            "encoder_passes": passes,
            "encoder_passes_test": m * counts["test"],
            "patches_decoded_test": m * counts["test"],
        }
    report = train_bags(splits["train"], splits["val"], config, folder / "model", device=CPU)
    net, pipeline = load_checkpoint(report.checkpoint)
    started = time.perf_counter()
    scores = score_bags(net, splits["test"], pipeline, streaming=config.streaming, device=CPU)
    seconds = time.perf_counter() - started
    patches, selection = len(splits["train"][0]), config.selection
    if method == "ats":
        scored, learned = selection.sampling.samples, 0
    else:
        share = float(net.looks_from_afar.share) if method == "cascade" else 1.0
        scored, learned = int(np.ceil(share * patches)), selection.memory_size
    full = selection.coarse.full_epochs if method == "cascade" else 0
    epochs = len(report.history)
    train_passes = epochs * (scored + learned) + min(full, epochs) * (patches - scored) * (
        method == "cascade"
    )
    calibration = counts["val"] * patches if method == "cascade" else 0
    return {
        "accuracy": scores.figures["accuracy"],
        "history": [dict(epoch) for epoch in report.history],
        "encoder_passes": counts["train"] * train_passes
        + (epochs * counts["val"] + counts["test"]) * scored
        + calibration,
        "encoder_passes_test": counts["test"] * scored,
        "patches_decoded_test": counts["test"] * scored,
        "seconds_test": seconds,
    }


if __name__ == "__main__":
    main()
