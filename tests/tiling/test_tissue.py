from pathlib import Path

import numpy as np
import pytest

from tests.tiling.drawn import BLACK_INK, BLUE_INK, EOSIN, GLASS, GREEN_INK, HAEMATOXYLIN, RED_INK, Drawing
from wsi_ips.config import TissueConfig
from wsi_ips.errors import MissingResolution
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.slides.registry import open_slide
from wsi_ips.tiling.bright_field import ink_colours
from wsi_ips.tiling.tissue import TissueMask, find_tissue
from wsi_ips.units import Mpp

SIZE = (1600, 1200)


def covered(mask: TissueMask, x: int, y: int, width: int, height: int) -> float:
    """Share of an area, in level-0 pixels, that the mask calls tissue."""
    fx, fy = mask.l0_per_px
    part = mask.mask_HW[round(y / fy) : round((y + height) / fy), round(x / fx) : round((x + width) / fx)]
    return float(part.mean())


@pytest.mark.parametrize("levels", [(1,), (1, 4), (1, 2, 4, 8)])
def test_tissue_is_found_where_it_was_drawn(levels: tuple[int, ...]) -> None:
    drawing = Drawing(SIZE).tissue(200, 300, 500, 400).tissue(1000, 100, 300, 900)
    mask = find_tissue(drawing.reader(levels=levels), TissueConfig())
    assert covered(mask, 220, 320, 460, 360) > 0.97
    assert covered(mask, 1020, 120, 260, 860) > 0.97
    assert mask.mask_HW.mean() == pytest.approx((500 * 400 + 300 * 900) / (1600 * 1200), abs=0.01)


def test_a_white_slide_gives_an_empty_mask() -> None:
    assert not find_tissue(Drawing(SIZE).reader(), TissueConfig()).mask_HW.any()


def test_a_slide_that_is_all_tissue_gives_a_full_mask() -> None:
    """Otsu alone would part nuclei from stroma and lose half of it."""
    mask = find_tissue(Drawing(SIZE).tissue(0, 0, *SIZE).reader(), TissueConfig())
    assert mask.mask_HW.mean() > 0.98


@pytest.mark.parametrize("ink", [BLUE_INK, GREEN_INK, BLACK_INK, RED_INK])
def test_pen_is_left_out_and_tissue_beside_it_kept(ink: tuple[int, int, int]) -> None:
    drawing = Drawing(SIZE).tissue(200, 300, 500, 400).paint(ink, 900, 200, 400, 300)
    mask = find_tissue(drawing.reader(), TissueConfig())
    assert covered(mask, 910, 210, 380, 280) < 0.02
    assert covered(mask, 220, 320, 460, 360) > 0.97
    kept = find_tissue(drawing.reader(), TissueConfig(drop_pen=False))
    if ink != BLACK_INK:  # black has no saturation
        assert covered(kept, 910, 210, 380, 280) > 0.9


def test_stains_are_not_taken_for_ink() -> None:
    blood, deep = (190, 60, 80), (80, 50, 130)
    stains = np.array([[EOSIN, HAEMATOXYLIN, blood, deep, (150, 110, 185), (235, 190, 215)]], np.uint8)
    assert not np.any(ink_colours(stains))


def test_black_padding_is_no_tissue() -> None:
    drawing = Drawing(SIZE).tissue(200, 300, 500, 400).paint((0, 0, 0), 1100, 0, 500, 1200)
    mask = find_tissue(drawing.reader(), TissueConfig())
    assert covered(mask, 1110, 10, 480, 1180) == 0
    assert covered(mask, 220, 320, 460, 360) > 0.97


def test_small_specks_go_and_small_holes_are_filled() -> None:
    """By area on the glass: a speck of 80 µm, a hole of 80 µm, a hole of 400 µm."""
    drawing = Drawing(SIZE).tissue(200, 300, 700, 700).paint(GLASS, 300, 400, 40, 40)
    drawing.paint(GLASS, 500, 600, 200, 200).tissue(1200, 200, 40, 40)
    mask = find_tissue(drawing.reader(), TissueConfig(min_object_um2=20_000, min_hole_um2=20_000))
    assert covered(mask, 1190, 190, 60, 60) == 0
    assert covered(mask, 304, 404, 32, 32) == 1
    assert covered(mask, 520, 620, 160, 160) == 0


def test_fluorescence_is_found_on_black() -> None:
    drawing = Drawing(SIZE, background=(2, 2, 4))
    rng = np.random.default_rng(1)
    for x, y in zip(rng.integers(300, 900, 900), rng.integers(300, 800, 900), strict=True):
        drawing.paint((0, 0, 220), int(x), int(y), 5, 5)
    mask = find_tissue(drawing.reader(), TissueConfig())
    assert covered(mask, 350, 350, 500, 400) > 0.9
    assert covered(mask, 1100, 100, 400, 1000) == 0


def test_a_dark_slide_without_anything_gives_an_empty_mask() -> None:
    assert not find_tissue(Drawing(SIZE, background=(2, 2, 2)).reader(), TissueConfig()).mask_HW.any()


def test_without_resolution_the_user_is_asked() -> None:
    slide = MemoryReader(Drawing(SIZE).pixels, mpp=None)
    with pytest.raises(MissingResolution, match="--slide-mpp"):
        find_tissue(slide, TissueConfig())
    assert find_tissue(slide, TissueConfig(), mpp=Mpp(2.0)).l0_per_px == (4.0, 4.0)


def test_dim_fluorescence_beside_bright_is_tissue_and_the_camera_s_noise_is_not() -> None:
    drawing = Drawing(SIZE, background=(3, 3, 4))
    rng = np.random.default_rng(1)
    for (left, right), level in (((300, 700), 220), ((700, 1100), 45)):
        for x, y in zip(rng.integers(left, right, 900), rng.integers(300, 800, 900), strict=True):
            drawing.paint((0, 0, level), int(x), int(y), 5, 5)
    drawing.paint((0, 0, 60), 100, 1000, 5, 5)
    noise = rng.normal(0, 3, drawing.pixels.shape)
    drawing.pixels[:] = (drawing.pixels + noise).clip(0, 255)
    mask = find_tissue(drawing.reader(), TissueConfig())
    assert covered(mask, 320, 320, 360, 460) > 0.95
    assert covered(mask, 720, 320, 360, 460) > 0.95
    expected = 800 * 500 / (SIZE[0] * SIZE[1])
    assert mask.mask_HW.mean() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("CMU-1-Small-Region.svs", 0.3, 0.45),
        ("cmu-1-small-region-dicom", 0.3, 0.45),
        # The stroma between the bright nuclei is tissue too.
        ("fluorescence-dapi.ndpi", 0.75, 0.92),
    ],
)
def test_real_slides_have_tissue_and_glass(real_data: Path, name: str, least: float, most: float) -> None:
    with open_slide(real_data / "slides" / name) as slide:
        mask = find_tissue(slide, TissueConfig())
    assert least < mask.mask_HW.mean() < most


def test_the_real_slide_s_glass_is_no_tissue_and_its_middle_is(real_data: Path) -> None:
    with open_slide(real_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        mask = find_tissue(slide, TissueConfig())
    assert covered(mask, 60, 1300, 400, 1600) == 0
    assert covered(mask, 900, 1900, 600, 900) > 0.95
