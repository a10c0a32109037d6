"""Tiles within DICOM's items (PS3.5, A.4): a header of 8 bytes before each, and maybe a tile in several pieces.

JPEG tiles, by libjpeg-turbo.

JPEG in TIFF (TIFF Technical Note 2): tables may stand apart in the JPEGTables tag, and the colour space is what
the photometric tag says, not what the stream says. DICOM is alike. OpenSlide reads both so; we do it by rewriting
the header: the tables go in, JFIF and Adobe markers come out, and one Adobe marker that states the container's
colour space goes in. What follows the first start-of-scan marker is passed on untouched.

Pictures that come with a slide as whole JPEGs, in a file beside it or inside one of its data files.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Self

import numpy as np
import simplejpeg

from wsi_ips.errors import SlideReadError
from wsi_ips.slides.base import RgbImage, white_region
from wsi_ips.slides.codecs.base import Parts, TileDecoder, TileError, TileFormat
from wsi_ips.slides.tile_places import LARGEST_BLOCK_PX
from wsi_ips.units import Size

ITEM = b"\xfe\xff\x00\xe0"
SEQUENCE_END = b"\xfe\xff\xdd\xe0"
ITEM_HEADER = 8
JP2_START = b"\x00\x00\x00\x0cjP  "


@dataclass(frozen=True, slots=True)
class EncapsulatedTiles:
    """Each tile's bytes are one or more items, and what these hold is a tile as ``inner`` says."""

    inner: TileFormat

    @property
    def size(self) -> Size:
        return self.inner.size

    def decoder(self) -> "EncapsulatedDecoder":
        return EncapsulatedDecoder(self.inner.decoder())

    def refusal(self, start: bytes) -> str | None:
        """That of the format within; and JPEG 2000 in a file of its own, which the standard does not allow."""
        within = start[ITEM_HEADER:]
        if within.startswith(JP2_START):
            return "JPEG 2000 in a JP2 file, not as a codestream"
        return self.inner.refusal(within)


class EncapsulatedDecoder:
    """See :class:`TileDecoder`."""

    def __init__(self, inner: TileDecoder) -> None:
        self._inner = inner

    @property
    def scales(self) -> tuple[int, ...]:
        return self._inner.scales

    def decode(self, parts: Parts, out: RgbImage) -> None:
        """See :meth:`TileDecoder.decode`."""
        self._inner.decode([unwrapped(parts[0])], out)

    def jpeg(self, parts: Parts) -> bytes | None:
        """See :meth:`TileDecoder.jpeg`."""
        return self._inner.jpeg([unwrapped(parts[0])])


def unwrapped(data: memoryview) -> memoryview:
    """What the items in ``data`` hold, joined. Raises :class:`TileError` where ``data`` is not made of items."""
    if data[:4] == ITEM and int.from_bytes(data[4:ITEM_HEADER], "little") == len(data) - ITEM_HEADER:
        return data[ITEM_HEADER:]  # one piece, as nearly always
    pieces: list[memoryview] = []
    at = 0
    while at < len(data):
        start = bytes(data[at : at + ITEM_HEADER])
        if start.startswith(SEQUENCE_END) and pieces:
            break
        if len(start) < ITEM_HEADER or not start.startswith(ITEM):
            raise TileError("no DICOM item where its offset table points")
        at += ITEM_HEADER
        (length,) = struct.unpack_from("<I", start, 4)
        if length > len(data) - at:
            raise TileError("a DICOM item that is longer than its frame")
        pieces.append(data[at : at + length])
        at += length
    return pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))


SOI, EOI, SOS, DQT, DHT = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4
APP0, APP14 = 0xE0, 0xEE
START_OF_SCAN = bytes([0xFF, SOS])
FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)})
HUFFMAN_DCT_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
TURBOJPEG_LUMA_FACTORS = frozenset({(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)})
ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
"""An Adobe marker (APP14) but for its last byte, the colour transform."""


class Colours(Enum):
    """The colour space of a JPEG's components."""

    RGB = "RGB"
    YCBCR = "YCbCr"
    AS_STATED = "as stated"
    """What the stream itself says, as libjpeg understands it."""
    GREY = "grey"
    """One component; of a tile in three parts, each part is a colour (a planar image)."""


ADOBE_TRANSFORM: Mapping[Colours, int] = MappingProxyType({Colours.RGB: 0, Colours.YCBCR: 1})
"""Adobe's code for the transform to undo."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegTiles:
    """Each tile is a JPEG of three components of 8 bits, or of one, maybe without its tables."""

    size: Size
    colours: Colours
    tables: bytes = b""
    """A JPEG stream of tables alone (TIFF's JPEGTables), or empty."""

    @property
    def components(self) -> int:
        """Of each JPEG."""
        return 1 if self.colours is Colours.GREY else 3

    def decoder(self) -> "JpegDecoder":
        return JpegDecoder(self)

    def refusal(self, start: bytes) -> str | None:
        """Kinds of JPEG that TurboJPEG has no name for, though libjpeg reads them."""
        try:
            for segment in segments(start):
                if segment.marker in FRAMES:
                    return _frame_refusal(segment, self.components)
        except TileError:
            pass
        return None


@dataclass(frozen=True, slots=True)
class Segment:
    """A marker segment of a JPEG stream. body: without the marker and the length."""

    marker: int
    start: int
    body: bytes


class JpegDecoder:
    """See :class:`TileDecoder`."""

    def __init__(self, tiles: JpegTiles) -> None:
        self._tiles = tiles
        # A level's tiles mostly start with the same header: what it was, and what it has to become.
        self._header: tuple[bytes, bytes] = (b"", b"")

    @property
    def scales(self) -> tuple[int, ...]:
        """Those of libjpeg's reduced inverse transforms that divide the tile evenly."""
        return tuple(scale for scale in (1, 2, 4, 8) if not any(side % scale for side in self._tiles.size))

    def decode(self, parts: Parts, out: RgbImage) -> None:
        """See :meth:`TileDecoder.decode`."""
        if len(parts) == 1:
            decode_jpeg_into(self._merged(parts[0]), out, self._tiles.size)
            return
        if len(parts) != 3 or self._tiles.colours is not Colours.GREY:
            raise TileError(f"{len(parts)} JPEGs where one belongs")
        plane = np.empty((*out.shape[:2], 1), np.uint8)
        for channel, part in enumerate(parts):
            decode_jpeg_into(self._merged(part), plane, self._tiles.size)
            out[..., channel] = plane[..., 0]

    def jpeg(self, parts: Parts) -> bytes | None:
        """See :meth:`TileDecoder.jpeg`: none of grey tiles and planes."""
        return None if self._tiles.colours is Colours.GREY else self._merged(parts[0])

    def _merged(self, data: memoryview) -> bytes:
        stored, merged = self._header
        end = len(stored)
        if end and data[:end] == stored and data[end : end + 2] == START_OF_SCAN:
            return b"".join([merged, data[end:]])
        whole = bytes(data)
        end, merged = _merged_header(whole, self._tiles)
        self._header = (whole[:end], merged)
        return merged + whole[end:]


def decode_jpeg_into(jpeg: bytes | bytearray, out: RgbImage, size: Size) -> None:
    """Decode a whole JPEG of ``size`` (width, height) into ``out``, smaller where ``out`` is smaller.

    ``out`` has three or four channels, or one for grey.

    The header must have been compared with ``size`` before: the decoder allocates for what it states. Raises
    :class:`TileError`.
    """
    colours = {1: "GRAY", 3: "RGB", 4: "RGBX"}[out.shape[2]]
    height, width = out.shape[:2]
    try:
        # fastdct and fastupsample stay off: OpenSlide uses the accurate DCT and libjpeg's fancy upsampling.
        if height == size[1]:
            simplejpeg.decode_jpeg(jpeg, colours, buffer=out)
            return
        # libjpeg takes only the low frequencies of each block: nearly the area's mean.
        rgb = simplejpeg.decode_jpeg(
            jpeg, colours, min_height=height, min_width=width, min_factor=size[1] // height, buffer=out
        )
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise TileError(str(error) or type(error).__name__) from error
    if rgb.shape != out.shape:
        raise TileError(f"decoded to {rgb.shape[1]}x{rgb.shape[0]} px, not to {width}x{height}")


def jpeg_size(start: bytes) -> Size:
    """(width, height) that a JPEG's frame states. start: the stream, or enough of its beginning.

    Raises :class:`TileError`.
    """
    for segment in segments(start):
        if segment.marker in FRAMES and len(segment.body) >= 5:
            height, width = (int.from_bytes(segment.body[at : at + 2], "big") for at in (1, 3))
            return width, height
    raise TileError("JPEG without an image")


def segments(data: bytes) -> Iterator[Segment]:
    """The marker segments from SOI up to and including the first SOS (or to EOI, or an empty stream).

    Raises :class:`TileError` where the stream is not a JPEG header.
    """
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
        yield Segment(marker, position, data[position + 4 : end])
        if marker == SOS:
            return
        position = end


def _merged_header(data: bytes, tiles: JpegTiles) -> tuple[int, bytes]:
    """Where the first scan starts, and what to put before it, for a JPEG that decodes alone to the right colours.

    The frame's size is compared with the tile's here, before a decoder allocates for it. Raises
    :class:`TileError`.
    """
    tables = b"".join(
        tiles.tables[segment.start : segment.start + 4 + len(segment.body)]
        for segment in segments(tiles.tables)
        if segment.marker in {DQT, DHT}
    )
    states_colours = tiles.colours is Colours.AS_STATED
    transform = ADOBE_TRANSFORM.get(tiles.colours)
    parts = [bytes([0xFF, SOI]), b"" if transform is None else ADOBE + bytes([transform]), tables]
    framed = False
    for segment in segments(data):
        if segment.marker in FRAMES:
            _check_frame(segment, tiles)
            framed = True
        if segment.marker == SOS and framed:
            return segment.start, b"".join(parts)
        if states_colours or segment.marker not in {APP0, APP14}:
            parts.append(data[segment.start : segment.start + 4 + len(segment.body)])
    raise TileError("JPEG without an image")


def _check_frame(frame: Segment, tiles: JpegTiles) -> None:
    body, size, components = frame.body, tiles.size, tiles.components
    if len(body) < 6 + 3 * components or body[0] != 8 or body[5] != components:
        number = "three components" if components == 3 else "one component"
        raise TileError(f"JPEG that is not {number} of 8 bits")
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    if (width, height) != size:
        raise TileError(f"JPEG of {width}x{height} px in a tile of {size[0]}x{size[1]} px")


def _frame_refusal(frame: Segment, components: int) -> str | None:
    if components == 1:  # of planes, other readers would show the first as grey
        return None
    if frame.marker not in HUFFMAN_DCT_FRAMES:
        return "JPEG that is neither baseline nor progressive"
    factors = [(byte >> 4, byte & 15) for byte in frame.body[7::3][:3]]
    if factors[1:] != [(1, 1), (1, 1)] or factors[0] not in TURBOJPEG_LUMA_FACTORS:
        return f"JPEG with the sampling factors {factors}"
    return None


HEADER_BYTES = 1 << 20
MOST_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class JpegInFile:
    """``count`` bytes of ``file`` from ``offset`` on. See :class:`AssociatedImage`."""

    file: Path
    offset: int
    count: int
    size: Size

    @classmethod
    def of(cls, file: Path, *, offset: int = 0, count: int | None = None) -> Self:
        """Looks at the header. count: None for all that follows.

        Raises :class:`TileError` for what is no JPEG or too large for a picture, ``OSError``.
        """
        left = file.stat().st_size - offset
        count = left if count is None else count
        if not 0 < count <= min(left, MOST_BYTES) or offset < 0:
            raise TileError(f"{count} bytes from byte {offset}, of which {max(0, left)} are there")
        size = jpeg_size(_bytes(file, offset, min(count, HEADER_BYTES)))
        if not 0 < size[0] * size[1] <= LARGEST_BLOCK_PX:
            raise TileError(f"JPEG that claims {size[0]}x{size[1]} px")
        return cls(file, offset, count, size)

    def read(self, path: Path) -> RgbImage:
        """See :meth:`AssociatedImage.read`."""
        pixels = white_region(self.size)
        try:
            data = memoryview(_bytes(self.file, self.offset, self.count))
            JpegTiles(size=self.size, colours=Colours.AS_STATED).decoder().decode((data,), pixels)
        except (OSError, TileError) as error:
            raise SlideReadError(path, f"its picture in {self.file.name} cannot be read: {error}") from error
        return pixels


def _bytes(file: Path, offset: int, count: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(offset)
        return opened.read(count)
