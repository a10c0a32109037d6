"""benchmarks/end_to_end.py: its quick run gives finite figures, and TRIDENT's answers are compared as they are."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from benchmarks import end_to_end
from benchmarks.end_to_end import Spent, compared, ratios

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_quick_run_gives_finite_figures_and_says_what_it_left_out() -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "end_to_end.py"),
            "--json",
            "--quick",
            "--torch-threads=1",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    numbers = {key: value for key, value in figures.items() if isinstance(value, float)}
    assert all(math.isfinite(value) for value in numbers.values())
    for command in ("features", "predict"):
        each = [figures[f"{command}_over_encoder_{case}"] for case in ("plain", "philips")]
        assert figures[f"{command}_over_encoder"] == min(each) > 0
    assert figures["two_workers_over_one_tile"] > 0
    assert {"trident", "finetune", "listing"} <= figures["left_out"].keys()


def test_ratios_compare_within_a_round() -> None:
    rounds = [
        {"alone": Spent(2, 2), "whole": Spent(4, 2)},
        {"alone": Spent(9, 2), "whole": Spent(10, 4)},
        {"alone": Spent(1, 1), "whole": Spent(1, 2)},
    ]
    assert ratios("key", rounds, "alone", "whole") == {
        "key": 0.9, "key_lowest": 0.5, "key_highest": 1, "key_cpu": 0.5,
    }  # fmt: skip


def test_features_of_other_patches_are_not_compared(tmp_path: Path) -> None:
    def stored(name: str, xy: list[list[int]], value: float) -> Path:
        with h5py.File(tmp_path / name, "w") as file:
            file["coords"] = np.array(xy)
            file["features"] = np.full((len(xy), 3), value)
        return tmp_path / name

    ours = stored("ours.h5", [[0, 0], [8, 0]], 2.0)
    assert compared(ours, str(stored("same.h5", [[0, 0], [8, 0]], 2.0))) == (2, 0, 0)
    assert compared(ours, str(stored("off.h5", [[0, 0], [8, 0]], 1.6))) == (2, 2, pytest.approx(0.25))
    with pytest.raises(SystemExit, match="other patches"):
        compared(ours, str(stored("moved.h5", [[0, 0], [9, 0]], 2.0)))


def test_a_part_without_its_program_or_peer_is_left_out_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(end_to_end.Bench, "made", lambda *_: None)
    monkeypatch.setattr(end_to_end, "ELSEWHERE", {"listing": "no_such_program"})
    figures = end_to_end.measured(tmp_path, end_to_end.parsed(["--only", "trident", "listing"]))
    assert figures["left_out"] == {
        "trident": "--trident FOLDER was not given",
        "listing": "there is no benchmarks/no_such_program.py",
    }
