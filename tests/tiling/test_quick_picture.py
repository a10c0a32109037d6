"""A quick picture is the exact one within a grey level or two, to the far corner and without seams."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.tiling.test_picture import Damaged, noise
from wsi_ips.errors import SlideReadError
from wsi_ips.heatmaps.raster import canvas_size
from wsi_ips.slides.base import RgbImage, SlideReader, TiledReader
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.slides.registry import open_slide
from wsi_ips.tiling import quick_picture as module
from wsi_ips.tiling.picture import slide_picture
from wsi_ips.tiling.quick_picture import quick_picture, read_rgbx
from wsi_ips.units import Size


def both(slide: SlideReader, l0_per_px: float) -> tuple[RgbImage, RgbImage]:
    """The quick picture and the exact one, as integers that can be subtracted."""
    width, height = canvas_size(slide.info.l0_size, l0_per_px)
    quick = np.zeros((height, width, 4), np.uint8)
    quick_picture(slide, quick, l0_per_px=l0_per_px, unread_HW=np.zeros((height, width), bool))
    exact = slide_picture(slide, (width, height), l0_per_px=l0_per_px)
    return quick[..., :3].astype(int), exact.astype(int)


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    l0_per_px=st.floats(1, 40),
    block=st.sampled_from([1, 7, 64]),
    strip=st.sampled_from([1, 3, 32]),
)
def test_every_pixel_is_nearly_the_mean_of_its_area(
    size: Size, l0_per_px: float, block: int, strip: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_PX", block)
        patch.setattr(module, "STRIP_ROWS", strip)
        quick, exact = both(MemoryReader(noise(*size)), l0_per_px)
    assert np.abs(quick - exact).max() <= 2


def test_full_scale_is_the_slide_itself() -> None:
    quick, exact = both(MemoryReader(noise(301, 207)), 1.0)
    np.testing.assert_array_equal(quick, exact)


def tissue_like(width: int, height: int) -> RgbImage:
    """Coarse noise, enlarged: a picture that JPEG keeps."""
    coarse = Image.fromarray(noise(width // 24, height // 24))
    return np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def jpeg_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Levels of 1 and 1/4 in JPEG tiles; no side is a multiple of a tile's."""
    path, image = tmp_path_factory.mktemp("quick") / "slide.tif", tissue_like(1523, 1101)
    with tifffile.TiffWriter(path) as file:
        for factor, first in ((1, True), (4, False)):
            size = (1523 // factor, 1101 // factor)
            level = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
            file.write(
                level,
                tile=(256, 256),
                compression="jpeg",
                compressionargs={"level": 95},
                photometric="rgb",
                subfiletype=0 if first else 1,
                resolution=(20000, 20000),
                resolutionunit="CENTIMETER",
            )
    return path


@pytest.mark.parametrize("block", [100, 2304])
@pytest.mark.parametrize("l0_per_px", [1.0, 1.3, 3.97, 4.2, 9.7, 70.1])
def test_tiles_that_are_decoded_smaller_show_the_same(
    jpeg_slide: Path, l0_per_px: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_PX", block)
    monkeypatch.setattr(module, "TILES_AT_ONCE", 3)
    with open_slide(jpeg_slide) as slide:
        assert isinstance(slide, TiledReader)
        quick, exact = both(slide, l0_per_px)
    difference = np.abs(quick - exact)
    assert np.median(difference) <= 1
    assert max(difference[-1].max(), difference[:, -1].max()) <= 2
    # Colours change every 24 pixels here, and what is decoded smaller is off by a fraction of those.
    assert difference.max() <= (2 if l0_per_px < 8 else 12)


def test_the_far_corner_is_right_where_tiles_are_decoded_smaller(tmp_path: Path) -> None:
    """One level of 1001 x 1001: tiles end beyond it, and what lies there is no part of the picture."""
    image = np.full((1001, 1001, 3), 230, np.uint8)
    image[901:, 901:] = (120, 40, 90)
    tifffile.imwrite(tmp_path / "s.tif", image, tile=(256, 256), compression="jpeg", photometric="rgb",
                     resolution=(20000, 20000), resolutionunit="CENTIMETER")  # fmt: skip
    with open_slide(tmp_path / "s.tif") as slide:
        quick, exact = both(slide, 16.7)
    assert np.abs(quick - exact).max() <= 4
    assert np.abs(quick[-5:, -5:] - (120, 40, 90)).max() <= 4


def test_a_level_is_decoded_smaller_as_far_as_eight_pixels_remain(
    jpeg_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scales = []

    def noted(slide: SlideReader, level: int, box: object, *, scale: int) -> RgbImage:
        scales.append((level, scale))
        return read_rgbx(slide, level, box, scale=scale)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "read_rgbx", noted)
    with open_slide(jpeg_slide) as slide:
        for l0_per_px in (3.9, 4.0, 65.0):
            both(slide, l0_per_px)
    assert scales == [(0, 1), (1, 1), (1, 2), (1, 1), (1, 1)], "the last row and column are read as they are"


def test_what_a_level_does_not_give_comes_from_a_finer_one() -> None:
    image = noise(2001, 1503)
    unread = np.zeros((188, 251), bool)
    found = np.zeros((188, 251, 4), np.uint8)
    slide = Damaged(image, levels=(1, 4, 8), l0_hole=(700, 600, 760, 660))
    quick_picture(slide, found, l0_per_px=8.0, unread_HW=unread)
    whole = slide_picture(MemoryReader(image), (251, 188), l0_per_px=8.0)
    assert unread[630 // 8, 730 // 8]
    assert (found[unread][:, :3] == 255).all()
    np.testing.assert_array_equal(found[~unread][:, :3], whole[~unread])


def test_a_file_that_is_damaged_all_over_is_given_up() -> None:
    slide = Damaged(noise(900, 900), levels=(1, 4), l0_hole=(0, 0, 900, 900))
    with pytest.raises(SlideReadError):
        quick_picture(
            slide, np.zeros((225, 225, 4), np.uint8), l0_per_px=4.0, unread_HW=np.zeros((225, 225), bool)
        )
