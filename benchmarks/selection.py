"""What chooses the patches: IPS, attention sampling, the cascade and chance, on composite slides and on images.

    python benchmarks/selection.py --textures DIR --outlines DIR --mnist DIR [--json] [--out DIR]
                                   [--only METHOD ...] [--epochs N] [--seed 0] [--quick]

METHOD: mnist_ats, mnist_ips, mnist_cascade, mnist_random on Megapixel MNIST in a size for a CPU (MNIST below);
slides_ips, slides_cascade, slides_ats, slides_random on the composite slides of benchmarks/learning.py, whose
--out may be named: slides, features and its end-to-end IPS are taken from there. The cascade begins from that IPS.
Without the folders that a data set needs, its methods are left out. Results are kept below --out: a run goes
on where another stopped.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, Python looks beside it, not in the repository's root

from benchmarks.learning import DATA, FINETUNE, LESION_SHARE, QUICK_DATA, QUICK_LESION_SHARE  # noqa: E402
from benchmarks.steps import all_figures  # noqa: E402

ON_IMAGES = ("mnist_ats", "mnist_ips", "mnist_cascade", "mnist_random")
ON_SLIDES = ("slides_ips", "slides_cascade", "slides_ats", "slides_random")
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

CASCADE = {"selector": "cascade", "rule": "buffer", "m": 128, "i": 128}
# Windows of 64 px a patch of 128 px at 1 µm.
# A share of 0.2, less what rounding up adds to a slide.
COARSE = {"scorer": "conv", "mpp": 2.0, "share": 0.195, "explore": 0.25, "full_epochs": 1}
# The scorer begins from nothing beside an IPS that has learned; the rate by the validation slides' recall.
CASCADE_TRAINING = {"epochs": 2, "coarse_lr": 1e-3}
SAMPLED = {
    "selector": "attention_sampling",
    "sampling": {"samples": 64},
    "coarse": {"scorer": "conv", "mpp": 2.0},
}
ATS_TRAINING = {"epochs": 6, "lr": 3e-4, "encoder_lr": 3e-5}


def main() -> None:
    """Run what is missing, and print a table or one JSON object."""
    arguments = parsed()
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = arguments.out / "selection.json"
    settings.write_text(json.dumps(chosen(arguments), indent=1) + "\n")
    results = all_figures(
        wanted(arguments), module="benchmarks.selection_methods", settings=settings, relevant=relevant
    )
    figures = flat(results)
    if arguments.json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        print(f"{key:36} {value:>14.4g}" if isinstance(value, float | int) else f"{key:36} {value or '-'}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--textures", type=Path, help="folder with manifest.csv")
    parser.add_argument("--outlines", type=Path, help="folder of NCRF's JSON outlines")
    parser.add_argument("--mnist", type=Path, help="folder with torchvision's MNIST/raw")
    parser.add_argument("--out", type=Path, default=Path("learning_run"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", nargs="+", choices=ON_IMAGES + ON_SLIDES, metavar="METHOD")
    parser.add_argument("--epochs", type=int, help="of every method that learns here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few images and slides: does it run at all?")
    arguments = parser.parse_args()
    if arguments.mnist is not None and not (arguments.mnist / "MNIST" / "raw").is_dir():
        parser.error(f"{arguments.mnist}: holds no MNIST/raw; let torchvision download it there")
    if (arguments.textures is None) != (arguments.outlines is None):
        parser.error("--textures and --outlines go together")
    if not wanted(arguments):
        parser.error("nothing to do: give --mnist, or --textures and --outlines")
    return arguments


def wanted(arguments: argparse.Namespace) -> list[str]:
    """The methods asked for whose data are there."""
    there = ON_IMAGES if arguments.mnist is not None else ()
    there += ON_SLIDES if arguments.textures is not None else ()
    return [name for name in there if arguments.only is None or name in arguments.only]


def chosen(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that every method reads; what of them is the composite benchmark's is named as there."""
    finetune: dict[str, Any] = json.loads(json.dumps(FINETUNE))
    mnist: dict[str, Any] = json.loads(json.dumps(MNIST))
    for config in (finetune, mnist):
        config["training"]["seed"] = arguments.seed
    epochs = arguments.epochs or (1 if arguments.quick else None)
    if epochs:
        mnist["training"]["epochs"] = epochs
    if arguments.quick:
        finetune["training"]["epochs"] = 1
        finetune["selection"] = {"rule": "buffer", "m": 4, "i": 4}
    data = DATA | (QUICK_DATA if arguments.quick else {})
    data |= {
        "lesion_share": list(QUICK_LESION_SHARE if arguments.quick else LESION_SHARE),
        "seed": arguments.seed,
    }
    return {
        "out": str(arguments.out.resolve()),
        "mnist": {
            **mnist,
            "data": {
                "mnist": str(arguments.mnist.resolve()) if arguments.mnist else "",
                **(QUICK_MNIST if arguments.quick else MNIST_DATA),
            },
        },
        "mnist_selection": MNIST_SELECTION,
        "composite": {
            "textures": str(arguments.textures.resolve()) if arguments.textures else "",
            "outlines": str(arguments.outlines.resolve()) if arguments.outlines else "",
            "out": str(arguments.out.resolve()),
            "data": data,
            "finetune": finetune,
            "frozen_epochs": 2 if arguments.quick else 100,
            "processes": 1,
        },
        "cascade": {**CASCADE, **({"m": 4, "i": 4} if arguments.quick else {}), "coarse": COARSE},
        "cascade_training": CASCADE_TRAINING | ({"epochs": epochs} if epochs else {}),
        "ats": SAMPLED,
        "ats_training": ATS_TRAINING | ({"epochs": epochs} if epochs else {}),
    }


def relevant(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the settings that decides a method's result."""
    domain, method = name.split("_", 1)
    if domain == "mnist":
        return {"mnist": settings["mnist"], "selection": settings["mnist_selection"][method]}
    composite = {
        key: value for key, value in settings["composite"].items() if key not in ("out", "processes")
    }
    own = {"cascade": ("cascade", "cascade_training"), "ats": ("ats", "ats_training")}.get(method, ())
    return {"composite": composite, **{key: settings[key] for key in own}}


def flat(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """{method_figure: value}, and the three that are compared with a bar; null where a method was not run."""
    names = (
        *("accuracy", "auc", "auc_low", "auc_high", "froc", "recall", "let_through"),
        *("encoder_passes", "encoder_passes_test", "patches_decoded_test", "seconds", "seconds_test"),
    )
    figures = {
        f"{method}_{name}": found[name]
        for method, found in results.items()
        for name in names
        if name in found
    }
    ips, cascade, ats = (results.get(name) for name in ("slides_ips", "slides_cascade", "mnist_ats"))
    both = ips is not None and cascade is not None
    figures["cascade_encoder_share"] = (
        cascade["encoder_passes_test"] / ips["encoder_passes_test"] if both else None  # type: ignore[index]
    )
    figures["cascade_auc_drop"] = ips["auc"] - cascade["auc"] if both else None  # type: ignore[index]
    figures["ats_mnist_error"] = None if ats is None else 1 - ats["accuracy"]
    figures["ats_mnist_size"] = None if ats is None else ats["size"]
    return figures


if __name__ == "__main__":
    main()
