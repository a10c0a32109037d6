"""Where the restart intervals of one huge JPEG lie in a file, and how they are stacked to tiles.

See :mod:`wsi_ips.slides.codecs.restart_jpeg`. A large slide has half a million intervals, so that none of
them is looked at in Python.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import DamagedSlide, UnsupportedSlide
from wsi_ips.slides.codecs.base import TileError
from wsi_ips.slides.codecs.restart_jpeg import LARGEST_JPEG_SIDE, RST0, JpegHeader, StackedIntervals
from wsi_ips.slides.limits import LARGEST_BLOCK_PX, LARGEST_SIDE_PX
from wsi_ips.slides.tile_files import TileFile
from wsi_ips.slides.tile_layout import TileLayout
from wsi_ips.units import Size

STACK_ROWS = 256
"""Pixels high, as patches mostly are. Where two rows of patches share each stack, the threads that read them wait
for each other."""
STACK_PX = 1 << 20
"""Pixels of a stack at most: larger ones decode no faster, and a patch needs all of each stack that it touches."""
ROW_OF_STACKS_PX = 1 << 24
"""Pixels of all stacks side by side at most. At four bytes a pixel that is 64 MiB: as much of a level waits in a
stream's cache (128 MiB unless configured otherwise) for the next row of patches."""
LARGEST_HEADER = 1 << 18
SEARCHED_AT_ONCE = 16 << 20
CHECKED_STARTS = 16
SMALLEST_INTERVAL = 3
"""Bytes: a block's code and the marker."""
MOST_BYTES_PER_PX = 6
"""Twice what they take without compression. A JPEG that is larger is none: it is not searched, nor decoded."""
MOST_INTERVALS = 1 << 23
"""The largest slides have half a million."""


@dataclass(frozen=True, slots=True)
class StoredJpeg:
    """A JPEG that lies in a file in one piece, from byte ``offset`` on. name: for messages."""

    path: Path
    file: TileFile
    offset: int
    byte_count: int
    name: str

    def header(self) -> JpegHeader:
        """Raises :class:`UnsupportedSlide` for one that is not decoded here."""
        try:
            return JpegHeader.parse(self.file.read(self.offset, min(LARGEST_HEADER, self.byte_count)))
        except TileError as error:
            raise UnsupportedSlide(self.path, f"{self.name} cannot be decoded: {error}") from error


def stacked_level(
    jpeg: StoredJpeg, stated: Size, listed: NDArray[np.int64] | None
) -> tuple[TileLayout, StackedIntervals]:
    """A level of stacks of the JPEG's intervals, and how they are stored.

    ``stated``: (width, height) of the level as the container has it; a JPEG without restart markers knows its
    own size better. ``listed``: where each interval starts, counted from the JPEG's start, as the container has
    it. A list that is absent, of another length, out of order or false (it is compared with the file in 16
    places) is replaced by a search for the markers, which reads the whole JPEG once. A list that is false
    elsewhere is found out when the tile is decoded.

    Raises :class:`UnsupportedSlide` for a JPEG that is not decoded here, :class:`DamagedSlide` for sizes that no
    slide has or that contradict each other, or for too few markers.
    """
    header = jpeg.header()
    size, interval = _sizes(jpeg, header, stated)
    cols, rows = -(-size[0] // interval[0]), -(-size[1] // interval[1])
    px = cols * rows * interval[0] * interval[1]
    if not cols * rows * SMALLEST_INTERVAL <= jpeg.byte_count <= LARGEST_HEADER + px * MOST_BYTES_PER_PX or (
        cols * rows > MOST_INTERVALS
    ):
        raise DamagedSlide(
            jpeg.path,
            f"{jpeg.name} states {size[0]}x{size[1]} px, that is {cols * rows} pieces in {jpeg.byte_count} bytes",
            "the file is damaged or cut short; copy it again",
        )
    starts = _starts(jpeg, header, (cols * rows, interval), listed)
    per_tile = min(rows, intervals_per_stack(interval, size[0]))
    tile = StackedIntervals(header=header, interval=interval, per_tile=per_tile, cols=cols)
    return _stacked(jpeg, starts, size, tile, rows), tile


def reduced_level(level: TileLayout, tile: StackedIntervals, reduction: int) -> TileLayout:
    """The level that is not stored: ``level``'s stacks (of ``tile``), decoded smaller by 2, 4 or 8."""
    width, height = level.level_size
    return TileLayout(
        level_size=(width // reduction, height // reduction),
        tile=tile.reduced(reduction),
        cols=level.cols,
        rows=level.rows,
        offsets=level.offsets,
        byte_counts=level.byte_counts,
    )


def intervals_per_stack(interval: Size, level_width: int) -> int:
    """How many intervals of (width, height) are stacked: 256 px high, or halved until it fits.

    A stack is at most :data:`STACK_PX` large, and the stacks side by side :data:`ROW_OF_STACKS_PX`.
    """
    width, height = interval
    high = STACK_ROWS
    while high > height and (high * width > STACK_PX or high * level_width > ROW_OF_STACKS_PX):
        high //= 2
    return max(1, high // height)


def find_starts(jpeg: StoredJpeg, header_bytes: int, expected: int) -> NDArray[np.int64]:
    """Where the intervals start, from the JPEG's start on: the first behind the header, others behind markers.

    One pass over the JPEG. Raises :class:`DamagedSlide` where there are not ``expected`` of them.
    """
    found = [np.array([header_bytes], np.int64)]
    n, at = 1, header_bytes
    while at < jpeg.byte_count and n <= expected:
        count = min(SEARCHED_AT_ONCE, jpeg.byte_count - at)
        # One byte of the next block along: a marker may lie across.
        block = np.frombuffer(
            jpeg.file.read(jpeg.offset + at, min(count + 1, jpeg.byte_count - at)), np.uint8
        )
        markers = np.flatnonzero(block[:-1] == 0xFF)
        kinds = block[markers + 1]
        starts = at + 2 + markers[(kinds >= RST0) & (kinds < RST0 + 8)]
        found.append(starts)
        n, at = n + len(starts), at + count
        if len(block) < count:
            break
    if n != expected:
        raise DamagedSlide(
            jpeg.path,
            f"{jpeg.name} has {n if n <= expected else 'more than ' + str(expected)} intervals, not {expected}",
            "the file is damaged; copy it again",
        )
    return np.concatenate(found)


def _sizes(jpeg: StoredJpeg, header: JpegHeader, stated: Size) -> tuple[Size, Size]:
    """(width, height) of the level, and of an interval."""
    size = stated if header.restart_interval else header.size
    if not all(1 <= side <= LARGEST_SIDE_PX for side in size):
        raise DamagedSlide(jpeg.path, f"{jpeg.name} claims {size[0]}x{size[1]} px")
    interval = size
    if header.restart_interval:
        if max(stated) <= LARGEST_JPEG_SIDE and header.states_size and header.size != stated:
            raise UnsupportedSlide(
                jpeg.path,
                f"{jpeg.name} is {stated[0]}x{stated[1]} px in its directory and "
                f"{header.size[0]}x{header.size[1]} px in its JPEG",
            )
        interval = header.restart_interval * header.block[0], header.block[1]
        if -(-stated[0] // header.block[0]) % header.restart_interval:
            raise UnsupportedSlide(
                jpeg.path, f"{jpeg.name} has restart markers that do not divide its rows evenly"
            )
    if interval[0] * interval[1] > LARGEST_BLOCK_PX or max(interval) > LARGEST_JPEG_SIDE:
        raise UnsupportedSlide(jpeg.path, f"{jpeg.name} has pieces of {interval[0]}x{interval[1]} px")
    return size, interval


def _starts(
    jpeg: StoredJpeg, header: JpegHeader, tiles: tuple[int, Size], listed: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """Where the intervals start, counted from the JPEG's start. tiles: how many there are, and their size."""
    expected, (width, height) = tiles
    header_bytes, most = len(header.data), LARGEST_HEADER + width * height * MOST_BYTES_PER_PX
    if listed is not None and len(listed) == expected > 1:
        starts = listed.copy()
        starts[0] = header_bytes
        counts = np.diff(starts, append=jpeg.byte_count)
        if counts.min() >= SMALLEST_INTERVAL and counts.max() <= most and _follow_markers(jpeg, starts):
            return starts
    starts = find_starts(jpeg, header_bytes, expected) if expected > 1 else np.array([header_bytes], np.int64)
    counts = np.diff(starts, append=jpeg.byte_count)
    if counts.min() < SMALLEST_INTERVAL or counts.max() > most:
        raise DamagedSlide(
            jpeg.path,
            f"{jpeg.name} has a piece of {width}x{height} px in {counts.max()} bytes, another in {counts.min()}",
            "the file is damaged; copy it again",
        )
    return starts


def _follow_markers(jpeg: StoredJpeg, starts: NDArray[np.int64]) -> bool:
    """Whether some of the intervals, the last among them, start behind the restart marker that is due."""
    for number in np.linspace(1, len(starts) - 1, CHECKED_STARTS).astype(int).tolist():
        due = bytes([0xFF, RST0 + (number - 1) % 8])
        if jpeg.file.read(jpeg.offset + int(starts[number]) - 2, 2) != due:
            return False
    return True


def _stacked(
    jpeg: StoredJpeg, starts: NDArray[np.int64], size: Size, tile: StackedIntervals, rows: int
) -> TileLayout:
    """The intervals, row by row, as tiles of ``tile.per_tile`` parts; parts below the last row are empty."""
    tile_rows = -(-rows // tile.per_tile)
    padding = (tile_rows * tile.per_tile - rows) * tile.cols
    counts = np.diff(starts, append=jpeg.byte_count)
    offsets, counts = (
        np.pad(table, (0, padding), constant_values=empty)
        .reshape(tile_rows, tile.per_tile, tile.cols)
        .transpose(0, 2, 1)
        .reshape(tile_rows * tile.cols, tile.per_tile)
        for table, empty in ((starts + jpeg.offset, jpeg.offset + jpeg.byte_count), (counts, 0))
    )
    return TileLayout(
        level_size=size,
        tile=tile,
        cols=tile.cols,
        rows=tile_rows,
        offsets=offsets,
        byte_counts=counts,
    )
