"""A small table as a recipe, the slides that it is of, and rates that are plain, for tests of tables and plans."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SMALL_MODEL
from wsi_ips.drawn import twins
from wsi_ips.drawn.twins import TwinConfig, make_twin
from wsi_ips.planning.rates import HeadRates, JobRates, Rates
from wsi_ips.planning.simulated import Peaks

MB = 2**20
PEAKS = Peaks(selection=100 * MB, step=300 * MB, weights=1_000_000, learning=1_000_000, width=512)
RATES = Rates(device="cpu", how="given", cores=1, start_s=2.0, megapixel_s=0.0, forward_s=0.01, learn_s=0.05,
              store_s=0.5, peak_mb=1000, base_mb=400)  # fmt: skip
JOB = JobRates(device="cpu", start_s=3.0, head=HeadRates(bag_s=0.1, epoch_s=1.0, start_s=2.0), label_s=0.2,
               score_s=5.0, score_slide_s=0.1, peak_mb=900)  # fmt: skip
ROWS: dict[str, Any] = {
    "frozen + ABMIL": {
        "frozen": True,
        "settings": {"model.aggregator": "abmil", "selection.selector": "all", "training.epochs": 5},
    },
    "frozen + IPS": {"frozen": True, "settings": {"training.epochs": 2}},
    "end to end": {},
    "random": {"settings": {"selection.selector": "random"}},
}


def draw_data(folder: Path) -> Path:
    """Draw slides of 14 patients, of both subtypes in each split. Returns ``folder``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twins, "TCGA_PATIENTS", 14)
        make_twin(folder, TwinConfig(data_set="tcga_brca", side_px=512))
    return folder


def table(data: Path, **more: Any) -> dict[str, Any]:
    """The recipe of a table of these slides."""
    return {
        "command": "table", "data_set": "tcga_brca", "data": str(data), "out": "nowhere", "seeds": [0, 1, 2],
        "bootstrap": 0, "device": "cpu", "rows": ROWS, "figures": ["auc"],
        "tiling": {"patch_px": 32, "patch_mpp": 0.5, "min_tissue": 0.2, "tissue": {"min_object_um2": 200}},
        "selection": {"m": 4, "i": 8},
        "model": {
            "encoder": SMALL_MODEL["model"]["encoder"], "tasks": [{"name": "label", "classes": ["IDC", "ILC"]}],
        },
        "training": {"epochs": 1, "slides_per_step": 4, "head_start": {"epochs": 0}},
        **more,
    }  # fmt: skip
