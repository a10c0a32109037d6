"""PNG, JPEG and TIFF without tiles: one level, held in memory."""

import pickle
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.slides.tiff_files import tissue_like, write_pyramid
from wsi_ips.errors import MissingResolution, SlideReadError, UnsupportedSlide
from wsi_ips.slides import open_slide
from wsi_ips.slides.image_reader import MOST_PX, ImageReader
from wsi_ips.testing.readers import MPP, OneLevelContract, contract_image

IMAGE = tissue_like(200, 130)
DPI = 25_400 / MPP


def whole(path):
    with open_slide(path) as slide:
        assert slide.info.reader == "image"
        return slide.read((0, 0), level=0, size_px=slide.info.l0_size)


class TestPng(OneLevelContract):
    @pytest.fixture(scope="class")
    @classmethod
    def drawn(cls, class_folder):
        Image.fromarray(contract_image()).save(class_folder / "a.png", dpi=(DPI, DPI))
        return class_folder / "a.png"

    @pytest.fixture
    def slide(self, drawn):
        with ImageReader(drawn) as reader:
            yield reader


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "rgb"},
        {"photometric": "rgb", "compression": "lzw", "predictor": True, "rowsperstrip": 7},
        {"photometric": "rgb", "compression": "deflate", "bigtiff": True, "byteorder": ">"},
    ],
)
def test_a_stripped_tiff(tmp_path, options):
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, resolution=(1e4 / 0.25, 1e4 / 0.25), resolutionunit="CENTIMETER",
                     metadata=None, **options)  # fmt: skip
    np.testing.assert_array_equal(whole(tmp_path / "a.tif"), IMAGE)
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.info.mpp == pytest.approx(0.25)


def test_a_planar_tiff(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(IMAGE, 2, 0), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(whole(tmp_path / "a.tif"), IMAGE)


def test_jpeg_strips_are_what_the_decoder_gives(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, photometric="rgb", compression="jpeg", rowsperstrip=64)
    np.testing.assert_array_equal(whole(tmp_path / "a.tif"), tifffile.imread(tmp_path / "a.tif"))


def test_a_jpeg_is_what_pillow_gives(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.jpg", quality=90)
    np.testing.assert_array_equal(whole(tmp_path / "a.jpg"), np.asarray(Image.open(tmp_path / "a.jpg")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_s_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(IMAGE).save(tmp_path / "a.jpg", quality=95, exif=exif)
    stored = np.asarray(Image.open(tmp_path / "a.jpg"))
    turned = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1), 7: stored[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(stored),
    }[orientation]  # fmt: skip
    np.testing.assert_array_equal(whole(tmp_path / "a.jpg"), turned)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("grey", [False, True])
def test_sixteen_bits_are_rounded_as_openslide_does(tmp_path, name, grey):
    deep = np.random.default_rng(0).integers(0, 65_536, (40, 50) if grey else (40, 50, 3)).astype(np.uint16)
    if name == "a.png":
        (tmp_path / name).write_bytes(imagecodecs.png_encode(deep))
    else:
        tifffile.imwrite(tmp_path / name, deep, photometric="minisblack" if grey else "rgb")
    expected = (deep.astype(int) + 128) // 257
    np.testing.assert_array_equal(
        whole(tmp_path / name), expected[..., None].repeat(3, 2) if grey else expected
    )


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_what_is_transparent_is_white(tmp_path, name):
    alpha = np.tile(np.array([0, 51, 255], np.uint8), (30, 10))
    rgba = np.dstack([IMAGE[:30, :30], alpha])
    if name == "a.png":
        Image.fromarray(rgba).save(tmp_path / name)
    else:
        tifffile.imwrite(tmp_path / name, rgba, photometric="rgb", extrasamples=["unassalpha"])
    seen = whole(tmp_path / name).astype(int)
    share = alpha[..., None] / 255
    assert np.abs(seen - (rgba[..., :3] * share + 255 * (1 - share))).max() <= 0.5 + 1e-6


def test_white_may_be_the_smallest_number(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", IMAGE[..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(whole(tmp_path / "a.tif"), 255 - IMAGE[..., :1].repeat(3, 2))


def test_a_palette(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "a.tif", IMAGE[..., 0], photometric="palette", colormap=colours)
    np.testing.assert_array_equal(whole(tmp_path / "a.tif"), (colours.T // 257)[IMAGE[..., 0]])


@pytest.mark.parametrize("dpi", [72, 96, 300, 600])
def test_print_resolutions_are_no_resolution(tmp_path, dpi):
    for name in ("a.png", "a.jpg"):
        Image.fromarray(IMAGE).save(tmp_path / name, dpi=(dpi, dpi))
        with open_slide(tmp_path / name) as slide, pytest.raises(MissingResolution):
            slide.info.known_mpp()


def png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(13_400, 13_400), (100_000, 100_000), (2_000_000_000, 2_000_000_000)])
def test_an_image_too_large_to_hold_says_how_to_convert_it(tmp_path, size):
    (tmp_path / "a.png").write_bytes(png_header(*size))
    with pytest.raises(UnsupportedSlide, match="vips tiffsave"):
        ImageReader(tmp_path / "a.png")
    with tifffile.TiffWriter(tmp_path / "b.tif", bigtiff=True) as writer:
        writer.write(IMAGE, photometric="rgb", metadata=None)
    blob = bytearray((tmp_path / "b.tif").read_bytes())
    for code, value in zip((256, 257), size, strict=True):  # ImageWidth, ImageLength
        at = blob.index(struct.pack("<HH", code, 4)) + 12
        blob[at : at + 4] = struct.pack("<I", value)
    (tmp_path / "b.tif").write_bytes(blob)
    with pytest.raises(UnsupportedSlide, match="vips tiffsave"):
        ImageReader(tmp_path / "b.tif")
    assert MOST_PX > 13_300**2


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_file_cut_short_fails_where_it_is_read(tmp_path, name):
    Image.fromarray(tissue_like(800, 800)).save(tmp_path / name)
    blob = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(blob[: len(blob) // 2])
    with pytest.raises((SlideReadError, UnsupportedSlide), match=r"a\.(png|jpg|tif)"):  # noqa: SIM117
        with open_slide(tmp_path / name) as slide:
            slide.read((0, 0), level=0, size_px=(10, 10))


@pytest.mark.parametrize("mode", ["CMYK", "F", "I"])
def test_other_colours_are_refused(tmp_path, mode):
    Image.new(mode, (64, 64)).save(tmp_path / "a.tif")
    with pytest.raises(UnsupportedSlide):
        open_slide(tmp_path / "a.tif")


def test_text_is_no_image(tmp_path):
    (tmp_path / "a.png").write_text("hello\n" * 100)
    with pytest.raises(UnsupportedSlide, match="not a plain image"):
        open_slide(tmp_path / "a.png")


def test_it_travels_to_another_process(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    with ImageReader(tmp_path / "a.png") as slide:
        slide.read((0, 0), level=0, size_px=(5, 5))
        with pickle.loads(pickle.dumps(slide)) as again:
            np.testing.assert_array_equal(again.read((3, 4), level=0, size_px=(20, 20)), IMAGE[4:24, 3:23])


def test_a_tiled_tiff_is_not_read_whole(tmp_path):
    write_pyramid(tmp_path / "a.tif", IMAGE, compression="none")
    with pytest.raises(UnsupportedSlide, match="tiled"):
        ImageReader(tmp_path / "a.tif")


def test_a_real_flat_tiff(real_data):
    path = real_data / "slides" / "flat-kidney.tif"
    np.testing.assert_array_equal(whole(path), tifffile.imread(path)[..., :3])


@pytest.mark.parametrize(
    ("name", "tags"),
    [
        ("Hamamatsu", {"extratags": [(65420, 4, 1, 1, True)]}),
        ("Leica", {"description": "http://www.leica-microsystems.com/scn/2010/10/01"}),
        ("Ventana", {"extratags": [(700, 1, None, b"<iScan/>", True)]}),
    ],
)
def test_a_scanner_s_file_that_its_own_reader_refused_is_no_plain_image(tmp_path, name, tags):
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, photometric="rgb", metadata=None, **tags)
    with pytest.raises(UnsupportedSlide, match=name):
        ImageReader(tmp_path / "a.tif")
