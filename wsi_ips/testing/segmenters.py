"""What every tissue segmenter must do: see :class:`wsi_ips.tiling.tissue.Segmenter`."""

from math import ceil
from typing import Any

import numpy as np
import pytest

from wsi_ips.config import TissueConfig
from wsi_ips.registry import Registry
from wsi_ips.slides.base import RgbImage, SlideReader
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.testing.own_names import OwnNameContract
from wsi_ips.tiling.tissue import SEGMENTERS, TissueMask, TissueView, find_tissue
from wsi_ips.units import Mpp

WIDTH, HEIGHT = 700, 500
MPP = Mpp(2.0)
PIECE = (slice(150, 350), slice(200, 500))
"""Rows and columns of the level-0 pixels that are tissue."""
GLASS, EOSIN, HAEMATOXYLIN = (243, 242, 245), (225, 150, 185), (110, 70, 150)


def glass() -> RgbImage:
    """(500, 700, 3) uint8: bare glass with a camera's noise."""
    noise_HWC = np.random.default_rng(0).normal(0, 1.5, (HEIGHT, WIDTH, 3))
    return np.clip(np.array(GLASS) + noise_HWC, 0, 255).astype(np.uint8)


def stained() -> RgbImage:
    """The same with one piece of tissue: eosin, and nuclei scattered over it."""
    rgb_HWC, rng = glass(), np.random.default_rng(1)
    shape = rgb_HWC[PIECE].shape
    piece_HWC = np.broadcast_to(np.array(EOSIN, np.float64), shape).copy()
    piece_HWC[rng.random(shape[:2]) < 0.25] = HAEMATOXYLIN
    rgb_HWC[PIECE] = np.clip(piece_HWC + rng.normal(0, 6, shape), 0, 255)
    return rgb_HWC


class SegmenterContract(OwnNameContract):
    """Subclass with ``name``, as ``tiling.tissue.method`` has it.

    Override :meth:`bare` and :meth:`with_tissue` for a segmenter of another kind of slides, e.g. of fluorescence.

    settings: other settings of the section ``tiling.tissue``, e.g. ``{"options": {...}}``.
    """

    name: str
    settings: dict[str, Any] = {}  # noqa: RUF012 - a default to be replaced

    def registry(self) -> Registry[Any]:
        return SEGMENTERS

    def bare(self) -> RgbImage:
        """A slide without tissue, (500, 700, 3) uint8 at 2 µm per pixel."""
        return glass()

    def with_tissue(self) -> RgbImage:
        """The same with tissue at :data:`PIECE`."""
        return stained()

    @pytest.fixture
    def config(self) -> TissueConfig:
        """The section ``tiling.tissue``."""
        return TissueConfig.model_validate({"method": self.name, **self.settings})

    def mask(self, rgb_HWC: RgbImage, config: TissueConfig) -> TissueMask:
        """The mask of a slide with two levels."""
        with MemoryReader(rgb_HWC, mpp=MPP, levels=(1, 4)) as slide:
            return find_tissue(slide, config)

    @pytest.mark.parametrize("thumbnail_mpp", [4.0, 8.0, 10.0])
    def test_tissue_is_found_where_it_is(self, config: TissueConfig, thumbnail_mpp: float) -> None:
        found = self.mask(self.with_tissue(), config.model_copy(update={"thumbnail_mpp": thumbnail_mpp}))
        height, width = found.mask_HW.shape
        assert found.mask_HW.dtype == bool
        assert width == pytest.approx(WIDTH / found.l0_per_px[0], abs=1)
        assert height == pytest.approx(HEIGHT / found.l0_per_px[1], abs=1)
        y, x = (((np.arange(count) + 0.5) * found.l0_per_px[0]).astype(int) for count in (height, width))
        truth_HW = np.zeros((HEIGHT, WIDTH), bool)
        truth_HW[PIECE] = True
        truth_HW = truth_HW[np.ix_(y.clip(max=HEIGHT - 1), x.clip(max=WIDTH - 1))]
        overlap = (found.mask_HW & truth_HW).sum() / (found.mask_HW | truth_HW).sum()
        assert overlap > 0.8, f"intersection over union is {overlap:.2f}"

    def test_glass_is_no_tissue(self, config: TissueConfig) -> None:
        found = self.mask(self.bare(), config)
        assert not found.mask_HW.any()
        assert found.why_empty is not None
        assert "no tissue was found" in found.why_empty[0]

    def test_the_same_slide_has_the_same_tissue(self, config: TissueConfig) -> None:
        first, second = (self.mask(self.with_tissue(), config).mask_HW for _ in range(2))
        np.testing.assert_array_equal(first, second)

    def test_the_slide_stays_open_and_keeps_its_pixels(self, config: TissueConfig) -> None:
        rgb_HWC = self.with_tissue()
        with MemoryReader(rgb_HWC, mpp=MPP) as slide:
            find_tissue(slide, config)
            np.testing.assert_array_equal(slide.read((0, 0), level=0, size_px=(WIDTH, HEIGHT)), rgb_HWC)

    def test_a_mask_has_the_size_that_was_asked_for(self, config: TissueConfig) -> None:
        """However few pixels that are."""
        slide: SlideReader = MemoryReader(self.with_tissue(), mpp=MPP)
        for l0_per_px in (6.7, 33.3, 500.0, 700.0):
            size_px = (ceil(WIDTH / l0_per_px), ceil(HEIGHT / l0_per_px))
            unread_HW = np.zeros(size_px[::-1], bool)
            view = TissueView(slide, MPP, size_px, l0_per_px, unread_HW)
            found = SEGMENTERS.load(config.segmenter)(view, config)
            assert found.mask_HW.shape == size_px[::-1]
            assert found.mask_HW.dtype == bool
