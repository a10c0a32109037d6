"""The benchmark of large runs draws what `predict` takes for a finished run of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.listing import growth, measured
from wsi_ips.config import TaskConfig
from wsi_ips.inference.predictions import read_predictions
from wsi_ips.inference.results import read_result
from wsi_ips.inference.run_folder import RunFolder


@pytest.mark.slow
def test_a_drawn_run_is_finished_and_each_result_is_its_own(tmp_path: Path) -> None:
    figures = measured(tmp_path, 12, ["list", "resume", "view"])
    assert figures["resume_mb_12"] > 50
    assert figures["view_list_kb_12"] > 1
    run = RunFolder(tmp_path / "run")
    rows = read_predictions(run.predictions, tasks=[TaskConfig()])
    assert len({row.probabilities["label"]["tumor"] for row in rows}) == len(rows) == 12
    for row in rows:
        result = read_result(run.attention(row.slide_id))
        assert result.coords.slide_id == row.slide_id
        assert result.slide_path == str(tmp_path / "slides" / f"{row.slide_id}.tif")
        assert result.probabilities["label"]["tumor"] == pytest.approx(
            row.probabilities["label"]["tumor"], abs=1e-9
        )
    # A start without what is known reads each result, and finds it done.
    assert measured(tmp_path, 12, [], earlier=True)["earlier_s_12"] > 0
    assert len(run.known.read_text().splitlines()) == 12
    assert read_predictions(run.predictions, tasks=[TaskConfig()])[3].probabilities["label"]["tumor"] == (
        pytest.approx(rows[3].probabilities["label"]["tumor"], abs=1e-9)
    )


def test_growth_is_told_of_the_most_slides_against_the_fewest() -> None:
    figures = {
        "resume_s_10": 2.0,
        "resume_s_100": 5.0,
        "list_s_100": 1.0,
        "report_mb_10": 0.0,
        "report_mb_100": 1.0,
    }
    assert growth(figures, [10, 100]) == {"resume_s_growth": 2.5}
    assert growth(figures, [10]) == {}


def test_the_benchmark_imports_nothing_heavy() -> None:
    """A child's peak memory would begin at its parent's."""
    code = "import sys, benchmarks.listing; sys.exit(bool({'numpy', 'torch', 'wsi_ips'} & set(sys.modules)))"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
