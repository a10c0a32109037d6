"""Leica SCN: several areas on one glass slide."""

import numpy as np
import pytest

from tests.slides.placed_files import LEICA_2010_10, ScnArea, write_scn
from tests.slides.streamed import assert_streams_what_it_reads
from tests.slides.test_equals_openslide import assert_equal_everywhere
from tests.slides.tiff_files import tissue_like
from wsi_ips.errors import DamagedSlide, UnsupportedSlide
from wsi_ips.slides.base import Bounds
from wsi_ips.slides.openslide_reader import OpenSlideReader
from wsi_ips.slides.registry import open_slide
from wsi_ips.slides.tiff.layout import TiffReader
from wsi_ips.testing.readers import HEIGHT, MPP, WIDTH, ReaderContract, contract_image

GLASS = (1600, 1000)
TWO = (
    ScnArea(tissue_like(600, 424, seed=1), (101, 43)),
    ScnArea(tissue_like(344, 500, seed=2), (903.5, 207.5)),
)


class TestLeicaReader(ReaderContract):
    """The picture was scanned as two areas, one below the other."""

    @pytest.fixture(scope="class")
    @classmethod
    def drawn(cls, class_folder):
        path = class_folder / "slide.scn"
        image = contract_image()
        areas = [ScnArea(image[:200], (0, 0)), ScnArea(image[200:], (0, 200))]
        write_scn(path, areas, l0_size=(WIDTH, HEIGHT), mpp=MPP, compression="lzw")
        return path

    @pytest.fixture
    def slide(self, drawn):
        with TiffReader(drawn) as reader:
            assert reader.info.vendor == "leica"
            yield reader


@pytest.fixture(scope="module")
def two_areas(tmp_path_factory):
    path = tmp_path_factory.mktemp("scn") / "slide.scn"
    write_scn(path, TWO, l0_size=GLASS)
    return path


@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
@pytest.mark.parametrize("areas", [TWO, TWO[:1]])
def test_equals_openslide(tmp_path, areas, compression):
    path = tmp_path / "slide.scn"
    write_scn(path, areas, l0_size=GLASS, compression=compression)
    assert_equal_everywhere(path)
    with open_slide(path) as slide:
        assert (slide.info.reader, slide.info.vendor) == ("tiff", "leica")


def test_areas_that_lie_over_each_other_show_the_first(tmp_path):
    path = tmp_path / "slide.scn"
    areas = [ScnArea(tissue_like(300, 300, seed=n), (100 + 130 * n, 90 + 60 * n)) for n in range(3)]
    write_scn(path, areas, l0_size=(800, 700))
    assert_equal_everywhere(path)
    with TiffReader(path) as slide:
        assert_streams_what_it_reads(slide, patch_px=96)


def test_an_area_lies_at_its_place_cut_to_whole_pixels(tmp_path):
    path = tmp_path / "slide.scn"
    image, smaller = write_scn(path, TWO[1:], l0_size=GLASS, compression="lzw")
    with TiffReader(path) as slide:
        assert slide.info.bounds == Bounds(903, 207, 344, 500)
        np.testing.assert_array_equal(slide.read((903, 207), level=0, size_px=(344, 500)), image)
        np.testing.assert_array_equal(slide.read((902, 206), level=1, size_px=(172, 250)), smaller)
        assert (slide.read((0, 0), level=0, size_px=(903, 1000)) == 255).all()


def test_resolution_and_pictures(two_areas, tmp_path):
    with TiffReader(two_areas) as slide, OpenSlideReader(two_areas) as theirs:
        assert slide.info.mpp == theirs.info.mpp == 0.5
        assert slide.info.associated == (("macro", (64, 64)),)
        np.testing.assert_allclose(slide.read_associated("macro"), 200, atol=2)
        assert slide.info.left_out == ()
    path = tmp_path / "untagged.scn"
    write_scn(path, TWO[:1], l0_size=GLASS, resolution_tags=False, macro=False)
    with TiffReader(path) as slide:
        assert slide.info.mpp == pytest.approx(0.5)  # of the XML
        assert slide.info.associated == ()


@pytest.mark.parametrize(
    ("patch_px", "by", "zoom"),
    [(128, (0, 0), 1), (128, (101, 43), 1), (100, (-37, 9), 1), (128, (0, 0), 2), (90, (6, 4), 2)],
)
def test_streams(two_areas, patch_px, by, zoom):
    with TiffReader(two_areas) as slide:
        assert_streams_what_it_reads(slide, patch_px=patch_px, by=by, zoom=zoom)


def test_a_patch_that_is_a_tile_is_decoded_in_place(tmp_path):
    """The grid of patches begins at the area, so that most are tiles and none is kept."""
    path = tmp_path / "slide.scn"
    write_scn(path, TWO[:1], l0_size=GLASS)
    with TiffReader(path) as slide:
        places = slide.tile_layout(0).places
        corners = np.array([[101 + 128 * c, 43 + 128 * r, 128, 128] for r in range(3) for c in range(4)])
        assert places.under(corners).exact().tolist() == [5 * r + c for r in range(3) for c in range(4)]


def test_tiles_can_be_decoded_smaller_where_areas_lie_on_whole_pixels(tmp_path):
    path = tmp_path / "slide.scn"
    write_scn(path, [ScnArea(tissue_like(640, 512, seed=1), (104, 48), levels=1)], l0_size=GLASS)
    with TiffReader(path) as slide:
        assert slide.tile_scales(0) == (1, 2, 4, 8)
    write_scn(path, TWO, l0_size=GLASS)
    with TiffReader(path) as slide:
        assert slide.tile_scales(0) == (1,)


def test_a_tile_without_data_is_white_and_named(tmp_path):
    """OpenSlide opens such a slide and fails where the tile is read."""
    path = tmp_path / "slide.scn"
    image, _ = write_scn(path, TWO[:1], l0_size=GLASS, compression="lzw", empty_tiles=[0])
    with TiffReader(path) as slide:
        assert (slide.read((101, 43), level=0, size_px=(128, 128)) == 255).all()
        np.testing.assert_array_equal(slide.read((229, 43), level=0, size_px=(200, 99)), image[:99, 128:328])
        assert [left.what for left in slide.info.left_out] == ["1 tile of level 0"]


def test_other_illumination_and_focal_planes_are_left_out(tmp_path):
    path = tmp_path / "slide.scn"
    planes = ScnArea(tissue_like(300, 260, seed=3), (50, 60), planes=2, levels=2)
    fluorescent = ScnArea(tissue_like(200, 200, seed=4), (700, 300), illumination="fluorescence", levels=1)
    write_scn(path, [planes, fluorescent], l0_size=GLASS)
    assert_equal_everywhere(path)
    with TiffReader(path) as slide:
        reasons = {left.what: left.why for left in slide.info.left_out}
    assert reasons == {
        "page 2, 300x260 px": "another focal plane than the first",
        "page 4, 150x130 px": "another focal plane than the first",
        "page 5, 200x200 px": "its illumination is fluorescence, and only brightfield is read",
    }


@pytest.mark.parametrize(
    ("areas", "reason"),
    [
        ([ScnArea(TWO[0].image, (5, 5), illumination="fluorescence")], r"no brightfield.*: fluorescence\)"),
        ([], r"no brightfield image \(illumination: no image\)"),
        ([TWO[0], ScnArea(TWO[1].image, (900, 0), objective="40")], "several objectives"),
        ([TWO[0], ScnArea(TWO[1].image, (900, 0), levels=3)], "other levels"),
        ([TWO[0], ScnArea(TWO[1].image, (900, 0), stretch=1.03)], "other resolutions"),
    ],
)
def test_slides_that_are_no_pyramid_are_refused(tmp_path, areas, reason):
    """OpenSlide opens none of them either."""
    path = tmp_path / "slide.scn"
    write_scn(path, areas, l0_size=GLASS)
    with pytest.raises(UnsupportedSlide, match=reason):
        TiffReader(path)
    with pytest.raises(UnsupportedSlide):
        OpenSlideReader(path)


@pytest.mark.parametrize(
    "edit",
    [
        ("<scn ", '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><scn '),
        ("</scn>", ""),
        (f'xmlns="{LEICA_2010_10}"', f'xmlns="other" title="{LEICA_2010_10}"'),
        ('ifd="1"', 'ifd="999"'),
        ('ifd="1"', 'ifd="-1"'),
        ('ifd="2"', 'ifd="1"'),
        ('sizeX="600"', 'sizeX="0"'),
        ('sizeX="600"', 'sizeX="1"'),
        ('sizeX="600"', f'sizeX="{"9" * 5000}"'),
        ('sizeX="800000"', 'sizeX="-800000"'),
        ('sizeX="800000"', 'sizeX="99999999999999999999"'),
        ('offsetX="50500"', 'offsetX="many"'),
        ("<view ", "<vue "),
        ("<collection ", "<collected "),
    ],
)
def test_xml_that_cannot_be_is_refused(tmp_path, edit):
    path = tmp_path / "slide.scn"
    write_scn(path, TWO[:1], l0_size=GLASS, edit=edit)
    with pytest.raises(UnsupportedSlide, match=r"slide\.scn"):
        TiffReader(path)


@pytest.mark.parametrize("nm", ["-99999999999", str(2**62), str(-(10**30))])
def test_an_area_off_the_glass_is_refused(tmp_path, nm):
    path = tmp_path / "slide.scn"
    write_scn(path, TWO[:1], l0_size=GLASS, edit=('offsetX="50500"', f'offsetX="{nm}"'))
    with pytest.raises(DamagedSlide, match="lies off the slide"):
        TiffReader(path)
