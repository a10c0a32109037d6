"""Masks become polygons in level-0 pixels, where torchvision would have pasted them, and go into the files."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.draw import polygon2mask
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from tests.nuclei.test_detect import CONFIG, FOUND, RADIUS, SeesDarkDiscs, all_patches, slide_with
from wsi_ips.config import StreamingConfig
from wsi_ips.nuclei.detect import FoundObjects, box_polygons, detect_in_slide, mask_polygons
from wsi_ips.nuclei.found_files import write_found_csv, write_found_geojson
from wsi_ips.slides.base import Bounds

Y, X = np.mgrid[:28, :28] + 0.5


def disc(cx: float = 14, cy: float = 14, radius: float = 13) -> Tensor:
    """A soft disc over a box: 0.5 on its edge."""
    return torch.from_numpy(np.clip(0.5 + (radius - np.hypot(X - cx, Y - cy)) / 2, 0, 1)).float()[None, None]


corner = st.floats(3, 60, allow_nan=False)
side = st.floats(8, 50, allow_nan=False)


@settings(max_examples=40)
@given(corner, corner, side, side)
def test_a_polygon_covers_what_torchvision_pastes(x: float, y: float, width: float, height: float) -> None:
    box = torch.tensor([[x, y, x + width, y + height]])
    (polygon,) = mask_polygons(disc(), box)
    pasted = paste_masks_in_image(disc(), box, (128, 128))[0, 0].numpy() >= 0.5
    # Vertices count from the corner of the first pixel, polygon2mask from its centre.
    covered = polygon2mask((128, 128), shapely.get_coordinates(polygon)[:, ::-1] - 0.5)
    assert (covered & pasted).sum() / (covered | pasted).sum() > 0.88
    assert len(polygon.exterior.coords) < 40


def test_what_has_no_outline_keeps_its_box() -> None:
    box = torch.tensor([[5.0, 6, 25, 36]])
    for mask in (torch.zeros(1, 1, 28, 28), torch.full((1, 1, 28, 28), 0.49)):
        (polygon,) = mask_polygons(mask, box)
        assert polygon.equals(shapely.box(5, 6, 25, 36))


def test_of_several_pieces_the_largest_counts_and_holes_are_filled() -> None:
    box = torch.tensor([[0.0, 0, 56, 56]])
    two = torch.maximum(disc(7, 7, 6), disc(22, 22, 3))
    (polygon,) = mask_polygons(two, box)
    assert polygon.contains(shapely.Point(14, 14))
    assert not polygon.intersects(shapely.box(36, 36, 56, 56))
    ring = torch.minimum(disc(), 1 - disc(radius=5))
    (polygon,) = mask_polygons(ring, box)
    assert polygon.contains(shapely.Point(28, 28))
    assert not polygon.interiors


class OutlinesDarkDiscs(nn.Module):
    """As :class:`SeesDarkDiscs`, with a mask over each box."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        answers = SeesDarkDiscs()(images)
        for answer in answers:
            answer["box_masks"] = disc().expand(len(answer["boxes"]), 1, 28, 28)
        return answers


@pytest.mark.parametrize("mpp", [0.5, 0.25])
def test_each_disc_is_outlined_once_whatever_border_cuts_it(mpp: float) -> None:
    """The detector sees 0.5 µm a pixel; discs lie on borders of patches and away from them."""
    centres = [(64, 30), (128, 128), (200, 90), (230, 230)]
    slide = slide_with(centres, mpp=mpp)
    found, _ = detect_in_slide(
        OutlinesDarkDiscs(), slide, all_patches(slide), CONFIG,
        streaming=StreamingConfig(batch=4, threads=1), device=torch.device("cpu"),
    )  # fmt: skip
    assert len(found) == len(centres)
    assert found.l0_outlines_N is not None
    for outline, box in zip(found.l0_outlines_N, box_polygons(found.l0_boxes_N4), strict=True):
        assert outline.centroid.distance(box.centroid) < 1.5 * 0.5 / mpp
        assert outline.area == pytest.approx(np.pi * (RADIUS + 0.5) ** 2, rel=0.25)
    discs = [shapely.Point(x + 0.5, y + 0.5).buffer(RADIUS) for x, y in centres]
    assert all(max(outline.intersection(d).area for outline in found.l0_outlines_N) > 100 for d in discs)


def outlined() -> FoundObjects:
    triangle = shapely.Polygon([(10, 20), (30, 20.126), (30, 50)])
    outlines = np.array([triangle, shapely.box(100, 100, 111, 111)], object)
    return FoundObjects(FOUND.l0_boxes_N4, FOUND.scores_N, FOUND.classes_N, outlines)


def test_joined_parts_keep_their_outlines_and_others_have_their_boxes() -> None:
    joined = FoundObjects.joined([FOUND, outlined(), FoundObjects.joined([])])
    assert joined.l0_outlines_N is not None
    assert joined.l0_outlines_N[0].equals(shapely.box(10, 20, 30, 50))
    assert joined.take(np.array([2])).l0_outlines_N[0].equals(outlined().l0_outlines_N[0])  # type: ignore[index]
    assert FoundObjects.joined([FOUND]).l0_outlines_N is None


def test_outlines_go_into_both_files(tmp_path: Path) -> None:
    classes = ("nucleus", "mitosis")
    write_found_csv(tmp_path / "a.csv", outlined(), classes=classes)
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    first = shapely.from_wkt(rows[0]["l0_outline"])
    assert first.equals(shapely.Polygon([(10, 20), (30, 20.13), (30, 50)]))
    assert rows[0]["l0_right"] == "30.0"
    info = slide_with([], bounds=Bounds(5, 7, 200, 200)).info
    write_found_geojson(
        tmp_path / "a.geojson", outlined(), info, slide_id="a", classes=classes, shape="outline"
    )
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    ring = [[5.0, 13.0], [25.0, 13.13], [25.0, 43.0], [5.0, 13.0]]
    assert features[0]["geometry"] == {"type": "Polygon", "coordinates": [ring]}
