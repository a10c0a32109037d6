"""Tinted glass has saturation too: it is no tissue, and tissue on it is found as on white glass."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tiling.drawn import GLASS, Drawing
from wsi_ips.config import TissueConfig
from wsi_ips.slides.base import RgbImage
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.slides.registry import open_slide
from wsi_ips.tiling.bright_field import glass_colour
from wsi_ips.tiling.tissue import find_tissue
from wsi_ips.units import Mpp

SIZE = (1600, 1200)
YELLOWISH, GREENISH, BLUISH, GREYISH = (245, 240, 215), (225, 230, 215), (215, 225, 245), (200, 205, 196)
TINTS = [YELLOWISH, GREENISH, BLUISH, GREYISH]
PALE = np.array((236, 205, 222)) / 243


def glass_slide(tint: tuple[int, int, int], *, noise: float = 0, ramp: float = 0) -> Drawing:
    """Empty glass; ``noise`` in grey levels of a thumbnail's pixels, light that differs by ``ramp`` across."""
    drawing = Drawing(SIZE, background=tint)
    rng = np.random.default_rng(1)
    light = np.linspace(1 - ramp, 1, SIZE[0])[None, :, None]
    blocks = rng.normal(0, noise, (SIZE[1] // 4, SIZE[0] // 4, 3)).repeat(4, 0).repeat(4, 1)
    drawing.pixels = (drawing.pixels * light + blocks).clip(0, 255).astype(np.uint8)
    return drawing


def mask_of(rgb_HWC: RgbImage, *, mpp: float = 2.0) -> NDArray[np.bool_]:
    return find_tissue(MemoryReader(rgb_HWC, mpp=Mpp(mpp)), TissueConfig()).mask_HW


@pytest.fixture(scope="module")
def real_slide(real_data: Path) -> RgbImage:
    """CMU-1-Small-Region at level 0, 0.5 µm per pixel."""
    with open_slide(real_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        return slide.read((0, 0), level=0, size_px=slide.info.l0_size)


@pytest.mark.parametrize("tint", TINTS)
@pytest.mark.parametrize(("noise", "ramp"), [(0, 0), (3, 0), (1, 0.15)])
def test_empty_tinted_glass_gives_an_empty_mask(
    tint: tuple[int, int, int], noise: float, ramp: float
) -> None:
    assert not mask_of(glass_slide(tint, noise=noise, ramp=ramp).pixels).any()


@pytest.mark.parametrize("tint", [GLASS, *TINTS])
@pytest.mark.parametrize("ramp", [0, 0.15])
def test_pale_tissue_on_tinted_glass_is_all_that_is_found(tint: tuple[int, int, int], ramp: float) -> None:
    drawing = glass_slide(tint, noise=1, ramp=ramp)
    area = drawing.pixels[300:700, 200:700]
    area[:] = area * PALE
    expected = np.zeros((300, 400), bool)
    expected[75:175, 50:175] = True
    assert (mask_of(drawing.pixels) == expected).mean() > 0.995


def test_white_padding_is_not_taken_for_the_glass() -> None:
    """Scanners fill what they did not scan with pure white."""
    drawing = glass_slide(YELLOWISH, noise=1).paint((255,) * 3, 900, 0, 700, 1200)
    assert not mask_of(drawing.pixels).any()
    mask = mask_of(drawing.tissue(200, 300, 500, 400).pixels)
    assert mask[80:170, 55:170].all()
    assert mask.mean() == pytest.approx(500 * 400 / (1600 * 1200), abs=0.01)


@pytest.mark.parametrize("colour", [(232, 196, 214), (200, 190, 220), (225, 150, 185)])
def test_even_tissue_without_glass_is_not_taken_for_glass(colour: tuple[int, int, int]) -> None:
    """Brain and colloid are as even as glass, but have a stain's colour."""
    assert mask_of(Drawing(SIZE, background=colour).pixels).all()


def test_grainy_tissue_without_glass_is_not_taken_for_glass() -> None:
    """Immunohistochemistry: brown on blue have no colour that glass could not have, but they are not even."""
    rng = np.random.default_rng(0)
    rgb_HWC = np.full((300, 400, 3), (222, 206, 186), np.uint8)
    rgb_HWC[rng.random((300, 400)) < 0.2] = (170, 150, 120)
    assert mask_of(rgb_HWC, mpp=8.0).all()


def test_a_crop_that_is_all_tissue_stays_tissue(real_slide: RgbImage) -> None:
    assert mask_of(real_slide[1500:2900, 950:1500], mpp=0.5).mean() > 0.98


@pytest.mark.parametrize("tint", TINTS)
def test_a_real_slide_seen_through_tinted_glass_has_the_same_tissue(
    real_slide: RgbImage, tint: tuple[int, int, int]
) -> None:
    tinted = (real_slide * (np.array(tint, np.float32) / 245)).astype(np.uint8)
    expected, found = mask_of(real_slide, mpp=0.5), mask_of(tinted, mpp=0.5)
    assert (expected & found).sum() > 0.98 * (expected | found).sum()


def test_the_glass_s_colour_is_the_brightest_even_ground_s() -> None:
    drawing = glass_slide(YELLOWISH, noise=1).tissue(200, 300, 300, 400)
    drawing.paint((215, 217, 205), 600, 0, 1000, 1200)  # even as well, and most of it, but darker
    found = glass_colour(drawing.pixels, np.ones(drawing.pixels.shape[:2], bool))
    np.testing.assert_allclose(found, YELLOWISH, atol=1.5)
