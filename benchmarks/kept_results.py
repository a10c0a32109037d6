"""Results of benchmarks that are kept: a small JSON for each method and seed, committed in benchmarks/results.

A file says what was asked, with which program and on which machine. One that was asked for something else than
today does not count, and is replaced when its method is run again.
"""

import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi_ips.storage.files import whole_file

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = ROOT / "benchmarks" / "results"
MNIST_DIGEST = "23384ac5f632"
""":func:`digest_of` MNIST's four files, unpacked."""
Run = Callable[[], Mapping[str, Any]]
"""Runs a method and returns its figures."""


def folder_of_results(out: Path, *, shared: bool) -> Path:
    """Where results are kept: the committed ones are of the shared data and the usual settings alone."""
    return COMMITTED if shared else out / "results"


def digest_of(paths: Iterable[Path]) -> str:
    """Tells data from others by the names and sizes of their files."""
    named = sorted(f"{path.name} {path.stat().st_size}" for path in paths)
    return hashlib.sha256("\n".join(named).encode()).hexdigest()[:12]


def read_result(path: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is kept at this path, if it is the answer to this."""
    held: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return held if held.get("asked") == json.loads(json.dumps(asked)) else None


def run_once(
    path: Path, asked: Mapping[str, Any], run: Run, *, seed: int, again: bool = False
) -> dict[str, Any]:
    """What is kept at this path; where there is nothing yet, what ``run`` finds, which is kept from then on."""
    held = None if again else read_result(path, asked)
    if held is not None:
        return held
    print(f"{path.stem} …", file=sys.stderr, flush=True)
    program = origin()  # the one that was loaded, whatever is changed meanwhile
    started, busy = time.perf_counter(), sum(os.times()[:4])  # of this process and of those that it waits for
    found = dict(run())
    took = {"seconds": time.perf_counter() - started, "cpu_seconds": sum(os.times()[:4]) - busy}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        held = {"asked": asked, "seed": seed, **program, **took, **found}
        partial.write_text(json.dumps(held, indent=1) + "\n")
    return held


def origin() -> dict[str, Any]:
    """Which program found it, and on what machine."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", "wsi_ips", "benchmarks/*.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ] if Path("/proc/cpuinfo").exists() else []  # fmt: skip
    machine = f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores"
    return {
        "commit": commit.stdout.strip() + ("+" if changed.stdout.strip() else ""),
        "machine": machine,
        "python": platform.python_version(),
    }


def tell(figures: Mapping[str, Any], *, as_json: bool) -> None:
    """Print figures as one JSON object or a line each."""
    if as_json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        said = f"{value:.4g}" if isinstance(value, float | int) else str(value or "-")
        print(f"{key:44} {said:>12}")


def mean_and_deviation(values: Sequence[float]) -> str:
    """A cell of a table; empty without values."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{deviation}"
