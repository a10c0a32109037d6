"""Objects found in a slide: each once, in level-0 pixels, whatever borders lie in between.

The detector is a fake that sees dark discs and nothing else.
"""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor, nn

from wsi_ips.config import StreamingConfig, TilingConfig
from wsi_ips.nuclei.config import DetectorConfig
from wsi_ips.nuclei.detect import FoundObjects, detect_in_slide, patches_with_margin, without_doubles
from wsi_ips.nuclei.found_files import write_found_csv, write_found_geojson
from wsi_ips.nuclei.scores import box_ious
from wsi_ips.slides.base import Bounds
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.tiling.grid import PatchCoords, PatchGrid
from wsi_ips.units import Mpp

SIDE, PATCH, RADIUS = 300, 64, 7
CONFIG = DetectorConfig(mpp=0.5)


class SeesDarkDiscs(nn.Module):
    """A box around everything dark, as torchvision's detectors answer; what the patch cuts has a lower score."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        answers = []
        for image in images:
            labels, _ = ndimage.label(image.mean(dim=0).numpy() < 0.5)
            boxes = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
            scores = [0.9 - 1e-4 * abs(right - left - 2 * RADIUS) for left, _, right, _ in boxes]
            answers.append(
                {
                    "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                    "scores": torch.tensor(scores),
                    "labels": torch.ones(len(boxes), dtype=torch.int64),
                }
            )
        return answers


def slide_with(
    centres: list[tuple[int, int]], *, mpp: float = 0.5, bounds: Bounds | None = None
) -> MemoryReader:
    image = np.full((SIDE, SIDE, 3), 240, np.uint8)
    y, x = np.mgrid[:SIDE, :SIDE]
    for cx, cy in centres:
        image[np.hypot(x - cx, y - cy) <= RADIUS] = (80, 40, 110)
    return MemoryReader(image, mpp=Mpp(mpp), bounds=bounds)


def all_patches(slide: MemoryReader, *, overlap_px: int = 0) -> PatchCoords:
    mpp = slide.info.known_mpp()
    tiling = TilingConfig(patch_px=PATCH, patch_mpp=0.5, overlap_px=overlap_px)
    grid = PatchGrid.cover(slide.info.l0_size, slide_mpp=mpp, tiling=tiling)
    ids_N = np.arange(grid.g_cols * grid.g_rows)
    return PatchCoords.on_grid(
        grid, ids_N, slide_id="s", l0_size=slide.info.l0_size, slide_mpp=mpp, tiling=tiling,
        tissue_N=np.ones(len(ids_N), np.float32),
    )  # fmt: skip


def found_in(slide: MemoryReader, coords: PatchCoords) -> FoundObjects:
    found, bad = detect_in_slide(
        SeesDarkDiscs(), slide, coords, CONFIG,
        streaming=StreamingConfig(batch=4, threads=1), device=torch.device("cpu"),
    )  # fmt: skip
    assert not bad
    return found


def centres_of(found: FoundObjects) -> list[tuple[float, float]]:
    boxes = found.l0_boxes_N4
    return sorted(map(tuple, ((boxes[:, :2] + boxes[:, 2:]) / 2).tolist()))


apart = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 8), st.integers(0, 8)), max_size=12
)


@settings(max_examples=25)
@given(apart, st.sampled_from([0, 16]))
def test_each_disc_is_found_once(cells: list[tuple[int, int, int, int]], overlap_px: int) -> None:
    """Cells of 30 px keep discs apart; within them they lie anywhere, on borders of patches too."""
    where = {(column, row): (30 * column + 10 + dx, 30 * row + 10 + dy) for column, row, dx, dy in cells}
    slide = slide_with(list(where.values()))
    found = found_in(slide, all_patches(slide, overlap_px=overlap_px))
    expected = sorted((x + 0.5, y + 0.5) for x, y in where.values())
    assert centres_of(found) == expected
    assert (np.ptp(found.l0_boxes_N4.reshape(-1, 2, 2), axis=1) == 2 * RADIUS + 1).all()


def test_only_what_lies_in_the_patches_given_is_told() -> None:
    slide = slide_with([(32, 32), (70, 30), (200, 200)])
    coords = all_patches(slide)
    first = replace(
        coords, ids_N=coords.ids_N[:1], l0_xy_N2=coords.l0_xy_N2[:1], tissue_N=coords.tissue_N[:1]
    )
    assert centres_of(found_in(slide, first)) == [(32.5, 32.5)]


def test_boxes_are_level_0_pixels_at_another_resolution() -> None:
    """The slide has 0.25 µm a pixel, the detector sees 0.5: half as large."""
    slide = slide_with([(128, 60), (250, 250)], mpp=0.25)
    coords = all_patches(slide)
    assert coords.l0_patch == 2 * PATCH
    wider = patches_with_margin(coords, mpp=Mpp(0.5))
    assert (wider.patch_px, wider.l0_patch) == (PATCH + 64, 2 * PATCH + 128)
    found = found_in(slide, coords)
    assert np.array(centres_of(found)) == pytest.approx(np.array([(128.5, 60.5), (250.5, 250.5)]), abs=1.1)


def test_two_that_see_a_centre_on_their_border_differently_do_not_lose_it() -> None:
    """The left patch places it to the right of the border, the right one to the left."""

    class Shifted(nn.Module):
        calls = 0

        def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
            (answer,) = SeesDarkDiscs()(images)
            answer["boxes"][:, ::2] += 2.0 if self.calls == 0 else -2.0
            self.calls += 1
            return [answer]

    slide = slide_with([(PATCH, 30)])
    coords = all_patches(slide)
    two = replace(coords, ids_N=coords.ids_N[:2], l0_xy_N2=coords.l0_xy_N2[:2], tissue_N=coords.tissue_N[:2])
    found, _ = detect_in_slide(
        Shifted(), slide, two, CONFIG,
        streaming=StreamingConfig(batch=1, threads=1), device=torch.device("cpu"),
    )  # fmt: skip
    assert len(found) == 1


@given(st.integers(0, 30), st.integers(0, 2**16))
def test_suppression_is_the_plain_greedy_one(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    starts = rng.uniform(0, 30, (count, 2))
    boxes = np.concatenate([starts, starts + rng.uniform(5, 15, (count, 2))], axis=1)
    given_ = FoundObjects(boxes, rng.integers(0, 8, count) / 8, rng.integers(0, 2, count))
    order = np.argsort(-given_.scores_N, kind="stable")
    ious = box_ious(boxes, boxes)
    kept: list[int] = []
    for place in order.tolist():
        rivals = [k for k in kept if given_.classes_N[k] == given_.classes_N[place]]
        if not any(ious[k, place] > 0.4 for k in rivals):
            kept.append(place)
    once = without_doubles(given_, overlap=0.4)
    assert np.array_equal(once.l0_boxes_N4, boxes[kept])


FOUND = FoundObjects(
    np.array([[10.0, 20, 30, 50], [100, 100, 111, 111]]), np.array([0.9, 0.75]), np.array([0, 1])
)


def test_csv_counts_from_the_slide_s_corner_and_geojson_from_its_bounds(tmp_path: Path) -> None:
    write_found_csv(tmp_path / "a.csv", FOUND, classes=("nucleus", "mitosis"))
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["nucleus", "mitosis"]
    numbers = {name: float(value) for name, value in rows[0].items() if name != "class"}
    assert numbers == {"score": 0.9, "l0_x": 20, "l0_y": 35, "l0_left": 10, "l0_top": 20,
                       "l0_right": 30, "l0_bottom": 50}  # fmt: skip
    info = slide_with([], bounds=Bounds(5, 7, 200, 200)).info
    for shape, geometry in (
        ("box", {"type": "Polygon", "coordinates": [[[5, 13], [25, 13], [25, 43], [5, 43], [5, 13]]]}),
        ("point", {"type": "Point", "coordinates": [15, 28]}),
    ):
        path = tmp_path / "a.geojson"
        write_found_geojson(path, FOUND, info, slide_id="a", classes=("nucleus", "mitosis"), shape=shape)  # type: ignore[arg-type]
        features = json.loads(path.read_text())["features"]
        assert features[0]["geometry"] == geometry
        assert features[1]["properties"]["classification"]["name"] == "mitosis"
        assert features[1]["properties"]["measurements"] == {"Detection score": 0.75}
        assert len({feature["id"] for feature in features}) == 2
