"""The drawn gigapixel slide, at a small size."""

from collections import namedtuple
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from skimage import measure

from benchmarks.make_gigapixel import make_gigapixel
from wsi_ips.config import TilingConfig
from wsi_ips.errors import ConfigError, ResultsError
from wsi_ips.slides.base import RgbImage
from wsi_ips.slides.registry import open_slide
from wsi_ips.tiling.patches import tile_slide

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


@pytest.fixture(scope="module")
def philips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("philips") / "drawn.tif"
    make_gigapixel(path, side_px=SIDE_PX, container="philips", seed=3, block=2)
    return path


def test_openslide_takes_the_twin_for_a_philips_slide(philips: Path) -> None:
    with openslide.OpenSlide(philips) as slide:
        assert slide.properties["openslide.vendor"] == "philips"
        assert slide.level_dimensions == tuple((4096 >> n, 4096 >> n) for n in range(5))
        assert slide.level_downsamples == (1, 2, 4, 8, 16)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.243)
        assert set(slide.associated_images) == {"label", "macro"}
    with open_slide(philips) as slide:
        assert slide.info.mpp == pytest.approx(0.243)


def test_the_twin_stores_no_tiles_of_glass(philips: Path, drawn: Path) -> None:
    with tifffile.TiffFile(philips) as tiff:
        assert tiff.is_bigtiff
        levels = [page for page in tiff.pages if page.is_tiled]
        assert [page.shape[0] for page in levels] == [4096, 2048, 1024, 512, 512]  # whole tiles
        missing = [np.array(page.databytecounts) == 0 for page in levels]
        offsets = [np.array(page.dataoffsets) for page in levels]
    for empty, offset in zip(missing, offsets, strict=True):
        assert ((offset == 0) == empty).all()
    assert 10 < missing[0].sum() < 54
    for level in (0, 1):
        g_missing = missing[level].reshape(8 >> level, 8 >> level)
        plain = whole_level(drawn, level).astype(np.int16)
        twin = whole_level(philips, level, reader="openslide").astype(np.int16)
        of_missing = np.kron(g_missing, np.ones((512, 512), bool))
        # Where there is none it is white, and the plain slide shows glass; elsewhere both show the same tissue.
        assert (twin[of_missing] == 255).all()
        assert plain[of_missing].min(initial=255) > 225
        difference = np.abs(plain - twin)[~of_missing]
        assert difference.mean() < 1
        assert np.percentile(difference, 99.9) < 12


def test_a_twin_of_any_number_of_tiles_is_padded(tmp_path: Path) -> None:
    path = tmp_path / "odd.tif"
    make_gigapixel(path, side_px=2560, container="philips", block=2)
    with tifffile.TiffFile(path) as tiff:
        levels = [page for page in tiff.pages if page.is_tiled]
        assert [page.shape[0] for page in levels] == [2560, 1536, 1024, 512]
        padding = levels[1].asarray()[1280:]
    assert padding[:200].min() > 200
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == ((2560, 2560), (1280, 1280), (640, 640), (320, 320))
        assert slide.level_downsamples == (1, 2, 4, 8)
    finest, half = (whole_level(path, level, reader="openslide").astype(np.float32) for level in (0, 1))
    is_tissue = half.mean(axis=2) < 200
    means = finest.reshape(1280, 2, 1280, 2, 3).mean(axis=(1, 3))
    assert np.abs(means - half)[is_tissue].mean() < 6
    assert np.abs(means[1:] - half[:-1])[is_tissue[:-1]].mean() > 8  # it would tell a shift by one pixel


def test_a_twin_of_cut_tiles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of 512"):
        make_gigapixel(tmp_path / "out.tif", side_px=3000, container="philips")
