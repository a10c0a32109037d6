"""Aperio's JPEG 2000: 33005 holds RGB, 33003 holds Y, Cb, Cr, whole or with chroma halved."""

import struct

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.slides.test_equals_openslide import APERIO, assert_equal_everywhere
from tests.slides.tiff_files import halved, tissue_like
from wsi_ips.slides import open_slide
from wsi_ips.slides.codecs.jpeg2000 import rgb_of_ycbcr
from wsi_ips.slides.openslide_reader import OpenSlideReader
from wsi_ips.slides.tiff.layout import TiffReader

TILE = 128
SIZ, COD, SOT, SOD, END = b"\xff\x51", b"\xff\x52", b"\xff\x90", b"\xff\x93", b"\xff\xd9"


def codestream(*components, steps=((1, 1), (1, 1), (1, 1))):
    """One lossless JPEG 2000 codestream of these components, each (height, width) uint8, sampled ``steps`` apart.

    No encoder here subsamples, so each component is encoded by itself, and the packets are put one component
    after the other, which is the progression CPRL (ISO/IEC 15444-1, A.6.1, B.12.1.5).
    """
    alone = [
        imagecodecs.jpeg2k_encode(
            component, codecformat="j2k", level=0, reversible=True, mct=False, resolutions=3
        )
        for component in components
    ]
    body = b"".join(stream.partition(SOD)[2].removesuffix(END) for stream in alone)
    header = alone[0].partition(SOT)[0]
    size = header.index(SIZ) + 2
    end = size + int.from_bytes(header[size : size + 2], "big")
    siz = struct.pack(">H", 38 + 3 * len(components)) + header[size + 2 : size + 36]
    siz += struct.pack(">H", len(components)) + b"".join(bytes([7, *step]) for step in steps)
    rest = bytearray(header[end:])
    style = rest.index(COD)
    rest[style + 5], rest[style + 8] = 4, 0  # the progression; no transform over components
    part = SOT + struct.pack(">HHIBB", 10, 0, 14 + len(body), 0, 1)
    return header[:size] + siz + bytes(rest) + part + SOD + body + END


def write_33003(path, rgb, *, step=(1, 1), levels=2):
    """An Aperio file whose tiles hold Y, Cb, Cr, chroma ``step`` pixels apart."""
    with tifffile.TiffWriter(path) as writer:
        for number in range(levels):
            height, width = rgb.shape[:2]
            padded = np.pad(rgb, ((0, -height % TILE), (0, -width % TILE), (0, 0)), "edge")
            ycbcr = np.asarray(Image.fromarray(padded).convert("YCbCr"))
            tiles = []
            for top in range(0, height, TILE):
                for left in range(0, width, TILE):
                    tile = ycbcr[top : top + TILE, left : left + TILE]
                    chroma = tile[:: step[1], :: step[0]]
                    parts = (tile[..., 0], chroma[..., 1], chroma[..., 2])
                    tiles.append(codestream(*map(np.ascontiguousarray, parts), steps=((1, 1), step, step)))
            writer.write(
                iter(tiles), shape=rgb.shape, dtype=np.uint8, tile=(TILE, TILE), photometric="ycbcr",
                subsampling=(1, 1), compression=33003, metadata=None, software=False,
                description=APERIO if number == 0 else "Aperio reduced",
            )  # fmt: skip
            rgb = halved(rgb)


def test_the_codestreams_of_these_tests_are_what_they_should_be():
    whole = tissue_like(64, 48)
    encoded = codestream(*(whole[..., channel].copy() for channel in range(3)))
    np.testing.assert_array_equal(imagecodecs.jpeg2k_decode(encoded), whole)


def test_whole_components_equal_openslides(tmp_path):
    path = tmp_path / "a.svs"
    write_33003(path, tissue_like(520, 392))
    assert_equal_everywhere(path)
    with open_slide(path) as slide:
        assert slide.info.reader == "tiff"


@pytest.mark.parametrize("step", [(2, 1), (2, 2)])
def test_halved_chroma_is_within_1_of_openslides(tmp_path, step):
    """OpenJPEG converts such streams by itself, in floating point."""
    path = tmp_path / "a.svs"
    write_33003(path, tissue_like(520, 392), step=step)
    with open_slide(path) as slide, OpenSlideReader(path) as other:
        assert slide.info.reader == "tiff"
        assert slide.info.levels == other.info.levels
        for level, described in enumerate(slide.info.levels):
            ours, theirs = (
                reader.read((0, 0), level=level, size_px=described.size).astype(int)
                for reader in (slide, other)
            )
            assert np.abs(ours - theirs).max() <= 1


def test_every_pair_of_chroma_equals_openslides(tmp_path):
    cb, cr = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    path = tmp_path / "a.svs"
    tiles = [codestream(np.full_like(cb, luma), cb, cr) for luma in (0, 128, 255)]
    tifffile.imwrite(path, iter(tiles), shape=(256, 768, 3), dtype=np.uint8, tile=(256, 256), photometric="ycbcr",
                     subsampling=(1, 1), compression=33003, metadata=None, description=APERIO)  # fmt: skip
    with TiffReader(path) as slide, OpenSlideReader(path) as other:
        ours, theirs = (reader.read((0, 0), level=0, size_px=(768, 256)) for reader in (slide, other))
    np.testing.assert_array_equal(ours, theirs)


def test_colours_are_converted_as_jfif_has_it():
    cb, cr = np.meshgrid(np.arange(256), np.arange(256))
    for luma in (0, 1, 100, 254, 255):
        out = np.zeros((256, 256, 3), np.uint8)
        rgb_of_ycbcr(np.stack([np.full_like(cb, luma), cb, cr], axis=2).astype(np.uint8), out)
        red = luma + 1.402 * (cr - 128)
        green = luma - 0.344136 * (cb - 128) - 0.714136 * (cr - 128)
        blue = luma + 1.772 * (cb - 128)
        exact = np.clip(np.stack([red, green, blue], axis=2), 0, 255)
        assert np.abs(out - exact).max() < 0.505


@pytest.mark.parametrize("compression", [33003, 33004, 33005, 34712])
def test_outside_aperio_the_tag_says_what_the_colours_are(tmp_path, compression):
    """Bio-Formats writes RGB with 33003."""
    rgb, path = tissue_like(256, 128), tmp_path / "a.tif"
    tiles = [
        imagecodecs.jpeg2k_encode(rgb[:, left : left + 128].copy(), codecformat="j2k", level=0)
        for left in (0, 128)
    ]
    tifffile.imwrite(path, iter(tiles), shape=rgb.shape, dtype=np.uint8, tile=(128, 128), photometric="rgb",
                     compression=compression, metadata=None)  # fmt: skip
    with TiffReader(path) as slide:
        np.testing.assert_array_equal(slide.read((0, 0), level=0, size_px=(256, 128)), rgb)
