"""The benchmarks of encoders: memory that is simulated, the cost of ``features``, and the script for a card."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from benchmarks import gpu, vram
from benchmarks.make_gigapixel import make_gigapixel
from benchmarks.vram import Case, Peak, peak_of

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30


def answer(script: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, options)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


def small(model: str = "resnet18", precision: str = "32", *, m: int = 16, micro_batch: int = 8) -> Case:
    return Case(model, precision, m=m, bags=2, px=64, micro_batch=micro_batch)


@cache
def simulated(case: Case) -> Peak | None:
    return peak_of(case, device="simulated")


def test_simulated_memory_counts_weights_gradients_and_the_optimiser() -> None:
    peak = simulated(small())
    assert peak is not None
    assert peak.weights_m == peak.learning_m
    weights_gb = peak.weights_m * 1e6 * 4 / GIB
    assert peak.selection_gb > weights_gb
    assert peak.step_gb > 4 * weights_gb, "weights, gradients and AdamW's two moments"


def test_simulated_memory_is_that_of_a_micro_batch_and_not_of_m() -> None:
    of_m = [simulated(small(m=m)) for m in (16, 32)]
    wider = simulated(small(micro_batch=16))
    assert of_m[0] is not None
    assert of_m[1] is not None
    assert wider is not None
    assert of_m[1].step_gb < 1.1 * of_m[0].step_gb
    assert of_m[0].step_gb < wider.step_gb


def test_bf16_halves_what_a_large_micro_batch_keeps() -> None:
    exact, half = (
        simulated(Case("resnet18", precision, m=32, bags=1, px=224, micro_batch=32))
        for precision in ("32", "bf16")
    )
    assert exact is not None
    assert half is not None
    assert 0.5 < half.step_gb / exact.step_gb < 0.8


def test_adapters_are_counted_where_there_are_any_and_said_to_be_missing_elsewhere() -> None:
    case = Case("vit_s_lora", "bf16", m=2, bags=1, px=224, micro_batch=2)
    peak = simulated(case)
    if "lora" not in vram.EncoderConfig.model_fields:
        assert peak is None
        assert "not available" in vram.row(case, peak)
    else:
        assert peak is not None
        assert peak.learning_m < 0.1 * peak.weights_m
    assert vram.figures({case: None}, device="simulated")["vram_vit_l_lora_gb"] == "not available"


@pytest.mark.slow
def test_vram_answers_in_the_promised_keys() -> None:
    done = answer("vram.py", "--json", "--models", "resnet18", "--precisions", "32", "--m", "8", "16",
                  "--bags", "1", "--px", "64", "--micro-batch", "4")  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["vram_resnet18_gb"] > 0
    assert figures["vram_resnet18_m16_over_m8"] > 0.9
    assert [case["m"] for case in figures["cases"]] == [8, 16]


@pytest.mark.slow
def test_features_benchmark_answers_in_the_promised_keys(tmp_path: Path) -> None:
    make_gigapixel(tmp_path / "small.tif", side_px=2048, block=2)
    done = answer("features.py", tmp_path / "small.tif", "--json", "--encoder=resnet10t", "--px=64",
                  "--patches=32", "--batch=16", "--repeats=2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["patches"] == 32
    assert figures["lowest"] <= figures["features_over_encoder"] <= figures["highest"]


@pytest.mark.slow
def test_the_script_for_a_card_runs_dry_and_goes_on_after_a_part_that_fails(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = answer("gpu.py", out, "--dry", "--only", "precision", "nvjpeg")
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text())
    assert told["dry"] is True
    assert [*told["parts"]] == ["precision", "nvjpeg"]
    for part in told["parts"].values():
        assert "figures" in part, part
    failing = answer("gpu.py", out, "--only", "precision", "nvjpeg")
    assert failing.returncode == 0, failing.stderr
    told = json.loads(out.read_text())
    if told["machine"]["card"] is None:
        assert ["no CUDA device" in part["error"] for part in told["parts"].values()] == [True, True]


def test_a_part_that_takes_too_long_or_dies_is_recorded() -> None:
    assert sum(gpu.LIMITS_S.values()) <= gpu.TOTAL_S
    assert gpu.PARTS.keys() == gpu.LIMITS_S.keys()
    assert gpu.run("tests", limit_s=0.5, dry=True)["error"] == "no time is left for it"
    died = subprocess.CompletedProcess([], -9, "", "some\nSegmentation fault\n\n")
    assert gpu.told_by(died, Path("nowhere")) == {"error": "Segmentation fault"}
    silent = subprocess.CompletedProcess([], -9, "", "")
    assert gpu.told_by(silent, Path("nowhere")) == {"error": "ended with -9"}
