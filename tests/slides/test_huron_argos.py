"""Huron TIFF and Argos AVS: levels, places, bounds, pictures and pixels are OpenSlide's."""

from dataclasses import replace
from itertools import chain

import numpy as np
import openslide
import pytest

from tests.slides.test_equals_openslide import assert_equal_everywhere
from tests.slides.tiff_files import halved, tissue_like
from tests.slides.tiff_pages import Page, reduced, write_pages
from wsi_ips.errors import UnsupportedSlide
from wsi_ips.slides import open_slide
from wsi_ips.slides.base import Bounds
from wsi_ips.slides.openslide_reader import OpenSlideReader
from wsi_ips.slides.tiff.layout import TiffReader
from wsi_ips.testing.readers import MPP, ReaderContract, contract_image

MAKE, ARGOS_METADATA = 271, 65000


def make(text):
    return (MAKE, 2, 0, text, True)


def argos_xml(lowest, highest, root="Argos.Scan.Metadata"):
    return (ARGOS_METADATA, 2, 0, f"<{root}><MinZ>{lowest}</MinZ><MaxZ>{highest}</MaxZ></{root}>", True)


def pyramid(image, factors=(1, 2, 4), *, first_tags=(), description=None, **page):
    """Pages without NewSubfileType: neither scanner marks its levels."""
    return [
        Page(
            reduced(image, factor) if factor > 1 else image,
            mpp=0.5 if not number else None,
            description=description if not number else None,
            extra_tags=first_tags if not number else (),
            **page,
        )
        for number, factor in enumerate(factors)
    ]


def assert_same_pictures(path):
    with open_slide(path) as slide, openslide.OpenSlide(path) as theirs:
        assert {name for name, _ in slide.info.associated} == set(theirs.associated_images)
        for name, picture in theirs.associated_images.items():
            np.testing.assert_array_equal(slide.read_associated(name), np.asarray(picture)[..., :3])


class TestHuron(ReaderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def drawn(cls, class_folder):
        pages = [
            Page(contract_image(), tile=128, compression="lzw", mpp=MPP, extra_tags=[make("Huron X")]),
            Page(halved(contract_image()), tile=128, compression="lzw"),
        ]
        write_pages(class_folder / "slide.tif", pages)
        return class_folder / "slide.tif"

    @pytest.fixture
    def slide(self, drawn):
        with TiffReader(drawn) as reader:
            yield reader


class TestArgos(ReaderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def drawn(cls, class_folder):
        pages = [
            Page(contract_image(), tile=128, compression="lzw", mpp=MPP, extra_tags=[argos_xml(0, 0)]),
            Page(halved(contract_image()), tile=128, compression="lzw"),
        ]
        write_pages(class_folder / "slide.avs", pages)
        return class_folder / "slide.avs"

    @pytest.fixture
    def slide(self, drawn):
        with TiffReader(drawn) as reader:
            yield reader


@pytest.mark.parametrize("compression", ["jpeg", "lzw"])
def test_huron(tmp_path, compression):
    path = tmp_path / "slide.tif"
    finest, *coarser = pyramid(
        tissue_like(652, 488),
        compression=compression,
        first_tags=[make("Huron TissueScope")],
        description="a=b",
    )
    pictures = [
        Page(tissue_like(200, 150), tile=0, compression="lzw"),
        Page(tissue_like(80, 90), tile=0, compression="lzw", subfile_type=1),
        Page(tissue_like(300, 90), tile=0, compression="lzw", subfile_type=9),
        Page(tissue_like(30, 20), tile=0, compression="lzw", subfile_type=0),
    ]
    write_pages(path, [finest, pictures[0], *coarser, *pictures[1:]])
    with open_slide(path) as slide:
        assert (slide.info.reader, slide.info.vendor) == ("tiff", "huron")
        assert [level.size for level in slide.info.levels] == [(652, 488), (326, 244), (163, 122)]
        assert [name for name, _ in slide.info.associated] == ["label", "macro", "thumbnail"]
        assert [left.what for left in slide.info.left_out] == ["page 6, 30x20 px"]
    assert_equal_everywhere(path)
    assert_same_pictures(path)


def test_a_huron_slide_without_description_is_read_too(tmp_path):
    """OpenSlide refuses it, for it copies the description."""
    path = tmp_path / "slide.tif"
    pages = pyramid(tissue_like(640, 512), first_tags=[make("Huron")])
    write_pages(path, [replace(pages[0], empty_tiles=[1]), *pages[1:]])
    with pytest.raises(openslide.OpenSlideError):
        openslide.OpenSlide(path)
    with open_slide(path) as slide:
        assert (slide.info.vendor, len(slide.info.levels)) == ("huron", 3)
        assert (slide.read((256, 0), level=0, size_px=(256, 256)) == 255).all()


def test_another_make_is_no_huron_slide(tmp_path):
    path = tmp_path / "slide.tif"
    write_pages(path, pyramid(tissue_like(640, 512), first_tags=[make("The Huron")], description="a=b"))
    with open_slide(path) as slide:
        assert (slide.info.vendor, len(slide.info.levels)) == ("generic-tiff", 1)
        whats = [left.what for left in slide.info.left_out]
        assert whats == ["page 1, 320x256 px", "page 2, 160x128 px"]
        assert "not marked" in slide.info.left_out[0].why
    assert_equal_everywhere(path)


@pytest.mark.parametrize("empty", [(), (0, 1, 2, 3), (0,)])
def test_argos(tmp_path, empty):
    path = tmp_path / "slide.avs"
    finest, *coarser = pyramid(tissue_like(652, 488), first_tags=[argos_xml(0, 0)])
    pictures = [Page(tissue_like(200, 150), tile=0, compression="lzw") for _ in range(3)]
    finest = replace(finest, empty_tiles=empty)
    write_pages(path, [finest, *coarser, *pictures])
    with open_slide(path) as slide:
        assert (slide.info.reader, slide.info.vendor) == ("tiff", "argos")
        assert [level.size for level in slide.info.levels] == [(652, 488), (326, 244), (163, 122)]
        assert [name for name, _ in slide.info.associated] == ["macro", "thumbnail"]
        assert [left.what for left in slide.info.left_out] == ["page 3, 200x150 px"]
        # The first row of tiles and the first column are empty.
        assert slide.info.bounds == (Bounds(256, 256, 396, 232) if len(empty) > 1 else None)
    assert_equal_everywhere(path)
    assert_same_pictures(path)


@pytest.mark.parametrize(("lowest", "highest", "middle"), [(0, 2, 1), (-1, 1, 1), (0, 1, 0), (5, 5, 0)])
def test_of_an_argos_stack_the_plane_in_the_middle_is_read(tmp_path, lowest, highest, middle):
    path = tmp_path / "slide.avs"
    planes = [tissue_like(640, 512, seed=seed) for seed in range(3)]
    pages = chain.from_iterable(
        pyramid(
            plane, (1, 2), compression="lzw", first_tags=[argos_xml(lowest, highest)] if not number else ()
        )
        for number, plane in enumerate(planes)
    )
    write_pages(path, list(pages))
    with open_slide(path) as slide:
        assert slide.info.reader == "tiff"
        np.testing.assert_array_equal(slide.read((0, 0), level=0, size_px=(640, 512)), planes[middle])
        assert len(slide.info.levels) == 2
        assert len(slide.info.left_out) == 4
        assert all("focal plane" in left.why for left in slide.info.left_out)
    assert_equal_everywhere(path)


@pytest.mark.parametrize(("lowest", "highest"), [(0, 6), ("a", "b"), (2, 0)])
def test_an_argos_slide_without_the_plane_in_the_middle_is_refused(tmp_path, lowest, highest):
    path = tmp_path / "slide.avs"
    write_pages(path, pyramid(tissue_like(640, 512), first_tags=[argos_xml(lowest, highest)]))
    with pytest.raises(openslide.OpenSlideError):
        openslide.OpenSlide(path)
    with pytest.raises(UnsupportedSlide, match="focal plane"):
        TiffReader(path)


@pytest.mark.parametrize("root", ["Argos.Scan.Metadata.Other", "Other"])
def test_an_argos_tag_with_another_root_is_a_generic_tiff(tmp_path, root):
    path = tmp_path / "slide.avs"
    write_pages(path, pyramid(tissue_like(640, 512), first_tags=[argos_xml(0, 0, root)]))
    with open_slide(path) as slide, OpenSlideReader(path) as theirs:
        assert (slide.info.vendor, len(slide.info.levels)) == ("generic-tiff", 1)
        assert slide.info.levels == theirs.info.levels
