"""What every slide reader must do.

Subclass :class:`ReaderContract`, or :class:`OneLevelContract` for a format without a pyramid, once for each kind
of file, with a fixture ``slide`` that yields the open reader of a file in which :func:`contract_image` is stored
at 0.5 µm per pixel. For a format that loses something, such as JPEG, set ``tolerance``.
"""

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from wsi_ips.errors import ConfigError, SlideClosed
from wsi_ips.slides.base import RgbImage, SlideReader
from wsi_ips.testing.exporters import halved, tissue_like
from wsi_ips.units import L0Point

WIDTH, HEIGHT = 600, 424
MPP = 0.5


def contract_image() -> RgbImage:
    """(424, 600, 3) uint8. Nothing in it is white, so that white in a region is what was filled in."""
    return np.minimum(tissue_like(WIDTH, HEIGHT, seed=7), 250)


class OneLevelContract:
    """What a reader must do at level 0. The fixture ``slide`` reads :func:`contract_image` at 0.5 µm.

    tolerance: by how many grey levels a pixel of the slide may differ from the image; 0 for lossless formats.
    What lies outside the slide is exactly white in any case.
    """

    tolerance: int = 0

    @pytest.fixture
    def slide(self) -> Iterator[SlideReader]:
        raise NotImplementedError

    @pytest.fixture
    def image(self) -> RgbImage:
        return contract_image()

    def test_says_what_it_is(self, slide: SlideReader) -> None:
        assert slide.info.l0_size == (WIDTH, HEIGHT)
        assert slide.info.mpp == pytest.approx(MPP)
        assert slide.info.reader
        assert slide.info.vendor

    def test_reads_the_pixels_that_are_there(self, slide: SlideReader, image: RgbImage) -> None:
        region = slide.read((123, 45), level=0, size_px=(301, 222))
        assert region.dtype == np.uint8
        self.check_pixels(region, image[45:267, 123:424])

    def check_pixels(self, region: RgbImage, expected: RgbImage) -> None:
        """The pixels of the slide are those of the image, within ``tolerance``."""
        np.testing.assert_allclose(region.astype(int), expected.astype(int), rtol=0, atol=self.tolerance)

    @pytest.mark.parametrize("edge", ["left", "top", "right", "bottom"])
    def test_beyond_an_edge_is_white(self, slide: SlideReader, image: RgbImage, edge: str) -> None:
        """OpenSlide gives transparent pixels there, black once converted to RGB: a mask takes those for tissue."""
        self.check_edge(slide, image, 0, edge)

    def check_edge(self, slide: SlideReader, pixels: RgbImage, level: int, edge: str) -> None:
        height, width = pixels.shape[:2]
        x, y = {"left": (-32, 10), "top": (10, -32), "right": (width - 32, 10), "bottom": (10, height - 32)}[
            edge
        ]
        region = slide.read((x << level, y << level), level=level, size_px=(64, 64))
        expected = np.full((64, 64, 3), 255, np.uint8)
        inside = pixels[max(0, y) : y + 64, max(0, x) : x + 64]
        top, left = max(0, -y), max(0, -x)
        within = np.s_[top : top + inside.shape[0], left : left + inside.shape[1]]
        self.check_pixels(region[within], inside)
        region[within] = 255
        np.testing.assert_array_equal(region, expected)

    @pytest.mark.parametrize("l0_xy", [(-500, -500), (WIDTH, 0), (0, HEIGHT), (10**7, 10**7), (-(10**7), 5)])
    def test_wholly_outside_is_white(self, slide: SlideReader, l0_xy: L0Point) -> None:
        for level in range(len(slide.info.levels)):
            region = slide.read(l0_xy, level=level, size_px=(20, 30))
            assert region.shape == (30, 20, 3)
            assert (region == 255).all()

    def test_a_region_larger_than_the_slide_holds_all_of_it(
        self, slide: SlideReader, image: RgbImage
    ) -> None:
        region = slide.read((-10, -20), level=0, size_px=(WIDTH + 30, HEIGHT + 50))
        self.check_pixels(region[20 : 20 + HEIGHT, 10 : 10 + WIDTH], image)
        region[20 : 20 + HEIGHT, 10 : 10 + WIDTH] = 255
        assert (region == 255).all()

    @pytest.mark.parametrize("l0_xy", [(0, 0), (128, 128), (5, 5), (512, 384)])
    @pytest.mark.parametrize("size", [(128, 128), (9, 9)])
    def test_the_array_belongs_to_the_caller(
        self, slide: SlideReader, l0_xy: L0Point, size: tuple[int, int]
    ) -> None:
        """Whole tiles, parts of tiles and cached tiles alike: writing to one must not reach the next."""
        first = slide.read(l0_xy, level=0, size_px=size)
        untouched = first.copy()
        assert first.flags.writeable
        first[:] = 0
        np.testing.assert_array_equal(slide.read(l0_xy, level=0, size_px=size), untouched)

    def test_integers_may_be_numpy_integers(self, slide: SlideReader, image: RgbImage) -> None:
        x, y = np.array([12, 34], np.int64)
        level, size_px = np.int64(0), (np.int32(5), np.int32(6))
        region = slide.read((x, y), level=level, size_px=size_px)  # type: ignore[arg-type]
        self.check_pixels(region, image[34:40, 12:17])

    @pytest.mark.parametrize("size", [(0, 10), (10, 0), (-1, 10), (10, -5)])
    def test_a_size_without_pixels_is_refused(self, slide: SlideReader, size: tuple[int, int]) -> None:
        with pytest.raises(ConfigError, match="no pixels"):
            slide.read((0, 0), level=0, size_px=size)

    def test_a_level_that_is_not_there_is_refused(self, slide: SlideReader) -> None:
        n = len(slide.info.levels)
        for level in (-1, n):
            with pytest.raises(ConfigError, match=f"levels 0 to {n - 1}"):
                slide.read((0, 0), level=level, size_px=(8, 8))

    def test_a_closed_slide_refuses(self, slide: SlideReader) -> None:
        slide.close()
        slide.close()
        with pytest.raises(SlideClosed):
            slide.read((0, 0), level=0, size_px=(8, 8))
        assert slide.info.l0_size == (WIDTH, HEIGHT)

    def test_with_closes(self, slide: SlideReader) -> None:
        with slide as same:
            assert same is slide
        with pytest.raises(SlideClosed):
            slide.read((0, 0), level=0, size_px=(8, 8))

    def test_threads_read_what_one_thread_reads(self, slide: SlideReader) -> None:
        rng = np.random.default_rng(0)
        places = [(int(x), int(y)) for x, y in rng.integers((-50, -50), (WIDTH, HEIGHT), (200, 2))]

        def read(l0_xy: L0Point) -> RgbImage:
            return slide.read(l0_xy, level=0, size_px=(70, 90))

        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(read, places))
        for l0_xy, region in zip(places, together, strict=True):
            np.testing.assert_array_equal(region, read(l0_xy))

    def test_closing_while_threads_read_breaks_nothing(self, slide: SlideReader) -> None:
        whole = slide.read((0, 0), level=0, size_px=(300, 300))

        def read(number: int) -> RgbImage | None:
            if number == 40:
                slide.close()
            try:
                return slide.read((0, 0), level=0, size_px=(300, 300))
            except SlideClosed:
                return None

        with ThreadPoolExecutor(8) as pool:
            regions = list(pool.map(read, range(80)))
        for region in regions:
            assert region is None or np.array_equal(region, whole)
        # Not of the last one in the pool: on a busy machine it may overtake the one that closes.
        with pytest.raises(SlideClosed):
            slide.read((0, 0), level=0, size_px=(300, 300))

    def test_travels_to_a_worker(self, slide: SlideReader) -> None:
        with pickle.loads(pickle.dumps(slide)) as copy:  # noqa: S301 - its own pickle
            assert copy.info == slide.info
            level = len(slide.info.levels) - 1
            np.testing.assert_array_equal(
                copy.read((33, 44), level=level, size_px=(55, 66)),
                slide.read((33, 44), level=level, size_px=(55, 66)),
            )

    def test_stays_closed_when_pickled_closed(self, slide: SlideReader) -> None:
        slide.close()
        with pytest.raises(SlideClosed):
            pickle.loads(pickle.dumps(slide)).read((0, 0), level=0, size_px=(8, 8))  # noqa: S301 - its own pickle


class ReaderContract(OneLevelContract):
    """The slide has a second level, half the size: the means of two by two pixels."""

    def test_levels_run_from_fine_to_coarse(self, slide: SlideReader) -> None:
        assert [level.size for level in slide.info.levels] == [(WIDTH, HEIGHT), (WIDTH // 2, HEIGHT // 2)]
        assert [level.downsample for level in slide.info.levels] == [1.0, 2.0]

    def test_a_position_is_in_level_0_pixels_at_every_level(
        self, slide: SlideReader, image: RgbImage
    ) -> None:
        region = slide.read((200, 100), level=1, size_px=(64, 32))
        self.check_pixels(region, halved(image)[50:82, 100:164])

    @pytest.mark.parametrize("edge", ["left", "top", "right", "bottom"])
    def test_beyond_an_edge_of_the_second_level_is_white(
        self, slide: SlideReader, image: RgbImage, edge: str
    ) -> None:
        self.check_edge(slide, halved(image), 1, edge)
