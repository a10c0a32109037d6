import tracemalloc

import imagecodecs
import numpy as np
import pytest
import simplejpeg
import tifffile

from tests.slides.test_equals_openslide import assert_equal_everywhere
from tests.slides.tiff_files import tissue_like
from wsi_ips.errors import ConfigError
from wsi_ips.slides import openslide_reader
from wsi_ips.slides.codecs.base import TileError, TileFormat
from wsi_ips.slides.codecs.jpeg import Colours, JpegTiles
from wsi_ips.slides.codecs.jpeg2000 import Jpeg2000Tiles
from wsi_ips.slides.codecs.plain import Packing, PictureCodec, PictureTiles, PlainTiles
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.slides.openslide_reader import OpenSlideReader
from wsi_ips.slides.tiff.layout import TiffReader

SIZE = (64, 48)
TILE = tissue_like(*SIZE)


JPEG = JpegTiles(size=SIZE, colours=Colours.RGB)
JPEG2000 = Jpeg2000Tiles(size=SIZE)
WEBP = PictureTiles(size=SIZE, codec=PictureCodec.WEBP)
JPEG_XL = PictureTiles(size=SIZE, codec=PictureCodec.JPEG_XL)


def stored(packing):
    return PlainTiles(size=SIZE, packing=packing)


def decode(data: bytes, tiles: TileFormat):
    out = np.empty((tiles.size[1], tiles.size[0], 3), np.uint8)
    tiles.decoder().decode([memoryview(data)], out)
    return out


PACKERS = {
    Packing.LZW: imagecodecs.lzw_encode,
    Packing.DEFLATE: imagecodecs.zlib_encode,
    Packing.PACKBITS: imagecodecs.packbits_encode,
    Packing.LZMA: imagecodecs.lzma_encode,
    Packing.ZSTD: imagecodecs.zstd_encode,
}


@pytest.mark.parametrize(("compression", "pack"), PACKERS.items())
def test_a_small_tile_cannot_unpack_to_a_huge_one(compression, pack):
    zeros = 30_000_000
    bomb = bytes([129, 0]) * (zeros // 128) if compression is Packing.PACKBITS else pack(bytes(zeros))
    tracemalloc.start()
    try:
        pixels = decode(bomb, stored(compression))
    except TileError:
        pixels = np.empty((48, 64, 3), np.uint8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pixels.shape == (48, 64, 3)
    assert peak < 5_000_000


@pytest.mark.parametrize("missing", [1, 1000])
@pytest.mark.parametrize(("compression", "pack"), [*PACKERS.items(), (Packing.NONE, bytes)])
def test_too_few_pixels_are_an_error(compression, pack, missing):
    np.testing.assert_array_equal(decode(pack(TILE.tobytes()), stored(compression)), TILE)
    with pytest.raises(TileError, match="bytes of pixels"):
        decode(pack(TILE.tobytes()[:-missing]), stored(compression))


def test_jpeg_2000_of_another_size_or_kind():
    def packed(image):
        return imagecodecs.jpeg2k_encode(image, codecformat="j2k", level=0)

    np.testing.assert_array_equal(decode(packed(TILE), JPEG2000), TILE)
    with pytest.raises(TileError, match="64x47 px in a tile of 64x48"):
        decode(packed(TILE[:47].copy()), JPEG2000)
    for other in (TILE[..., 0].copy(), TILE.astype(np.uint16)):
        with pytest.raises(TileError, match="three full 8-bit"):
            decode(packed(other), JPEG2000)
        assert JPEG2000.refusal(packed(other))


@pytest.mark.parametrize("tiles", [WEBP, JPEG_XL], ids=["webp", "jpegxl"])
def test_a_picture_of_another_size_or_kind_is_refused_before_it_is_decoded(tiles):
    encode = imagecodecs.webp_encode if tiles is WEBP else imagecodecs.jpegxl_encode
    np.testing.assert_array_equal(decode(encode(TILE, lossless=True), tiles), TILE)
    others = [TILE[:47].copy(), np.zeros((480, 640, 3), np.uint8)]
    if tiles is JPEG_XL:
        others += [TILE[..., 0].copy(), TILE.astype(np.uint16)]
    for other in others:
        with pytest.raises(TileError, match="invalid out"):
            decode(encode(other, lossless=True), tiles)


def test_planes_that_do_not_belong_together():
    tiles, part = stored(Packing.NONE), memoryview(TILE[..., 0].tobytes())
    out = np.empty((48, 64, 3), np.uint8)
    tiles.decoder().decode([part] * 3, out)
    np.testing.assert_array_equal(out, np.repeat(TILE[..., :1], 3, 2))
    for parts in ([part, part], [part] * 4, [part, memoryview(b""), part], [part, part, part[:-1]]):
        with pytest.raises(TileError, match=r"planes where 3|no data|bytes of pixels"):
            tiles.decoder().decode(parts, out)
    grey = memoryview(
        simplejpeg.encode_jpeg(TILE[..., :1].copy(), colorspace="GRAY", colorsubsampling="Gray")
    )
    for parts, colours in (
        ([grey] * 2, Colours.GREY),
        ([grey] * 3, Colours.RGB),
        ([grey, grey, b""], Colours.GREY),
    ):
        with pytest.raises(TileError):
            JpegTiles(size=SIZE, colours=colours).decoder().decode(parts, out)


def test_a_grey_jpeg_is_no_tile():
    grey = simplejpeg.encode_jpeg(TILE[..., :1].copy(), colorspace="GRAY", colorsubsampling="Gray")
    with pytest.raises(TileError, match="three components"):
        decode(grey, JPEG)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\xff\xd8\xff\xe0\x00\x01", b"x" * 100]
)
@pytest.mark.parametrize("tiles", [JPEG, JPEG2000, WEBP, JPEG_XL, *map(stored, Packing)], ids=repr)
def test_rubbish_is_our_own_error(data, tiles):
    with pytest.raises(TileError):
        decode(data, tiles)


def test_unusual_sampling_is_left_to_openslide(tmp_path):
    """Chroma sampled finer than luma: libjpeg reads it, TurboJPEG has no name for it."""
    jpeg = bytearray(simplejpeg.encode_jpeg(TILE, colorsubsampling="420"))
    frame = jpeg.index(b"\xff\xc0")
    assert JPEG.refusal(bytes(jpeg)) is None
    jpeg[frame + 14] = 0x21
    assert "sampling factors" in JPEG.refusal(bytes(jpeg))


def test_images_that_are_no_levels_are_passed_over(tmp_path):
    """Only images marked as reduced are levels of a generic TIFF, and they are sorted by width."""
    path = tmp_path / "slide.tif"
    image = tissue_like(512, 512)
    with tifffile.TiffWriter(path) as writer:
        for level, subfiletype in (
            (image, 0),
            (image[::4, ::4], 1),
            (image[::3, ::3], 0),
            (image[::2, ::2], 1),
        ):
            writer.write(level, tile=(64, 64), photometric="rgb", subfiletype=subfiletype, metadata=None)
        writer.write(image[::4, ::4], photometric="rgb", subfiletype=1, metadata=None)
    with TiffReader(path) as slide:
        assert [level.size for level in slide.info.levels] == [(512, 512), (256, 256), (128, 128)]
    assert_equal_everywhere(path)


def test_resolution_in_inches(tmp_path):
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, tissue_like(64, 64), tile=(64, 64), photometric="rgb", resolution=(50_800, 50_800),
                     resolutionunit="INCH", metadata=None)  # fmt: skip
    for reader in (TiffReader, OpenSlideReader):
        with reader(path) as slide:
            assert slide.info.mpp == pytest.approx(0.5)


def test_half_transparent_pixels_go_over_white():
    rgba = np.array([[[100, 0, 200, 255], [100, 0, 200, 0], [100, 0, 200, 51]]], np.uint8)
    expected = [[[100, 0, 200], [255, 255, 255], [224, 204, 244]]]
    assert openslide_reader._on_white(rgba).tolist() == expected


def test_a_poisoned_handle_is_replaced_once(real_data, monkeypatch):
    opened = []
    real = openslide_reader._open
    monkeypatch.setattr(openslide_reader, "_open", lambda path: opened.append(path) or real(path))
    with OpenSlideReader(real_data / "slides" / "mirax-incomplete" / "Mirax2-Fluorescence-2.mrxs") as slide:
        with pytest.raises(openslide_reader.SlideReadError):
            slide.read((12153, 105664), level=0, size_px=(64, 64))
        for _ in range(5):
            slide.read((12153, 105664), level=4, size_px=(64, 64))
    assert len(opened) == 3  # at first, for the second try, for all that followed


def test_memory_slides_keep_their_own_pixels():
    image = tissue_like(40, 30)
    before = image.copy()
    slide = MemoryReader(image, levels=(1, 2, 2.5))
    image[:] = 0
    np.testing.assert_array_equal(slide.read((0, 0), level=0, size_px=(40, 30)), before)
    assert [level.size for level in slide.info.levels] == [(40, 30), (20, 15), (16, 12)]
    means = before.reshape(15, 2, 20, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(
        slide.read((0, 0), level=1, size_px=(20, 15)), means, atol=1.01
    )  # Pillow rounds twice


@pytest.mark.parametrize("levels", [(), (2,), (1, 4, 2), (1, 1)])
def test_memory_levels_out_of_order(levels):
    with pytest.raises(ConfigError, match="factors from 1 upwards"):
        MemoryReader(TILE, levels=levels)


@pytest.mark.parametrize("image", [TILE[..., 0], TILE.astype(float), TILE[:0]])
def test_memory_wants_rgb(image):
    with pytest.raises(ConfigError, match="uint8"):
        MemoryReader(image)
