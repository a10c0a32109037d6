"""Every way to find tissue is under contract, in pictures of its kind."""

from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.tiling.test_segmenter import RedIsTissue, saved
from wsi_ips.config import TissueConfig
from wsi_ips.config.slides import OUR_SEGMENTERS
from wsi_ips.errors import SegmenterError
from wsi_ips.slides.base import RgbImage
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.testing.segmenters import PIECE, SegmenterContract, glass, stained
from wsi_ips.tiling.bright_field import Found
from wsi_ips.tiling.tissue import SEGMENTERS, TissueView, find_tissue
from wsi_ips.units import Mpp


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


def test_settings_that_were_stored_before_there_were_methods_stay_the_same() -> None:
    """Their fingerprints name folders and files."""
    assert TissueConfig().model_dump() == {
        "thumbnail_mpp": 8.0,
        "min_object_um2": 20_000.0,
        "min_hole_um2": 20_000.0,
        "drop_pen": True,
        "model": None,
    }
    assert TissueConfig(method="dark_field").model_dump()["method"] == "dark_field"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"method": "otsu"},
            "there is no tissue segmenter 'otsu'; known are rules, bright_field, ",
        ),
        ({"method": "model"}, "method: model needs a model"),
        ({"options": {"level": 3}}, "rules has none"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        TissueConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda view: np.zeros(view.unread_HW.shape, bool), "returns no Found with a bool mask"),
        (lambda view: Found(np.zeros(view.unread_HW.shape)), "returns no Found with a bool mask"),  # float64
        (lambda view: Found(np.zeros((3, 4), bool)), "returns no Found with a bool mask of shape"),
        (lambda view: Found(None), "returns no Found with a bool mask"),
        (lambda view: view.absent, "does not run on it .AttributeError: "),
    ],
)
def test_another_package_s_segmenter_gives_a_mask_or_a_message(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[TissueView], Any], problem: str
) -> None:
    theirs = EntryPoint("theirs", "tests.tiling.test_contract:answered", "wsi_ips.segmenters")
    monkeypatch.setattr("wsi_ips.registry.entry_points", lambda group: [theirs] * (group == theirs.group))
    monkeypatch.setattr(EntryPoint, "load", lambda self: lambda view, config: answer(view))
    monkeypatch.setattr(SEGMENTERS, "_others", {})
    with pytest.raises(SegmenterError, match=rf"^memory: tissue segmenter theirs .*{problem}"):
        find_tissue(MemoryReader(stained(), mpp=Mpp(2.0)), TissueConfig(method="theirs"))
