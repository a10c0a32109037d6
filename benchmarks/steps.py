"""Benchmarks in steps: each in a process of its own, its figures kept, so that a run goes on where it stopped."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def all_figures(
    steps: Iterable[str],
    *,
    module: str,
    settings: Path,
    relevant: Callable[[str, Mapping[str, Any]], Any],
    again: Container[str] = (),
) -> dict[str, dict[str, Any]]:
    """{step: its figures}, kept beside ``settings`` (JSON). relevant: the part of the settings that decides a
    step's result; again: those that are run anew."""
    content = json.loads(settings.read_text())
    return {
        step: _figures_of(
            step,
            module=module,
            settings=settings,
            folder=settings.parent / step,
            asked=relevant(step, content),
            again=step in again,
        )
        for step in steps
    }


def _figures_of(
    step: str, *, module: str, settings: Path, folder: Path, asked: Any, again: bool
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
