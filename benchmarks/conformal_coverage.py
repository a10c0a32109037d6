"""How often split-conformal sets hold the true class, on test slides of benchmarks/evidence.py.

    python benchmarks/conformal_coverage.py [--results benchmarks/results] [--risk 0.1] [--json]

A step keeps its network's probabilities of the test slides. Half of these slides, drawn at random, give the
threshold, the other half is measured; many draws, mean over draws and seeds. No slide chose anything here, so
this is the method by itself: what a validation split that also chose the epoch costs is not in it.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, Python looks beside it, not in the repository's root

from wsi_ips.evaluation.conformal import (  # noqa: E402
    in_sets,
    score_sets,
    thresholds,
)

DRAWS = 200


@dataclass(frozen=True, slots=True)
class Coverage:
    """Means over draws: the share of sets that hold the true class, classes in a set, the share of sets of one
    class, and how many of those are right (NaN where no draw has any)."""

    coverage: float
    size: float
    single: float
    right_if_single: float


def coverage_in_halves(
    probability_SC: NDArray[np.floating], target_S: NDArray[np.int64], *, risk: float, seed: int = 0
) -> Coverage:
    """Calibrate on half of the slides and measure on the others, in :data:`DRAWS` random ways.

    Raises ``ValueError`` where half of the slides are too few for the risk.
    """
    probability = np.asarray(probability_SC, np.float64)
    rng = np.random.default_rng(seed)
    names = [str(one) for one in range(probability.shape[1])]
    told = []
    for _ in range(DRAWS):
        known, new = np.array_split(rng.permutation(len(target_S)), 2)
        threshold_C = thresholds(probability[known], target_S[known], risk=risk)
        found = score_sets(
            in_sets(probability[new], threshold_C),
            target_S[new],
            answers=names,
            cases=range(len(new)),
            resamples=0,
            seed=0,
        )
        told.append((found.coverage.value, found.size, found.single, found.right_if_single))
    table = np.array(told)
    right = table[:, 3][~np.isnan(table[:, 3])]
    return Coverage(*table[:, :3].mean(axis=0).tolist(), float(right.mean()) if len(right) else float("nan"))


def of_steps(steps: Sequence[Mapping[str, Any]], *, risk: float) -> Coverage:
    """The mean over the results of one step's seeds."""
    seeds = [
        coverage_in_halves(
            np.array(step["probabilities"]), np.array(step["target"]), risk=risk, seed=step["seed"]
        )
        for step in steps
    ]
    rows = [(one.coverage, one.size, one.single, one.right_if_single) for one in seeds]
    return Coverage(*np.nanmean(np.array(rows), axis=0).tolist())


def main() -> None:
    """Print each step's coverage, then ``conformal_coverage``, the mean over all steps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--risk", type=float, default=0.1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    steps: dict[str, list[Any]] = {}
    for path in sorted(arguments.results.glob("*_seed*.json")):
        held = json.loads(path.read_text())
        if "probabilities" in held:
            steps.setdefault(path.stem.rpartition("_seed")[0], []).append(held)
    if not steps:
        parser.error(
            f"{arguments.results}: holds no step with probabilities; run benchmarks/evidence.py first"
        )
    found = {name: of_steps(seeds, risk=arguments.risk) for name, seeds in steps.items()}
    figures: dict[str, float] = {f"{name}_conformal_coverage": one.coverage for name, one in found.items()}
    figures["conformal_coverage"] = float(np.mean([one.coverage for one in found.values()]))
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, one in found.items():
        print(
            f"{name:32} coverage {one.coverage:.3f}, {one.size:.2f} classes a set, {one.single:.3f} of one class, "
            f"{one.right_if_single:.3f} of these right"
        )
    print(f"{'conformal_coverage':32} {figures['conformal_coverage']:.3f}")


if __name__ == "__main__":
    main()
