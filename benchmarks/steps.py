"""Benchmarks in steps: each in a process of its own, its figures kept, so that a run goes on where it stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def figures_of(
    step: str, *, module: str, settings: Path, folder: Path, asked: Any, again: bool = False
) -> dict[str, Any]:
    """What ``python -m module step settings`` left in ``folder/result.json``; what an earlier run left, where it
    was asked the same. Ends this process where the step fails."""
    path = folder / "result.json"
    if path.exists() and not again:
        held: dict[str, Any] = json.loads(path.read_text())
        if held.get("asked") == asked:
            return held
    print(f"{step} …", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", module, step, str(settings)]
    done = subprocess.run(command, env=with_root(), stdout=sys.stderr, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    figures: dict[str, Any] = json.loads(path.read_text()) | {"asked": asked}
    path.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def with_root() -> dict[str, str]:
    """This process's environment, in which Python finds ``benchmarks`` and ``wsi_ips``."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
