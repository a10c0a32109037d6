"""Tiles that are pieces of one huge JPEG, cut at its restart markers, as in Hamamatsu's NDPI.

:func:`stacked_level` finds the pieces and makes a level of them. :class:`StackedIntervals` says how such tiles are
decoded.

Between two restart markers lies an interval of whole blocks that decodes without the rest. In NDPI an interval is
a piece of one row of blocks, often thousands of pixels wide and 8 high. Decoding it alone would be slow, so a tile
is a stack: the intervals of one column below each other, joined under the JPEG's own header. Its pixels equal
those that OpenSlide decodes interval by interval if no component is halved vertically. (With 4:2:0, at which
OpenSlide fails, chroma is not smoothed across the border between two stacks.) A JPEG without restart markers is
one interval.

A large slide has half a million intervals, so none of them is looked at in a Python loop. Source: ITU-T T.81, B.2
and E.1.4; CONTAINERS.md, section 5.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import DamagedSlide, UnsupportedSlide
from wsi_ips.slides.base import RgbImage
from wsi_ips.slides.codecs.base import Parts, TileError
from wsi_ips.slides.codecs.jpeg import EOI, FRAMES, SOS, Colours, JpegTiles, decode_jpeg_into, segments
from wsi_ips.slides.tile_layout import TileFile, TileLayout
from wsi_ips.slides.tile_places import LARGEST_BLOCK_PX, LARGEST_SIDE_PX
from wsi_ips.units import Size

DRI = 0xDD
"""Marker of the segment that defines the restart interval."""

RST0 = 0xD0
"""The first of the eight restart markers."""

SEQUENTIAL_FRAMES = frozenset({0xC0, 0xC1})
"""Markers of baseline and extended sequential frames."""

LARGEST_JPEG_SIDE = 65_500
"""libjpeg's limit for a side. Frames of larger images state 0, or a larger number."""

END_OF_IMAGE = bytes([0xFF, EOI])
"""The marker at the end of a JPEG."""

STACK_ROWS = 256
"""Height of a stack in pixels, which is that of most patches.

If two rows of patches share each stack, the threads that read them wait for each other.
"""

STACK_PX = 1 << 20
"""The most pixels of a stack.

Larger ones decode no faster, and a patch needs all of each stack that it touches.
"""

ROW_OF_STACKS_PX = 1 << 24
"""The most pixels of all stacks side by side.

At four bytes a pixel that is 64 MiB: as much of a level waits in a stream's cache (128 MiB unless configured
otherwise) for the next row of patches.
"""

LARGEST_HEADER = 1 << 18
"""The most bytes of the header of a JPEG."""

SEARCHED_AT_ONCE = 16 << 20
"""How many bytes are read at once when markers are searched."""

CHECKED_STARTS = 16
"""How many entries of a list of starts are compared with the file."""

SMALLEST_INTERVAL = 3
"""The fewest bytes of an interval: the code of a block, and the marker."""

MOST_BYTES_PER_PX = 6
"""Twice what pixels take without compression. A JPEG that is larger is not searched and not decoded."""

MOST_INTERVALS = 1 << 23
"""The most intervals. The largest slides have half a million."""


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """The bytes of a JPEG up to the data of its first scan, and what they say."""

    data: bytes
    frame_at: int
    """Where in ``data`` the height of the frame stands; its width follows."""
    size: Size
    """(width, height) as the frame states them, which may not be those of the image."""
    block: Size
    """(width, height) in pixels of the blocks that are coded together (MCU)."""
    restart_interval: int
    """Blocks between two restart markers, 0 if there are none."""

    @classmethod
    def parse(cls, start: bytes) -> "JpegHeader":
        """Read the header of a JPEG. ``start`` is its beginning, at least the header.

        Raises :class:`TileError` for bytes that are no JPEG of three 8-bit components that TurboJPEG decodes, and
        for one that has restart markers and several scans, so that intervals hold no whole pixels.
        """
        interval, frame, scan = 0, None, None
        for segment in segments(start):
            if segment.marker in FRAMES:
                frame = segment
            elif segment.marker == DRI and len(segment.body) == 2:
                interval = int.from_bytes(segment.body, "big")
            elif segment.marker == SOS:
                scan = segment
        if frame is None or scan is None or not scan.body:
            raise TileError("JPEG without an image")
        body = frame.body
        if len(body) < 6 + 3 * 3 or body[0] != 8 or body[5] != 3:
            raise TileError("JPEG that is not three components of 8 bits")
        if reason := JpegTiles(size=(0, 0), colours=Colours.AS_STATED).refusal(start):
            raise TileError(reason)
        if interval and (frame.marker not in SEQUENTIAL_FRAMES or scan.body[0] != 3):
            raise TileError("JPEG of several scans with restart markers")
        return cls(
            data=start[: scan.start + 4 + len(scan.body)],
            frame_at=frame.start + 5,
            size=(int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big")),
            block=(8 * (body[7] >> 4), 8 * (body[7] & 15)),
            restart_interval=interval,
        )

    @property
    def states_size(self) -> bool:
        """Whether the size that the frame states can be that of the image."""
        return all(0 < side <= LARGEST_JPEG_SIDE for side in self.size)

    def with_size(self, size: Size) -> bytes:
        """The header for an image of another size (width, height)."""
        width, height = size
        at = self.frame_at
        sides = height.to_bytes(2, "big") + width.to_bytes(2, "big")
        return self.data[:at] + sides + self.data[at + 4 :]


@dataclass(frozen=True, slots=True, kw_only=True)
class StackedIntervals:
    """Tiles that are stacks of restart intervals.

    Each part of a tile is an interval with the marker that ends it.
    """

    header: JpegHeader
    interval: Size
    """(width, height) of an interval in pixels."""
    per_tile: int
    """Intervals in a stack. The stacks of the last row may have fewer: their last parts are empty."""
    cols: int
    """Intervals side by side. The interval below another one lies this many further on in the JPEG."""
    reduction: int = 1
    """1, 2, 4 or 8: by how much tiles are decoded smaller, for levels that are not stored."""

    @property
    def size(self) -> Size:
        """(width, height) of a decoded tile."""
        width, height = self.interval
        return width // self.reduction, height * self.per_tile // self.reduction

    def reduced(self, reduction: int) -> "StackedIntervals":
        """The same stacks for a level that is smaller by ``reduction``."""
        return replace(self, reduction=reduction)

    def divides(self, factor: int) -> bool:
        """Whether intervals can be decoded smaller by ``factor`` without cutting a pixel."""
        return factor <= 8 and not any(side % factor for side in self.interval)

    def decoder(self) -> "StackDecoder":
        """A decoder for these tiles."""
        return StackDecoder(self)

    def refusal(self, start: bytes) -> None:
        """Always None, since nothing in an interval could tell, and the header was checked before."""
        return


class StackDecoder:
    """Decodes :class:`StackedIntervals`."""

    def __init__(self, tiles: StackedIntervals) -> None:
        self._tiles = tiles
        self._headers = {n: self._header(n) for n in (1, tiles.per_tile)}

    @property
    def scales(self) -> tuple[int, ...]:
        """The factors of libjpeg's reduced inverse transforms that divide an interval evenly. 1 is among them."""
        tiles = self._tiles
        return tuple(scale for scale in (1, 2, 4, 8) if tiles.divides(scale * tiles.reduction))

    def decode(self, parts: Parts, out: RgbImage) -> None:
        """Write the pixels of a stack into ``out``, (height, width, 3 or 4) uint8.

        If a stack has fewer intervals than a tile, the rest of ``out`` is left as it is. Raises :class:`TileError`
        if an interval is broken.
        """
        tiles = self._tiles
        n = sum(1 for part in parts if len(part))
        width, height = tiles.interval[0], tiles.interval[1] * n
        # `out` may be smaller still than the level's tiles.
        factor = tiles.interval[1] * tiles.per_tile // len(out)
        decode_jpeg_into(self._joined(parts, n), out[: height // factor], (width, height))

    def jpeg(self, parts: Parts) -> bytes | None:
        """The stack as one JPEG.

        None for a stack that is no whole tile, and for a level that is decoded smaller.
        """
        n = sum(1 for part in parts if len(part))
        if n < self._tiles.per_tile or self._tiles.reduction > 1:
            return None
        return bytes(self._joined(parts, n))

    def _joined(self, parts: Parts, n: int) -> bytearray:
        """One JPEG of the first ``n`` parts. Raises :class:`TileError` if a part does not end in its marker."""
        if not n:
            raise TileError("no interval has data")
        header = self._headers.get(n) or self._header(n)
        jpeg = bytearray().join((header, *parts))
        data = np.frombuffer(jpeg, np.uint8)
        # Where the marker of each part is: a byte FF, and then its number.
        at_n = len(header) - 1 + np.cumsum([len(part) for part in parts[:n]])
        numbers_n = data[at_n].astype(np.int64) - RST0
        wrong_n = (data[at_n - 1] != 0xFF) | (numbers_n < 0) | (numbers_n > 7)
        if wrong_n[-1] and bytes(parts[n - 1]).rfind(END_OF_IMAGE) > 0:
            # The end of the image, and maybe padding after it, which no decoder looks at.
            wrong_n[-1] = False
        else:
            data[at_n[-1]] = EOI
            wrong_n[-1] |= (numbers_n[-1] - numbers_n[0] - (n - 1) * self._tiles.cols) % 8 != 0
        order_n = np.arange(n)[:-1]
        wrong_n[:-1] |= (numbers_n[:-1] - numbers_n[0] - order_n * self._tiles.cols) % 8 != 0
        if wrong_n.any():
            raise TileError(
                f"interval {int(wrong_n.argmax())} of its stack does not end in the marker that is due"
            )
        data[at_n[:-1]] = RST0 + order_n % 8
        return jpeg

    def _header(self, n: int) -> bytes:
        width, height = self._tiles.interval
        return self._tiles.header.with_size((width, height * n))


@dataclass(frozen=True, slots=True)
class StoredJpeg:
    """A JPEG that lies in a file in one piece, from byte ``offset`` on. ``name`` is what messages call it."""

    path: Path
    file: TileFile
    offset: int
    byte_count: int
    name: str

    def header(self) -> JpegHeader:
        """Read the header. Raises :class:`UnsupportedSlide` if the JPEG is not decoded here."""
        try:
            return JpegHeader.parse(self.file.read(self.offset, min(LARGEST_HEADER, self.byte_count)))
        except TileError as error:
            raise UnsupportedSlide(self.path, f"{self.name} cannot be decoded: {error}") from error


def stacked_level(
    jpeg: StoredJpeg, stated: Size, listed: NDArray[np.int64] | None
) -> tuple[TileLayout, StackedIntervals]:
    """A level of stacks of the intervals of a JPEG, and how they are stored.

    Args:
        jpeg: The JPEG of the whole level.
        stated: (width, height) of the level as the container states it. A JPEG without restart markers knows its
            own size better.
        listed: Where each interval starts, counted from the start of the JPEG, as the container lists it.

    The list is compared with the file in 16 places. If it is missing, of another length, out of order or false,
    the markers are searched instead, which reads the whole JPEG once. A list that is false elsewhere is found out
    when a tile is decoded.

    Raises :class:`UnsupportedSlide` for a JPEG that is not decoded here, and :class:`DamagedSlide` for sizes that
    no slide has or that contradict each other, or for too few markers.
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
    """A level that is not stored: the stacks of a stored level, decoded smaller.

    ``tile`` describes the tiles of ``level``; ``reduction`` is 2, 4 or 8.
    """
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
    """How many intervals of (width, height) are stacked: as many as make 256 px, or a half, a quarter, … of that.

    A stack has at most :data:`STACK_PX` pixels, and the stacks side by side :data:`ROW_OF_STACKS_PX`.
    """
    width, height = interval
    high = STACK_ROWS
    while high > height and (high * width > STACK_PX or high * level_width > ROW_OF_STACKS_PX):
        high //= 2
    return max(1, high // height)


def find_starts(jpeg: StoredJpeg, header_bytes: int, expected: int) -> NDArray[np.int64]:
    """Search a JPEG for its intervals, in one pass. Returns where they start, counted from the start of the JPEG.

    The first interval starts after the header, the others after restart markers. Raises :class:`DamagedSlide` if
    there are not ``expected`` of them.
    """
    found = [np.array([header_bytes], np.int64)]
    n, at = 1, header_bytes
    while at < jpeg.byte_count and n <= expected:
        count = min(SEARCHED_AT_ONCE, jpeg.byte_count - at)
        # One byte of the next block is read too, since a marker may lie across the border.
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
    """Where the intervals start, counted from the start of the JPEG. ``tiles`` is their number and their size."""
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
    """Whether some of the intervals, the last one among them, start after the restart marker that is due."""
    for number in np.linspace(1, len(starts) - 1, CHECKED_STARTS).astype(int).tolist():
        due = bytes([0xFF, RST0 + (number - 1) % 8])
        if jpeg.file.read(jpeg.offset + int(starts[number]) - 2, 2) != due:
            return False
    return True


def _stacked(
    jpeg: StoredJpeg, starts: NDArray[np.int64], size: Size, tile: StackedIntervals, rows: int
) -> TileLayout:
    """The intervals, row by row, as tiles of ``tile.per_tile`` parts. Parts below the last row are empty."""
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
