"""The SpineNet benchmark runs and answers in the keys that are promised."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks import nuclei_detection
from benchmarks.kept_results import COMMITTED, digest_of
from benchmarks.nuclei_detection import DETECTORS, detection_figures, markdown, read_seeds
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


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Three images to learn from and one to test on, with four dark squares each."""
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
    return tmp_path / "data"


@pytest.mark.slow
def test_detectors_are_trained_scored_and_kept(squares: Path, tmp_path: Path) -> None:
    """One step each on drawn squares: the figures are there, whatever they are."""
    training = DetectorTrainingConfig(steps=1, crops_per_step=2, crop_px=128)
    figures = detection_figures(squares, training, keep=tmp_path)
    assert figures.keys() >= {
        "spinenet49s_f1",
        "spinenet49s_f1_12px",
        "resnet18_fpn_f1",
        "resnet18_fpn_f1_12px",
    }
    assert all(0 <= value <= 1 for name, value in figures.items() if "f1" in name)
    assert not any("mask" in name for name in figures)
    for name in ("spinenet49s", "resnet18_fpn"):
        detector, config = load_detector(tmp_path / f"{name}.safetensors")
        assert not detector.training
        assert 0 < config.score_threshold < 1


@pytest.mark.slow
def test_masks_are_scored_and_nothing_is_trained_twice(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        squares,
        "--only",
        "resnet18_fpn_mask",
        "--quick",
        "--json",
        "--out",
        tmp_path / "run",
        "--seed",
        3,
    )
    monkeypatch.setattr(sys, "argv", ["nuclei_detection.py", *map(str, options)])
    nuclei_detection.main()
    figures = json.loads(capsys.readouterr().out)
    for key in ("f1", "f1_12px", "f1_mask", "precision_mask", "recall_mask", "iou_mask"):
        assert 0 <= figures[f"resnet18_fpn_mask_{key}"] <= 1
    (kept,) = (tmp_path / "run" / "results").iterdir()
    assert kept.name == "nuclei_resnet18_fpn_mask_seed3.json"
    monkeypatch.setattr(nuclei_detection, "detection_figures", None)
    nuclei_detection.main()
    assert json.loads(capsys.readouterr().out) == figures


def test_the_table_is_over_the_seeds_of_the_shared_images(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def figures(
        _folder: Path, training: DetectorTrainingConfig, names: tuple[str], **_: object
    ) -> dict[str, float]:
        reached = dict.fromkeys(("f1", "f1_12px"), 0.25 * (1 + training.seed))
        reached |= {"f1_mask": 0.5, "iou_mask": 0.75} if names[0].endswith("_mask") else {}
        return {f"{names[0]}_{key}": value for key, value in reached.items()}

    monkeypatch.setattr(nuclei_detection, "detection_figures", figures)
    monkeypatch.setattr("benchmarks.kept_results.COMMITTED", tmp_path / "committed")
    options = [str(squares), "--only", "spinenet49s", "spinenet49s_mask", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["nuclei_detection.py", *options])
    nuclei_detection.main()
    assert not (tmp_path / "committed").exists()  # these images are not the shared ones
    images = [path for split in ("train", "test") for path in (squares / split).glob("*.*")]
    monkeypatch.setattr(nuclei_detection, "SHARED", digest_of(images))
    for seed, steps in (("0", "260"), ("1", "260"), ("1", "9")):
        monkeypatch.setattr(sys, "argv", ["nuclei_detection.py", *options, "--seed", seed, "--steps", steps])
        nuclei_detection.main()
    found = read_seeds(tmp_path / "committed")
    assert {name: set(seeds) for name, seeds in found.items()} == {
        "spinenet49s": {0, 1},
        "spinenet49s_mask": {0, 1},
    }
    assert "| RetinaNet, SpineNet-49S | 2 | 0.375 ± 0.177 | 0.250 | 0.375 ± 0.177 |  |  | 0 |" in markdown(
        found
    )
    assert "| 0.500 ± 0.000 | 0.750 ± 0.000 | 0 |" in markdown(found)


def test_committed_results_are_those_of_today_s_settings() -> None:
    held = read_seeds(COMMITTED)
    assert held.keys() <= DETECTORS.keys()
    assert sum(len(seeds) for seeds in held.values()) == len(list(COMMITTED.glob("nuclei_*.json")))
    for seeds in held.values():
        for run in seeds.values():
            assert not run["commit"].endswith("+"), "found by a program that was not committed"


def test_a_folder_without_images_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["nuclei_detection.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        nuclei_detection.main()
    assert "no folder with train/ and test/" in capsys.readouterr().err
