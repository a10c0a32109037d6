"""Where the frames of a DICOM file lie (PS3.5, A.4): from a table of offsets, or by walking the items.

The range of an encapsulated frame begins with its item's header, and ends with its last item: what is between,
maybe in several pieces, is joined when the frame is decoded (:mod:`wsi_ips.slides.codecs.encapsulated`). So a
table is believed without a look at every item, and a frame that is not where the table says is noticed when it is
read.
"""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_ips.slides.codecs.encapsulated import ITEM, ITEM_HEADER, SEQUENCE_END
from wsi_ips.slides.dicom import tags
from wsi_ips.slides.dicom.elements import LONG_FORMS, UNDEFINED
from wsi_ips.slides.dicom.image import DicomImage
from wsi_ips.slides.tile_files import TileFile
from wsi_ips.slides.tile_layout import TRUNCATED

BLOCK = 64 << 10
FRAME_STARTS = (b"\xff\xd8", b"\xff\x4f\xff\x51")
"""JPEG's start of image, JPEG 2000's start of codestream."""

_ITEM_HEAD = struct.Struct("<4sI")


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """Where each frame of a file begins, and how many bytes it takes with its items' headers. (frames,) both."""

    offsets: NDArray[np.int64]
    byte_counts: NDArray[np.int64]


def frame_index(image: DicomImage) -> FrameIndex:
    """Find the frames of ``image``. Raises :class:`DamagedSlide` where they are not all there; ``OSError``."""
    file = TileFile(image.path)
    start, length = _pixel_data(image, file)
    if image.is_native:
        return _native(image, file, start, length)
    if length != UNDEFINED:
        raise image.damaged("its compressed pixels are stated to have no items")
    if image.frames > file.size // ITEM_HEADER:
        raise image.damaged(f"states {image.frames} frames and has {file.size} bytes", TRUNCATED)
    items = _Items(image, file)
    table, first = items.basic_table(start)
    return _by_extended_table(image, file, first) or _by_basic_table(image, items, table, first) or (
        _by_walking(image, items, first)
    )  # fmt: skip


def _pixel_data(image: DicomImage, file: TileFile) -> tuple[int, int]:
    """Where the pixels' value begins, and its stated length."""
    at = image.header.end
    head = file.read(at, 12)
    group, number, form, short = struct.unpack("<HH2sH", head[:8]) if len(head) >= 8 else (0, 0, b"", 0)
    if group << 16 | number != tags.PIXEL_DATA:
        raise image.damaged(f"has no pixels where they should begin, at byte {at} of {file.size}", TRUNCATED)
    if image.header.transfer_syntax == tags.IMPLICIT_LITTLE:
        return at + 8, int.from_bytes(head[4:8], "little")
    if form not in LONG_FORMS or len(head) < 12:
        raise image.damaged(f"its pixels are of the value representation {form!r}, {short} bytes")
    return at + 12, int.from_bytes(head[8:12], "little")


def _native(image: DicomImage, file: TileFile, start: int, length: int) -> FrameIndex:
    width, height = image.tile_size
    size = width * height * 3
    if image.frames * size > min(length, file.size - start):
        raise image.damaged(
            f"truncated: states {image.frames} frames of {size} bytes and has {file.size - start} bytes of pixels",
            TRUNCATED,
        )
    offsets = start + size * np.arange(image.frames, dtype=np.int64)
    return FrameIndex(offsets, np.full(image.frames, size, np.int64))


def _by_extended_table(image: DicomImage, file: TileFile, first: int) -> FrameIndex | None:
    """By the Extended Offset Table, of 64 bits (PS3.3, C.7.6.3.1.8): one item a frame."""
    data = [image.elements.data(tag) for tag in (tags.OFFSET_TABLE, tags.OFFSET_TABLE_LENGTHS)]
    if not any(data):
        return None
    if any(len(table) != 8 * image.frames for table in data):
        raise image.damaged(f"states {image.frames} frames, and its extended offset table has another length")
    starts, lengths = (np.frombuffer(table, np.uint64) for table in data)
    room = np.uint64(max(0, file.size - first - ITEM_HEADER))
    if ((starts > room) | (lengths > room - np.minimum(starts, room))).any():
        raise image.damaged("truncated: its extended offset table points beyond the file's end", TRUNCATED)
    even = lengths.astype(np.int64) + (lengths % 2).astype(np.int64)  # items are padded to even lengths
    return FrameIndex(first + starts.astype(np.int64), ITEM_HEADER + even)


def _by_basic_table(image: DicomImage, items: "_Items", table: bytes, first: int) -> FrameIndex | None:
    """By the Basic Offset Table, of 32 bits; None for one that cannot be right (beyond 4 GiB offsets wrap)."""
    starts = first + np.frombuffer(table, "<u4").astype(np.int64)
    if len(starts) != image.frames or starts[0] != first or not (np.diff(starts) > ITEM_HEADER).all():
        return None
    if starts[-1] + ITEM_HEADER > items.file_size:
        raise image.damaged("truncated: its offset table points beyond the file's end", TRUNCATED)
    last = items.walk(int(starts[-1]))
    if not last:
        raise image.damaged("its offset table points to no frame", TRUNCATED)
    ends = np.append(starts[1:], last[-1].end)
    return FrameIndex(starts, ends - starts)


def _by_walking(image: DicomImage, items: "_Items", first: int) -> FrameIndex:
    """By the items' own headers. Where there are more items than frames, a frame begins where its code does."""
    walked = items.walk(first)
    if image.frames > 1 and len(walked) > image.frames:
        begins = [number for number, item in enumerate(walked) if item.starts_frame]
    else:
        begins = list(range(len(walked))) if image.frames > 1 else [0] * bool(walked)
    if len(begins) != image.frames or begins[0] != 0:
        raise image.damaged(f"states {image.frames} frames and has {len(begins)}", TRUNCATED)
    offsets = np.array([walked[number].at for number in begins], np.int64)
    last = [*(number - 1 for number in begins[1:]), len(walked) - 1]
    ends = np.array([walked[number].end for number in last], np.int64)
    return FrameIndex(offsets, ends - offsets)


@dataclass(frozen=True, slots=True)
class _Item:
    """From its header's first byte to behind its last; and whether an image's code begins in it."""

    at: int
    end: int
    starts_frame: bool


class _Items:
    """The items of a file's encapsulated pixels, read in blocks."""

    def __init__(self, image: DicomImage, file: TileFile) -> None:
        self._image, self._file = image, file
        self.file_size = file.size
        self._block, self._at = b"", 0

    def basic_table(self, at: int) -> tuple[bytes, int]:
        """The first item, which is the Basic Offset Table, maybe empty; and where the item behind it begins."""
        tag, length = self._item(at)
        if tag != ITEM:
            raise self._image.damaged(
                f"its compressed pixels do not begin with an offset table, at byte {at}"
            )
        if length != 4 * self._image.frames:  # empty, or not one for these frames
            return b"", at + ITEM_HEADER + length
        return self._file.read(at + ITEM_HEADER, length), at + ITEM_HEADER + length

    def walk(self, at: int) -> list["_Item"]:
        """Each item from ``at`` to the sequence's end."""
        found: list[_Item] = []
        while True:
            tag, length = self._item(at)
            if tag == SEQUENCE_END:
                return found
            if tag != ITEM:
                raise self._image.damaged(f"has something else than a frame at byte {at}")
            start = self._bytes(at + ITEM_HEADER, 4)
            at += ITEM_HEADER + length
            found.append(_Item(at - length - ITEM_HEADER, at, start.startswith(FRAME_STARTS)))

    def _item(self, at: int) -> tuple[bytes, int]:
        head = self._bytes(at, ITEM_HEADER)
        if len(head) < ITEM_HEADER:
            raise self._image.damaged(
                f"truncated: its frames break off at byte {at} of {self.file_size}", TRUNCATED
            )
        tag, length = _ITEM_HEAD.unpack(head)
        if tag == ITEM and length > self.file_size - at - ITEM_HEADER:
            raise self._image.damaged(
                f"truncated: the frame at byte {at} has {length} bytes and the file {self.file_size}",
                TRUNCATED,
            )
        return tag, length

    def _bytes(self, at: int, count: int) -> bytes:
        if not self._at <= at <= self._at + len(self._block) - count:
            self._block, self._at = self._file.read(at, BLOCK), at
        return self._block[at - self._at : at - self._at + count]
