"""benchmarks/evidence.py: where results are kept, what is counted over seeds, and that every step runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shapely import MultiPolygon, Point

from benchmarks import evidence
from benchmarks.evidence_settings import METHODS, asked, kind
from benchmarks.evidence_table import figures_of, markdown, read_results
from benchmarks.paired_gain import gain_interval
from benchmarks.slide_scores import auc_interval, lead_interval, macro_auc, slide_hits
from tests.drawn.drawn_textures import draw_outlines, draw_textures
from wsi_ips.config import TilingConfig
from wsi_ips.tiling.grid import PatchCoords, PatchGrid
from wsi_ips.units import Mpp

ROOT = Path(__file__).resolve().parents[2]
TARGET_S = [0] * 6 + [1] * 6
SIZE_S = ["none"] * 6 + ["macro", "micro", "small"] * 2


def found(auc: float, **more: Any) -> dict[str, Any]:
    p_S = [0.1] * 6 + [0.9] * 6
    return {
        "auc": auc,
        "auc_by_size": {"macro": 1.0, "micro": auc, "small": 0.5},
        "probabilities": [[1 - p, p] for p in p_S],
        "target": TARGET_S,
        "size": SIZE_S,
        **{
            "encoder_passes": 0,
            "encoder_passes_test": 10,
            "seconds": 1.0,
            "peak_rss_mb": 1,
            "bytes_written": 1,
        },
        **more,
    }


def keep(folder: Path, data: str, method: str, seed: int, held: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    held = {"asked": asked(data, method, seed=seed, quick=False), "seed": seed, **held}
    (folder / f"{data}_{method}_seed{seed}.json").write_text(json.dumps(held))


def options(monkeypatch: pytest.MonkeyPatch, *given: object) -> None:
    monkeypatch.setattr(sys, "argv", ["evidence.py", *map(str, given)])


def test_figures_are_over_seeds_and_the_worst_is_among_them(tmp_path: Path) -> None:
    for seed, (abmil, ips) in enumerate([(0.9, 0.92), (0.8, 0.7), (0.85, 0.85)]):
        keep(tmp_path, "nodes", "abmil", seed, found(abmil))
        keep(tmp_path, "nodes", "ips", seed, found(ips))
    keep(tmp_path, "nodes", "features", 0, {"encoder_passes": 100, "seconds": 5.0, "bytes_written": 7})
    figures = figures_of(read_results(tmp_path, quick=False))
    assert figures["nodes_ips_seeds"] == 3
    assert figures["nodes_ips_frozen_learned"] == "2 of 3"
    assert figures["nodes_ips_auc_worst"] == 0.7
    assert figures["nodes_ips_frozen_gap"] == pytest.approx((0.9 + 0.8 + 0.85 - 0.92 - 0.7 - 0.85) / 3)
    assert figures["nodes_ips_frozen_worst_gap"] == pytest.approx(0.1)
    assert figures["nodes_ips_frozen_largest_gap"] == pytest.approx(0.1)
    assert figures["nodes_ips_encoder_passes"] == pytest.approx(100 / 3)  # features were made for one seed
    assert "| IPS, frozen | 3 | 2 of 3 |" in markdown(read_results(tmp_path, quick=False))


def test_what_half_made_features_cost_is_not_counted(tmp_path: Path) -> None:
    """A step that went on where a killed call had stopped does not know what it took, nor does what needs it."""
    for seed, seconds in enumerate([7.0, None]):
        keep(tmp_path, "nodes", "ips", seed, found(0.9))
        features = {"encoder_passes": 100, "seconds": seconds, "bytes_written": seconds}
        keep(tmp_path, "nodes", "features", seed, features)
    figures = figures_of(read_results(tmp_path, quick=False))
    assert figures["nodes_ips_seconds"] == 8.0
    assert figures["nodes_ips_encoder_passes"] == 100


def test_results_of_other_settings_do_not_count(tmp_path: Path) -> None:
    keep(tmp_path, "nodes", "ips", 0, found(0.9))
    path = tmp_path / "nodes_ips_seed0.json"
    held = json.loads(path.read_text())
    held["asked"]["selection"]["m"] = 7
    path.write_text(json.dumps(held))
    assert read_results(tmp_path, quick=False) == {}


def test_the_gain_is_paired_over_slides_and_seeds() -> None:
    better = found(1.0)
    guess = found(0.5, probabilities=[[0.5, 0.5]] * 12)
    low, high = gain_interval([(better, guess)] * 3)
    assert (low, high) == (0.5, 0.5)
    assert gain_interval([(better, better)] * 2) == (0.0, 0.0)


def test_the_gain_is_of_the_seeds_that_both_have(tmp_path: Path) -> None:
    keep(tmp_path, "nodes_enlarged", "e2e", 1, found(1.0))
    keep(tmp_path, "nodes_enlarged", "abmil", 0, found(0.9))
    assert "nodes_enlarged_ips_e2e_gain" not in figures_of(read_results(tmp_path, quick=False))
    keep(tmp_path, "nodes_enlarged", "mean", 1, found(0.5, probabilities=[[0.5, 0.5]] * 12))
    figures = figures_of(read_results(tmp_path, quick=False))
    assert figures["nodes_enlarged_best_frozen"] == "mean"
    assert figures["nodes_enlarged_ips_e2e_gain"] == 0.5


def test_only_the_shared_folders_have_committed_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    textures, outlines = tmp_path / "textures", tmp_path / "outlines"
    textures.mkdir()
    outlines.mkdir()
    (textures / "manifest.csv").write_text("path,class,source_group\n")
    options(monkeypatch, "--textures", textures, "--outlines", outlines, "--out", tmp_path / "run")
    assert evidence.results_folder(evidence.parsed()) == tmp_path / "run" / "results"
    monkeypatch.setitem(evidence.SHARED, "textures", evidence.digest(textures))
    assert evidence.results_folder(evidence.parsed()) == ROOT / "benchmarks" / "results"
    options(monkeypatch, "--textures", textures, "--outlines", outlines, "--quick")
    assert evidence.results_folder(evidence.parsed()) != ROOT / "benchmarks" / "results"


def test_steps_come_with_what_they_go_on_from_and_without_a_folder_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "manifest.csv").write_text("path,class,source_group\n")
    given = ("--textures", tmp_path, "--outlines", tmp_path)
    options(monkeypatch, *given, "--only", "cascade")
    steps = evidence.wanted(evidence.parsed())
    assert steps[:2] == [("textures", "e2e"), ("textures", "cascade")]
    options(monkeypatch, *given)
    assert {kind(data) for data, _ in evidence.wanted(evidence.parsed())} == {"textures"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--only", "nodes_magic"), "no step 'nodes_magic'; known:"),
        (("--textures", "nowhere", "--outlines", "nowhere"), "holds no manifest.csv"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    given: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    options(monkeypatch, *given)
    with pytest.raises(SystemExit, match="2"):
        evidence.main()
    assert said in capfd.readouterr().err


def test_committed_results_are_those_of_today_s_settings() -> None:
    folder = ROOT / "benchmarks" / "results"
    held = read_results(folder, quick=False)
    counted = sum(len(seeds) for methods in held.values() for seeds in methods.values())
    others = (
        "agg_",
        "curve_",
        "mnist_",
        "nuclei_",
        "selection_",
    )  # other benchmarks' results, which their own tests count
    assert counted == len([path for path in folder.glob("*.json") if not path.name.startswith(others)])
    for methods in held.values():
        for method in methods.keys() - {"features"}:
            for run in methods[method].values():
                assert not run["commit"].endswith("+"), "found by a program that was not committed"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_step_runs_on_drawn_textures(tmp_path: Path) -> None:
    (tmp_path / "textures").mkdir()
    (tmp_path / "outlines").mkdir()
    command = [
        *(sys.executable, str(ROOT / "benchmarks" / "evidence.py"), "--quick", "--json"),
        f"--textures={draw_textures(tmp_path / 'textures')}",
        f"--outlines={draw_outlines(tmp_path / 'outlines')}",
        f"--out={tmp_path / 'run'}",
        *("--only", "textures", "textures_standardised_abmil", "textures_standardised_ips"),
    ]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    for method in METHODS:
        assert 0 <= figures[f"textures_{method}_auc"] <= 1
        assert figures[f"textures_{method}_seeds"] == 1
    features = [path.name for path in (tmp_path / "run").glob("*/features_*")]
    assert features == ["features_textures"], "standardised features are the same ones"
    assert figures["textures_standardised_ips_auc"] != figures["textures_ips_auc"]
    assert figures["textures_e2e_encoder_passes"] > figures["textures_ips_encoder_passes"]
    # All patches go back through the encoder, and not the kept ones alone.
    assert figures["textures_e2e_all_encoder_passes"] > figures["textures_e2e_encoder_passes"]
    results = tmp_path / "run" / "results" / "textures_e2e_seed0.json"
    before = results.stat().st_mtime_ns
    subprocess.run(command, capture_output=True, env=environment, check=True)
    assert results.stat().st_mtime_ns == before


def test_auc_and_its_intervals() -> None:
    target_S = np.arange(30) % 3
    perfect_SC = np.eye(3)[target_S]
    assert macro_auc(perfect_SC, target_S) == 1
    assert auc_interval(perfect_SC, target_S) == (1, 1)
    guess_SC = np.random.default_rng(0).random((30, 3))
    low, high = auc_interval(guess_SC, target_S)
    assert low < macro_auc(guess_SC, target_S) < high
    lead_low, lead_high = lead_interval(perfect_SC, guess_SC, target_S)
    assert 0 < lead_low < 1 - macro_auc(guess_SC, target_S) < lead_high


def test_a_detection_in_the_lesion_is_a_hit_and_others_are_not() -> None:
    tiling = TilingConfig(patch_px=128, patch_mpp=1.0)
    grid = PatchGrid.cover((4096, 4096), slide_mpp=Mpp(0.5), tiling=tiling)
    coords = PatchCoords.on_grid(
        grid, np.arange(256), slide_id="a", l0_size=(4096, 4096), slide_mpp=Mpp(0.5), tiling=tiling,
        tissue_N=np.ones(256, np.float32),
    )  # fmt: skip
    lesions = MultiPolygon([Point(1000, 3000).buffer(400)])
    attention_N = np.zeros(256)
    attention_N[[11 * 16 + 3, 2 * 16 + 9]] = 0.8, 0.2  # around (896, 2944), and far away
    hits = slide_hits(coords, attention_N, p_tumor=0.5, lesions=lesions)
    assert hits.lesions == 1
    assert hits.lesion_scores_L.tolist() == [0.5]
    assert hits.false_positives_F.tolist() == [0.125]
    without = slide_hits(coords, attention_N, p_tumor=0.5, lesions=None)
    assert sorted(without.false_positives_F.tolist()) == [0.125, 0.5]
