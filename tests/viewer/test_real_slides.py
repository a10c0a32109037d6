"""Tiles of real slides, of scanners that lay out files in their own ways, against exact means of their pixels."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from wsi_ips.config import TaskConfig
from wsi_ips.inference.predictions import write_predictions
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.telemetry import SlideRow, write_slide_table
from wsi_ips.slides.registry import open_slide
from wsi_ips.tiling.picture import slide_window
from wsi_ips.viewer.app import create_app
from wsi_ips.viewer.tiles import TilePyramid


@pytest.mark.parametrize(
    ("name", "levels_below"),
    [
        ("CMU-1-Small-Region.svs", (0, 1, 3)),
        ("fluorescence-dapi.ndpi", (0, 2)),
        ("cmu-1-small-region-dicom", (0, 1)),
        ("mirax-incomplete/Mirax2-Fluorescence-2.mrxs", (6, 8)),
    ],
)
def test_tiles_show_the_slide(
    real_data: Path, tmp_path: Path, name: str, levels_below: tuple[int, ...]
) -> None:
    path = real_data / "slides" / name
    run = RunFolder(tmp_path)
    write_predictions(run.predictions, [], tasks=[TaskConfig()])
    write_slide_table(run.slides, [SlideRow(slide_id="real", path=str(path), status="waiting")])
    run.description.write_text(json.dumps({"config": {"model": {"tasks": [TaskConfig().model_dump()]}}}))
    client = TestClient(create_app(run.root), base_url="http://localhost")
    about = client.get("/api/runs/0/slides/real").json()
    assert about["slide_problem"] is None
    with open_slide(path) as slide:
        pyramid = TilePyramid(slide.info.l0_size)
        bounds = slide.info.bounds
        wanted_bounds = bounds and [bounds.l0_x, bounds.l0_y, bounds.l0_width, bounds.l0_height]
        assert about["bounds"] == wanted_bounds
        for below in levels_below:
            level = pyramid.top_level - below
            window = pyramid.window(level, 0, 0)
            data = client.get(f"/runs/0/slides/real/slide/{level}/0_0.jpg").content
            seen = np.asarray(Image.open(BytesIO(data))).astype(int)
            wanted = slide_window(slide, window.at_px, window.size_px, l0_per_px=window.l0_per_px)
            assert seen.shape == wanted.shape
            assert np.abs(seen - wanted).mean() < 3
