"""benchmarks/learning.py at its smallest: every method runs, and answers in the keys that are promised."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from shapely import MultiPolygon, Point

from benchmarks.bag_models import (
    FeatureBag,
    FrozenIPS,
    GatedAttention,
    Learning,
    MeanPool,
    train,
    validation_loss,
)
from benchmarks.slide_scores import auc_interval, lead_interval, macro_auc, slide_hits
from tests.datasets.drawn_textures import draw_outlines, draw_textures
from wsi_ips.config import (
    AttentionConfig,
    EncoderConfig,
    ModelConfig,
    SelectionConfig,
    TaskConfig,
    TilingConfig,
)
from wsi_ips.tiling.grid import PatchCoords, PatchGrid
from wsi_ips.units import Mpp

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("mean_pool", "abmil_frozen", "ips_frozen", "random", "ips_e2e")


def learning(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the script on drawn textures, as small as it gets."""
    (out / "textures").mkdir(exist_ok=True)
    (out / "outlines").mkdir(exist_ok=True)
    folders = (
        f"--textures={draw_textures(out / 'textures')}",
        f"--outlines={draw_outlines(out / 'outlines')}",
    )
    command = [sys.executable, str(ROOT / "benchmarks" / "learning.py"), *folders, "--quick", "--json"]
    return subprocess.run(
        [*command, f"--out={out / 'run'}", "--processes=1", *options],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_colour_and_one_frozen_method_answer_and_are_kept(tmp_path: Path) -> None:
    done = learning(tmp_path, "--only", "colour", "mean_pool")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert 0 <= figures["colour_histogram_auc_low"] <= figures["colour_histogram_auc"] <= 1
    assert figures["mean_pool_froc"] is None  # it attends to nothing
    assert figures["mean_pool_encoder_passes"] > 9 * 4
    assert figures["mean_pool_bytes_written"] > 9 * 4 * 1280 * 4
    assert figures["mean_pool_peak_rss_mb"] > 100
    result = tmp_path / "run" / "mean_pool" / "result.json"
    before = result.stat().st_mtime_ns
    again = learning(tmp_path, "--only", "mean_pool")
    assert json.loads(again.stdout)["mean_pool_auc"] == figures["mean_pool_auc"]
    assert result.stat().st_mtime_ns == before


@pytest.mark.slow
def test_every_method_answers(tmp_path: Path) -> None:
    done = learning(tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    for method in METHODS:
        assert figures[f"{method}_auc_low"] <= figures[f"{method}_auc"] <= figures[f"{method}_auc_high"]
        names = ("froc", "encoder_passes", "seconds", "peak_rss_mb", "bytes_written")
        assert all(f"{method}_{name}" in figures for name in names)
    assert figures["ips_e2e_froc"] is None or 0 <= figures["ips_e2e_froc"] <= 1  # drawn lesions may be ITC
    assert figures["ips_e2e_encoder_passes"] > figures["abmil_frozen_encoder_passes"]
    assert figures["ips_e2e_over_random_low"] <= figures["ips_e2e_over_random"]


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "learning.py"), "--textures=none", "--outlines=none"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "no such folder" in done.stderr


def marked_bags(count: int, *, seed: int) -> list[FeatureBag]:
    """Bags of 100 patches of noise; in those of class c > 0, three patches have feature c raised."""
    generator = torch.Generator().manual_seed(seed)
    bags = []
    for number in range(count):
        features_ND = torch.randn(100, 8, generator=generator)
        if target := number % 3:
            features_ND[torch.randperm(100, generator=generator)[:3], target] += 6
        bags.append(FeatureBag(f"bag_{number}", features_ND, {"label": target}))
    return bags


@pytest.mark.parametrize("kind", ["abmil", "ips"])
def test_attending_models_find_the_marked_patches(kind: str) -> None:
    torch.manual_seed(0)
    attention = AttentionConfig(heads=2, key_dim=8, value_dim=8, inner_dim=16, attention_dropout=0, dropout=0)
    model: GatedAttention | FrozenIPS = GatedAttention(8, 3, dropout=0)
    if kind == "ips":
        config = ModelConfig(
            encoder=EncoderConfig(name="features", features=8),
            attention=attention,
            tasks=(TaskConfig(classes=("a", "b", "c")),),
        )
        model = FrozenIPS(config, SelectionConfig(m=8, i=8))
    bags, unseen = marked_bags(45, seed=0), marked_bags(9, seed=1)
    losses = train(model, bags, unseen, Learning(epochs=12, lr=6e-3, weight_decay=0.0))
    assert min(losses) < 0.7  # guessing is 1.1
    assert validation_loss(model, unseen) == pytest.approx(min(losses), rel=1e-5)  # the best epoch is kept
    marked_share = []
    for bag in unseen:
        with torch.no_grad():
            attention_N = model(bag.features_ND)[1]
        assert attention_N.shape == (100,)
        assert float(attention_N.sum()) == pytest.approx(1, rel=1e-4)
        if target := bag.targets["label"]:
            marked_share.append(float(attention_N[bag.features_ND[:, target].topk(3).indices].sum()))
    assert np.mean(marked_share) > 0.1  # by chance 0.03


def test_the_mean_pool_sees_the_mean_alone() -> None:
    model = MeanPool(4, 3).eval()
    x_ND = torch.randn(10, 4)
    logits_BC, attention = model(x_ND)
    assert attention is None
    torch.testing.assert_close(model(x_ND.mean(dim=0, keepdim=True))[0], logits_BC)


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
