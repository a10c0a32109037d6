"""The native tiles give what OpenSlide gives, pixel for pixel."""

import numpy as np
import pytest
import tifffile

from tests.slides.tiff_files import tissue_like, write_pyramid
from wsi_ips.slides.openslide_reader import OpenSlideReader
from wsi_ips.slides.tiff.layout import TiffReader

APERIO = "Aperio Image Library v11.2.1 \r\n1304x976 (256x256) JPEG/RGB Q=30|AppMag = 20|MPP = 0.4990"


def assert_equal_everywhere(path, *, reads=12, seed=0):
    """Random regions of every level, beyond the edges too, at whole pixels of the level."""
    rng = np.random.default_rng(seed)
    with TiffReader(path) as tiff, OpenSlideReader(path) as openslide:
        assert tiff.info.levels == openslide.info.levels
        assert tiff.info.vendor == openslide.info.vendor
        assert tiff.info.mpp == pytest.approx(openslide.info.mpp)
        assert tiff.info.bounds == openslide.info.bounds
        for number, level in enumerate(tiff.info.levels):
            whole = int(level.downsample)
            assert whole == level.downsample, "choose sizes that halve evenly, or OpenSlide interpolates"
            for _ in range(reads):
                width, height = rng.integers(1, 400, 2).tolist()
                l0_xy = tuple(int(rng.integers(-200, side + 100)) * whole for side in level.size)
                ours = tiff.read(l0_xy, level=number, size_px=(width, height))
                theirs = openslide.read(l0_xy, level=number, size_px=(width, height))
                np.testing.assert_array_equal(ours, theirs, err_msg=f"level {number} at {l0_xy}")


def test_a_real_aperio_slide(real_data):
    """JPEG components that are RGB and subsampled, tables in their own tag, odd size."""
    assert_equal_everywhere(real_data / "slides" / "CMU-1-Small-Region.svs", reads=100)


@pytest.mark.parametrize("tile", [240, 256, 512])
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:2:2", "4:4:4", "4:4:0"])
def test_ycbcr_jpeg(tmp_path, tile, subsampling):
    path = tmp_path / "slide.tif"
    write_pyramid(path, tissue_like(1304, 976), tile=tile, levels=4, subsampling=subsampling)
    assert_equal_everywhere(path)


@pytest.mark.parametrize("size", [(1301, 977), (255, 257), (512, 256), (1, 1), (7, 600)])
@pytest.mark.parametrize("photometric", ["ycbcr", "rgb"])
def test_odd_edges(tmp_path, size, photometric):
    path = tmp_path / "slide.tif"
    write_pyramid(path, tissue_like(*size), photometric=photometric, subsampling="4:4:4")
    assert_equal_everywhere(path)


@pytest.mark.parametrize("photometric", ["ycbcr", "rgb"])
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
def test_tables_in_their_own_tag(tmp_path, photometric, subsampling):
    path = tmp_path / "slide.tif"
    write_pyramid(
        path,
        tissue_like(640, 480),
        photometric=photometric,
        subsampling=subsampling,
        levels=2,
        tables_apart=True,
    )
    assert_equal_everywhere(path)


def test_the_tag_decides_the_colour_space_not_the_stream(tmp_path):
    """Aperio's tiles say JFIF, so YCbCr, and hold RGB."""
    path = tmp_path / "slide.svs"
    write_pyramid(path, tissue_like(300, 300), photometric="ycbcr", subsampling="4:2:0", description=APERIO)
    blob = bytearray(path.read_bytes())
    entry = blob.index(
        b"\x06\x01\x03\x00\x01\x00\x00\x00\x06\x00"
    )  # PhotometricInterpretation, SHORT, 1, YCbCr
    blob[entry + 8] = 2
    with TiffReader(path) as slide:
        as_ycbcr = slide.read((0, 0), level=0, size_px=(64, 64))
    path.write_bytes(blob)
    with TiffReader(path) as slide:
        assert np.abs(slide.read((0, 0), level=0, size_px=(64, 64)).astype(int) - as_ycbcr).max() > 50
    assert_equal_everywhere(path)


def test_progressive_jpeg(tmp_path):
    path = tmp_path / "slide.tif"
    write_pyramid(path, tissue_like(600, 600), progressive=True, subsampling="4:2:0")
    assert_equal_everywhere(path)


@pytest.mark.parametrize(
    ("compression", "predictor"),
    [("lzw", False), ("lzw", True), ("deflate", False), ("deflate", True), ("none", False)],
)
@pytest.mark.parametrize("bigtiff", [False, True])
def test_lossless(tmp_path, compression, predictor, bigtiff):
    path = tmp_path / "slide.tif"
    write_pyramid(
        path,
        tissue_like(648, 476),
        levels=2,
        compression=compression,
        predictor=predictor,
        bigtiff=bigtiff,
        byteorder=">" if bigtiff else "<",
    )
    assert_equal_everywhere(path)


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "lzw"])
def test_aperio(tmp_path, compression):
    path = tmp_path / "slide.svs"
    write_pyramid(
        path, tissue_like(1304, 976), levels=3, compression=compression, description=APERIO, mpp=None
    )
    assert_equal_everywhere(path, reads=6)
    with TiffReader(path) as slide:
        assert (slide.info.vendor, slide.info.mpp) == ("aperio", 0.499)


@pytest.mark.parametrize("compression", ["jpeg", "none"])
def test_a_tile_without_data_is_white(tmp_path, compression):
    path = tmp_path / "slide.tif"
    write_pyramid(path, tissue_like(700, 500), compression=compression, empty_tiles=[1, 3])
    with TiffReader(path) as slide:
        assert (slide.read((256, 0), level=0, size_px=(256, 256)) == 255).all()
        assert (slide.read_tile(0, 0, 1) == 255).all()
        assert (slide.read((0, 0), level=0, size_px=(256, 256)) != 255).any()
    assert_equal_everywhere(path)


@pytest.mark.parametrize("mpp", [0.25, 0.243, 1.0, 0.005, 353.0, None])
def test_resolution_from_the_tags(tmp_path, mpp):
    path = tmp_path / "slide.tif"
    write_pyramid(path, tissue_like(256, 256), mpp=mpp)
    believed = None
    if mpp not in (0.005, 353.0, None):
        with tifffile.TiffFile(path) as file:  # older versions of tifffile round the fraction
            per_cm, cm = file.pages[0].tags["XResolution"].value
        believed = 1e4 * cm / per_cm
        assert believed == pytest.approx(mpp, rel=1e-5)
    for reader in (TiffReader, OpenSlideReader):
        with reader(path) as slide:
            assert slide.info.mpp == (believed and pytest.approx(believed, rel=1e-9))


@pytest.mark.parametrize("stated", ["nan", "0", "-0.5", "1000", "twenty", ""])
def test_a_resolution_that_cannot_be_is_unknown(tmp_path, stated):
    path = tmp_path / "slide.svs"
    write_pyramid(path, tissue_like(256, 256), mpp=None, description=f"Aperio x|MPP = {stated}")
    for reader in (TiffReader, OpenSlideReader):
        with reader(path) as slide:
            assert slide.info.mpp is None


def test_downsamples_of_padded_pyramids_are_openslides(tmp_path):
    """CAMELYON's levels are padded to whole tiles, so that a factor is 1.9896 and not 2."""
    path = tmp_path / "slide.tif"
    write_pyramid(path, tissue_like(1301, 977), levels=4)
    with TiffReader(path) as tiff, OpenSlideReader(path) as openslide:
        assert tiff.info.levels == openslide.info.levels
        assert tiff.info.levels[1].downsample != 2
        # Between two pixels: ours is the nearest pixel of the level, and so within its neighbours' range.
        ours = tiff.read((400, 400), level=1, size_px=(100, 100))
        lv_x, lv_y = (round(400 / tiff.info.levels[1].downsample) for _ in "xy")
        whole = tiff.read((0, 0), level=1, size_px=tiff.info.levels[1].size)
        np.testing.assert_array_equal(ours, whole[lv_y : lv_y + 100, lv_x : lv_x + 100])


def test_decode_tile_and_layout_cover_the_level(tmp_path):
    path = tmp_path / "slide.tif"
    write_pyramid(path, tissue_like(700, 500), levels=2)
    with TiffReader(path) as slide:
        for level in (0, 1):
            layout = slide.tile_layout(level)
            side = layout.tile_size[0]
            assert layout.level_size == slide.info.levels[level].size
            canvas = np.zeros((layout.rows * side, layout.cols * side, 3), np.uint8)
            for row in range(layout.rows):
                for col in range(layout.cols):
                    tile = slide.read_tile(level, col, row)
                    canvas[row * side : (row + 1) * side, col * side : (col + 1) * side] = tile
            size = canvas.shape[1], canvas.shape[0]
            np.testing.assert_array_equal(canvas, slide.read((0, 0), level=level, size_px=size))
        with pytest.raises(IndexError, match="no \\(3, 0\\)"):
            slide.read_tile(0, 3, 0)
