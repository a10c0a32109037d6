"""Tiles of every kind of samples: the pixels are tifffile's, and OpenSlide's where OpenSlide is right."""

import imagecodecs
import numpy as np
import pytest
import tifffile

from tests.slides.tiff_files import halved, tissue_like
from wsi_ips.errors import RefusedSlide, UnsupportedSlide
from wsi_ips.slides import open_slide
from wsi_ips.slides.codecs.base import eight_bits
from wsi_ips.slides.openslide_reader import OpenSlideReader
from wsi_ips.slides.tiff.layout import TiffReader

SIZE = WIDTH, HEIGHT = 300, 200  # whole tiles of 128 px, and parts of some
RGB = tissue_like(WIDTH, HEIGHT)
GREY = RGB[..., 1].copy()
NOISE = np.random.default_rng(0).integers(-128, 129, RGB.shape)
RGB_16 = np.clip(RGB.astype(int) * 257 + NOISE, 0, 65535).astype(np.uint16)
GREY_16 = RGB_16[..., 1].copy()
ALPHA = tissue_like(WIDTH, HEIGHT, seed=3)[..., :1]
LOSSLESS = [None, "lzw", "deflate", "packbits", "zstd", "lzma"]


def replicated(grey):
    return np.repeat(grey[..., None], 3, axis=2)


def reduced(samples):
    """floor((v + 128) / 257), as the readme of this rule states it."""
    return ((samples.astype(np.int64) + 128) // 257).astype(np.uint8)


def written(path, pixels, *, photometric, levels=1, **options):
    """A tiled TIFF of these samples, and of its every second pixel as further levels."""
    planar = options.get("planarconfig") == "separate"
    with tifffile.TiffWriter(path, byteorder=options.pop("byteorder", "<"), bigtiff=True) as writer:
        for level in range(levels):
            part = (
                pixels[..., :: 1 << level, :: 1 << level] if planar else pixels[:: 1 << level, :: 1 << level]
            )
            writer.write(
                part,
                tile=(128, 128),
                photometric=photometric,
                subfiletype=min(level, 1),
                metadata=None,
                **options,
            )
    return path


def assert_shows(path, expected, *, openslide, tolerance=0):
    """The tiff reader's pixels of the whole level, of each tile and of random regions are ``expected``.

    openslide: whether OpenSlide's are too (``"opens"``: it opens the file and is not compared).
    """
    with open_slide(path) as slide:
        assert slide.info.reader == "tiff"
        whole = slide.read((0, 0), level=0, size_px=SIZE).astype(int)
        assert np.abs(whole - expected).max() <= tolerance
        layout = slide.tile_layout(0)
        corner = slide.read_tile(0, layout.cols - 1, layout.rows - 1)
        inside = whole[128 * (layout.rows - 1) :, 128 * (layout.cols - 1) :]
        np.testing.assert_array_equal(corner[: inside.shape[0], : inside.shape[1]], inside)
        assert (corner[inside.shape[0] :] == 255).all()
        assert (corner[:, inside.shape[1] :] == 255).all()
        if openslide is True:
            rng = np.random.default_rng(0)
            with OpenSlideReader(path) as other:
                for level in range(len(slide.info.levels)):
                    for l0_xy in rng.integers(-20, (WIDTH, HEIGHT), (8, 2)).tolist():
                        l0_xy = tuple(place << level for place in l0_xy)
                        ours = slide.read(l0_xy, level=level, size_px=(90, 70)).astype(int)
                        theirs = other.read(l0_xy, level=level, size_px=(90, 70))
                        assert np.abs(ours - theirs).max() <= tolerance
    if openslide is False:
        with pytest.raises(UnsupportedSlide):
            OpenSlideReader(path)


@pytest.mark.parametrize(
    ("compression", "predictor"),
    [*((name, False) for name in LOSSLESS), *((name, True) for name in ("lzw", "deflate", "zstd", "lzma"))],
)
@pytest.mark.parametrize("planar", [False, True])
def test_rgb(tmp_path, compression, predictor, planar):
    pixels = RGB.transpose(2, 0, 1).copy() if planar else RGB
    path = written(
        tmp_path / "a.tif",
        pixels,
        photometric="rgb",
        levels=2,
        compression=compression,
        predictor=predictor,
        planarconfig="separate" if planar else "contig",
    )
    assert_shows(path, RGB, openslide=compression != "lzma")


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("planar", [False, True])
def test_rgb_of_16_bits(tmp_path, byteorder, predictor, planar):
    path = written(
        tmp_path / "a.tif",
        RGB_16.transpose(2, 0, 1).copy() if planar else RGB_16,
        photometric="rgb",
        levels=2,
        compression="deflate",
        predictor=predictor,
        byteorder=byteorder,
        planarconfig="separate" if planar else "contig",
    )
    assert_shows(path, reduced(RGB_16), openslide=True)


def test_16_bits_become_8_by_one_rule():
    every = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(eight_bits(every), reduced(every))
    np.testing.assert_array_equal(eight_bits((np.arange(256) * 257).astype(np.uint16)), np.arange(256))


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("compression", [None, "deflate", "zstd"])
def test_grey(tmp_path, photometric, compression):
    path = written(tmp_path / "a.tif", GREY, photometric=photometric, levels=2, compression=compression)
    expected = replicated(GREY if photometric == "minisblack" else 255 - GREY)
    assert_shows(path, expected, openslide=True)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("predictor", [False, True])
def test_grey_of_16_bits(tmp_path, byteorder, predictor):
    """OpenSlide gives the whole tiles within 1, and wrong pixels in those that reach beyond the image."""
    path = written(tmp_path / "a.tif", GREY_16, photometric="minisblack", compression="deflate",
                   predictor=predictor, byteorder=byteorder)  # fmt: skip
    assert_shows(path, replicated(reduced(GREY_16)), openslide=False)
    whole = written(tmp_path / "b.tif", GREY_16[:128, :256], photometric="minisblack", byteorder=byteorder)
    with TiffReader(whole) as slide, OpenSlideReader(whole) as other:
        ours, theirs = (s.read((0, 0), level=0, size_px=(256, 128)).astype(int) for s in (slide, other))
        assert np.abs(ours - theirs).max() == 1


def test_grey_jpeg(tmp_path):
    path = written(tmp_path / "a.tif", GREY, photometric="minisblack", compression="jpeg", levels=2)
    assert_shows(path, replicated(tifffile.imread(path, key=0)), openslide=True)
    with TiffReader(path) as slide:
        assert slide.tile_jpeg(0, 0, slide.fetch_tiles(0, [0])[0]) is None


def test_planar_jpeg(tmp_path):
    path = written(
        tmp_path / "a.tif", RGB.transpose(2, 0, 1).copy(), photometric="rgb", compression="jpeg",
        planarconfig="separate", levels=2,
    )  # fmt: skip
    assert_shows(path, tifffile.imread(path, key=0).transpose(1, 2, 0), openslide=True)


def test_planar_and_grey_jpegs_are_decoded_smaller(tmp_path):
    smooth = np.asarray(tissue_like(WIDTH, HEIGHT)[::8, ::8].repeat(8, 0).repeat(8, 1)[:128, :128])
    for planar in (True, False):
        pixels = smooth.transpose(2, 0, 1).copy() if planar else smooth[..., 0].copy()
        path = written(tmp_path / f"{planar}.tif", pixels, photometric="rgb" if planar else "minisblack",
                       compression="jpeg", planarconfig="separate" if planar else None)  # fmt: skip
        with TiffReader(path) as slide:
            assert slide.tile_scales(0) == (1, 2, 4, 8)
            small = np.empty((64, 64, 3), np.uint8)
            slide.decode_tile(0, 0, slide.fetch_tiles(0, [0])[0], small)
            whole = slide.read_tile(0, 0, 0)
        assert np.abs(small.astype(int) - halved(whole)).mean() < 2


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_transparency_goes_over_white(tmp_path, planar, bits, kind):
    share = ALPHA / 255
    colours = RGB if kind == "unassalpha" else (RGB * share).astype(np.uint8)
    pixels = np.concatenate([colours, ALPHA], axis=2)
    pixels = pixels.astype(np.uint16) * 257 if bits == 16 else pixels
    path = written(
        tmp_path / "a.tif",
        pixels.transpose(2, 0, 1).copy() if planar else pixels,
        photometric="rgb",
        extrasamples=[kind],
        planarconfig="separate" if planar else "contig",
    )
    over_white = colours * (share if kind == "unassalpha" else 1) + 255 * (1 - share)
    # OpenSlide multiplies and divides on the way.
    assert_shows(path, np.rint(over_white), openslide=True, tolerance=2)
    assert_shows(path, np.rint(over_white), openslide="opens", tolerance=0)


def test_transparent_grey(tmp_path):
    """Which OpenSlide shows without its transparency, in wrong places where a tile reaches beyond the image."""
    path = written(tmp_path / "a.tif", np.stack([GREY, ALPHA[..., 0]], axis=2), photometric="minisblack",
                   extrasamples=["unassalpha"], planarconfig="contig")  # fmt: skip
    share = ALPHA / 255
    assert_shows(path, np.rint(replicated(GREY) * share + 255 * (1 - share)), openslide="opens")


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("compression", ["webp", "jpegxl", "jpeg2000"])
def test_pictures_as_tiles(tmp_path, compression, lossless):
    options = {
        "webp": {"lossless": lossless, "level": 101 if lossless else 80},
        "jpegxl": {"lossless": lossless},
        "jpeg2000": {"level": 0 if lossless else 40, "reversible": lossless},
    }
    path = written(tmp_path / "a.tif", RGB, photometric="rgb", compression=compression, levels=2,
                   compressionargs=options[compression])  # fmt: skip
    expected = tifffile.imread(path, key=0)
    assert np.array_equal(expected, RGB) == lossless
    assert_shows(path, expected, openslide=False)


@pytest.mark.parametrize("compression", ["jpegxl", "jpeg2000"])
@pytest.mark.parametrize("pixels", [GREY, GREY_16, RGB_16], ids=["grey", "grey 16", "rgb 16"])
def test_pictures_of_other_samples(tmp_path, compression, pixels):
    options = {"jpegxl": {"lossless": True}, "jpeg2000": {"level": 0, "reversible": True}}
    rgb = pixels.ndim == 3
    path = written(tmp_path / "a.tif", pixels, photometric="rgb" if rgb else "minisblack",
                   compression=compression, compressionargs=options[compression])  # fmt: skip
    expected = pixels if pixels.dtype == np.uint8 else reduced(pixels)
    assert_shows(path, expected if rgb else replicated(expected), openslide="opens")


def test_webp_with_transparency(tmp_path):
    pixels = np.concatenate([RGB, ALPHA], axis=2)
    path = written(tmp_path / "a.tif", pixels, photometric="rgb", compression="webp", extrasamples=["unassalpha"],
                   compressionargs={"lossless": True, "level": 101})  # fmt: skip
    share = ALPHA / 255
    assert_shows(path, np.rint(RGB * share + 255 * (1 - share)), openslide=False)


@pytest.mark.parametrize("compression", [None, "deflate", "lzw"])
def test_bits_in_reverse_order(tmp_path, compression):
    """FillOrder 2: tifffile and libtiff turn the stored bytes' bits round before they unpack them."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, tile=(128, 128), photometric="rgb", compression=compression, metadata=None,
                     extratags=[(65001, 3, 1, 2, True)])  # fmt: skip
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        entry, tiles = page.tags[65001].offset, list(zip(page.dataoffsets, page.databytecounts, strict=True))
    blob = bytearray(path.read_bytes())
    blob[entry : entry + 2] = (266).to_bytes(2, "little")
    for offset, count in tiles:
        blob[offset : offset + count] = imagecodecs.bitorder_decode(bytes(blob[offset : offset + count]))
    path.write_bytes(blob)
    assert np.array_equal(tifffile.imread(path), RGB)
    assert_shows(path, RGB, openslide=True)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", ["rgb", "grey", "jpeg"])
def test_pixels_are_read_as_they_are_stored_whatever_the_orientation(tmp_path, orientation, kind):
    """As tifffile reads them. OpenSlide turns each tile in its place, but for JPEG."""
    path = written(
        tmp_path / "a.tif",
        GREY if kind == "grey" else RGB,
        photometric="minisblack" if kind == "grey" else "rgb",
        compression="jpeg" if kind == "jpeg" else "deflate",
        extratags=[(274, 3, 1, orientation, True)],
    )
    stored = tifffile.imread(path)
    assert_shows(path, replicated(stored) if kind == "grey" else stored, openslide=kind == "jpeg")
    with TiffReader(path) as slide:
        assert [left.what for left in slide.info.left_out] == [f"its Orientation tag, {orientation}"]


@pytest.mark.parametrize(
    ("pixels", "photometric", "extras", "reason"),
    [
        (GREY.astype(np.float32), "minisblack", {}, "floating-point numbers of 32 bits"),
        (GREY.astype(np.float16), "minisblack", {}, "floating-point numbers of 16 bits"),
        (GREY.astype(np.uint32), "minisblack", {}, "whole numbers of 32 bits"),
        (RGB.astype(np.uint32), "rgb", {}, "whole numbers of 32 bits"),
        (GREY.astype(np.int8), "minisblack", {}, "signed numbers of 8 bits"),
        (GREY.astype(np.int16), "minisblack", {}, "signed numbers of 16 bits"),
        (np.concatenate([RGB, ALPHA], 2), "separated", {}, "ink"),
        (np.concatenate([RGB, ALPHA], 2), "rgb", {"extrasamples": ["unspecified"]}, "4 samples a pixel"),
        (np.concatenate([RGB, ALPHA, ALPHA], 2), "rgb", {"extrasamples": [0, 0]}, "5 samples a pixel"),
        (RGB[..., :2].copy(), "minisblack", {"planarconfig": "contig"}, "2 samples a pixel"),
        (RGB, "minisblack", {"planarconfig": "contig"}, "3 samples a pixel"),
    ],
)
def test_what_openslide_shows_wrongly_is_refused_by_every_reader(
    tmp_path, pixels, photometric, extras, reason
):
    path = written(tmp_path / "a.tif", pixels, photometric=photometric, **extras)
    for reader in (None, "tiff", "openslide"):
        with pytest.raises(RefusedSlide, match=reason) as caught:
            open_slide(path, reader=reader)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_less_than_8_bits_and_palettes_are_left_to_openslide(tmp_path, bits):
    path = written(tmp_path / "a.tif", GREY >> (8 - bits), photometric="minisblack", bitspersample=bits)
    colours = np.random.default_rng(1).integers(0, 65536, (3, 256)).astype(np.uint16)
    palette = written(tmp_path / "b.tif", GREY, photometric="palette", colormap=colours)
    largest = (1 << bits) - 1
    for file, expected in (
        (path, replicated((GREY >> (8 - bits)).astype(int) * 255 // largest)),
        (palette, (colours >> 8).T[GREY]),
    ):
        with open_slide(file) as slide:
            assert slide.info.reader == "openslide"
            np.testing.assert_array_equal(slide.read((0, 0), level=0, size_px=SIZE), expected)


@pytest.mark.parametrize("name", ["noweb.tif", "test_orient3.tif"])
def test_the_cases_show_tifffiles_pixels(cases_folder, name):
    """Real files that were once shown wrongly, with exit code 0."""
    path = cases_folder / "tiff" / name
    with open_slide(path) as slide, tifffile.TiffFile(path) as tiff:
        assert len(slide.info.levels) == len(tiff.pages)
        for number, (level, page) in enumerate(zip(slide.info.levels, tiff.pages, strict=True)):
            stored = page.asarray()
            expected = replicated(reduced(stored) if stored.dtype == np.uint16 else stored)
            np.testing.assert_array_equal(slide.read((0, 0), level=number, size_px=level.size), expected)
    with pytest.raises(RefusedSlide, match="OpenSlide would not show it rightly"):
        OpenSlideReader(path)


def test_a_mask_of_transparency_is_no_level(tmp_path):
    """As GDAL writes it beside each level; OpenSlide takes the reduced ones for levels."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for kind, pixels in ((0, RGB), (4, RGB[..., 0] > 9), (1, RGB[::2, ::2]), (5, RGB[::2, ::2, 0] > 9)):
            photometric = "rgb" if pixels.ndim == 3 else "minisblack"
            writer.write(pixels, tile=(128, 128), photometric=photometric, subfiletype=kind, metadata=None)
    with open_slide(path) as slide:
        assert slide.info.reader == "tiff"
        assert [level.size for level in slide.info.levels] == [(300, 200), (150, 100)]
        assert ("page 3, 150x100 px", "it is a mask of transparency") in [
            (left.what, left.why) for left in slide.info.left_out
        ]
