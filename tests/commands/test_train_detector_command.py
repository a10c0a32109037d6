"""``wsi-ips train-detector`` on drawn nuclei: what it leaves, what it says, and how it complains."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.commands.console import Console
from wsi_ips.nuclei.models import load_detector

RECIPE = """
command: train-detector
images: elsewhere
out: elsewhere
detector: {backbone: resnet10t, pyramid_channels: 8, head_channels: 8, head_convs: 1, most_per_image: 20}
training: {steps: 2, crops_per_step: 2, crop_px: 128}
"""


def draw_images(folder: Path, names: dict[str, int], side: int = 144) -> Path:
    """{split: how many images} of dark squares on pale ground."""
    rng = np.random.default_rng(0)
    for split, count in names.items():
        (folder / split).mkdir(parents=True)
        for number in range(count):
            image, regions = Image.new("RGB", (side, side), (230, 220, 230)), ""
            for x, y in rng.integers(0, side - 20, (4, 2)).tolist():
                ring = [(x, y), (x + 20, y), (x + 20, y + 20), (x, y + 20)]
                ImageDraw.Draw(image).polygon(ring, fill=(90, 40, 120))
                points = "".join(f'<Vertex X="{px}" Y="{py}"/>' for px, py in ring)
                regions += f"<Region><Vertices>{points}</Vertices></Region>"
            image.save(folder / split / f"{number}.png")
            (folder / split / f"{number}.xml").write_text(f"<Annotations>{regions}</Annotations>")
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path / "r.yaml"


@pytest.mark.parametrize("model", ["retinanet", "mask_rcnn"])
def test_it_leaves_a_detector_its_losses_and_its_scores(
    console: Console, recipe: Path, tmp_path: Path, model: str
) -> None:
    images, out = draw_images(tmp_path / "images", {"train": 3, "test": 1}), tmp_path / "out"
    said = console("train-detector", images, "--out", out, "--recipe", recipe, "--model", model)
    assert said.code == 0, said.err
    _, config = load_detector(out / "detector.safetensors")
    assert (config.model, config.backbone) == (model, "resnet10t")
    with (out / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert all(float(row["loss"]) > 0 for row in rows)
    scores = json.loads((out / "scores.json").read_text())
    assert scores["score_threshold"] == config.score_threshold
    assert scores["test"].keys() == {f"{name}{suffix}" for name in ("f1", "precision", "recall")
                                     for suffix in ("", "_12px")}  # fmt: skip
    assert f"test images: F1 {scores['test']['f1']:.3f} at an IoU of 0.5" in said.out
    assert (
        f"held-back images, on which the threshold was chosen: F1 {scores['held back']['f1']:.3f}" in said.out
    )
    assert sorted(path.name for path in out.iterdir() if path.name != ".lock") == [
        "detector.safetensors",
        "history.csv",
        "scores.json",
    ]


def test_images_of_val_choose_the_threshold_and_none_leave_it(
    console: Console, recipe: Path, tmp_path: Path
) -> None:
    images, out = draw_images(tmp_path / "images", {"train": 1, "val": 1}), tmp_path / "out"
    assert console("train-detector", images, "--out", out, "-c", recipe).code == 0
    assert json.loads((out / "scores.json").read_text()).keys() == {"score_threshold", "held back"}
    images = draw_images(tmp_path / "more", {"train": 1})
    said = console(
        "train-detector", images, "--out", out, "-c", recipe, "--held-back", "0", "--set",
        "detector.score_threshold=0.37",
    )  # fmt: skip
    assert said.code == 0
    assert "F1" not in said.out
    assert load_detector(out / "detector.safetensors")[1].score_threshold == 0.37


def test_what_cannot_be_is_one_line(console: Console, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def complaint(folder: Path, *more: str) -> str:
        said = console("train-detector", folder, "--out", out, "-c", recipe, *more)
        assert said.code == 2
        assert not list(out.glob("*")) if out.exists() else True
        return said.complaint

    assert "holds no train/" in complaint(tmp_path)
    (tmp_path / "empty" / "train").mkdir(parents=True)
    assert "has no *.png" in complaint(tmp_path / "empty")
    images = draw_images(tmp_path / "images", {"train": 3})
    assert "lower held_back" in complaint(images, "--held-back", "3")
    assert "smaller than a crop of 256 px" in complaint(images, "--set", "training.crop_px=256")
    assert "loss is not finite" in complaint(
        images, "--set", "training.lr=1.0e+30", "--set", "training.steps=9"
    )
    assert "detector.model: " in complaint(images, "--model", "yolo")
    assert "timm has no model" in complaint(images, "--set", "detector.backbone=resnet19")
    (images / "train" / "1.xml").write_text("<Annotations>")
    assert "1.xml: is not XML" in complaint(images)
    (images / "train" / "1.xml").unlink()
    assert "1.xml: no such annotation" in complaint(images)
