"""The coverage that benchmarks/conformal_coverage.py finds in results of known worth."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from benchmarks import conformal_coverage


def step(seed: int, *, skill: float, slides: int = 60) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    target_S = rng.integers(0, 2, slides)
    logits_SC = rng.normal(size=(slides, 2)) + skill * np.eye(2)[target_S]
    return {"seed": seed, "probabilities": softmax(logits_SC, axis=1).tolist(), "target": target_S.tolist()}


def test_every_network_covers_and_a_better_one_leaves_less_open() -> None:
    good, bad = (
        conformal_coverage.of_steps([step(seed, skill=skill) for seed in range(5)], risk=0.1)
        for skill in (3.0, 0.0)
    )
    for found in (good, bad):
        assert 0.87 <= found.coverage <= 0.93
    assert good.size < 1.2 < 1.6 < bad.size
    assert good.right_if_single > 0.9


def test_the_command_reads_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        (tmp_path / f"nodes_ips_seed{seed}.json").write_text(json.dumps(step(seed, skill=1.0)))
    (tmp_path / "nodes_features_seed0.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["x", "--results", str(tmp_path), "--json"])
    conformal_coverage.main()
    figures = json.loads(capsys.readouterr().out)
    assert set(figures) == {"nodes_ips_conformal_coverage", "conformal_coverage"}
    assert 0.87 <= figures["conformal_coverage"] <= 0.93
    monkeypatch.setattr(sys, "argv", ["x", "--results", str(tmp_path / "gone")])
    with pytest.raises(SystemExit):
        conformal_coverage.main()
