"""The image directories of a Hamamatsu NDPI file, which is a classic TIFF with offsets of 64 bits.

The first directory's offset has 8 bytes. Behind a directory's n entries of 12 bytes stand the next directory's
offset, 8 bytes, and n high words of 4 bytes, one for each entry's value or offset. A single number kept in its
entry has 64 bits where its high word is not 0; texts are never kept there. Source: CONTAINERS.md, section 5;
OpenSlide tells such files from TIFF in the same way.

Read here and not by tifffile, which goes by the file's name, and while it opens reads as many bytes as the file
says that its first JPEG's header has.
"""

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import DamagedSlide, UnsupportedSlide
from wsi_ips.slides.tiff.directories import IMAGE_LENGTH, IMAGE_WIDTH, MOST_IMAGES, NDPI_FORMAT
from wsi_ips.slides.tile_layout import TRUNCATED
from wsi_ips.units import Size

MOST_ENTRIES = 4096
LARGEST_OFFSET = 1 << 44
"""16 TiB. A classic TIFF's first eight bytes behind the magic number are, taken for an offset, mostly beyond."""
ASCII, RATIONAL = 2, 5
TYPES: Mapping[int, str] = MappingProxyType(
    {1: "u1", ASCII: "u1", 3: "<u2", 4: "<u4", RATIONAL: "<u4", 6: "i1", 7: "u1", 8: "<i2", 9: "<i4", 10: "<i4",
     11: "<f4", 12: "<f8", 13: "<u4", 16: "<u8", 17: "<i8", 18: "<u8"}
)  # fmt: skip
PAIRS = frozenset({RATIONAL, 10})
LONG, SIGNED_LONG = 4, 9
WIDENED: Mapping[int, str] = MappingProxyType({LONG: "<u8", SIGNED_LONG: "<i8"})


@dataclass(frozen=True, slots=True)
class _Entry:
    type: int
    count: int
    field: bytes
    """Eight bytes: the value, or its offset; the high word is the last four."""

    @property
    def value_bytes(self) -> int:
        return self.count * np.dtype(TYPES[self.type]).itemsize * (2 if self.type in PAIRS else 1)

    @property
    def offset(self) -> int:
        return int.from_bytes(self.field, "little")


@dataclass(frozen=True, slots=True)
class NdpiImage:
    """One image directory. Values that do not fit into an entry are read when they are asked for."""

    number: int
    """Its place in the file's chain of directories."""
    entries: Mapping[int, _Entry]
    _file: BinaryIO
    _file_size: int

    def numbers(self, code: int) -> NDArray[Any]:
        """A tag's numbers, of a rational numerators and denominators in turn; none where it is absent.

        Nothing is allocated for more than the file holds.
        """
        entry = self.entries.get(code)
        if entry is None or entry.type not in TYPES:
            return np.empty(0, np.int64)
        if entry.value_bytes <= 4 and entry.type != ASCII:
            if entry.field[4:] != bytes(4) and entry.count == 1 and entry.type in WIDENED:
                return np.frombuffer(entry.field, WIDENED[entry.type])
            return np.frombuffer(entry.field[: entry.value_bytes], TYPES[entry.type])
        if entry.offset + entry.value_bytes > self._file_size:
            return np.empty(0, np.int64)
        self._file.seek(entry.offset)
        data = self._file.read(entry.value_bytes)
        return np.frombuffer(data[: len(data) // 8 * 8 if entry.type in PAIRS else None], TYPES[entry.type])

    def count(self, code: int) -> int:
        """How many values a tag states; 0 where it is absent."""
        entry = self.entries.get(code)
        return 0 if entry is None else entry.count

    def integer(self, code: int, default: int = 0) -> int:
        """A tag's first integer; ``default`` where there is none."""
        values = self._one(code)
        return int(values[0]) if len(values) and np.issubdtype(values.dtype, np.integer) else default

    def decimal(self, code: int) -> float | None:
        """A tag's one number, or None."""
        values = self._one(code)
        return float(values[0]) if len(values) else None

    def ratio(self, code: int) -> float | None:
        """A rational tag's value, or None."""
        values = self._one(code)
        return float(values[0]) / float(values[1]) if len(values) == 2 and values[1] else None

    def _one(self, code: int) -> NDArray[Any]:
        """:meth:`numbers` of a tag that states one value, else none."""
        return self.numbers(code) if self.count(code) == 1 else np.empty(0, np.int64)

    @property
    def size(self) -> Size:
        """(width, height) as stated; 0 where a tag is absent."""
        return self.integer(IMAGE_WIDTH), self.integer(IMAGE_LENGTH)


@contextmanager
def opened_images(path: Path, *, file_size: int) -> Iterator[tuple[NdpiImage, ...] | None]:
    """An NDPI file's images, at least one, in file order; None for any other file.

    Raises :class:`UnsupportedSlide` for one with more images than any slide has, :class:`DamagedSlide` for one
    that is cut short.
    """
    with path.open("rb") as file:
        first = _first_directory(path, file, file_size)
        yield None if first is None else tuple(_chain(path, file, file_size, first))


def _first_directory(path: Path, file: BinaryIO, file_size: int) -> int | None:
    """Where it lies; None where the file is no NDPI."""
    start = file.read(12)
    if start[:4] != b"II*\0" or len(start) < 12:
        return None
    first = int.from_bytes(start[4:], "little")
    if path.suffix.lower() == ".ndpi" and file_size <= first < LARGEST_OFFSET:
        raise DamagedSlide(
            path, f"truncated: its directory should be at byte {first}, the file has {file_size}", TRUNCATED
        )
    read = _directory(file, file_size, first) if first < file_size else None
    entry = read[0].get(NDPI_FORMAT) if read else None
    return first if entry is not None and entry.count else None


def _chain(path: Path, file: BinaryIO, file_size: int, first: int) -> Iterator[NdpiImage]:
    offset, seen = first, set[int]()
    while offset:
        read = _directory(file, file_size, offset)
        if read is None:
            raise DamagedSlide(path, f"truncated: the list of images breaks off after {len(seen)}", TRUNCATED)
        if offset in seen or len(seen) == MOST_IMAGES:
            raise UnsupportedSlide(path, f"its list of images has a loop, or more than {MOST_IMAGES}")
        entries, after = read
        yield NdpiImage(len(seen), entries, file, file_size)
        seen.add(offset)
        offset = after


def _directory(file: BinaryIO, file_size: int, offset: int) -> tuple[dict[int, _Entry], int] | None:
    """The entries at ``offset`` and the next directory's offset; None where the file ends before they do."""
    if offset >= file_size:
        return None
    file.seek(offset)
    n = int.from_bytes(file.read(2), "little")
    if not 1 <= n <= MOST_ENTRIES or offset + 2 + 16 * n + 8 > file_size:
        return None
    data, after, high = file.read(12 * n), file.read(8), file.read(4 * n)
    entries = {}
    for place, (code, kind, count, field) in enumerate(struct.iter_unpack("<HHI4s", data)):
        entries[code] = _Entry(kind, count, field + high[4 * place : 4 * place + 4])
    return entries, int.from_bytes(after, "little")
