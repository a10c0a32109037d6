"""Every way to find tissue is under contract, in pictures of its kind."""

from pathlib import Path

import numpy as np
import pytest

from tests.tiling.test_segmenter import RedIsTissue, saved
from wsi_ips.config import TissueConfig
from wsi_ips.config.slides import OUR_SEGMENTERS
from wsi_ips.slides.base import RgbImage
from wsi_ips.testing.segmenters import PIECE, SegmenterContract, glass, stained
from wsi_ips.tiling.tissue import SEGMENTERS


class TestRules(SegmenterContract):
    name = "rules"


class TestBrightField(SegmenterContract):
    name = "bright_field"


class TestDarkField(SegmenterContract):
    name = "dark_field"

    def bare(self) -> RgbImage:
        return np.asarray(255 - glass())

    def with_tissue(self) -> RgbImage:
        return np.asarray(255 - stained())


class TestModel(SegmenterContract):
    """One that calls red what is tissue here."""

    name = "model"

    def bare(self) -> RgbImage:
        return np.zeros_like(glass())

    def with_tissue(self) -> RgbImage:
        rgb_HWC = self.bare()
        rgb_HWC[PIECE] = (250, 0, 0)
        return rgb_HWC

    @pytest.fixture
    def config(self, tmp_path: Path) -> TissueConfig:
        return TissueConfig(method="model", model=saved(tmp_path, RedIsTissue(), tile_px=64, overlap_px=8))


def test_the_config_names_every_segmenter() -> None:
    assert tuple(SEGMENTERS.members) == OUR_SEGMENTERS
