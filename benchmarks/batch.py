"""A folder of slides on two workers: what dask costs, and whether a run that was killed ends as any other.

    python benchmarks/batch.py [--json] [--slides 64] [--kills 20] [--gigapixel SLIDE.tif] [--out DIR]

Draws slides, and runs ``wsi-ips predict`` over them as a user would, from start to end, imports and cluster
included: in one process with one thread; in two such processes at once, with half of the slides each (the best
that two ways can be on this machine: they share its memory); with two workers of one thread each. Then a smaller
folder is predicted again and again, killed with SIGKILL at random moments and started again, until it is done.
With --gigapixel, what the overlay of that slide takes (benchmarks/overlay.py) is measured too.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, Python looks beside it, not in the repository's root

from benchmarks.steps import with_root  # noqa: E402

SIDE_PX = 1700
MODEL = {
    "tiling": {"patch_px": 224, "patch_mpp": 0.5, "min_tissue": 0.05},
    "selection": {"rule": "global", "m": 16, "i": 16},
    "model": {"encoder": {"name": "resnet18", "weights": "none"}, "attention": {"heads": 2, "inner_dim": 64}},
}
SMALL = {**MODEL, "tiling": {"patch_px": 224, "patch_mpp": 2.0, "min_tissue": 0.05}}
KILLED_SLIDES = 8
SETTINGS = ("--no-overlays", "--device", "cpu", "--threads", "1", "--set", "streaming.batch=16")


def main() -> None:
    """Measure, and print a table or one JSON object."""
    arguments = parsed()
    folder = arguments.out or Path(tempfile.mkdtemp(prefix="wsi_ips_batch_"))
    try:
        slides = drawn(folder / "slides", arguments.slides)
        figures: dict[str, Any] = {"slides": arguments.slides, **overhead(slides, folder)}
        if arguments.kills:
            figures |= resumed(slides, folder, kills=arguments.kills, seed=arguments.seed)
        if arguments.gigapixel:
            figures |= overlay_cost(arguments.gigapixel)
    finally:
        if arguments.out is None:
            shutil.rmtree(folder)
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:24} {value:>12.4g}" if isinstance(value, float) else f"{name:24} {value!s:>12}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--slides", type=int, default=64)
    parser.add_argument("--kills", type=int, default=20, help="0: only the two timed runs")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--gigapixel", type=Path, help="a slide of make_gigapixel.py: adds its overlay's cost"
    )
    parser.add_argument("--out", type=Path, help="keep slides and results here")
    return parser.parse_args()


def drawn(folder: Path, count: int) -> list[Path]:
    """So many drawn slides, of sizes that differ."""
    from wsi_ips.drawn.config import SyntheticConfig
    from wsi_ips.drawn.synthetic import make_camelyon_like

    print(f"drawing {count} slides ...", file=sys.stderr, flush=True)
    config = SyntheticConfig(train=1, val=1, test=max(1, count - 2), side_px=SIDE_PX)
    make_camelyon_like(folder, config, processes=2)
    return sorted((folder / "images").glob("*.tif"))[:count]


def checkpoint(path: Path, model: dict[str, Any]) -> Path:
    """An untrained network: weights change no speed."""
    import torch

    from wsi_ips.config import PipelineConfig
    from wsi_ips.models.build import build_net
    from wsi_ips.models.checkpoint import save_checkpoint

    torch.manual_seed(0)
    pipeline = PipelineConfig.model_validate(model)
    save_checkpoint(path, build_net(pipeline.model), pipeline)
    return path


def overhead(slides: list[Path], folder: Path) -> dict[str, float]:
    """Two workers against the same slides dealt out to two plain processes, and against half of one process."""
    model = checkpoint(folder / "model.safetensors", MODEL)
    halves = [linked(folder / f"half_{half}", slides[half::2]) for half in (0, 1)]
    print("one process ...", file=sys.stderr, flush=True)
    (loop,) = timed([predict(slides[0].parent, model, fresh(folder / "loop"))])
    print("two processes, half of the slides each ...", file=sys.stderr, flush=True)
    split = timed([predict(half, model, fresh(folder / f"{half.name}_run")) for half in halves])
    print("two workers ...", file=sys.stderr, flush=True)
    (batch,) = timed([predict(slides[0].parent, model, fresh(folder / "batch"), "--workers", "2")])
    if contents(folder / "loop") != contents(folder / "batch"):
        sys.exit("two workers wrote something else than one process")
    # Halves that take differently long are no fault of the split: their mean is what an even one would take.
    ideal = sum(split) / 2
    return {
        "loop_seconds": loop,
        "split_seconds": ideal,
        "batch_seconds": batch,
        "dask_overhead": batch / ideal,
        "batch_over_half_loop": batch / (loop / 2),
    }


def linked(folder: Path, slides: list[Path]) -> Path:
    fresh(folder).mkdir()
    for slide in slides:
        (folder / slide.name).symlink_to(slide)
    return folder


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def timed(processes: "list[subprocess.Popen[bytes]]") -> list[float]:
    """How long each of them, just started, runs. Ends this one where one fails."""
    started = time.perf_counter()
    seconds: dict[int, float] = {}
    while len(seconds) < len(processes):
        for process in processes:
            if process.pid not in seconds and process.poll() is not None:
                seconds[process.pid] = time.perf_counter() - started
        time.sleep(0.01)
    if any(process.returncode for process in processes):
        sys.exit("predict failed")
    return [seconds[process.pid] for process in processes]


def predict(slides: Path, model: Path, out: Path, *options: str) -> "subprocess.Popen[bytes]":
    """``wsi-ips predict``, in a session of its own."""
    command = [sys.executable, "-m", "wsi_ips.cli", "predict", str(slides), "--checkpoint", str(model)]
    return subprocess.Popen(
        [*command, "--out", str(out), *SETTINGS, *options],
        env={**with_root(), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def contents(run: Path) -> dict[str, bytes]:
    """What a run says: its predictions and attention."""
    return {path.name: path.read_bytes() for path in [run / "predictions.csv", *run.glob("attention/*.h5")]}


def resumed(slides: list[Path], folder: Path, *, kills: int, seed: int) -> dict[str, Any]:
    """Kill runs at random moments, start them again, and compare what they come to with a run left alone."""
    few = folder / "few"
    few.mkdir(exist_ok=True)
    for slide in slides[:KILLED_SLIDES]:
        shutil.copyfile(slide, few / slide.name)
    model = checkpoint(folder / "small.safetensors", SMALL)
    ways: list[tuple[str, ...]] = [(), ("--workers", "2")]
    whole, lasts = folder / "undisturbed", {}
    for way in ways:
        (lasts[way],) = timed([predict(few, model, fresh(whole), *way)])
    moments, killed, identical, runs = random.Random(seed), 0, True, 0
    while killed < kills:
        out = fresh(folder / f"killed_{runs}")
        way = ways[killed % 2]
        while killed < kills and killed_at(predict(few, model, out, *way), moments.uniform(0, lasts[way])):
            killed += 1
            way = ways[killed % 2]
            print(f"killed {killed} times", file=sys.stderr, flush=True)
        if predict(few, model, out, *way).wait():
            sys.exit("a run that was killed did not go on")
        identical &= contents(out) == contents(whole) and not list(out.rglob("*.partial*"))
        runs += 1
    return {"resume_identical": identical, "kills": killed, "killed_runs": runs}


def killed_at(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Whether the process was still running after so long, and so was killed."""
    try:
        process.wait(timeout=seconds)
        return False
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)  # the workers of its cluster see to themselves
        process.wait()
        return True


def overlay_cost(slide: Path) -> dict[str, float]:
    """Peak memory and seconds of the slide's overlay, in a fresh process."""
    command = [sys.executable, str(ROOT / "benchmarks" / "overlay.py"), str(slide), "--json"]
    figures: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {name: figures[name] for name in ("overlay_rss_mb", "overlay_seconds")}


if __name__ == "__main__":
    main()
