"""The slide's picture has one exact scale to its far corner, and never reads more than a block at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_ips.config import TissueConfig
from wsi_ips.errors import SlideReadError
from wsi_ips.heatmaps.raster import canvas_size
from wsi_ips.slides.base import Level, RgbImage, SlideInfo
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.tiling import picture
from wsi_ips.tiling.picture import slide_picture, slide_window
from wsi_ips.tiling.tissue import find_tissue
from wsi_ips.units import L0Point, Mpp, Size


def noise(width: int, height: int) -> RgbImage:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)


def shares(pixels: int, length: int, l0_per_px: float) -> np.ndarray:
    """(pixels, length): how much of each source pixel is in each canvas pixel, rows summing to 1."""
    low = np.arange(pixels)[:, None] * l0_per_px
    source = np.arange(length)
    covered = np.minimum(low + l0_per_px, source + 1) - np.maximum(low, source)
    covered = covered.clip(0)
    return covered / covered.sum(axis=1, keepdims=True)


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    l0_per_px=st.floats(1, 20),
    block=st.sampled_from([1, 7, 64]),
)
def test_every_pixel_is_the_mean_of_its_area(size: Size, l0_per_px: float, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture, "BLOCK_PX", block)
        image = noise(*size)
        width, height = canvas_size(size, l0_per_px)
        found = slide_picture(MemoryReader(image), (width, height), l0_per_px=l0_per_px)
    by_rows = np.tensordot(shares(height, size[1], l0_per_px), image, axes=(1, 0))
    expected = np.tensordot(by_rows, shares(width, size[0], l0_per_px), axes=(1, 1)).swapaxes(1, 2)
    assert found.shape == (height, width, 3)
    assert np.abs(found - expected).max() <= 0.5 + 1e-6


def test_full_scale_is_the_slide_itself() -> None:
    image = noise(301, 207)
    np.testing.assert_array_equal(slide_picture(MemoryReader(image), (301, 207), l0_per_px=1.0), image)


@pytest.mark.parametrize("levels", [(1,), (1, 2, 4), (1, 3.7, 9.1)])
def test_the_far_corner_stays_where_it_is_on_every_level(levels: tuple[float, ...]) -> None:
    """A black square in the last pixels of a slide whose size is a multiple of nothing."""
    image = np.full((997, 1511, 3), 240, np.uint8)
    image[997 - 60 :, 1511 - 90 :] = 0
    l0_per_px = 9.7
    size = canvas_size((1511, 997), l0_per_px)
    found = slide_picture(MemoryReader(image, levels=levels), size, l0_per_px=l0_per_px)[..., 0]
    left, top = (1511 - 90) / l0_per_px, (997 - 60) / l0_per_px  # 146.49, 96.60
    # A level's own pixels mix what lies in them: 26 of 240 at most, a tenth of a canvas pixel.
    assert (found[97:, 147:] <= 22).all(), "pixels wholly in the square are black"
    assert (found[98:, 148:] == 0).all(), "the last ones too"
    assert (found[:96] >= 218).all()
    assert (found[:, :146] >= 218).all()
    assert found[100, 146] == pytest.approx(240 * (left - 146), abs=22)
    assert found[96, 150] == pytest.approx(240 * (top - 96), abs=26)


@pytest.mark.parametrize("strip", [1, 7, 32])
@pytest.mark.parametrize("block", [1, 100, 1024])
def test_a_pixel_that_begins_where_the_slide_ends_is_its_last_one(
    strip: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 px of 0.56 µm are 7 pixels of 8 µm; with rounded numbers they end where an eighth one begins."""
    l0_per_px = 8 / 0.56
    assert 100 / l0_per_px > 7
    assert 7 * l0_per_px == 100
    monkeypatch.setattr(picture, "STRIP_ROWS", strip)
    monkeypatch.setattr(picture, "BLOCK_PX", block)
    image = noise(100, 100)
    found = slide_picture(MemoryReader(image), (8, 8), l0_per_px=l0_per_px)
    np.testing.assert_array_equal(
        found[:7, :7], slide_picture(MemoryReader(image), (7, 7), l0_per_px=l0_per_px)
    )
    np.testing.assert_array_equal(found[7, 7], image[-1, -1])


class WatchedReader(MemoryReader):
    """Remembers what was read."""

    def __init__(self, image: RgbImage, levels: tuple[float, ...] = (1,)) -> None:
        super().__init__(image, levels=levels)
        self.reads: list[tuple[int, Size]] = []

    def read(self, l0_xy: L0Point, *, level: int, size_px: Size) -> RgbImage:
        self.reads.append((level, size_px))
        return super().read(l0_xy, level=level, size_px=size_px)


class WideReader(WatchedReader):
    """A single level of 9000 x 6000 that exists only where it is read."""

    def __init__(self) -> None:
        super().__init__(np.zeros((1, 1, 3), np.uint8))
        self._wide = SlideInfo(
            path=self._info.path,
            reader="fake",
            vendor="fake",
            levels=(Level((9000, 6000), 1.0),),
            mpp_xy=None,
        )

    @property
    def info(self) -> SlideInfo:
        return self._wide

    def read(self, l0_xy: L0Point, *, level: int, size_px: Size) -> RgbImage:
        self.reads.append((level, size_px))
        assert l0_xy[0] + size_px[0] <= 9000
        assert l0_xy[1] + size_px[1] <= 6000
        return np.full((size_px[1], size_px[0], 3), l0_xy[0] // 60, np.uint8)


def test_a_large_slide_of_one_level_is_read_in_blocks() -> None:
    slide = WideReader()
    found = slide_picture(slide, (300, 200), l0_per_px=30.0)
    assert max(max(size) for _, size in slide.reads) <= picture.BLOCK_PX
    assert found[0, 0, 0] == 0
    assert found[0, -1, 0] == 136, (
        "8160 // 60: blocks are 34 pixels of the picture, the last one starts at 272"
    )
    assert (np.diff(found[0, :, 0].astype(int)) >= 0).all()


def test_the_coarsest_level_that_is_fine_enough_is_read() -> None:
    slide = WatchedReader(noise(400, 400), levels=(1, 4, 16))
    slide_picture(slide, (50, 50), l0_per_px=8.0)
    assert {level for level, _ in slide.reads} == {1}


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(2, 60), st.integers(2, 60)),
    l0_per_px=st.floats(0.3, 9),
    share=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
)
def test_a_window_is_that_part_of_the_picture(
    size: Size, l0_per_px: float, share: tuple[float, float, float, float]
) -> None:
    image = noise(*size)
    width, height = canvas_size(size, l0_per_px)
    whole = slide_picture(MemoryReader(image), (width, height), l0_per_px=l0_per_px)
    left, top = int(share[0] * (width - 1)), int(share[1] * (height - 1))
    part = (1 + int(share[2] * (width - left - 1)), 1 + int(share[3] * (height - top - 1)))
    found = slide_window(MemoryReader(image), (left, top), part, l0_per_px=l0_per_px)
    np.testing.assert_allclose(
        found.astype(int), whole[top : top + part[1], left : left + part[0]].astype(int), atol=1
    )


def test_a_window_may_begin_between_pixels() -> None:
    """Half a pixel in: means of neighbours, each half."""
    image = noise(40, 30)
    found = slide_window(MemoryReader(image), (3.5, 2.0), (10, 5), l0_per_px=1.0)
    expected = (image[2:7, 3:13].astype(float) + image[2:7, 4:14]) / 2
    assert np.abs(found - expected).max() <= 0.51


class Damaged(MemoryReader):
    """Level 0 cannot be read where ``l0_hole`` (left, top, right, bottom) is, coarser ones nowhere."""

    def __init__(
        self, image: RgbImage, *, levels: tuple[float, ...], l0_hole: tuple[int, int, int, int]
    ) -> None:
        super().__init__(image, levels=levels)
        self.l0_hole = l0_hole
        self.reads = 0

    def read(self, l0_xy: L0Point, *, level: int, size_px: Size) -> RgbImage:
        self.reads += 1
        (x, y), (width, height), hole = l0_xy, size_px, self.l0_hole
        if level > 0 or (x < hole[2] and y < hole[3] and x + width > hole[0] and y + height > hole[1]):
            raise SlideReadError(self.info.path, "is damaged", "copy it again")
        return super().read(l0_xy, level=level, size_px=size_px)


def test_what_a_level_does_not_give_comes_from_a_finer_one() -> None:
    image = noise(2001, 1503)
    whole = slide_picture(MemoryReader(image, levels=(1,)), (251, 188), l0_per_px=8.0)
    unread = np.zeros((188, 251), bool)
    slide = Damaged(image, levels=(1, 4, 8), l0_hole=(0, 0, 0, 0))
    np.testing.assert_array_equal(slide_picture(slide, (251, 188), l0_per_px=8.0, unread_HW=unread), whole)
    assert not unread.any()
    np.testing.assert_array_equal(slide_picture(slide, (251, 188), l0_per_px=8.0), whole)


@pytest.mark.parametrize("l0_per_px", [1.0, 8.0])
def test_what_no_level_gives_is_white_and_told(l0_per_px: float) -> None:
    image = noise(2001, 1503)
    size = canvas_size((2001, 1503), l0_per_px)
    whole = slide_picture(MemoryReader(image), size, l0_per_px=l0_per_px)
    unread = np.zeros(size[::-1], bool)
    slide = Damaged(image, levels=(1,), l0_hole=(700, 600, 760, 660))
    found = slide_picture(slide, size, l0_per_px=l0_per_px, unread_HW=unread)
    assert unread[int(630 / l0_per_px), int(730 / l0_per_px)]
    assert (found[unread] == 255).all()
    np.testing.assert_array_equal(found[~unread], whole[~unread])
    assert unread.sum() * l0_per_px**2 <= 4 * picture.PIECE_PX**2
    with pytest.raises(SlideReadError):
        slide_picture(slide, size, l0_per_px=l0_per_px)


def test_a_file_that_is_damaged_all_over_is_given_up() -> None:
    slide = Damaged(noise(9000, 9000), levels=(1, 4), l0_hole=(0, 0, 9000, 9000))
    with pytest.raises(SlideReadError):
        slide_picture(slide, (2250, 2250), l0_per_px=4.0, unread_HW=np.zeros((2250, 2250), bool))
    assert slide.reads <= picture.MOST_FAILURES + 1


def test_unreadable_places_count_as_tissue() -> None:
    """So that whoever reads the patches there finds them unreadable."""
    glass = np.full((1500, 2000, 3), 240, np.uint8)
    mask = find_tissue(
        Damaged(glass, levels=(1,), l0_hole=(700, 600, 760, 660)), TissueConfig(), mpp=Mpp(0.5)
    )
    scale = mask.l0_per_px[0]
    assert mask.mask_HW[int(630 / scale), int(730 / scale)]
    assert mask.mask_HW.mean() < 0.1
