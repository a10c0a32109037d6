"""Hamamatsu NDPI: its levels, and its image directories, which are not quite those of TIFF.

Each level is one strip: a JPEG of the whole level, mostly with restart markers, whose intervals are the tiles (see
:mod:`wsi_ips.slides.tiff.restart_intervals`). Levels are those of OpenSlide: the stored ones, and each of them
decoded smaller by 2, 4 and 8.

An NDPI file is a classic TIFF with offsets of 64 bits. The offset of the first directory has 8 bytes. After the n
entries of a directory, of 12 bytes each, stand the offset of the next directory, 8 bytes, and n high words of 4
bytes, one for the value or offset of each entry. A single number that is kept in its entry has 64 bits if its high
word is not 0; texts are never kept there. OpenSlide tells such files from TIFF in the same way. Source:
CONTAINERS.md, section 5.

The directories are not read with tifffile, which goes by the name of the file and, on opening, reads as many bytes
as the file claims for the header of its first JPEG.
"""

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import DamagedSlide, UnsupportedSlide
from wsi_ips.slides.base import LeftOut
from wsi_ips.slides.tiff.associated import JpegPicture
from wsi_ips.slides.tiff.directories import COMPRESSION, IMAGE_LENGTH, IMAGE_WIDTH, MOST_IMAGES, NDPI_FORMAT
from wsi_ips.slides.tiff.restart_intervals import (
    MOST_INTERVALS,
    StackedIntervals,
    StoredJpeg,
    reduced_level,
    stacked_level,
)
from wsi_ips.slides.tiff.tile_formats import resolution_mpp
from wsi_ips.slides.tile_layout import TRUNCATED, SlideLayout, TileFile, TileLayout, size_downsample
from wsi_ips.units import Size

MOST_ENTRIES = 4096
"""The most entries of a directory."""

LARGEST_OFFSET = 1 << 44
"""16 TiB.

The first eight bytes of a classic TIFF after the magic number, taken for an offset, mostly lie beyond.
"""

ASCII, RATIONAL = 2, 5
"""Types of texts and rationals."""

TYPES: Mapping[int, str] = MappingProxyType(
    {1: "u1", ASCII: "u1", 3: "<u2", 4: "<u4", RATIONAL: "<u4", 6: "i1", 7: "u1", 8: "<i2", 9: "<i4", 10: "<i4",
     11: "<f4", 12: "<f8", 13: "<u4", 16: "<u8", 17: "<i8", 18: "<u8"}
)  # fmt: skip
"""The NumPy type of the values of each TIFF type."""

PAIRS = frozenset({RATIONAL, 10})
"""Types of which a value is two numbers."""

LONG, SIGNED_LONG = 4, 9
"""Types of 32-bit integers."""

WIDENED: Mapping[int, str] = MappingProxyType({LONG: "<u8", SIGNED_LONG: "<i8"})
"""The NumPy type of a 32-bit value that has a high word."""

STRIP_OFFSETS, STRIP_BYTE_COUNTS = 273, 279
"""Tags of the strips."""

SOURCE_LENS, FOCAL_PLANE, MCU_STARTS, MCU_STARTS_HIGH = 65421, 65424, 65426, 65432
"""Hamamatsu's tags: the lens, the focal plane, and where intervals start in the JPEG, in low and high words."""

MACRO, MAP = -1.0, -2.0
"""Values of the lens for the macro image and the map of the scan."""

JPEG_XR = 22610
"""A compression that is not read."""

REDUCTIONS = (2, 4, 8)
"""By how much stored levels are decoded smaller."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of a directory."""

    type: int
    count: int
    field: bytes
    """Eight bytes: the value, or its offset. The last four are the high word."""

    @property
    def value_bytes(self) -> int:
        """How many bytes the value takes."""
        return self.count * np.dtype(TYPES[self.type]).itemsize * (2 if self.type in PAIRS else 1)

    @property
    def offset(self) -> int:
        """Where the value lies in the file."""
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
        """The numbers of a tag, for a rational numerators and denominators in turn. Empty if the tag is missing.

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
        """How many values a tag states, 0 if it is missing."""
        entry = self.entries.get(code)
        return 0 if entry is None else entry.count

    def integer(self, code: int, default: int = 0) -> int:
        """The first integer of a tag, ``default`` if there is none."""
        values = self._one(code)
        return int(values[0]) if len(values) and np.issubdtype(values.dtype, np.integer) else default

    def decimal(self, code: int) -> float | None:
        """The one number of a tag, or None."""
        values = self._one(code)
        return float(values[0]) if len(values) else None

    def ratio(self, code: int) -> float | None:
        """The value of a rational tag, or None."""
        values = self._one(code)
        return float(values[0]) / float(values[1]) if len(values) == 2 and values[1] else None

    def _one(self, code: int) -> NDArray[Any]:
        """The numbers of a tag that states one value, else none."""
        return self.numbers(code) if self.count(code) == 1 else np.empty(0, np.int64)

    @property
    def size(self) -> Size:
        """(width, height) as stated, 0 if a tag is missing."""
        return self.integer(IMAGE_WIDTH), self.integer(IMAGE_LENGTH)


@dataclass(frozen=True, slots=True)
class _SortedOut:
    levels: list[NdpiImage]
    macro: NdpiImage | None
    left_out: list[LeftOut]


def read_layout(path: Path, *, file_size: int) -> SlideLayout | None:
    """Where the tiles of the levels lie. None for a file that is no NDPI. ``file_size`` is in bytes.

    Raises :class:`UnsupportedSlide` for what is better left to OpenSlide, and :class:`DamagedSlide` for a file
    that is cut short or whose header states what cannot be.
    """
    with opened_images(path, file_size=file_size) as images:
        if images is None:
            return None
        sorted_out = _sorted_out(path, images)
        file = TileFile(path)
        levels = _levels(path, [_native(_jpeg(path, file, image), image) for image in sorted_out.levels])
        macro = sorted_out.macro
        return SlideLayout(
            vendor="hamamatsu",
            files=(path,),
            levels=levels,
            mpp_xy=resolution_mpp(images[0]),
            associated={} if macro is None else {"macro": _picture(_jpeg(path, file, macro))},
            left_out=tuple(sorted_out.left_out),
        )


def _sorted_out(path: Path, images: tuple[NdpiImage, ...]) -> _SortedOut:
    """Sort the images by the lens that each was taken with, and its focal plane."""
    levels: list[NdpiImage] = []
    macros: list[NdpiImage] = []
    left_out = []
    for image in images:
        lens, plane = image.decimal(SOURCE_LENS), image.integer(FOCAL_PLANE)
        if lens is None:
            raise UnsupportedSlide(
                path, f"its image {image.number} does not say which lens it was taken with"
            )
        if lens > 0 and plane == 0:
            levels.append(image)
        elif lens == MACRO and not macros:
            macros.append(image)
        else:
            kinds = {MACRO: "a second macro picture", MAP: "the map of the scan"}
            why = f"another focal plane ({plane})" if lens > 0 else kinds.get(lens, "no picture of the slide")
            left_out.append(LeftOut(f"image {image.number}, {image.size[0]}x{image.size[1]} px", why))
    if not levels:
        raise UnsupportedSlide(path, "an NDPI file without a level")
    return _SortedOut(levels, macros[0] if macros else None, left_out)


def _jpeg(path: Path, file: TileFile, image: NdpiImage) -> StoredJpeg:
    """The one strip of an image."""
    name = f"its image {image.number}"
    compression = image.integer(COMPRESSION)
    if compression == JPEG_XR:
        raise UnsupportedSlide(
            path, f"{name} is JPEG XR, which is not read", "export it as JPEG in Hamamatsu's NDP software"
        )
    if image.count(STRIP_OFFSETS) != 1 or image.count(STRIP_BYTE_COUNTS) != 1:
        raise UnsupportedSlide(path, f"{name} is not one strip")
    offset, count = image.integer(STRIP_OFFSETS), image.integer(STRIP_BYTE_COUNTS)
    if not 0 < count <= file.size - offset or offset < 0:
        raise DamagedSlide(
            path,
            f"truncated: {name} is {count} bytes at byte {offset}, the file has {file.size}",
            TRUNCATED,
        )
    return StoredJpeg(path, file, offset, count, name)


def _native(jpeg: StoredJpeg, image: NdpiImage) -> tuple[TileLayout, StackedIntervals]:
    return stacked_level(jpeg, image.size, _listed_starts(image))


def _listed_starts(image: NdpiImage) -> NDArray[np.int64] | None:
    """Where the intervals start within the strip, as the file lists them. None if it does not."""
    n, n_high = image.count(MCU_STARTS), image.count(MCU_STARTS_HIGH)
    if not 0 < n <= MOST_INTERVALS or n_high not in {0, n}:
        return None
    low = image.numbers(MCU_STARTS)
    high = image.numbers(MCU_STARTS_HIGH) if n_high else np.zeros_like(low)
    if len(low) != n or len(high) != n or low.dtype.kind not in "iu" or high.dtype.kind not in "iu":
        return None
    return low.astype(np.int64) | high.astype(np.int64) << 32


def _levels(path: Path, natives: list[tuple[TileLayout, StackedIntervals]]) -> tuple[TileLayout, ...]:
    """OpenSlide's table of levels, by width, in which a later level replaces an earlier one of the same width.

    A stored level therefore replaces a reduction of a finer one, and of two reductions that of the coarser level
    stays.
    """
    if any(coarser[0].level_size[0] >= finer[0].level_size[0] for finer, coarser in pairwise(natives)):
        raise UnsupportedSlide(path, "its levels are not ordered from fine to coarse")
    by_width: dict[int, TileLayout] = {}
    for level, tile in natives:
        by_width[level.level_size[0]] = level
        for reduction in REDUCTIONS:
            if tile.divides(reduction) and min(level.level_size) >= reduction:
                reduced = reduced_level(level, tile, reduction)
                by_width[reduced.level_size[0]] = reduced
    levels = [by_width[width] for width in sorted(by_width, reverse=True)]
    factors = [size_downsample(level, levels[0]) for level in levels]
    if any(coarser < finer for finer, coarser in pairwise(factors)):
        raise UnsupportedSlide(path, "its levels are not ordered from fine to coarse")
    return tuple(levels)


def _picture(jpeg: StoredJpeg) -> JpegPicture:
    return JpegPicture(size=jpeg.header().size, offset=jpeg.offset, byte_count=jpeg.byte_count)


@contextmanager
def opened_images(path: Path, *, file_size: int) -> Iterator[tuple[NdpiImage, ...] | None]:
    """Open the images of an NDPI file, for the length of a ``with`` block. None for any other file.

    There is at least one image, and they are in file order. Raises :class:`UnsupportedSlide` for a file with more
    images than any slide has, and :class:`DamagedSlide` for one that is cut short.
    """
    with path.open("rb") as file:
        first = _first_directory(path, file, file_size)
        yield None if first is None else tuple(_chain(path, file, file_size, first))


def _first_directory(path: Path, file: BinaryIO, file_size: int) -> int | None:
    """Where the first directory lies. None if the file is no NDPI."""
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
    """The entries at ``offset`` and the offset of the next directory. None if the file ends before they do."""
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
