"""What chooses the patches of an image: IPS, attention sampling, the cascade and chance, on Megapixel MNIST.

    python benchmarks/selection.py --mnist DIR [--json] [--out DIR] [--only METHOD ...] [--epochs N] [--seed 0]
                                   [--quick]

METHOD: mnist_ats, mnist_ips, mnist_cascade, mnist_random, in a size for a CPU (MNIST below). Results are kept
below --out: a run goes on where another stopped. On slides the same methods are steps of benchmarks/evidence.py.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, Python looks beside it, not in the repository's root

from benchmarks.steps import all_figures  # noqa: E402

ON_IMAGES = ("mnist_ats", "mnist_ips", "mnist_cascade", "mnist_random")
DIGITS = [str(digit) for digit in range(10)]

# Denser in noise than 1500 x 1500 px with 50 patterns; the published network of 30,411 weights.
MNIST_DATA = {"side_px": 140, "train": 8000, "val": 200, "test": 1000, "noise": 1, "small_scale": 0.12}
QUICK_MNIST = MNIST_DATA | {"train": 24, "val": 12, "test": 12}
MNIST: dict[str, Any] = {
    "tiling": {"patch_px": 32, "overlap_px": 16},
    "streaming": {"batch": 128},
    "model": {
        "encoder": {"name": "ats_megapixel_mnist", "weights": "none", "in_channels": 1},
        "attention": {"heads": 4, "key_dim": 16, "value_dim": 16, "inner_dim": 128},
        "tasks": [{"name": "majority", "classes": DIGITS}],
    },
    "training": {
        "epochs": 14,
        "warmup_epochs": 0,
        "slides_per_step": 16,
        "lr": 3e-3,
        "weight_decay": 0,
        "gradient_clip": 1,
        "clip": "weight",
        "flips": False,
    },
}
MNIST_SELECTION: dict[str, Any] = {
    "ats": {
        "selector": "attention_sampling",
        "sampling": {"samples": 8},
        "coarse": {"scorer": "megapixel_mnist"},
    },
    "ips": {"m": 8, "i": 128},
    "cascade": {"selector": "cascade", "m": 8, "i": 128, "coarse": {"mpp": 4, "share": 0.3}},
    "random": {"m": 8},
}


def main() -> None:
    """Run what is missing, and print a table or one JSON object."""
    arguments = parsed()
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = arguments.out / "selection.json"
    settings.write_text(json.dumps(chosen(arguments), indent=1) + "\n")
    results = all_figures(
        arguments.only or ON_IMAGES,
        module="benchmarks.selection_methods",
        settings=settings,
        relevant=relevant,
    )
    figures = flat(results)
    if arguments.json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        print(f"{key:36} {value:>14.4g}" if isinstance(value, float | int) else f"{key:36} {value or '-'}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mnist", type=Path, required=True, help="folder with torchvision's MNIST/raw")
    parser.add_argument("--out", type=Path, default=Path("selection_run"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", nargs="+", choices=ON_IMAGES, metavar="METHOD")
    parser.add_argument("--epochs", type=int, help="of every method that learns here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few images: does it run at all?")
    arguments = parser.parse_args()
    if not (arguments.mnist / "MNIST" / "raw").is_dir():
        parser.error(f"{arguments.mnist}: holds no MNIST/raw; let torchvision download it there")
    return arguments


def chosen(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that every method reads."""
    mnist: dict[str, Any] = json.loads(json.dumps(MNIST))
    mnist["training"]["seed"] = arguments.seed
    epochs = arguments.epochs or (1 if arguments.quick else None)
    if epochs:
        mnist["training"]["epochs"] = epochs
    data = QUICK_MNIST if arguments.quick else MNIST_DATA
    return {
        "out": str(arguments.out.resolve()),
        "mnist": {**mnist, "data": {"mnist": str(arguments.mnist.resolve()), **data}},
        "mnist_selection": MNIST_SELECTION,
    }


def relevant(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the settings that decides a method's result."""
    method = name.removeprefix("mnist_")
    return {"mnist": settings["mnist"], "selection": settings["mnist_selection"][method]}


def flat(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """{method_figure: value}, and the one that is compared with a bar; null where a method was not run."""
    names = (
        "accuracy",
        "encoder_passes",
        "encoder_passes_test",
        "patches_decoded_test",
        "seconds",
        "seconds_test",
    )
    figures = {
        f"{method}_{name}": found[name]
        for method, found in results.items()
        for name in names
        if name in found
    }
    ats = results.get("mnist_ats")
    figures["ats_mnist_error"] = None if ats is None else 1 - ats["accuracy"]
    figures["ats_mnist_size"] = None if ats is None else ats["size"]
    return figures


if __name__ == "__main__":
    main()
