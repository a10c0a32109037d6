"""A DICOM header as tags and bytes, and the tags that are used here.

:func:`read_header` reads the elements before the pixels. pydicom is not used, for three reasons. Folders of
thousands of files are looked through, of which only a few elements near the start matter. The positions of a
sparse image's frames are nested three sequences deep, of which pydicom reads about 14 a millisecond. And the
numbers in a file must not decide how much memory is taken: here every length is compared with the file before it
is followed, nesting is bounded, and only known tags are kept.

Sources: PS3.5, section 7; PS3.6; PS3.10, section 7.1.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

from wsi_ips.slides.tile_layout import TileFile

# Tags by the keywords of PS3.6, shortened. A tag is its group, times 65536, plus its element.
MEDIA_SOP_CLASS, TRANSFER_SYNTAX = 0x00020002, 0x00020010
IMAGE_TYPE, SOP_CLASS, SOP_INSTANCE, MANUFACTURER = 0x00080008, 0x00080016, 0x00080018, 0x00080070
SERIES_INSTANCE = 0x0020000E
CONCATENATION, PART_NUMBER, PART_COUNT, PART_FRAME_OFFSET = 0x00209161, 0x00209162, 0x00209163, 0x00209228
ORGANIZATION_TYPE = 0x00209311
SAMPLES, PHOTOMETRIC, PLANAR, FRAMES, ROWS, COLUMNS = (
    0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011,
)  # fmt: skip
BITS_ALLOCATED, BITS_STORED, HIGH_BIT, PIXEL_REPRESENTATION = 0x00280100, 0x00280101, 0x00280102, 0x00280103
PIXEL_MEASURES, PIXEL_SPACING, ICC_PROFILE = 0x00289110, 0x00280030, 0x00282000
MATRIX_COLUMNS, MATRIX_ROWS = 0x00480006, 0x00480007
OPTICAL_PATHS, OPTICAL_PATH_OF_FRAME, OPTICAL_PATH_IDENTIFIER = 0x00480105, 0x00480207, 0x00480106
PLANE_POSITION, COLUMN_POSITION, ROW_POSITION, Z_OFFSET = 0x0048021A, 0x0048021E, 0x0048021F, 0x0040074A
SHARED_GROUPS, PER_FRAME_GROUPS = 0x52009229, 0x52009230
OFFSET_TABLE, OFFSET_TABLE_LENGTHS, PIXEL_DATA = 0x7FE00001, 0x7FE00002, 0x7FE00010

KNOWN = frozenset(
    value for name, value in list(globals().items()) if name.isupper() and isinstance(value, int)
)
"""Every tag above. What other elements of a header hold is ignored."""

WHOLE_SLIDE_IMAGE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""UID of the class of whole-slide images."""

END_OF_META = 0x0002FFFF
"""The last tag of the group that is written alike whatever the transfer syntax is (PS3.10, 7.1)."""

IMPLICIT_LITTLE, EXPLICIT_LITTLE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
"""UIDs of the transfer syntaxes without compression."""

JPEG_BASELINE, JPEG_EXTENDED = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
"""UIDs of the transfer syntaxes of JPEG."""

JPEG2000_LOSSLESS, JPEG2000, RLE = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.5"
"""UIDs of the transfer syntaxes of JPEG 2000 and run-length encoding."""

UNREADABLE = {"1.2.840.10008.1.2.1.99": "deflated", "1.2.840.10008.1.2.2": "big-endian"}
"""Words for the transfer syntaxes of which not even the header can be read."""

OTHER_SYNTAXES = {
    "1.2.840.10008.1.2.4.57": "lossless JPEG",
    "1.2.840.10008.1.2.4.70": "lossless JPEG",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.81": "JPEG-LS",
    "1.2.840.10008.1.2.4.110": "JPEG XL",
    "1.2.840.10008.1.2.4.111": "JPEG XL",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.4.201": "high-throughput JPEG 2000",
    "1.2.840.10008.1.2.4.202": "high-throughput JPEG 2000",
    "1.2.840.10008.1.2.4.203": "high-throughput JPEG 2000",
}
"""Words for the transfer syntaxes whose pixels are not read."""

PREAMBLE = 128
"""Bytes before the magic letters."""

MAGIC = b"DICM"
"""The letters that make a file DICOM."""

START = PREAMBLE + len(MAGIC)
"""Where the elements begin."""

FIRST_READ = 16 << 10
"""How many bytes are read first to tell the series of a file."""

FIRST_READ_OF_ALL = 256 << 10
"""How many bytes are read first for a whole header."""

LARGEST_HEADER = 64 << 20
"""The most bytes before the pixels. The positions of a sparse image's frames take about 150 bytes each."""

ALL = PIXEL_DATA - 1
"""The last tag before the pixels."""

DEEPEST = 16
"""How deep sequences may be nested."""

MOST_ITEMS = 1 << 20
"""The most items of a sequence."""

UNDEFINED = 0xFFFFFFFF
"""The length of a value that ends with a delimiter."""

DELIMITERS = 0xFFFE
"""The group of the tags that mark where items begin and end."""

ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
"""Tags that begin an item, and end an item and a sequence of undefined length."""

LONG_FORMS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Value representations whose length takes four bytes, after two that are reserved."""

SHORT_FORMS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
"""Value representations whose length takes two bytes."""

_EXPLICIT = struct.Struct("<HH2sH")
_IMPLICIT = struct.Struct("<HHI")

Range = tuple[int, int, bytes]
"""Where a value begins and ends in the bytes of the header, and its value representation (empty if implicit)."""


class BrokenHeader(ValueError):
    """A header that contradicts itself or the length of the file."""


class _ReadFurther(Exception):
    """More bytes of the file are needed, up to ``end``."""

    def __init__(self, end: int) -> None:
        self.end = end


@dataclass(frozen=True, slots=True)
class Header:
    """The elements of a file before its pixels. ``end`` is where the first element after them starts."""

    meta: "DataSet"
    body: "DataSet"
    end: int

    @property
    def sop_class(self) -> str:
        """UID of the class of the file."""
        return self.meta.text(MEDIA_SOP_CLASS) or self.body.text(SOP_CLASS)

    @property
    def transfer_syntax(self) -> str:
        """UID of the transfer syntax."""
        return self.meta.text(TRANSFER_SYNTAX)


class DataSet:
    """Elements by tag.

    An element that is missing, or is not of the kind that was asked for, reads as empty, None or no items.
    """

    __slots__ = ("_bytes", "_depth", "_found", "_implicit")

    def __init__(
        self, held: "_Bytes", found: dict[int, "Range | Items"], *, implicit: bool, depth: int
    ) -> None:
        self._bytes, self._found, self._implicit, self._depth = held, found, implicit, depth

    def __contains__(self, tag: int) -> bool:
        return tag in self._found

    def data(self, tag: int) -> bytes:
        """The bytes of an element."""
        value = self._found.get(tag)
        return self._bytes.data[value[0] : value[1]] if isinstance(value, tuple) else b""

    def texts(self, tag: int) -> list[str]:
        """The values of a text element, without padding."""
        text = self.data(tag).decode("latin-1").strip(" \0")
        return [part.strip(" \0") for part in text.split("\\")] if text else []

    def text(self, tag: int) -> str:
        """The first value of a text element, empty if it is missing."""
        return next(iter(self.texts(tag)), "")

    def unsigned(self, tag: int) -> int | None:
        """The value of an element of one unsigned integer of 2 or 4 bytes (US, UL)."""
        data = self.data(tag)
        return int.from_bytes(data, "little") if len(data) in (2, 4) else None

    def signed(self, tag: int) -> int | None:
        """The value of an element of one signed integer of 2 or 4 bytes (SS, SL)."""
        data = self.data(tag)
        return int.from_bytes(data, "little", signed=True) if len(data) in (2, 4) else None

    def numbers(self, tag: int) -> list[float]:
        """The values of an element of decimal text (DS, IS). Empty if one of them is no finite number."""
        try:
            values = [float(text) for text in self.texts(tag)]
        except ValueError:
            return []
        return values if all(abs(value) < float("inf") for value in values) else []

    def items(self, tag: int) -> "Items":
        """The items of a sequence. Raises :class:`BrokenHeader`."""
        value = self._found.get(tag)
        if not isinstance(value, tuple):
            return value or []
        start, end, form = value
        return self._bytes.items(
            start, end, implicit=self._implicit or form == b"UN", depth=self._depth + 1, delimited=False
        )[0]


Items = list[DataSet]
"""The items of a sequence."""


def is_dicom(start: bytes) -> bool:
    """Whether a file that begins like this is DICOM, by the four letters at byte 128."""
    return start[PREAMBLE:START] == MAGIC


def read_header(path: Path, *, until: int = ALL) -> Header | None:
    """Read the elements of a file up to the tag ``until``. None if it is no DICOM file.

    Raises :class:`BrokenHeader` if the header contradicts itself or the length of the file, and ``OSError``.
    """
    file = TileFile(path)
    size, count = file.size, FIRST_READ if until < ALL else FIRST_READ_OF_ALL
    data = file.read(0, count)
    if not is_dicom(data):
        return None
    while True:
        try:
            return _parsed(_Bytes(data, size), until)
        except _ReadFurther as further:
            if further.end > LARGEST_HEADER:
                raise BrokenHeader(f"its header is longer than {LARGEST_HEADER} bytes") from None
            count = max(further.end, 4 * count)
            data += file.read(len(data), count - len(data))
            if len(data) < further.end:
                raise BrokenHeader("the file has become shorter") from None


def _parsed(held: "_Bytes", until: int) -> Header:
    found, at = held.elements(START, held.size, implicit=False, depth=0, until=END_OF_META)
    meta = DataSet(held, found, implicit=False, depth=0)
    syntax = meta.text(TRANSFER_SYNTAX)
    if until > END_OF_META and syntax in UNREADABLE:
        raise BrokenHeader(f"it is written {UNREADABLE[syntax]}, which is not read here")
    implicit = syntax == IMPLICIT_LITTLE
    found, end = held.elements(at, held.size, implicit=implicit, depth=0, until=until)
    return Header(meta, DataSet(held, found, implicit=implicit, depth=0), end)


class _Bytes:
    """The first bytes of a file, and the file's size."""

    __slots__ = ("data", "size")

    def __init__(self, data: bytes, size: int) -> None:
        self.data, self.size = data, size

    def elements(
        self,
        at: int,
        end: int,
        *,
        implicit: bool,
        depth: int,
        until: int = UNDEFINED,
        delimited: bool = False,
    ) -> tuple[dict[int, "Range | Items"], int]:
        """The known elements from ``at`` on, and where they end.

        They end at ``end``, before a tag beyond ``until``, or, for a ``delimited`` item, after its delimiter.
        """
        found: dict[int, Range | Items] = {}
        while at < end:
            tag, form, body, length = self._head(at, end, implicit, until)
            if tag > until:
                return found, at
            if tag == ITEM_END and delimited:
                return found, body
            if tag >> 16 == DELIMITERS:
                raise BrokenHeader(f"an item's delimiter stands alone at byte {at}")
            value: Range | Items
            if length == UNDEFINED:
                value, after = self.items(
                    body, end, implicit=implicit or form == b"UN", depth=depth + 1, delimited=True
                )
            else:
                after = body + length
                if after > end or after > len(self.data):
                    self._beyond(at, after, end)
                value = (body, after, form)
            if tag in KNOWN:
                found[tag] = value
            at = after
        if delimited:
            raise BrokenHeader(f"an item has no end before byte {end}")
        return found, at

    def items(self, at: int, end: int, *, implicit: bool, depth: int, delimited: bool) -> tuple["Items", int]:
        """The items from ``at`` on, and where they end: at ``end``, or, if ``delimited``, after the delimiter."""
        if depth > DEEPEST:
            raise BrokenHeader(f"sequences in sequences, more than {DEEPEST} deep, at byte {at}")
        items: list[DataSet] = []
        while at < end or delimited:
            body = at + 8
            if body > end or body > len(self.data):
                self._beyond(at, body, end)
            group, number, length = _IMPLICIT.unpack_from(self.data, at)
            tag = group << 16 | number
            if tag == SEQUENCE_END and delimited:
                return items, body
            if tag != ITEM or len(items) >= MOST_ITEMS:
                raise BrokenHeader(f"a sequence of something else than items, or of too many, at byte {at}")
            ends = end if length == UNDEFINED else body + length
            if ends > end:
                self._beyond(at, ends, end)
            found, at = self.elements(
                body, ends, implicit=implicit, depth=depth, delimited=length == UNDEFINED
            )
            items.append(DataSet(self, found, implicit=implicit, depth=depth))
        return items, at

    def _head(self, at: int, end: int, implicit: bool, until: int) -> tuple[int, bytes, int, int]:
        """Read the header of the element at ``at``.

        Returns its tag, its value representation, where its value begins, and the length of the value. Of an
        element beyond ``until`` only the tag means something, since it may be written in another way.
        """
        data, body = self.data, at + 8
        if body > end or body > len(data):
            self._beyond(at, body, end)
        group, number, form, length = _EXPLICIT.unpack_from(data, at)
        tag = group << 16 | number
        if implicit or group == DELIMITERS or tag > until:
            return tag, b"", body, int.from_bytes(data[at + 4 : body], "little")
        if form in SHORT_FORMS:
            return tag, form, body, length
        if form not in LONG_FORMS:
            raise BrokenHeader(f"the element at byte {at} has no known value representation")
        body = at + 12
        if body > end or body > len(data):
            self._beyond(at, body, end)
        return tag, form, body, int.from_bytes(data[at + 8 : body], "little")

    def _beyond(self, at: int, needed: int, end: int) -> None:
        """Raise for an element at ``at`` that needs the bytes up to ``needed``.

        Raises :class:`BrokenHeader` if that lies beyond ``end``, and ``_ReadFurther`` if the bytes were not read
        yet.
        """
        if needed > end:
            where = "the file's end" if end == self.size else "what it is part of"
            raise BrokenHeader(f"the element at byte {at} reaches beyond {where}, to byte {needed}")
        raise _ReadFurther(needed)
