"""What there is to read, against what a pass over the slides really decodes."""

from pathlib import Path

import pytest

from tests.conftest import SMALL_MODEL, SmallData
from wsi_ips.config import StreamingConfig, TilingConfig
from wsi_ips.errors import ConfigError
from wsi_ips.planning.survey import (
    SlideToRead,
    SplitSurvey,
    Survey,
    SurveyedSlide,
    imagined,
    survey,
    survey_slide,
)
from wsi_ips.slides.registry import open_slide
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.tiling.patches import PatchesInTissue

TILING = TilingConfig.model_validate(SMALL_MODEL["tiling"])
STREAMING = StreamingConfig(batch=8)


def slides_of(data: SmallData) -> list[SlideToRead]:
    return [SlideToRead(path.stem, path, "train") for path in sorted(data.slides.glob("*.tif"))]


@pytest.mark.parametrize(
    "tiling",
    [TILING, TILING.model_copy(update={"patch_mpp": 0.5, "patch_px": 100})],
    ids=["resampled", "across"],
)
def test_a_survey_counts_what_a_pass_decodes(small_data: SmallData, tiling: TilingConfig) -> None:
    slide = slides_of(small_data)[0]
    surveyed, coords = survey_slide(slide, PatchesInTissue(tiling), STREAMING)
    with open_slide(slide.path) as reader:
        stream = PatchStream(reader, coords, config=STREAMING)
        for _ in stream:
            pass
    assert surveyed.patches == stream.telemetry.patches
    assert surveyed.tiles == surveyed.decodes == stream.telemetry.tiles_decoded
    assert 0 < surveyed.stored_mb * 1e6 <= slide.path.stat().st_size  # type: ignore[union-attr]


def test_a_small_cache_decodes_tiles_again(small_data: SmallData) -> None:
    slide, find = slides_of(small_data)[0], PatchesInTissue(TILING.model_copy(update={"patch_mpp": 0.5}))
    with_cache, _ = survey_slide(slide, find, STREAMING)
    without, _ = survey_slide(slide, find, StreamingConfig(batch=8, tile_cache_mb=0))
    assert without.tiles == with_cache.tiles
    assert without.decodes > with_cache.decodes == with_cache.tiles


def test_slides_that_cannot_be_opened_are_counted_and_named(small_data: SmallData, tmp_path: Path) -> None:
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"II*\0 nothing")
    slides = [*slides_of(small_data), SlideToRead("broken", broken, "train")]
    seen = survey(slides, PatchesInTissue(TILING), STREAMING)
    assert list(seen.failed) == ["broken"]
    assert (seen.slides, seen.looked_at, seen.readable()) == (7, 7, 6)
    with pytest.raises(ConfigError, match=r"none of 1 slide can be read; broken: .*broken\.tif"):
        survey(slides[-1:], PatchesInTissue(TILING), STREAMING)
    with pytest.raises(ConfigError, match="no slides"):
        survey([], PatchesInTissue(TILING), STREAMING)


def test_a_sample_is_scaled_up_and_says_how_sure_it_is(small_data: SmallData) -> None:
    slides = slides_of(small_data)
    whole = survey(slides, PatchesInTissue(TILING), STREAMING)
    some = survey(slides, PatchesInTissue(TILING), STREAMING, sample=3)
    assert whole.total("patches").spread == 0
    assert (some.looked_at, some.readable()) == (3, 6)
    estimate = some.total("patches")
    assert estimate.spread > 0
    assert estimate.value == pytest.approx(whole.total("patches").value, abs=3 * estimate.spread)


def slide(patches: int) -> SurveyedSlide:
    return SurveyedSlide("a", "train", patches, patches, patches, 1.0, 1.0, 1.0, 1.0, coarser=True)


def test_the_spread_is_that_of_a_sample_without_replacement() -> None:
    its = SplitSurvey(4, (slide(10), slide(20)))
    assert its.total("patches").value == 60
    # Student's t of one degree of freedom, 4 slides x standard error sqrt(50 / 2) x sqrt(1 - 2/4)
    assert its.total("patches").spread == pytest.approx(12.706 * 4 * 25**0.5 * 0.5**0.5, rel=1e-3)


def test_imagined_slides_have_the_stated_size() -> None:
    seen = imagined({"train": 10}, 1000, TilingConfig(patch_px=256))
    assert isinstance(seen, Survey)
    assert seen.total("patches").value == 10_000
    assert seen.total("decodes").value == 10_000
    assert seen.mean_patches() == seen.largest == 1000
    assert seen.imagined
