"""Tiles within DICOM's items (PS3.5, A.4): a header of 8 bytes before each, and maybe a tile in several pieces."""

import struct
from dataclasses import dataclass

from wsi_ips.slides.base import RgbImage
from wsi_ips.slides.codecs.base import Parts, TileDecoder, TileError, TileFormat
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
