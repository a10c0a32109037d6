"""The benchmarks run and answer in the keys that are promised. No figure of theirs is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import memory
from benchmarks.kept_results import tell
from benchmarks.make_gigapixel import make_gigapixel

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def small_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("measured") / "small.tif"
    make_gigapixel(path, side_px=2048, block=2)
    return path


def answer(script: str, *options: str | Path) -> dict[str, float]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, options), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


@pytest.mark.slow
def test_memory_streams_every_cell_of_the_grid(small_slide: Path, tmp_path: Path) -> None:
    picture = tmp_path / "memory.png"
    figures = answer("memory.py", small_slide, "--plot", str(picture))
    assert figures.keys() >= {"rss_growth", "rss_mb", "patches", "patches_per_s"}
    assert figures["patches"] == (2048 // 256) ** 2  # glass too
    assert figures["rss_mb"] > 100  # torch is in it
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_memory_draws_a_philips_slide_of_its_own() -> None:
    figures = answer("memory.py", "--container=philips", "--side=1024")
    assert figures["patches"] == (1024 // 256) ** 2
    assert "(philips)" in str(figures["reader"])


def test_overlay_draws_and_exports_in_fresh_processes(small_slide: Path) -> None:
    figures = answer("overlay.py", small_slide, "--side-px=300")
    assert set(figures) == {"overlay_rss_mb", "overlay_seconds", "ome_tiff_rss_mb", "ome_tiff_seconds"}
    assert min(figures.values()) > 0


def test_viewer_asks_for_tiles_cold_and_warm(small_slide: Path) -> None:
    figures = answer("viewer.py", "--slide", small_slide, "--no-browser", "--tiles=20", "--until=60")
    for name in ("tile_ms_median_cold", "tile_ms_p95_cold", "tile_ms_median_warm", "tile_ms_p95_warm"):
        assert figures[name] > 0
    assert figures["tiles"] == 60
    assert 50 < figures["rss_mb"] < 1000


@pytest.mark.slow
def test_memory_of_the_selection_pass(small_slide: Path) -> None:
    options = ("--select", "--encoder=resnet10t", "--m=4", "--patches=8")
    assert answer("memory.py", small_slide, *options)["patches"] == 8


@pytest.mark.slow
def test_ips_pass_gives_a_cost_for_each_encoder(small_slide: Path) -> None:
    figures = answer("ips_pass.py", small_slide, "--repeats=1", "--seconds=0.1", "--torch-threads=1")
    cost = figures["overlap_cost"]
    assert isinstance(cost, dict)
    assert cost["resnet18"] == figures["overlap_cost_resnet18"] > 0
    assert cost["mobilenetv3_small_100"] == figures["overlap_cost_mobilenet"] > 0


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str | Path) -> str:
    """What ``memory.py`` says on stderr as it ends with 2."""
    monkeypatch.setattr(sys, "argv", ["memory.py", *map(str, options)])
    with pytest.raises(SystemExit) as ended:
        memory.main()
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_memory_is_asked_for_one_slide(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for options in ((), (tmp_path, "--container=philips")):
        assert "either a slide or --container" in refused(monkeypatch, capsys, *options)


def test_a_missing_slide_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "no such file" in refused(monkeypatch, capsys, tmp_path / "none.tif")


@pytest.mark.slow
def test_slow_storage_compares_passes_with_and_without_the_cache(tmp_path: Path) -> None:
    figures = answer("slow_storage.py", "--side=2048", "--repeats=1", "--ms=1", "--work", tmp_path)
    assert min(figures.values()) > 0
    assert figures["cached_slow_mb"] < 0.1 * figures["slow_mb"]


@pytest.mark.slow
def test_an_epoch_of_finetune_is_compared_with_its_encoder(tmp_path: Path) -> None:
    options = ("--side=2048", "--epochs=2", "--slides=4", "--m=4", "--encoder=resnet10t", "--work", tmp_path)
    figures = answer("finetune_epoch.py", *options)
    assert figures["finetune_epoch_over_encoder"] > 0
    assert figures["slides_opened_per_epoch"] == figures["slides"]


def test_figures_of_every_kind_are_told_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    tell({"auc": 0.98765, "passes": 12, "size": {"m": 3}, "tags": None}, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [
        ["auc", "0.9877"], ["passes", "12"], ["size", "{'m': 3}"], ["tags", "-"],
    ]  # fmt: skip
