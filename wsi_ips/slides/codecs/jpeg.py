"""JPEG tiles, decoded by libjpeg-turbo, and JPEGs inside other data: DICOM's items, and a stretch of a file.

:class:`JpegTiles` describes tiles that are JPEGs. In TIFF (Technical Note 2) the tables of a JPEG may stand apart
in the JPEGTables tag, and its colour space is what the photometric tag says, not what the stream says. DICOM is
alike. OpenSlide reads both in this way. Here the header is rewritten: the tables go in, JFIF and Adobe markers
come out, and one Adobe marker that states the container's colour space goes in. Everything from the first
start-of-scan marker on is passed on unchanged.

:class:`EncapsulatedTiles` are tiles within DICOM's items (PS3.5, A.4), which have a header of 8 bytes each, and
may hold a tile in several pieces. :class:`JpegInFile` is an associated image that is a whole JPEG, in a file
beside the slide or inside one of its data files.
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

SOI, EOI, SOS, DQT, DHT = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4
"""Markers of a JPEG: start of image, end of image, start of scan, quantization and Huffman tables."""

APP0, APP14 = 0xE0, 0xEE
"""Markers of JFIF and Adobe."""

START_OF_SCAN = bytes([0xFF, SOS])
"""The marker at which the header of a JPEG ends."""

FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)})
"""Markers of all kinds of frames."""

HUFFMAN_DCT_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Markers of baseline, extended and progressive frames."""

TURBOJPEG_LUMA_FACTORS = frozenset({(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)})
"""Sampling factors of luma that TurboJPEG has a name for."""

ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
"""An Adobe marker (APP14) without its last byte, which is the colour transform."""

ITEM = b"\xfe\xff\x00\xe0"
"""Tag of an item."""

SEQUENCE_END = b"\xfe\xff\xdd\xe0"
"""Tag of the delimiter of a sequence."""

ITEM_HEADER = 8
"""Bytes of the header of an item."""

JP2_START = b"\x00\x00\x00\x0cjP  "
"""First bytes of a JP2 file."""

HEADER_BYTES = 1 << 20
"""How much of a file is read to find the header of a JPEG in it."""

MOST_BYTES = 1 << 28
"""The most bytes of a JPEG in a file."""


class Colours(Enum):
    """The colour space of the components of a JPEG."""

    RGB = "RGB"
    YCBCR = "YCbCr"
    AS_STATED = "as stated"
    """What the stream itself says, as libjpeg understands it."""
    GREY = "grey"
    """One component. If a tile has three parts, each part is a colour (a planar image)."""


ADOBE_TRANSFORM: Mapping[Colours, int] = MappingProxyType({Colours.RGB: 0, Colours.YCBCR: 1})
"""Adobe's code for the transform of a colour space."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A marker segment of a JPEG stream.

    ``start`` is where its marker begins in the stream, ``body`` its content without the marker and the length.
    """

    marker: int
    start: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegTiles:
    """Tiles that are JPEGs of three components of 8 bits, or of one, maybe without their tables."""

    size: Size
    """(width, height) of a tile."""
    colours: Colours
    tables: bytes = b""
    """A JPEG stream that holds nothing but tables (TIFF's JPEGTables), or empty."""

    @property
    def components(self) -> int:
        """Number of components of each JPEG."""
        return 1 if self.colours is Colours.GREY else 3

    def decoder(self) -> "JpegDecoder":
        """A decoder for these tiles."""
        return JpegDecoder(self)

    def refusal(self, start: bytes) -> str | None:
        """Why tiles that begin like this are left to another reader, or None.

        Refused are kinds of JPEG that TurboJPEG has no name for, though libjpeg reads them.
        """
        try:
            for segment in segments(start):
                if segment.marker in FRAMES:
                    return _frame_refusal(segment, self.components)
        except TileError:
            pass
        return None


class JpegDecoder:
    """Decodes :class:`JpegTiles`, also at a half, a quarter and an eighth of their size."""

    def __init__(self, tiles: JpegTiles) -> None:
        self._tiles = tiles
        # The tiles of a level mostly start with the same header. Kept are that header, and what it becomes.
        self._header: tuple[bytes, bytes] = (b"", b"")

    @property
    def scales(self) -> tuple[int, ...]:
        """The factors of libjpeg's reduced inverse transforms that divide the tile evenly. 1 is among them."""
        return tuple(scale for scale in (1, 2, 4, 8) if not any(side % scale for side in self._tiles.size))

    def decode(self, parts: Parts, out: RgbImage) -> None:
        """Write the pixels of a tile into ``out``, (height, width, 3 or 4) uint8.

        Raises :class:`TileError` if a JPEG is broken, or is not of the stated size and components.
        """
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
        """The tile as one JPEG file that states its own colour space. None for grey tiles and planes.

        Raises :class:`TileError` for a header that cannot be understood.
        """
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
    """Decode a whole JPEG of ``size`` (width, height) into ``out``, at a smaller size if ``out`` is smaller.

    ``out`` is (height, width, 3 or 4) uint8, or (height, width, 1) for grey. The header must have been compared
    with ``size`` before, since the decoder allocates what the header states. Raises :class:`TileError` if the JPEG
    is broken.
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


def segments(data: bytes) -> Iterator[Segment]:
    """The marker segments from SOI up to and including the first SOS, or up to EOI. An empty stream has none.

    Raises :class:`TileError` if the stream is not the header of a JPEG.
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


def jpeg_size(start: bytes) -> Size:
    """(width, height) that the frame of a JPEG states. ``start`` is the stream, or enough of its beginning.

    Raises :class:`TileError` if it is no JPEG.
    """
    for segment in segments(start):
        if segment.marker in FRAMES and len(segment.body) >= 5:
            height, width = (int.from_bytes(segment.body[at : at + 2], "big") for at in (1, 3))
            return width, height
    raise TileError("JPEG without an image")


def _merged_header(data: bytes, tiles: JpegTiles) -> tuple[int, bytes]:
    """Make a header with which the JPEG decodes alone to the right colours.

    Returns where the first scan starts, and the header to put before it. The size of the frame is compared with
    that of the tile here, before a decoder allocates for it. Raises :class:`TileError`.
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
    if components == 1:  # another reader would show the first plane as grey
        return None
    if frame.marker not in HUFFMAN_DCT_FRAMES:
        return "JPEG that is neither baseline nor progressive"
    factors = [(byte >> 4, byte & 15) for byte in frame.body[7::3][:3]]
    if factors[1:] != [(1, 1), (1, 1)] or factors[0] not in TURBOJPEG_LUMA_FACTORS:
        return f"JPEG with the sampling factors {factors}"
    return None


@dataclass(frozen=True, slots=True)
class EncapsulatedTiles:
    """Tiles whose bytes are one or more of DICOM's items, which hold a tile as ``inner`` describes it."""

    inner: TileFormat

    @property
    def size(self) -> Size:
        """(width, height) of a decoded tile."""
        return self.inner.size

    def decoder(self) -> "EncapsulatedDecoder":
        """A decoder for these tiles."""
        return EncapsulatedDecoder(self.inner.decoder())

    def refusal(self, start: bytes) -> str | None:
        """Why tiles that begin like this are left to another reader, or None.

        The reason is that of the inner format, or that JPEG 2000 is stored as a JP2 file, which the standard does
        not allow.
        """
        within = start[ITEM_HEADER:]
        if within.startswith(JP2_START):
            return "JPEG 2000 in a JP2 file, not as a codestream"
        return self.inner.refusal(within)


class EncapsulatedDecoder:
    """Decodes :class:`EncapsulatedTiles`."""

    def __init__(self, inner: TileDecoder) -> None:
        self._inner = inner

    @property
    def scales(self) -> tuple[int, ...]:
        """The whole factors by which tiles can be decoded smaller. 1 is among them."""
        return self._inner.scales

    def decode(self, parts: Parts, out: RgbImage) -> None:
        """Write the pixels of a tile into ``out``, (height, width, 3 or 4) uint8.

        Raises :class:`TileError` if the items or the tile in them are broken.
        """
        self._inner.decode([unwrapped(parts[0])], out)

    def jpeg(self, parts: Parts) -> bytes | None:
        """The tile as one JPEG file that states its own colour space. None if tiles are not stored as JPEGs."""
        return self._inner.jpeg([unwrapped(parts[0])])


def unwrapped(data: memoryview) -> memoryview:
    """The joined content of the items in ``data``. Raises :class:`TileError` if ``data`` is not made of items."""
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


@dataclass(frozen=True, slots=True)
class JpegInFile:
    """An associated image that is a JPEG: ``count`` bytes of ``file`` from ``offset`` on.

    ``size`` is (width, height) in pixels.
    """

    file: Path
    offset: int
    count: int
    size: Size

    @classmethod
    def of(cls, file: Path, *, offset: int = 0, count: int | None = None) -> Self:
        """Find a JPEG in a file by its header. If ``count`` is None, it takes up the rest of the file.

        Raises :class:`TileError` if it is no JPEG, or too large for an associated image, and ``OSError``.
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
        """Decode the image to (height, width, 3) uint8. ``path`` is the slide, for messages.

        Raises :class:`SlideReadError` if it cannot be decoded.
        """
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
