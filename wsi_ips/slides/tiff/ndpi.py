"""The image directories of a Hamamatsu NDPI file, which is a classic TIFF with offsets of 64 bits.

The first directory's offset has 8 bytes. Behind a directory's n entries of 12 bytes stand the next directory's
offset, 8 bytes, and n high words of 4 bytes, one for each entry's value or offset. A single number kept in its
entry has 64 bits where its high word is not 0; texts are never kept there. Source: CONTAINERS.md, section 5;
OpenSlide tells such files from TIFF in the same way.

Read here and not by tifffile, which goes by the file's name, and while it opens reads as many bytes as the file
says that its first JPEG's header has.

Hamamatsu NDPI.

Each level is one strip: a JPEG of the whole level, mostly with restart markers, whose intervals are the tiles (see
:mod:`wsi_ips.slides.tiff.restart_intervals`). Levels are OpenSlide's: those that are stored, and each of them
decoded smaller by 2, 4 and 8. Source: CONTAINERS.md, section 5.
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


STRIP_OFFSETS, STRIP_BYTE_COUNTS = 273, 279
SOURCE_LENS, FOCAL_PLANE, MCU_STARTS, MCU_STARTS_HIGH = 65421, 65424, 65426, 65432
MACRO, MAP = -1.0, -2.0
JPEG_XR = 22610
REDUCTIONS = (2, 4, 8)


def read_layout(path: Path, *, file_size: int) -> SlideLayout | None:
    """An NDPI slide's layout; None for a file that is none.

    Raises :class:`UnsupportedSlide` for what is better left to OpenSlide, :class:`DamagedSlide` for a file that is
    cut short or whose header states what cannot be.
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


@dataclass(frozen=True, slots=True)
class _SortedOut:
    levels: list[NdpiImage]
    macro: NdpiImage | None
    left_out: list[LeftOut]


def _sorted_out(path: Path, images: tuple[NdpiImage, ...]) -> _SortedOut:
    """By the lens that each image was taken with, and its focal plane."""
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
    """The image's one strip."""
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
    """Where the intervals start within the strip, as the file lists them; None where it does not."""
    n, n_high = image.count(MCU_STARTS), image.count(MCU_STARTS_HIGH)
    if not 0 < n <= MOST_INTERVALS or n_high not in {0, n}:
        return None
    low = image.numbers(MCU_STARTS)
    high = image.numbers(MCU_STARTS_HIGH) if n_high else np.zeros_like(low)
    if len(low) != n or len(high) != n or low.dtype.kind not in "iu" or high.dtype.kind not in "iu":
        return None
    return low.astype(np.int64) | high.astype(np.int64) << 32


def _levels(path: Path, natives: list[tuple[TileLayout, StackedIntervals]]) -> tuple[TileLayout, ...]:
    """OpenSlide's table of levels: by width, where a later one replaces an earlier one.

    So a level that is stored replaces a reduction of a finer one, and of two reductions that of the coarser one
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
