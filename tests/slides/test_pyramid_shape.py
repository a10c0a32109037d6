"""What in a TIFF is a level, what is a picture, and what is left out: by shape, marks and names."""

import pickle

import numpy as np
import openslide
import pytest
import tifffile

from tests.slides.test_equals_openslide import APERIO, assert_equal_everywhere
from tests.slides.test_huron_argos import argos_xml, assert_same_pictures, make
from tests.slides.tiff_files import tissue_like, write_pyramid
from tests.slides.tiff_pages import Page, reduced, write_pages
from wsi_ips.config import TilingConfig
from wsi_ips.errors import SlideReadError, UnsupportedSlide
from wsi_ips.slides import open_slide
from wsi_ips.slides.base import Bounds
from wsi_ips.slides.openslide_reader import OpenSlideReader
from wsi_ips.slides.tiff.generic import of_one_shape
from wsi_ips.slides.tiff.layout import TiffReader
from wsi_ips.tiling.contours import l0_origin
from wsi_ips.tiling.patches import tile_slide

CONTAINERS = {
    "generic-tiff": {},
    "aperio": {"description": APERIO},
    "huron": {"extra_tags": [make("Huron X")], "description": "a=b"},
    "argos": {"extra_tags": [argos_xml(0, 0)]},
}


def test_a_macro_that_is_marked_as_reduced(cases_folder):
    """It was taken for a level: patches were read from it, none of them on tissue."""
    with open_slide(cases_folder / "levels" / "macro_as_level.tif") as slide:
        assert [level.size for level in slide.info.levels] == [(4096, 4096)]
        (left_out,) = slide.info.left_out
        assert left_out.what == "page 1, 600x250 px"
        assert "shape" in left_out.why
        config = TilingConfig(patch_px=256, patch_mpp=0.5)
        assert len(tile_slide(slide, config, slide_id="slide")[0]) == 16


@pytest.mark.parametrize("vendor", CONTAINERS)
@pytest.mark.parametrize(
    ("size", "padded"), [((600, 250), False), ((250, 300), False), ((500, 200), True), ((130, 500), True)]
)
def test_an_image_of_another_shape_is_no_level(tmp_path, vendor, size, padded):
    path = tmp_path / "slide.tif"
    slide = tissue_like(1536, 1408)
    macro = Page(tissue_like(*size), tile=128, padded=padded, subfile_type=1)
    pages = [
        Page(slide, mpp=0.25, **CONTAINERS[vendor]),
        Page(reduced(slide, 2), subfile_type=1),
        Page(reduced(slide, 4), subfile_type=1),
        macro,
    ]
    write_pages(path, pages)
    with open_slide(path) as slide:
        assert (slide.info.reader, slide.info.vendor) == ("tiff", vendor)
        assert [level.size for level in slide.info.levels] == [(1536, 1408), (768, 704), (384, 352)]
        assert ["page 3" in left.what and "shape" in left.why for left in slide.info.left_out] == [True]


@pytest.mark.parametrize("vendor", CONTAINERS)
@pytest.mark.parametrize(
    ("size", "tile", "factors"),
    [
        ((1152, 1024), 128, (1, 2, 4, 8, 16)),  # as Philips pads them
        ((1301, 977), 256, (1, 2, 4, 8, 16, 32)),  # the last ones lie within one tile
        ((1500, 80), 64, (1, 2, 4, 8, 16, 64)),
    ],
)
@pytest.mark.parametrize("padded", [True, False])
def test_rounded_and_padded_levels_are_levels(tmp_path, vendor, size, tile, factors, padded):
    path = tmp_path / "slide.tif"
    slide = tissue_like(*size)
    pages = [
        Page(
            reduced(slide, factor) if factor > 1 else slide,
            tile=tile,
            padded=padded and factor > 1,
            subfile_type=int(factor > 1),
            **(CONTAINERS[vendor] if factor == 1 else {}),
        )
        for factor in factors
    ]
    if vendor == "argos":  # two widths alike would begin another focal plane
        pages = [page for at, page in enumerate(pages) if at < 3]
    write_pages(path, pages)
    with open_slide(path) as slide, OpenSlideReader(path) as theirs:
        assert slide.info.reader == "tiff"
        assert len(slide.info.levels) == len(pages)
        assert slide.info.levels == theirs.info.levels


def test_levels_of_camelyon16():
    """The stated sizes of normal_001.tif, were it read without its XML."""

    class Image:
        def __init__(self, number, size):
            self.number, self.size = number, size

        def integer(self, code):
            return 512

    sizes = [(97792, 221184), (49152, 110592), (24576, 55296), (12288, 27648), (6144, 13824), (3072, 7168),
             (1536, 3584), (1024, 2048), (512, 1024), (512, 512)]  # fmt: skip
    images = [Image(number, size) for number, size in enumerate([*sizes, (2048, 1024), (1600, 700)])]
    levels, why = of_one_shape(images)
    assert [image.size for image in levels] == sizes
    assert set(why) == {10, 11}


def test_the_slide_is_the_largest_image_not_the_widest(tmp_path):
    path = tmp_path / "slide.tif"
    image = tissue_like(512, 2048)
    write_pages(path, [Page(image, mpp=0.5), Page(tissue_like(700, 250), subfile_type=1)])
    with open_slide(path) as slide:
        assert [level.size for level in slide.info.levels] == [(512, 2048)]


def test_pictures_of_aperio(real_data, tmp_path):
    path = real_data / "slides" / "CMU-1-Small-Region.svs"
    with open_slide(path) as slide:
        assert slide.info.associated == (
            ("label", (387, 463)),
            ("macro", (1280, 431)),
            ("thumbnail", (574, 768)),
        )
        assert slide.info.left_out == ()
    assert_same_pictures(path)


def test_pictures_of_a_generic_tiff_are_named_by_their_descriptions(tmp_path):
    path = tmp_path / "slide.tif"
    macro = tissue_like(300, 120)
    pages = [
        Page(tissue_like(640, 512)),
        Page(macro, tile=0, compression="lzw", description="Macro image"),
        Page(tissue_like(60, 50), tile=0, compression="lzw", description="scanned\nlabel 60x50"),
        Page(tissue_like(64, 50), tile=0, compression="lzw", description="something else"),
        Page(tissue_like(400, 100), subfile_type=1, description="thumbnail"),
    ]
    write_pages(path, pages)
    with open_slide(path) as slide:
        assert dict(slide.info.associated) == {
            "label": (60, 50),
            "macro": (300, 120),
            "thumbnail": (400, 100),
        }
        np.testing.assert_array_equal(slide.read_associated("macro"), macro)
        assert slide.read_associated("thumbnail").shape == (100, 400, 3)
        assert [left.what for left in slide.info.left_out] == ["page 3, 64x50 px", "page 4, 400x100 px"]


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "reason"),
    [
        ((40, 50, 3), np.uint16, {"photometric": "rgb"}, "16 bits"),
        (
            (40, 50),
            np.uint8,
            {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)},
            "PALETTE",
        ),
        ((40, 50, 4), np.uint8, {"photometric": "separated"}, "SEPARATED"),
    ],
)
def test_a_picture_whose_colours_would_be_wrong_is_refused(tmp_path, shape, dtype, options, reason):
    path = tmp_path / "slide.tif"
    image = tissue_like(300, 300)
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, tile=(128, 128), photometric="rgb", metadata=None)
        writer.write(np.zeros(shape, dtype), description="label", metadata=None, **options)
    with open_slide(path) as slide:
        assert slide.info.associated == (("label", (50, 40)),)
        with pytest.raises(SlideReadError, match=reason):
            slide.read_associated("label")
        np.testing.assert_array_equal(slide.read((0, 0), level=0, size_px=(300, 300)), image)


def test_sub_images_are_named_as_left_out(tmp_path):
    path = tmp_path / "slide.tif"
    image = tissue_like(640, 512)
    with tifffile.TiffWriter(path) as writer:
        options = {"tile": (256, 256), "photometric": "rgb", "metadata": None}
        writer.write(image, subifds=2, **options)
        writer.write(reduced(image, 2), subfiletype=1, **options)
        writer.write(reduced(image, 4), subfiletype=1, **options)
    with open_slide(path) as slide:
        assert [left.what for left in slide.info.left_out] == ["2 sub-images of page 0"]


@pytest.mark.parametrize(
    ("empty", "bounds"),
    [
        ((), None),
        ((5,), None),
        ((0, 1, 2, 3, 4, 8, 12), Bounds(256, 256, 744, 644)),
        ((3, 7, 11, 15, 12, 13, 14), Bounds(0, 0, 768, 768)),
        (tuple(range(15)), Bounds(768, 768, 232, 132)),
    ],
)
def test_bounds_are_the_hull_of_the_tiles_that_hold_data(tmp_path, empty, bounds):
    path = tmp_path / "slide.tif"
    write_pyramid(path, tissue_like(1000, 900), empty_tiles=empty)
    with TiffReader(path) as slide:
        assert slide.info.bounds == bounds
    assert_equal_everywhere(path)


def test_patches_of_a_sparse_slide_are_those_of_openslide(tmp_path):
    """Bounds say where a viewer begins to count; patches are counted from the slide's corner."""
    path = tmp_path / "slide.tif"
    image = np.full((1024, 1024, 3), 245, np.uint8)
    image[300:900, 300:900] = (150, 60, 140)
    write_pyramid(path, image, levels=3, empty_tiles=(0, 1, 2, 3, 4, 8, 12))
    config = TilingConfig(patch_px=64, patch_mpp=0.5)
    found = []
    for reader in (TiffReader, OpenSlideReader):
        with reader(path) as slide:
            assert slide.info.bounds == Bounds(256, 256, 768, 768)
            assert l0_origin(slide.info) == (256, 256)
            found.append(tile_slide(slide, config, slide_id="slide")[0].l0_xy_N2)
    np.testing.assert_array_equal(*found)
    assert len(found[0]) > 50


def test_a_slide_without_any_tile_has_no_bounds(tmp_path):
    path = tmp_path / "slide.tif"
    write_pyramid(path, tissue_like(500, 500), empty_tiles=range(4))
    with TiffReader(path) as slide:
        assert slide.info.bounds is None
        assert (slide.read((0, 0), level=0, size_px=(500, 500)) == 255).all()


def test_a_profile_is_told_of(tmp_path):
    path = tmp_path / "slide.tif"
    profile = (34675, 7, 8, b"profile!", True)
    for tags, told in (([profile], True), ((), False)):
        write_pages(path, [Page(tissue_like(300, 300), extra_tags=tags)])
        with TiffReader(path) as slide:
            assert slide.info.icc_profile is told


@pytest.mark.parametrize("vendor", CONTAINERS)
def test_openslides_reader_leaves_it_out_as_well(tmp_path, vendor):
    """The native reader leaves some files to it. The macro stands between two levels, so numbers shift."""
    path = tmp_path / "slide.tif"
    slide = tissue_like(1536, 1408)
    pages = [
        Page(slide, mpp=0.25, **CONTAINERS[vendor]),
        Page(tissue_like(600, 400), subfile_type=1),
        Page(reduced(slide, 4), subfile_type=1),
    ]
    write_pages(path, pages)
    with OpenSlideReader(path) as theirs, TiffReader(path) as ours:
        assert theirs.info.levels == ours.info.levels
        assert [level.size for level in theirs.info.levels] == [(1536, 1408), (384, 352)]
        assert ["600x400" in left.what and "shape" in left.why for left in theirs.info.left_out] == [True]
        for reader in (theirs, pickle.loads(pickle.dumps(theirs))):
            region = reader.read((400, 400), level=1, size_px=(200, 200))
            np.testing.assert_array_equal(region, ours.read((400, 400), level=1, size_px=(200, 200)))


def test_where_openslides_level_0_is_a_picture_its_reader_refuses(tmp_path):
    path = tmp_path / "slide.tif"
    write_pages(path, [Page(tissue_like(512, 2048), mpp=0.5), Page(tissue_like(700, 1400), subfile_type=1)])
    with pytest.raises(UnsupportedSlide, match="widest image is not the slide"):
        OpenSlideReader(path)


def test_openslide_takes_the_macro_for_a_level(cases_folder):
    """Should this fail, OpenSlide has learned it too."""
    with openslide.OpenSlide(cases_folder / "levels" / "macro_as_level.tif") as theirs:
        assert theirs.level_count == 2
