"""benchmarks/aggregators.py and frozen_bags.py: every aggregator learns and tells, and results are counted."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import aggregators
from benchmarks.evidence_settings import AGGREGATORS, FROZEN_MODELS, asked
from benchmarks.frozen_bags import FeatureBag, FrozenNet, Learning, train, validation_loss
from wsi_ips.config import TaskConfig
from wsi_ips.models.aggregators.registry import AGGREGATORS as KINDS

ROOT = Path(__file__).resolve().parents[2]
TARGET_S = [0] * 6 + [1] * 6
THREE = TaskConfig(name="label", classes=("none", "one", "two"))
TWO = TaskConfig(name="label", classes=("normal", "tumor"))


def marked_bags(count: int, *, seed: int, classes: int = 3) -> list[FeatureBag]:
    """Bags of 100 patches of noise; in those of class c > 0, three patches have feature c raised."""
    generator = torch.Generator().manual_seed(seed)
    bags = []
    for number in range(count):
        features_NF = torch.randn(100, 8, generator=generator)
        if target := number % classes:
            features_NF[torch.randperm(100, generator=generator)[:3], target] += 6
        bags.append(FeatureBag(f"bag_{number}", features_NF, torch.arange(100), {"label": target}))
    return bags


def test_attention_mil_finds_the_marked_patches() -> None:
    torch.manual_seed(0)
    model = {"aggregator": {"name": "abmil", "hidden": 128, "dropout": 0.0}, "project": 256}
    frozen = FrozenNet(model, width=8, task=THREE)
    bags, unseen = marked_bags(45, seed=0), marked_bags(9, seed=1)
    losses = train(frozen, bags, unseen, Learning(epochs=12, lr=6e-3, weight_decay=0.0))
    assert min(losses) < 0.7  # guessing is 1.1
    assert validation_loss(frozen, unseen) == pytest.approx(losses[-1], rel=1e-5)  # the last epoch is kept
    shares: dict[str, list[float]] = {"attention": [], "contribution": []}
    for bag in unseen:
        _, maps = frozen.told(bag)
        assert maps["attention"].sum() == pytest.approx(1, rel=1e-4)
        if target := bag.targets["label"]:
            marked = bag.features_NF[:, target].topk(3).indices.numpy()
            for name, share in shares.items():
                share.append(float(maps[name][marked].sum() / maps[name].sum()))
    assert min(np.mean(share) for share in shares.values()) > 0.1  # by chance 0.03


def test_the_mean_sees_the_mean_alone() -> None:
    frozen = FrozenNet(FROZEN_MODELS["mean"], width=4, task=THREE)
    frozen.net.eval()
    x_NF = torch.randn(10, 4)
    mean_1F = x_NF.mean(dim=0, keepdim=True)
    torch.testing.assert_close(
        frozen.logits(FeatureBag("mean", mean_1F, torch.arange(1), {})),
        frozen.logits(FeatureBag("all", x_NF, torch.arange(10), {})),
    )
    assert list(frozen.net.state_dict()) == ["heads.layers.0.weight", "heads.layers.0.bias"]


@pytest.mark.parametrize("name", AGGREGATORS)
def test_every_aggregator_learns_and_says_where(name: str) -> None:
    torch.manual_seed(0)
    settings = AGGREGATORS[name]
    model = {**settings["model"], "project": settings["model"]["project"] and 32}
    frozen = FrozenNet(model, width=8, task=TWO)
    before = {key: weight.clone() for key, weight in frozen.net.named_parameters()}
    bags = marked_bags(4, seed=0, classes=2)
    losses = train(frozen, bags, bags, Learning(epochs=2, lr=1e-3, weight_decay=0.01))
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    still = [key for key, weight in frozen.net.named_parameters() if torch.equal(weight, before[key])]
    assert not still, "weights that no loss reaches"
    p_C, maps = frozen.told(bags[1])
    assert sum(p_C) == pytest.approx(1, rel=1e-5)
    assert set(settings["maps"]) <= set(maps)
    for map_N in maps.values():
        assert map_N.shape == (100,)
        assert (map_N >= 0).all()


def test_no_aggregator_of_the_package_is_left_out() -> None:
    ours = {settings["model"].get("aggregator", {}).get("name") for settings in AGGREGATORS.values()}
    assert ours - {None} == set(KINDS.names())


def found(auc: float, p_S: list[float], **more: Any) -> dict[str, Any]:
    return {
        **{"auc": auc, "auc_by_size": {}, "probabilities": [[1 - p, p] for p in p_S], "target": TARGET_S},
        **{"encoder_passes": 100, "seconds": 9.0, "peak_rss_mb": 5, "bytes_written": 0},
        "notes": {"learning_seconds": 3.0},
        **more,
    }


def keep(folder: Path, name: str, seed: int, held: dict[str, Any]) -> None:
    data_name = name if name in AGGREGATORS else f"nodes_last_{name}"
    held = {"asked": asked("nodes_last", name, seed=seed, quick=False), "seed": seed, **held}
    (folder / f"{data_name}_seed{seed}.json").write_text(json.dumps(held))


@pytest.mark.slow
def test_figures_are_paired_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    right, guess = [0.1] * 6 + [0.9] * 6, [0.5] * 12
    for seed in range(3):
        keep(tmp_path, "abmil", seed, found(0.5, guess))
    for seed in (0, 2):
        keep(tmp_path, "e2e", seed, found(0.5, guess))
    keep(tmp_path, "agg_direct", 0, found(1.0, right, froc_attention=0.5, froc_contribution=0.75))
    keep(tmp_path, "agg_direct", 2, found(1.0, right, froc_attention=0.7, froc_contribution=0.75))
    keep(tmp_path, "agg_mean", 0, found(0.5, guess))
    keep(tmp_path, "agg_max", 0, found(2.0, guess))  # the best, with a seed that is missing
    held = aggregators.read_aggregators(tmp_path, quick=False)
    baseline, e2e = (aggregators.evidence_of(name, tmp_path, quick=False) for name in ("abmil", "e2e"))
    figures = aggregators.figures_of(held, baseline, e2e)
    assert (figures["agg_direct_seeds"], figures["agg_direct_auc"], figures["agg_direct_seconds"]) == (
        2,
        1,
        3,
    )
    assert figures["agg_direct_froc"] == pytest.approx(0.6)
    assert figures["agg_direct_froc_contribution"] == 0.75
    assert [figures[f"agg_direct_gain{end}"] for end in ("", "_low", "_high")] == [0.5, 0.5, 0.5]
    assert "agg_mean_froc" not in figures
    assert figures["agg_best_frozen"] == "agg_direct"
    assert figures["agg_e2e_over_best_high"] == -0.5
    table = aggregators.markdown(held, baseline)
    assert "| `direct`, IPS's head | 2 | 1.000 ± 0.000 | 1.000 | +0.500 (+0.500 to +0.500) | 0.600 |" in table
    del held["agg_direct"]  # type: ignore[attr-defined]
    assert aggregators.figures_of(held, baseline, e2e)["agg_best_frozen"] == "abmil"


def test_results_of_other_settings_do_not_count(tmp_path: Path) -> None:
    keep(tmp_path, "agg_mean", 0, found(0.5, [0.5] * 12))
    path = tmp_path / "agg_mean_seed0.json"
    held = json.loads(path.read_text())
    held["asked"]["agg_mean"]["epochs"] = 7
    path.write_text(json.dumps(held))
    assert aggregators.read_aggregators(tmp_path, quick=False) == {}


def test_committed_results_are_those_of_today_s_settings() -> None:
    folder = ROOT / "benchmarks" / "results"
    held = aggregators.read_aggregators(folder, quick=False)
    assert sum(len(seeds) for seeds in held.values()) == len(list(folder.glob("agg_*.json")))
    for seeds in held.values():
        for run in seeds.values():
            assert not run["commit"].endswith("+"), "found by a program that was not committed"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--only", "magic"), "no aggregator 'magic'; known: mean, max"),
        (("--nodes", "nowhere"), "--nodes DIR: a folder with manifest.csv"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    given: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["aggregators.py", *given])
    with pytest.raises(SystemExit, match="2"):
        aggregators.main()
    assert said in capfd.readouterr().err
