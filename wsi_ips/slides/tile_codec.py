"""One tile's bytes to pixels. Knows nothing of files or levels; trusts no length that the bytes state.

JPEG in TIFF (TIFF Technical Note 2): tables may stand apart in the JPEGTables tag, and the colour space is
what the photometric tag says, not what the stream says. OpenSlide reads it so; so do we, by rewriting the
header: the tables go in, JFIF and Adobe markers come out, and one Adobe marker that states the tag's colour
space goes in. What follows the first start-of-scan marker is passed on untouched.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import imagecodecs
import numpy as np
import simplejpeg

from wsi_ips.slides.base import RgbImage
from wsi_ips.units import Size

SOI, EOI, SOS, DQT, DHT = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4
APP0, APP14 = 0xE0, 0xEE
START_OF_SCAN = bytes([0xFF, SOS])
FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)})
HUFFMAN_DCT_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
TURBOJPEG_LUMA_FACTORS = frozenset({(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)})

J2K_START = b"\xff\x4f\xff\x51"
J2K_RGB_COMPONENTS = bytes([7, 1, 1]) * 3
"""Three components of 8 unsigned bits, none of them subsampled (ISO 15444-1, A.5.1)."""


class TileError(ValueError):
    """The bytes are no tile of the stated format and size. The reader adds where they lie."""


class Compression(IntEnum):
    """TIFF compression schemes that are decoded here."""

    NONE = 1
    LZW = 5
    JPEG = 7
    DEFLATE = 8
    JPEG2000_RGB = 33005  # Aperio's
    DEFLATE_OLD = 32946


class Photometric(IntEnum):
    RGB = 2
    YCBCR = 6


@dataclass(frozen=True, slots=True)
class TileFormat:
    """How the tiles of one level are stored: 8-bit, three interleaved samples."""

    size: Size
    compression: Compression
    photometric: Photometric
    horizontal_predictor: bool = False
    jpeg_tables: bytes = b""


@dataclass(frozen=True, slots=True)
class _Segment:
    marker: int
    start: int  # of the marker itself
    body: bytes  # without marker and length


class TileDecoder:
    """Decodes the tiles of one level. May be used from several threads."""

    def __init__(self, tile: TileFormat) -> None:
        self._tile = tile
        # A level's tiles mostly start with the same header: what it was, and what it has to become.
        self._header: tuple[bytes, bytes] = (b"", b"")

    @property
    def scales(self) -> tuple[int, ...]:
        """By which factors tiles can be decoded smaller."""
        if self._tile.compression is not Compression.JPEG:
            return (1,)
        return tuple(scale for scale in (1, 2, 4, 8) if not any(side % scale for side in self._tile.size))

    def decode(self, data: memoryview, out: RgbImage | None = None) -> RgbImage:
        """The tile's pixels, (height, width, 3) uint8, a new array unless ``out`` is given.

        ``out`` is contiguous and may have a fourth channel, which then holds anything; smaller by one of
        ``scales``, it asks for a tile of that size. Raises :class:`TileError`.
        """
        try:
            if self._tile.compression is Compression.JPEG:
                return self._decode_jpeg(data, out)
            if self._tile.compression is Compression.JPEG2000_RGB:
                return _copied(_decode_jpeg2000(bytes(data), self._tile), out)
            return _copied(_decode_plain(bytes(data), self._tile), out)
        except TileError:
            raise
        # The codecs raise their own kinds (LzwError, ZlibError, … are RuntimeErrors).
        except (ValueError, RuntimeError, TypeError, OverflowError) as error:
            raise TileError(str(error) or type(error).__name__) from error

    def jpeg(self, data: memoryview) -> bytes | None:
        """The tile as one whole JPEG, tables and colour space in it; None where tiles are no JPEGs.

        Raises :class:`TileError` for a header that cannot be.
        """
        return self._merged(data) if self._tile.compression is Compression.JPEG else None

    def _decode_jpeg(self, data: memoryview, out: RgbImage | None) -> RgbImage:
        # fastdct and fastupsample stay off: OpenSlide uses the accurate DCT and libjpeg's fancy upsampling.
        colours = "RGB" if out is None or out.shape[2] == 3 else "RGBX"
        jpeg = self._merged(data)
        if out is None or out.shape[0] == self._tile.size[1]:
            rgb: RgbImage = simplejpeg.decode_jpeg(jpeg, colours, buffer=out)
            return rgb
        # libjpeg takes only the low frequencies of each block (its reduced inverse DCT): nearly the area's mean.
        height, width = out.shape[:2]
        factor = self._tile.size[1] // height
        rgb = simplejpeg.decode_jpeg(
            jpeg, colours, min_height=height, min_width=width, min_factor=factor, buffer=out
        )
        if rgb.shape != out.shape:
            raise TileError(f"decoded to {rgb.shape[1]}x{rgb.shape[0]} px, not to {width}x{height}")
        return rgb

    def _merged(self, data: memoryview) -> bytes:
        stored, merged = self._header
        end = len(stored)
        if end and data[:end] == stored and data[end : end + 2] == START_OF_SCAN:
            return b"".join([merged, data[end:]])
        whole = bytes(data)
        end, merged = _merged_header(whole, self._tile)
        self._header = (whole[:end], merged)
        return merged + whole[end:]


def decode(data: bytes, tile: TileFormat) -> RgbImage:
    """One tile's pixels, (height, width, 3) uint8, a new array. Raises :class:`TileError`."""
    return TileDecoder(tile).decode(memoryview(data))


def _copied(rgb: RgbImage, out: RgbImage | None) -> RgbImage:
    if out is None:
        return rgb
    out[..., :3] = rgb
    return out


def refusal(data: bytes, tile: TileFormat) -> str | None:
    """Why tiles like this one had better go to OpenSlide, judged by one tile's header; None: no reason.

    A header that cannot be understood is no reason: one bad tile must not decide for the whole slide.
    """
    try:
        if tile.compression is Compression.JPEG:
            return _jpeg_refusal(data)
        if tile.compression is Compression.JPEG2000_RGB and _j2k_components(data) != J2K_RGB_COMPONENTS:
            return "JPEG 2000 that is not three full 8-bit components"
    except TileError:
        pass
    return None


def _merged_header(data: bytes, tile: TileFormat) -> tuple[int, bytes]:
    """Where the first scan starts, and what to put before it, for a JPEG that decodes alone to the tile's colours.

    The frame's size is compared with the tile's here, before a decoder allocates for it. Raises
    :class:`TileError`.
    """
    tables = b"".join(
        tile.jpeg_tables[segment.start : segment.start + 4 + len(segment.body)]
        for segment in _segments(tile.jpeg_tables)
        if segment.marker in {DQT, DHT}
    )
    transform = 0 if tile.photometric is Photometric.RGB else 1
    parts = [bytes([0xFF, SOI]), b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00", bytes([transform]), tables]
    framed = False
    for segment in _segments(data):
        if segment.marker in FRAMES:
            _check_frame(segment, tile.size)
            framed = True
        if segment.marker == SOS and framed:
            return segment.start, b"".join(parts)
        if segment.marker not in {APP0, APP14}:
            parts.append(data[segment.start : segment.start + 4 + len(segment.body)])
    raise TileError("JPEG without an image")


def _segments(data: bytes) -> Iterator[_Segment]:
    """The marker segments from SOI up to and including the first SOS (or to EOI, or an empty stream)."""
    if not data:
        return
    if data[:2] != bytes([0xFF, SOI]):
        raise TileError("not a JPEG stream")
    position = 2
    while True:
        start = position
        if data[position : position + 1] != b"\xff":
            raise TileError(f"JPEG header broken at byte {position}")
        while data[position + 1 : position + 2] == b"\xff":  # fill bytes
            position += 1
        if len(data) < position + 2:
            raise TileError("JPEG header cut short")
        marker = data[position + 1]
        if marker == EOI:
            return
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        end = position + 2 + length
        if length < 2 or end > len(data):
            raise TileError(f"JPEG segment at byte {start} is longer than its tile")
        yield _Segment(marker, position, data[position + 4 : end])
        if marker == SOS:
            return
        position = end


def _check_frame(frame: _Segment, size: Size) -> None:
    body = frame.body
    if len(body) < 6 + 3 * 3 or body[0] != 8 or body[5] != 3:
        raise TileError("JPEG that is not three components of 8 bits")
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    if (width, height) != size:
        raise TileError(f"JPEG of {width}x{height} px in a tile of {size[0]}x{size[1]} px")


def _jpeg_refusal(data: bytes) -> str | None:
    for segment in _segments(data):
        if segment.marker in FRAMES:
            if segment.marker not in HUFFMAN_DCT_FRAMES:
                return "JPEG that is neither baseline nor progressive"
            factors = [(byte >> 4, byte & 15) for byte in segment.body[7::3][:3]]
            if factors[1:] != [(1, 1), (1, 1)] or factors[0] not in TURBOJPEG_LUMA_FACTORS:
                return f"JPEG with the sampling factors {factors}"
    return None


def _decode_jpeg2000(data: bytes, tile: TileFormat) -> RgbImage:
    if _j2k_components(data) != J2K_RGB_COMPONENTS:
        raise TileError("JPEG 2000 that is not three full 8-bit components")
    right, bottom, left, top = (int.from_bytes(data[at : at + 4], "big") for at in (8, 12, 16, 20))
    if (left, top) != (0, 0) or (right, bottom) != tile.size:
        raise TileError(f"JPEG 2000 of {right}x{bottom} px in a tile of {tile.size[0]}x{tile.size[1]} px")
    return _checked(imagecodecs.jpeg2k_decode(data, numthreads=1), tile)


def _j2k_components(data: bytes) -> bytes:
    if data[:4] != J2K_START or len(data) < 42:
        raise TileError("not a JPEG 2000 codestream")
    return data[42 : 42 + 3 * int.from_bytes(data[40:42], "big")]


def _decode_plain(data: bytes, tile: TileFormat) -> RgbImage:
    width, height = tile.size
    expected = width * height * 3
    # The output's size is given to the codec, so that a small tile cannot unpack to a huge one.
    if tile.compression is Compression.NONE:
        raw: bytes | bytearray = data
    elif tile.compression is Compression.LZW:
        raw = imagecodecs.lzw_decode(data, out=expected)
    else:
        raw = imagecodecs.zlib_decode(data, out=expected)
    if len(raw) < expected:
        raise TileError(f"{len(raw)} bytes of pixels where {expected} belong")
    rgb = np.frombuffer(raw, np.uint8, expected).reshape(height, width, 3).copy()
    if tile.horizontal_predictor and tile.compression is not Compression.NONE:
        np.add.accumulate(rgb, axis=1, dtype=np.uint8, out=rgb)
    return rgb


def _checked(rgb: RgbImage, tile: TileFormat) -> RgbImage:
    width, height = tile.size
    if rgb.shape != (height, width, 3) or rgb.dtype != np.uint8:
        raise TileError(f"decoded to {rgb.shape} {rgb.dtype}, not to a tile of {width}x{height} px")
    return rgb
