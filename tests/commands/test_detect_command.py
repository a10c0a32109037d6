"""``wsi-ips detect`` with an untrained detector: what it leaves, and how it complains."""

import csv
import json
from pathlib import Path

import pytest
import shapely
import torch

from tests.commands.console import Console
from tests.conftest import SmallData
from wsi_ips.errors import ConfigError
from wsi_ips.inference.results import read_result
from wsi_ips.nuclei.config import DetectorConfig
from wsi_ips.nuclei.models import build_detector, save_detector


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_all_tissue_of_a_slide(
    console: Console, small_data: SmallData, small_detector: Path, tmp_path: Path
) -> None:
    slide = sorted(small_data.slides.glob("*.tif"))[0]
    said = console("detect", slide, "--detector", small_detector, "--out", tmp_path, "--patch-px", "64")
    assert said.code == 0, said.err
    (row,) = rows(tmp_path / "detections.csv")
    found = rows(tmp_path / "objects" / f"{slide.stem}.csv")
    assert (row["status"], int(row["n_objects"])) == ("ok", len(found))
    assert int(row["n_patches"]) > 1
    features = json.loads((tmp_path / "objects" / f"{slide.stem}.geojson").read_text())["features"]
    assert len(features) == len(found)
    for place in found:
        assert 0 <= float(place["l0_x"]) < 1400
        assert 0 <= float(place["l0_y"]) < 1400


@pytest.mark.parametrize("deterministic", [False, True])
def test_deterministic_holds_while_a_detector_runs(
    console: Console, small_data: SmallData, small_detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    deterministic: bool,
) -> None:  # fmt: skip
    held: list[bool] = []

    def watched(*_: object, **__: object) -> None:
        held.append(torch.are_deterministic_algorithms_enabled())
        raise ConfigError("seen enough")

    monkeypatch.setattr("wsi_ips.nuclei.detect_slides.detect_in_slide", watched)
    said = console("detect", small_data.slides, "--detector", small_detector, "--out", tmp_path,
                   "--set", f"deterministic={deterministic}")  # fmt: skip
    assert said.code == 3
    assert set(held) == {deterministic}
    assert not torch.are_deterministic_algorithms_enabled()


def test_kept_patches_of_a_run(
    console: Console, small_data: SmallData, small_checkpoint: Path, small_detector: Path, tmp_path: Path
) -> None:
    slide = sorted(small_data.slides.glob("*.tif"))[0]
    run = tmp_path / "run"
    assert console("predict", slide, "--checkpoint", small_checkpoint, "--out", run).code == 0
    said = console(
        "detect", small_data.slides, "--detector", small_detector, "--run", run, "--out", tmp_path / "out"
    )
    assert said.code == 3  # the other slides were not predicted
    by_slide = {row["slide_id"]: row for row in rows(tmp_path / "out" / "detections.csv")}
    assert sum(row["status"] == "failed" for row in by_slide.values()) == len(by_slide) - 1
    result = read_result(run / "attention" / f"{slide.stem}.h5")
    assert int(by_slide[slide.stem]["n_patches"]) == len(result.kept_ids_M)
    kept = result.coords.rows(result.kept_ids_M)
    starts = result.coords.l0_exact_corners()[kept]
    for found in rows(tmp_path / "out" / "objects" / f"{slide.stem}.csv"):
        centre = (float(found["l0_x"]), float(found["l0_y"]))
        inside = ((starts - 0.01 <= centre) & (centre <= starts + result.coords.l0_patch + 0.01)).all(axis=1)
        assert inside.any()


def test_outlines_of_a_detector_with_masks(console: Console, small_data: SmallData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = DetectorConfig(
        model="mask_rcnn", backbone="resnet10t", pyramid_channels=8, head_channels=8, head_convs=1, mpp=2.0,
        score_threshold=0.0, most_per_image=150,
    )  # fmt: skip
    save_detector(tmp_path / "m.safetensors", build_detector(config), config)
    slide = sorted(small_data.slides.glob("*.tif"))[0]
    arguments = (
        "detect",
        slide,
        "--detector",
        tmp_path / "m.safetensors",
        "--out",
        tmp_path,
        "--patch-px",
        "256",
    )
    assert console(*arguments).code == 0
    found = rows(tmp_path / "objects" / f"{slide.stem}.csv")
    features = json.loads((tmp_path / "objects" / f"{slide.stem}.geojson").read_text())["features"]
    assert len(found) == len(features) > 0
    for row, feature in zip(found, features, strict=True):
        outline = shapely.from_wkt(row["l0_outline"])
        assert outline.equals_exact(shapely.geometry.shape(feature["geometry"]), 0.02)
    assert console(*arguments, "--shape", "point").code == 0
    assert '"Point"' in (tmp_path / "objects" / f"{slide.stem}.geojson").read_text()


def test_what_cannot_be_is_one_line(
    console: Console, small_data: SmallData, small_checkpoint: Path, small_detector: Path, tmp_path: Path
) -> None:
    slides = small_data.slides
    said = console("detect", slides, "--detector", small_checkpoint, "--out", tmp_path)
    assert "not a detector of wsi_ips" in said.complaint
    said = console("detect", slides, "--detector", small_detector, "--run", tmp_path, "--out", tmp_path)
    assert "name the folder that predict wrote" in said.complaint
    said = console(
        "detect",
        slides,
        "--detector",
        small_detector,
        "--run",
        tmp_path,
        "--slide-mpp",
        "1",
        "--out",
        tmp_path,
    )
    assert "leave slide_mpp and mpp_csv out" in said.complaint
    said = console("detect", slides, "--detector", small_detector, "--shape", "outline", "--out", tmp_path)
    assert "finds boxes; train one with --model mask_rcnn" in said.complaint
