"""What chooses the patches of an image: IPS, attention sampling, the cascade and chance, on Megapixel MNIST.

    python benchmarks/selection.py --mnist DIR [--json] [--table] [--out DIR] [--only METHOD ...] [--epochs N]
                                   [--seed 0] [--quick] [--again]

METHOD: mnist_ats, mnist_ips, mnist_cascade, mnist_random, in a size for a CPU (MNIST below). What a method reaches
is a small JSON, selection_<method>_seed<N>.json: of MNIST, with the usual size and epochs, in benchmarks/results,
committed; otherwise below --out. Nothing is run twice. --table prints Markdown over all seeds that were run. On
slides the same methods are steps of benchmarks/evidence.py.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, Python looks beside it, not in the repository's root

from benchmarks.kept_results import (  # noqa: E402
    COMMITTED,
    MNIST_DIGEST,
    digest_of,
    folder_of_results,
    mean_and_deviation,
    read_result,
    run_once,
)
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
    if arguments.table:
        print(markdown(read_seeds(COMMITTED)))
        return
    folder = arguments.out / f"seed_{arguments.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "selection.json"
    settings.write_text(json.dumps(chosen(arguments), indent=1) + "\n")
    digits = digest_of((arguments.mnist / "MNIST" / "raw").glob("*-ubyte"))
    usual = not (arguments.quick or arguments.epochs)
    results = folder_of_results(arguments.out, shared=usual and digits == MNIST_DIGEST)
    found = {}
    for name in arguments.only or ON_IMAGES:
        found[name] = run_once(
            results / f"selection_{name}_seed{arguments.seed}.json",
            {**asked_of(name, arguments), "digits": digits},
            lambda name=name: run_step(name, settings, again=arguments.again),  # type: ignore[misc]
            seed=arguments.seed,
            again=arguments.again,
        )
    figures = flat(found)
    if arguments.json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        print(f"{key:36} {value:>14.4g}" if isinstance(value, float | int) else f"{key:36} {value or '-'}")


def run_step(name: str, settings: Path, *, again: bool) -> dict[str, Any]:
    """A method in a process of its own."""
    steps = all_figures(
        [name],
        module="benchmarks.selection_methods",
        settings=settings,
        relevant=relevant,
        again=[name] if again else (),
    )
    return {key: value for key, value in steps[name].items() if key not in ("asked", "history", "seconds")}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mnist", type=Path, help="folder with torchvision's MNIST/raw; not for --table")
    parser.add_argument("--out", type=Path, default=Path("selection_run"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--table", action="store_true", help="print the table of what was run")
    parser.add_argument("--again", action="store_true", help="learn anew")
    parser.add_argument("--only", nargs="+", choices=ON_IMAGES, metavar="METHOD")
    parser.add_argument("--epochs", type=int, help="of every method that learns here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few images: does it run at all?")
    arguments = parser.parse_args()
    if not arguments.table and not (arguments.mnist and (arguments.mnist / "MNIST" / "raw").is_dir()):
        parser.error(f"{arguments.mnist}: holds no MNIST/raw; let torchvision download it there")
    return arguments


def chosen(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that every method reads."""
    mnist = mnist_settings(arguments)
    mnist["training"]["seed"] = arguments.seed
    mnist["data"] |= {"mnist": str(arguments.mnist.resolve())}
    return {
        "out": str((arguments.out / f"seed_{arguments.seed}").resolve()),
        "drawn": str((arguments.out / "mnist_data").resolve()),
        "mnist": mnist,
        "mnist_selection": MNIST_SELECTION,
    }


def mnist_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What every method is given, but for its seed and for where files lie."""
    mnist: dict[str, Any] = json.loads(json.dumps(MNIST))
    epochs = arguments.epochs or (1 if arguments.quick else None)
    if epochs:
        mnist["training"]["epochs"] = epochs
    return {**mnist, "data": dict(QUICK_MNIST if arguments.quick else MNIST_DATA)}


def asked_of(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All that decides what a method reaches, but for the digits and its seed."""
    settings = {"mnist": mnist_settings(arguments), "mnist_selection": MNIST_SELECTION}
    return relevant(name, settings)


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


Seeds = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""{method: {seed: what was found}}"""
NAMES = {
    "mnist_ats": "attention sampling",
    "mnist_ips": "IPS, the paper's head",
    "mnist_cascade": "cascade, the paper's head",
    "mnist_random": "random patches, the paper's head",
}


def read_seeds(folder: Path) -> Seeds:
    """All results of MNIST with the settings of today."""
    found: dict[str, dict[int, Any]] = {}
    usual = argparse.Namespace(quick=False, epochs=None)
    for name in ON_IMAGES:
        for path in sorted(folder.glob(f"selection_{name}_seed*.json")):
            held = read_result(path, {**asked_of(name, usual), "digits": MNIST_DIGEST})
            if held is not None:
                found.setdefault(name, {})[held["seed"]] = held
    return found


def markdown(found: Seeds) -> str:
    """A row for each method: the test error, mean, deviation and worst over the seeds."""
    titles = ["", "seeds", "test error", "worst", "encoder passes", "passes to label the test images"]
    lines = ["| " + " | ".join([*titles, "CPU minutes"]) + " |", "|---" * (1 + len(titles)) + "|"]
    for name, seeds in found.items():
        errors = [1 - run["accuracy"] for run in seeds.values()]
        passes, at_test, minutes = (
            statistics.fmean(run[key] for run in seeds.values())
            for key in ("encoder_passes", "encoder_passes_test", "cpu_seconds")
        )
        cells = [NAMES[name], str(len(seeds)), mean_and_deviation(errors), f"{max(errors):.3f}"]
        cells += [f"{passes:,.0f}", f"{at_test:,.0f}", f"{minutes / 60:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
