"""The SpineNet benchmark runs and answers in the keys that are promised."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks.nuclei_detection import detection_figures
from benchmarks.spinenet import PUBLISHED, speed_figures
from wsi_ips.nuclei.config import DetectorTrainingConfig
from wsi_ips.nuclei.models import load_detector

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_counts_are_the_published_ones() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "spinenet.py"), "--json", "--no-speed"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["params_exact"] is True
    assert figures["macs_max_error"] <= 0.005
    assert len(figures["counts"]) == len(PUBLISHED)


@pytest.mark.slow
def test_speed_is_told_as_ratios() -> None:
    figures = speed_figures(px=64, batch=1, rounds=1, compiled=False)
    assert set(figures) == {
        "spinenet49s_over_resnet50_fpn", "spinenet49_over_resnet50_fpn", "resnet50_fpn_images_per_s",
    }  # fmt: skip
    assert all(isinstance(value, float) and value > 0 for value in figures.values())


@pytest.mark.slow
def test_detectors_are_trained_scored_and_kept(tmp_path: Path) -> None:
    """One step each on drawn squares: the figures are there, whatever they are."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 1)):
        for number in range(count):
            image = Image.new("RGB", (160, 160), (230, 220, 230))
            corners = rng.integers(0, 130, (4, 2)).tolist()
            regions = ""
            for x, y in corners:
                ring = [(x, y), (x + 20, y), (x + 20, y + 20), (x, y + 20)]
                ImageDraw.Draw(image).polygon(ring, fill=(90, 40, 120))
                points = "".join(f'<Vertex X="{px}" Y="{py}"/>' for px, py in ring)
                regions += f"<Region><Vertices>{points}</Vertices></Region>"
            folder = tmp_path / "data" / split
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number}.png")
            (folder / f"{number}.xml").write_text(f"<Annotations>{regions}</Annotations>")
    training = DetectorTrainingConfig(steps=1, crops_per_step=2, crop_px=128)
    figures = detection_figures(tmp_path / "data", training, keep=tmp_path)
    assert figures.keys() >= {
        "spinenet49s_f1",
        "spinenet49s_f1_12px",
        "resnet18_fpn_f1",
        "resnet18_fpn_f1_12px",
    }
    assert all(0 <= value <= 1 for name, value in figures.items() if "f1" in name)
    for name in ("spinenet49s", "resnet18_fpn"):
        detector, config = load_detector(tmp_path / f"{name}.safetensors")
        assert not detector.training
        assert 0 < config.score_threshold < 1
