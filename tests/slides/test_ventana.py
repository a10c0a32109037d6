"""Ventana's BIF: tiles laid out by the mean of their measured overlaps."""

import numpy as np
import pytest

from tests.slides.placed_files import BifArea, with_overlaps, write_bif
from tests.slides.streamed import assert_streams_what_it_reads
from tests.slides.test_equals_openslide import assert_equal_everywhere
from tests.slides.tiff_files import tissue_like
from wsi_ips.errors import DamagedSlide, UnsupportedSlide
from wsi_ips.slides.openslide_reader import OpenSlideReader
from wsi_ips.slides.registry import open_slide
from wsi_ips.slides.tiff.layout import TiffReader
from wsi_ips.testing.readers import HEIGHT, MPP, WIDTH, ReaderContract, contract_image

TILE = (128, 128)
OVERLAP = (16, 8)
MOSAIC = with_overlaps(tissue_like(5 * 112 + 16, 4 * 120 + 8, seed=4), TILE, OVERLAP)
"""5 x 4 tiles."""


class TestVentanaReader(ReaderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def drawn(cls, class_folder):
        path = class_folder / "slide.bif"
        mosaic = with_overlaps(contract_image(), (144, 144), (30, 4), tinted=False)
        write_bif(path, mosaic, [BifArea(5, 3)], overlap=(30, 4), tile=(144, 144), mpp=MPP, compression="lzw")
        return path

    @pytest.fixture
    def slide(self, drawn):
        with TiffReader(drawn) as reader:
            assert reader.info.levels[0].size == (WIDTH, HEIGHT)
            yield reader


@pytest.fixture(scope="module")
def three_levels(tmp_path_factory):
    path = tmp_path_factory.mktemp("bif") / "slide.bif"
    write_bif(path, MOSAIC, [BifArea(5, 4)], overlap=OVERLAP, levels=3)
    return path


@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_one_area_equals_openslide(tmp_path, compression, levels):
    path = tmp_path / "slide.bif"
    write_bif(path, MOSAIC, [BifArea(5, 4)], overlap=OVERLAP, levels=levels, compression=compression)
    assert_equal_everywhere(path)
    with open_slide(path) as slide:
        assert (slide.info.reader, slide.info.vendor, slide.info.mpp) == ("tiff", "ventana", 0.5)


@pytest.mark.parametrize(
    "areas",
    [
        [BifArea(2, 4, (0, 0)), BifArea(2, 2, (400, 96), start=(3, 1))],
        [BifArea(2, 2, (300, 600), start=(0, 0)), BifArea(3, 2, (4, 8), start=(2, 2))],
        [BifArea(2, 2, (0, 0)), BifArea(2, 2, (150, 60), start=(3, 2))],  # one over the other
        [BifArea(2, 4, (0, 0)), BifArea(2, 4, (0, 0), start=(3, 0), scanned=0)],
        [BifArea(1, 4, (40, -24)), BifArea(2, 4, ("200.0", "16"), start=(3, 0))],  # type: ignore[arg-type]
    ],
)
def test_several_areas_equal_openslide(tmp_path, areas):
    path = tmp_path / "slide.bif"
    write_bif(path, MOSAIC, areas, overlap=OVERLAP)
    assert_equal_everywhere(path)


def test_tiles_that_are_not_square_equal_openslide(tmp_path):
    path = tmp_path / "slide.bif"
    mosaic = with_overlaps(tissue_like(4 * 136 + 8, 3 * 80 + 16, seed=4), (144, 96), (8, 16))
    write_bif(path, mosaic, [BifArea(4, 3)], overlap=(8, 16), tile=(144, 96))
    assert_equal_everywhere(path)


def test_without_the_xml_that_lays_tiles_out_they_are_a_grid(tmp_path):
    path = tmp_path / "slide.tif"
    write_bif(path, tissue_like(640, 512), None, levels=3)
    assert_equal_everywhere(path)


@pytest.mark.parametrize("overlap", [(16.5, 8.25), (7.75, 0.5)])
def test_a_broken_advance_is_rounded_tile_by_tile(tmp_path, overlap):
    """Stored pixels are at most half a pixel from where OpenSlide has them, which interpolates."""
    path = tmp_path / "slide.bif"
    write_bif(path, MOSAIC, [BifArea(5, 4, (3, 0))], overlap=overlap, levels=1, compression="lzw")
    joints = 4 * 4, 3 * 5
    advance = [128 - np.floor(n * stated) / n for n, stated in zip(joints, overlap, strict=True)]
    assert any(step % 1 for step in advance)
    with TiffReader(path) as ours, OpenSlideReader(path) as theirs:
        assert ours.info.levels == theirs.info.levels
        covered = np.zeros(ours.info.l0_size[::-1], bool)
        for row in reversed(range(4)):
            for col in reversed(range(5)):
                exact = np.array([3 + col * advance[0], row * advance[1]])
                x, y = np.floor(exact + 0.5).astype(int)
                tile = MOSAIC[row * 128 : row * 128 + 128, col * 128 : col * 128 + 128]
                seen = ~covered[y : y + 128, x : x + 128]
                here = seen.shape[1], seen.shape[0]  # the last one may be cut by half a pixel
                region = ours.read((x, y), level=0, size_px=here)
                np.testing.assert_array_equal(region[seen], tile[: here[1], : here[0]][seen])
                covered[y : y + 128, x : x + 128] = True
        whole = ours.read((0, 0), level=0, size_px=ours.info.l0_size)
        assert (whole[~covered] == 255).all()
        # Where OpenSlide's places are whole, so is the equality: the lower left tile begins at column 3.
        bottom = round(3 * advance[1]) + 4
        if (3 * advance[1]) % 1 == 0:
            strip = ((3, bottom), 0, (100, 110))
            assert np.array_equal(
                *(reader.read(strip[0], level=0, size_px=strip[2]) for reader in (ours, theirs))
            )


@pytest.mark.parametrize("tile", [(144, 112), (80, 80)])
def test_parts_of_tiles_that_begin_between_pixels(tmp_path, tile):
    """A side of 80 px is 2.5 px of the sixth level: the levels still show the same field, without holes."""
    path = tmp_path / "slide.bif"
    smooth = np.linspace(40, 220, 8 * tile[0] * 6 * tile[1]).reshape(6 * tile[1], 8 * tile[0])
    mosaic = np.repeat(smooth.astype(np.uint8)[..., None], 3, axis=2)
    write_bif(path, mosaic, [BifArea(8, 6)], overlap=(0, 0), tile=tile, levels=6, compression="lzw")
    with TiffReader(path) as ours, OpenSlideReader(path) as theirs:
        assert ours.info.levels == theirs.info.levels
        for number, level in enumerate(ours.info.levels):
            width, height = level.size
            region = ours.read((0, 0), level=number, size_px=(width, height))
            row_means = region[..., 0].mean(axis=1)
            assert (region[: height - 1, : width - 1] < 255).all()
            assert np.abs(row_means[1:-1] - np.linspace(40, 220, height)[1:-1]).max() < 8


@pytest.mark.parametrize(
    ("patch_px", "by", "zoom"),
    [
        (128, (0, 0), 1),
        (112, (0, 0), 1),
        (100, (-37, 9), 1),
        (128, (0, 0), 2),
        (90, (6, 4), 2),
        (100, (4, 8), 4),
    ],
)
def test_streams(three_levels, patch_px, by, zoom):
    with TiffReader(three_levels) as slide:
        tiles = slide.tile_layout({1: 0, 2: 1, 4: 2}[zoom]).places.n_tiles
        assert assert_streams_what_it_reads(slide, patch_px=patch_px, by=by, zoom=zoom) == tiles


def test_pictures_and_what_is_left_out(three_levels, tmp_path):
    with TiffReader(three_levels) as slide:
        assert slide.info.associated == (("macro", (60, 40)), ("thumbnail", (30, 20)))
        assert (slide.read_associated("macro") == 222).all()
        assert (slide.read_associated("thumbnail") == 211).all()
        assert slide.info.left_out == ()
    path = tmp_path / "slide.bif"
    write_bif(path, MOSAIC, [BifArea(5, 4)], overlap=OVERLAP, empty_tiles=[7], compression="lzw")
    with TiffReader(path) as slide:
        assert [left.what for left in slide.info.left_out] == ["1 tile of level 0"]
        assert (slide.read((240, 140), level=0, size_px=(90, 90)) == 255).all()


def test_parts_that_a_coarser_image_does_not_hold_are_white_and_named(tmp_path):
    path = tmp_path / "slide.bif"
    wide = with_overlaps(tissue_like(8 * 112 + 16, 248, seed=4), TILE, OVERLAP)
    write_bif(path, wide, [BifArea(8, 2)], overlap=OVERLAP, levels=1)
    short = write_bif(path, wide, [BifArea(8, 2)], overlap=OVERLAP, levels=2, stored_share=0.5)[1]
    assert short.shape[1] == 256
    with TiffReader(path) as slide:
        assert [left.what for left in slide.info.left_out] == ["8 parts of level 1"]
        assert (slide.read((4 * 112 + 16, 0), level=1, size_px=(200, 120)) == 255).all()


@pytest.mark.parametrize(
    ("edit", "error", "reason"),
    [
        (("<EncodeInfo", '<!DOCTYPE x [<!ENTITY a "aa">]><EncodeInfo'), UnsupportedSlide, "document type"),
        (("</EncodeInfo>", ""), UnsupportedSlide, "cannot be understood"),
        (("EncodeInfo", "Other"), UnsupportedSlide, "cannot be understood"),
        (('NumCols="5"', 'NumCols="6"'), DamagedSlide, r"reaches to tile \(6, 4\) of an image of 5x4"),
        (('NumRows="4"', 'NumRows="1000000000"'), DamagedSlide, "reaches to tile"),
        (('NumCols="5"', 'NumCols="-5"'), DamagedSlide, "reaches to tile"),
        (('NumCols="5"', f'NumCols="{"9" * 5000}"'), UnsupportedSlide, "NumCols"),
        (('OriginX="0"', 'OriginX="-128"'), DamagedSlide, "reaches to tile"),
        (('OriginX="0"', 'OriginX="5"'), UnsupportedSlide, "does not begin at a tile"),
        (('Width="128"', 'Width="64"'), UnsupportedSlide, "tiles of other sizes"),
        (('Pos-X="0"', 'Pos-X="nan"'), UnsupportedSlide, "Pos-X"),
        (('Pos-X="0"', 'Pos-X="999999999"'), DamagedSlide, "its header states"),
        (('OverlapX="16"', 'OverlapX="128"'), DamagedSlide, "0.0 px apart"),
        (('OverlapX="16"', 'OverlapX="127"'), None, ""),
        (('OverlapY="8"', 'OverlapY="-1000"'), DamagedSlide, "1128.0 px apart"),
        (('Direction="UP"', 'Direction="DOWN"'), UnsupportedSlide, "'DOWN'"),
        (('Confidence="98"', 'Confidence="x"'), UnsupportedSlide, "Confidence"),
        (("AOI0", "!"), UnsupportedSlide, "cannot be understood"),
        (('AOIScanned="1"', 'AOIScanned="0"'), UnsupportedSlide, "no area that was scanned"),
        (("<AOI0 ", "<AOI1/><AOI0 "), UnsupportedSlide, "1 areas and 2 origins"),
    ],
)
def test_xml_that_cannot_be_is_refused(tmp_path, edit, error, reason):
    path = tmp_path / "slide.bif"
    write_bif(path, MOSAIC, [BifArea(5, 4)], overlap=OVERLAP, edit=edit)
    if error is None:  # five tiles within five pixels of each other are odd, but no harm
        TiffReader(path).close()
        return
    with pytest.raises(error, match=reason):
        TiffReader(path)


@pytest.mark.parametrize(
    ("magnifications", "reason"),
    [
        ([20, 20], "not ordered"),
        ([20, 40], "not ordered"),
        ([20, 0], "do not follow"),
        ([20, 8], "2.5 times"),
    ],
)
def test_levels_that_are_no_pyramid_are_refused(tmp_path, magnifications, reason):
    path = tmp_path / "slide.bif"
    write_bif(path, MOSAIC, [BifArea(5, 4)], overlap=OVERLAP, magnifications=magnifications)
    with pytest.raises(UnsupportedSlide, match=reason):
        TiffReader(path)


def test_without_a_trusted_joint_tiles_lie_side_by_side(tmp_path):
    """OpenSlide divides by zero there."""
    path = tmp_path / "slide.bif"
    write_bif(path, MOSAIC, [BifArea(5, 4)], overlap=OVERLAP, joints=False, compression="lzw")
    with TiffReader(path) as slide:
        assert slide.info.l0_size == (640, 512)
        np.testing.assert_array_equal(slide.read((0, 0), level=0, size_px=(640, 512)), MOSAIC)


@pytest.mark.parametrize("mpp", ["nan", "0", "", "none"])
def test_a_resolution_that_cannot_be_is_unknown(tmp_path, mpp):
    path = tmp_path / "slide.bif"
    write_bif(path, MOSAIC, [BifArea(5, 4)], overlap=OVERLAP, mpp=mpp)
    with TiffReader(path) as slide:
        assert slide.info.mpp is None
