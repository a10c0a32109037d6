"""The benchmark of the search runs, and answers in the keys that are promised."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.search import Scores, search_figures
from tests.drawn.drawn_textures import draw_textures
from tests.search.small import settings
from wsi_ips.search.candidate import ProxyTask
from wsi_ips.search.proxy import prepare, write_arrays

STRATEGIES = ("random", "evolution", "controller")


@pytest.mark.slow
def test_every_strategy_is_measured_at_the_same_budget(tmp_path: Path) -> None:
    proxy = {"data": "textures", "folder": draw_textures(tmp_path), "side_px": 32, "steps": 2, "batch": 4,
             "width": 0.1, "endpoint_channels": 8}  # fmt: skip
    job = settings(strategies=STRATEGIES, candidates=3, proxy=proxy, evolution={"population": 2})
    write_arrays(tmp_path / "a.npz", prepare(job.proxy))
    task = ProxyTask(job.proxy, tmp_path / "a.npz", "cpu", 60)
    figures, found = search_figures(job, Scores(task, tmp_path / "s.json"), seeds=2, keep=tmp_path / "best")
    # Gone on with, nothing is trained again.
    kept = Scores(replace(task, data=tmp_path / "gone.npz"), tmp_path / "s.json")
    assert search_figures(job, kept, seeds=2, keep=tmp_path / "best")[0] == figures
    assert {name: len(its) for name, its in found.items()} == {
        f"{s} {seed}": 3 for s in STRATEGIES for seed in (0, 1)
    }
    for name in STRATEGIES:
        assert figures[f"search_{name}_best"] >= figures[f"search_{name}_mean"]
        assert figures[f"search_{name}_again"] < 0
    assert figures["search_noise_sd"] > 0
    assert figures["search_failed"] == 0
    assert len(list((tmp_path / "best").glob("*.yaml"))) == 6
