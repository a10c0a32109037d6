"""Trestle's TIFF: tiles that overlap."""

import numpy as np
import pytest
import simplejpeg
import tifffile

from tests.slides.placed_files import with_overlaps, write_trestle
from tests.slides.streamed import assert_streams_what_it_reads
from tests.slides.test_equals_openslide import assert_equal_everywhere
from tests.slides.tiff_files import halved, tissue_like, write_pyramid
from wsi_ips.errors import DamagedSlide, UnsupportedSlide
from wsi_ips.slides.openslide_reader import OpenSlideReader
from wsi_ips.slides.registry import open_slide
from wsi_ips.slides.tiff.layout import TiffReader
from wsi_ips.testing.readers import HEIGHT, MPP, WIDTH, ReaderContract, contract_image

IMAGE = tissue_like(640, 500, seed=3)


def overlapping(tile=(128, 128), first=(32, 16), second=(16, 8)):
    """Two levels as they are stored."""
    return [with_overlaps(IMAGE, tile, first), with_overlaps(halved(IMAGE), tile, second)]


class TestTrestleReader(ReaderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def drawn(cls, class_folder):
        path = class_folder / "slide.tif"
        image = contract_image()
        levels = [
            with_overlaps(picture, (128, 128), overlap, tinted=False)
            for picture, overlap in ((image, (32, 16)), (halved(image), (16, 64)))
        ]
        write_trestle(path, levels, overlaps="32 16 16 64", mpp=MPP, compression="lzw")
        return path

    @pytest.fixture
    def slide(self, drawn):
        with TiffReader(drawn) as reader:
            assert reader.info.levels[0].size == (WIDTH, HEIGHT)
            yield reader


@pytest.fixture(scope="module")
def two_levels(tmp_path_factory):
    path = tmp_path_factory.mktemp("trestle") / "slide.tif"
    write_trestle(path, overlapping(), overlaps="32 16 16 8", mpp=0.25)
    return path


@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
@pytest.mark.parametrize("tile", [(128, 128), (144, 96)])
def test_equals_openslide(tmp_path, compression, tile):
    path = tmp_path / "slide.tif"
    write_trestle(path, overlapping(tile), overlaps="32 16 16 8", tile=tile, compression=compression)
    assert_equal_everywhere(path)
    with open_slide(path) as slide:
        assert (slide.info.reader, slide.info.vendor, slide.info.mpp) == ("tiff", "trestle", 0.5)
        assert slide.info.l0_size == (640, 500)


@pytest.mark.parametrize("overlaps", [None, "", "0 0", "24 8", "24 8 16", "0 9 0 9 77 77"])
def test_overlaps_of_some_levels_or_none(tmp_path, overlaps):
    path = tmp_path / "slide.tif"
    write_trestle(path, [tissue_like(512, 512, seed=1)], overlaps=overlaps)
    assert_equal_everywhere(path)


def test_of_two_tiles_the_lower_right_one_is_seen(two_levels):
    """Tiles are told apart by their brightness."""
    with TiffReader(two_levels) as slide:
        tiles = {(c, r): slide.read_tile(0, c, r) for c in (0, 1) for r in (0, 1)}
        corner = slide.read((96, 112), level=0, size_px=(32, 16))
        np.testing.assert_array_equal(corner, tiles[1, 1][:16, :32])
        np.testing.assert_array_equal(slide.read((96, 0), level=0, size_px=(32, 112)), tiles[1, 0][:112, :32])
        assert np.abs(tiles[0, 0][:112, 96:].astype(int) - tiles[1, 0][:112, :32]).mean() > 5


def test_downsamples_are_those_of_sizes_without_overlaps(tmp_path):
    path = tmp_path / "slide.tif"
    write_trestle(path, [tissue_like(520, 520, seed=2), tissue_like(260, 260)], overlaps="10 12 3 1")
    with TiffReader(path) as ours, OpenSlideReader(path) as theirs:
        assert ours.info.levels == theirs.info.levels
        assert ours.info.levels[1].downsample not in (1.0, 2.0)


@pytest.mark.parametrize(
    ("patch_px", "by", "zoom"),
    [(128, (0, 0), 1), (96, (0, 0), 1), (100, (-37, 9), 1), (128, (0, 0), 2), (90, (6, 4), 2)],
)
def test_streams(two_levels, patch_px, by, zoom):
    with TiffReader(two_levels) as slide:
        tiles = slide.tile_layout(zoom - 1).places.n_tiles
        assert assert_streams_what_it_reads(slide, patch_px=patch_px, by=by, zoom=zoom) == tiles


def test_a_tile_without_data_covers_nothing(tmp_path):
    """What neighbours show of its place is seen; the rest is white. OpenSlide fails there."""
    path = tmp_path / "slide.tif"
    write_trestle(path, overlapping(), overlaps="32 16 16 8", empty_tiles=[1])
    with TiffReader(path) as slide:
        assert (slide.read((128, 0), level=0, size_px=(64, 112)) == 255).all()
        left = slide.read_tile(0, 0, 0)
        np.testing.assert_array_equal(slide.read((96, 0), level=0, size_px=(32, 112)), left[:112, 96:])
        assert [left.what for left in slide.info.left_out] == ["1 tile of level 0"]


def test_the_macro_beside_the_slide(tmp_path):
    path = tmp_path / "slide.tif"
    write_trestle(path, overlapping(), overlaps="32 16 16 8")
    macro = tissue_like(96, 64, seed=9)
    (tmp_path / "slide.Full").write_bytes(simplejpeg.encode_jpeg(macro, 95, "RGB", "444"))
    with TiffReader(path) as slide:
        assert slide.info.associated == (("macro", (96, 64)),)
        assert np.abs(slide.read_associated("macro").astype(int) - macro).mean() < 5
    (tmp_path / "slide.Full").write_bytes(b"\xff\xd8 no JPEG")
    with TiffReader(path) as slide:
        assert slide.info.associated == ()
        assert slide.info.left_out[0].what == "the macro beside it, slide.Full"


def test_a_file_without_description_is_no_trestle(tmp_path):
    path = tmp_path / "slide.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(IMAGE, photometric="rgb", tile=(128, 128), software="MedScan", metadata=None)
    with TiffReader(path) as ours, OpenSlideReader(path) as theirs:
        assert ours.info.vendor == theirs.info.vendor == "generic-tiff"


def test_other_programs_files_are_no_trestle(tmp_path):
    path = tmp_path / "slide.tif"
    write_trestle(path, overlapping()[:1], software="Other")
    assert_equal_everywhere(path)
    write_pyramid(path, IMAGE)
    with TiffReader(path) as slide:
        assert slide.info.vendor == "generic-tiff"


@pytest.mark.parametrize(
    ("overlaps", "error", "reason"),
    [
        ("128 0", DamagedSlide, "overlap by 128x0"),
        ("0 999999999", DamagedSlide, "overlap by"),
        ("127 127", DamagedSlide, "over each other"),
        ("-5 0", UnsupportedSlide, "no numbers: -5 0"),
        ("many", UnsupportedSlide, "no numbers: many"),
        ("9" * 5000, UnsupportedSlide, "no numbers: 999"),
    ],
)
def test_overlaps_that_cannot_be_are_refused(tmp_path, overlaps, error, reason):
    path = tmp_path / "slide.tif"
    write_trestle(path, [np.full((128 * 12, 128 * 12, 3), 9, np.uint8)], overlaps=overlaps)
    with pytest.raises(error, match=reason):
        TiffReader(path)
