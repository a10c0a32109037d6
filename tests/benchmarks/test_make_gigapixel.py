"""The drawn gigapixel slide, at a small size."""

from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from skimage import measure

from benchmarks.make_gigapixel import make_gigapixel
from wsi_ips.config import TilingConfig
from wsi_ips.errors import ConfigError, ResultsError
from wsi_ips.slides.base import RgbImage
from wsi_ips.slides.registry import open_slide
from wsi_ips.tiling.tile import tile_slide

SIDE_PX = 4096


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gigapixel") / "drawn.tif"
    make_gigapixel(path, side_px=SIDE_PX, seed=3, block=2)
    return path


def whole_level(path: Path, level: int, *, reader: str = "tiff") -> RgbImage:
    with open_slide(path, reader=reader) as slide:
        return slide.read((0, 0), level=level, size_px=slide.info.levels[level].size)


def test_both_readers_see_the_same_pyramid(drawn: Path) -> None:
    with open_slide(drawn, reader="tiff") as native, open_slide(drawn, reader="openslide") as openslide:
        for slide in (native, openslide):
            assert [level.size for level in slide.info.levels] == [(4096 >> n, 4096 >> n) for n in range(4)]
            assert slide.info.mpp == pytest.approx(0.25, rel=1e-6)
        # OpenSlide itself knows the resolution: other programs ask it.
        assert openslide._current().properties["openslide.mpp-x"] == "0.25"  # type: ignore[attr-defined]
    for level in range(4):
        native_HWC, openslide_HWC = (whole_level(drawn, level, reader=name) for name in ("tiff", "openslide"))
        np.testing.assert_array_equal(native_HWC, openslide_HWC)


def test_the_tissue_finder_sees_pieces_with_curved_outlines(drawn: Path) -> None:
    with open_slide(drawn) as slide:
        coords, mask = tile_slide(slide, TilingConfig(patch_mpp=0.25, min_tissue=0.0), slide_id="drawn")
    assert 0.30 < mask.mask_HW.mean() < 0.50
    assert len([piece for piece in measure.regionprops(measure.label(mask.mask_HW)) if piece.area > 200]) >= 3
    # The outline runs through patches, not around them.
    cut = (coords.tissue_N > 0.1) & (coords.tissue_N < 0.9)
    assert cut.sum() > 30
    assert len(coords) < 0.8 * (SIDE_PX // 256) ** 2


@pytest.mark.parametrize("level", [1, 2, 3])
def test_lower_levels_are_the_mean_of_level_0(drawn: Path, level: int) -> None:
    factor = 2**level
    finest = whole_level(drawn, 0).astype(np.float32)
    side = SIDE_PX // factor
    means = finest.reshape(side, factor, side, factor, 3).mean(axis=(1, 3))
    difference = np.abs(whole_level(drawn, level) - means)
    assert difference.mean() < 3.0  # chroma at half resolution costs about 2
    blocks = (whole_level(drawn, level) - means).reshape(side // 32, 32, side // 32, 32, 3).mean(axis=(1, 3))
    assert np.abs(blocks).max() < 2.0


def test_tissue_tiles_weigh_what_tissue_weighs(drawn: Path) -> None:
    with open_slide(drawn) as slide:
        coords, _ = tile_slide(slide, TilingConfig(patch_mpp=0.25, min_tissue=0.99), slide_id="drawn")
        counts = slide.tile_layout(0).byte_counts  # type: ignore[attr-defined]
    tissue = counts[coords.ids_N]
    assert 10_000 < np.median(tissue) < 25_000
    assert counts.min() < 4_000


def test_the_seed_decides_every_byte(drawn: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again.tif", tmp_path / "other.tif"
    make_gigapixel(again, side_px=SIDE_PX, seed=3, block=2, threads=1)
    make_gigapixel(other, side_px=SIDE_PX, seed=4, block=2)
    assert again.read_bytes() == drawn.read_bytes()
    assert other.read_bytes() != drawn.read_bytes()


@pytest.mark.parametrize("side_px", [0, 512, 3000, -4096])
def test_a_side_that_cannot_be_is_refused(tmp_path: Path, side_px: int) -> None:
    with pytest.raises(ConfigError, match="power of two"):
        make_gigapixel(tmp_path / "out.tif", side_px=side_px)


def test_an_existing_file_is_only_replaced_by_force(tmp_path: Path) -> None:
    out = tmp_path / "out.tif"
    out.write_text("precious")
    with pytest.raises(ResultsError, match="--force"):
        make_gigapixel(out, side_px=1024, block=2)
    assert out.read_text() == "precious"
    make_gigapixel(out, side_px=1024, block=2, force=True)
    assert whole_level(out, 0).shape == (1024, 1024, 3)


def test_a_small_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(1000))
    with pytest.raises(ResultsError, match="GB free"):
        make_gigapixel(tmp_path / "out.tif", side_px=1024, block=2)
    assert not list(tmp_path.iterdir())
