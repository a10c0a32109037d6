"""Philips TIFF: levels, places and pixels are OpenSlide's, and what OpenSlide refuses is refused."""

import numpy as np
import openslide
import pytest

from tests.slides.philips_files import philips_xml, picture_jpeg, write_philips
from tests.slides.test_equals_openslide import assert_equal_everywhere
from tests.slides.tiff_files import tissue_like
from tests.slides.tiff_pages import Page
from wsi_ips.config import StreamingConfig
from wsi_ips.errors import ConfigError, SlideReadError, UnsupportedSlide
from wsi_ips.slides import open_slide
from wsi_ips.slides.base import AssociatedReader
from wsi_ips.slides.openslide_reader import OpenSlideReader
from wsi_ips.slides.tiff import directories as metadata_xml
from wsi_ips.slides.tiff.layout import TiffReader
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.testing.readers import MPP, ReaderContract, contract_image
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.units import Mpp


@pytest.fixture
def path(tmp_path):
    return tmp_path / "slide.tiff"


class TestPhilipsTiff(ReaderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def drawn(cls, class_folder):
        path = class_folder / "slide.tiff"
        xml = philips_xml([1, 2], mpp_xy=(MPP, MPP))
        write_philips(
            path, contract_image(), factors=(1, 2), tile=128, padded=False, compression="lzw", xml=xml
        )
        return path

    @pytest.fixture
    def slide(self, drawn):
        with TiffReader(drawn) as reader:
            yield reader


@pytest.mark.parametrize("tile", [64, 128])
def test_padded_levels_have_the_size_that_their_spacing_says(path, tile):
    write_philips(path, tissue_like(1152, 1024), factors=(1, 2, 4, 8, 16), tile=tile)
    with open_slide(path) as slide:
        assert (slide.info.reader, slide.info.vendor) == ("tiff", "philips")
        assert [level.size for level in slide.info.levels] == [
            (1152, 1024),
            (576, 512),
            (288, 256),
            (144, 128),
            (72, 64),
        ]
        assert [level.downsample for level in slide.info.levels] == [1, 2, 4, 8, 16]
        assert slide.info.mpp_xy == pytest.approx((0.25, 0.25))
        assert (slide.info.bounds, slide.info.left_out, slide.info.associated) == (None, (), ())
    assert_equal_everywhere(path)


def test_level_0_is_as_large_as_its_image_padding_included(path):
    write_philips(path, tissue_like(1000, 700), factors=(1, 2, 4))
    with TiffReader(path) as slide:
        assert [level.size for level in slide.info.levels] == [(1024, 768), (512, 384), (256, 192)]
    assert_equal_everywhere(path)


def test_levels_that_are_not_padded(path):
    write_philips(path, tissue_like(1500, 1200), factors=(1, 4, 16), padded=False)
    with TiffReader(path) as slide:
        assert [level.size for level in slide.info.levels] == [(1500, 1200), (375, 300), (93, 75)]
    assert_equal_everywhere(path)


def test_tiles_without_data_are_white_at_every_level(path):
    write_philips(path, tissue_like(1280, 1024), factors=(1, 2, 4), empty_tiles=[[0, 7], [2], [0, 1]])
    with TiffReader(path) as slide:
        assert (slide.read((0, 0), level=0, size_px=(256, 256)) == 255).all()
        assert (slide.read((1024, 0), level=1, size_px=(128, 256)) == 255).all()
        assert (slide.read((256, 0), level=0, size_px=(256, 256)) < 255).any()
    assert_equal_everywhere(path)


def test_spacings_are_rounded_to_whole_factors(path):
    xml = philips_xml([1, 2.01, 3.96])
    write_philips(path, tissue_like(1280, 1024), factors=(1, 2, 4), xml=xml)
    with TiffReader(path) as slide:
        assert [level.downsample for level in slide.info.levels] == [1, 2, 4]
    assert_equal_everywhere(path)


def test_the_resolution_is_that_of_the_slide_not_of_its_levels(path):
    xml = philips_xml([1, 2, 4], mpp_xy=(0.2427, 0.2425), l0_mpp_xy=(0.3, 0.3))
    write_philips(path, tissue_like(1280, 1024), xml=xml)
    with TiffReader(path) as slide, OpenSlideReader(path) as theirs:
        assert slide.info.mpp_xy == pytest.approx((0.2427, 0.2425))
        assert slide.info.mpp_xy == pytest.approx(theirs.info.mpp_xy)


@pytest.mark.parametrize(
    "change",
    [
        {"xml": philips_xml([1, 2, 4], root='<DataObject ObjectType="Other">')},
        {"xml": philips_xml([1, 2, 4], root="<DataObject>")},
        {"xml": "<Slide ObjectType='DPUfsImport'/>"},
        {"xml": philips_xml([1, 2, 4])[:-5]},
        {"xml": "no XML at all"},
        {"software": "Other v1.0"},
    ],
)
def test_without_software_and_xml_it_is_a_generic_tiff(path, change):
    write_philips(path, tissue_like(1152, 1024), tile=128, **change)
    with open_slide(path) as slide, OpenSlideReader(path) as theirs:
        assert (slide.info.reader, slide.info.vendor) == ("tiff", "generic-tiff")
        assert slide.info.levels == theirs.info.levels
        assert slide.info.levels[1].downsample == pytest.approx((1152 / 640 + 2) / 2)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"xml": philips_xml([1, 2, 4], slides=0)}, "describes 0 whole-slide images"),
        ({"xml": philips_xml([1, 2, 4], slides=2)}, "describes 2 whole-slide images"),
        ({"xml": philips_xml([1, 2])}, "spacings of 2 levels, and it has 3"),
        ({"xml": philips_xml([1, 2, 4, 8])}, "spacings of 4 levels, and it has 3"),
        ({"xml": philips_xml([1, 4, 2])}, "levels of 1/1, 1/4, 1/2"),
        ({"xml": philips_xml([1, 2, 4]).replace("&quot; &quot;", "&quot;&quot;")}, "pixel spacing"),
        ({"xml": philips_xml([1, 2, 4]).replace("0.00025", "nan")}, "pixel spacing"),
        ({"marked": False}, "image 1 is not marked as a reduced one"),
        (
            {"more": [Page(tissue_like(2048, 2048), subfile_type=1)], "xml": philips_xml([1, 2, 4, 8])},
            "ordered",
        ),
    ],
)
def test_what_openslide_refuses_is_refused(path, options, reason):
    write_philips(path, tissue_like(1280, 1024), **options)
    with pytest.raises(openslide.OpenSlideError):
        openslide.OpenSlide(path)
    with pytest.raises(UnsupportedSlide, match=reason):
        TiffReader(path)
    with pytest.raises(UnsupportedSlide, match="openslide: "):
        open_slide(path)


def test_a_tiled_macro_is_no_level(path):
    """OpenSlide counts it and refuses the slide."""
    macro = Page(tissue_like(600, 250), subfile_type=1)
    write_philips(path, tissue_like(1280, 1024), more=[macro])
    with open_slide(path) as slide:
        assert [level.downsample for level in slide.info.levels] == [1, 2, 4]
        (left_out,) = slide.info.left_out
        assert left_out.what == "page 3, 600x250 px"
        assert "shape" in left_out.why


def test_a_level_that_is_not_as_large_as_its_spacing_says_is_left_out(path):
    xml = philips_xml([1, 2, 16])
    write_philips(path, tissue_like(1152, 1024), tile=128, xml=xml)
    with open_slide(path) as slide:
        assert [level.downsample for level in slide.info.levels] == [1, 2]
        assert [left.what for left in slide.info.left_out] == ["page 2, 384x256 px"]
        assert "1/16" in slide.info.left_out[0].why


def as_openslide_has_it(path, name):
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.associated_images[name])[..., :3]


def test_label_and_macro_are_images_of_their_own_or_in_the_xml(path):
    macro, label = tissue_like(310, 140, seed=1), tissue_like(90, 80, seed=2)
    page = Page(label, tile=0, compression="lzw", description="Label -offset=(0,0)")
    xml = philips_xml([1, 2, 4], macro=macro, label=tissue_like(50, 50))
    write_philips(path, tissue_like(1280, 1024), xml=xml, more=[page])
    with open_slide(path) as slide:
        assert isinstance(slide, AssociatedReader)
        assert slide.info.associated == (("label", (90, 80)), ("macro", (310, 140)))
        np.testing.assert_array_equal(slide.read_associated("label"), label)
        for name in ("label", "macro"):
            np.testing.assert_array_equal(slide.read_associated(name), as_openslide_has_it(path, name))
        assert slide.info.left_out == ()
        with pytest.raises(ConfigError, match="it has label, macro"):
            slide.read_associated("thumbnail")


def test_a_picture_in_the_xml_that_cannot_be_understood_is_passed_over(path):
    xml = philips_xml([1, 2, 4], label=tissue_like(50, 50), macro=tissue_like(60, 50))
    start = xml.index("/9j/")
    write_philips(path, tissue_like(1280, 1024), xml=xml[:start] + "AAAA" + xml[start + 4 :])
    with open_slide(path) as slide:
        assert slide.info.associated == (("label", (50, 50)),)


def test_a_picture_that_claims_more_than_its_bytes_hold_is_not_decoded(path, monkeypatch):
    jpeg = bytearray(picture_jpeg(tissue_like(60, 50)))
    frame = jpeg.index(b"\xff\xc0")
    for size, shown in ((b"\xff\xff\xff\xff", False), (b"\x10\x00\x10\x00", True)):
        jpeg[frame + 5 : frame + 9] = size
        monkeypatch.setattr("tests.slides.philips_files.picture_jpeg", lambda image: bytes(jpeg))
        write_philips(path, tissue_like(1280, 1024), xml=philips_xml([1, 2, 4], macro=tissue_like(60, 50)))
        with open_slide(path) as slide:
            assert bool(slide.info.associated) is shown
            if shown:
                with pytest.raises(SlideReadError, match="4096x4096 px picture"):
                    slide.read_associated("macro")


def test_xml_is_read_within_bounds(path, monkeypatch):
    entity = '<!DOCTYPE x [<!ENTITY a "b">]>'
    hostile = [
        philips_xml([1, 2, 4]).replace("?>", "?>" + entity),
        philips_xml([1, 2, 4]).replace("PHILIPS", "<a>" * 150_000 + "</a>" * 150_000),
        philips_xml([1, 2, 4]).replace(
            "PHILIPS", "<a " + " ".join(f'a{i}="1"' for i in range(300_000)) + "/>"
        ),
    ]
    for xml in hostile:
        write_philips(path, tissue_like(640, 512), xml=xml)
        with pytest.raises(UnsupportedSlide, match="its XML"):
            TiffReader(path)
    write_philips(path, tissue_like(640, 512))
    TiffReader(path).close()
    monkeypatch.setattr(metadata_xml, "MOST_CHARACTERS", 100)
    with pytest.raises(UnsupportedSlide, match="larger"):
        TiffReader(path)


def test_a_long_picture_in_the_xml(path):
    """libxml2, and so OpenSlide, stops at 10 MB of text and takes the file for a generic TIFF."""
    noise = np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), np.uint8)
    xml = philips_xml([1, 2, 4], macro=noise)
    assert len(xml) > 10_000_000
    write_philips(path, tissue_like(1152, 1024), tile=128, xml=xml)
    with open_slide(path) as slide, OpenSlideReader(path) as theirs:
        assert (slide.info.vendor, theirs.info.vendor) == ("philips", "generic-tiff")
        assert slide.read_associated("macro").shape == noise.shape


@pytest.mark.parametrize("l0_offset", [0, 37])
@pytest.mark.parametrize("zoom", [1, 2])
def test_streams_as_regions(path, l0_offset, zoom):
    """Patches on tiles and off them, beyond the padded levels' true edge too."""
    write_philips(path, tissue_like(1152, 900), factors=(1, 2, 4), empty_tiles=[[3], [1]])
    with TiffReader(path) as slide:
        side = 128
        xy_N2 = np.stack(
            np.meshgrid(np.arange(0, 1240, side * zoom), np.arange(0, 980, side * zoom)), axis=-1
        ).reshape(-1, 2)
        xy_N2 = (xy_N2 + l0_offset).astype(np.int64)
        coords = PatchCoords(
            slide_id="slide",
            l0_size=slide.info.l0_size,
            slide_mpp=Mpp(0.25),
            patch_px=side,
            patch_mpp=Mpp(0.25 * zoom),
            overlap_px=0,
            l0_patch=float(side * zoom),
            g_size=(len(xy_N2), 1),
            ids_N=np.arange(len(xy_N2)),
            l0_xy_N2=xy_N2,
            tissue_N=np.ones(len(xy_N2), np.float32),
        )
        read = {
            int(patch): pixels_3PP.transpose(1, 2, 0)
            for chunk in PatchStream(slide, coords, config=StreamingConfig(threads=2, batch=7))
            for patch, pixels_3PP in zip(chunk.ids_n, chunk.pixels_n3PP.numpy().copy(), strict=True)
        }
        assert len(read) == len(xy_N2)
        for number, (x, y) in enumerate(xy_N2.tolist()):
            region = slide.read((x, y), level=zoom - 1, size_px=(side, side))
            np.testing.assert_array_equal(read[number], region)
