"""Tiles that are pieces of one huge JPEG, cut at its restart markers (Hamamatsu's NDPI).

Between two restart markers lies an interval of whole blocks that decodes without the rest. Here an interval is
a piece of one row of blocks, often thousands of pixels wide and 8 high. Decoding it alone would be slow, so a
tile is a stack: the intervals of one column below each other, joined under the JPEG's own header. Its pixels
equal those that OpenSlide decodes interval by interval, where no component is halved vertically. (With 4:2:0,
at which OpenSlide fails, chroma is not smoothed across the border between two stacks.)

A JPEG without restart markers is one interval. Source: ITU-T T.81, B.2 and E.1.4; CONTAINERS.md, section 5.
"""

from dataclasses import dataclass, replace

import numpy as np

from wsi_ips.slides.base import RgbImage
from wsi_ips.slides.codecs.base import Parts, TileError
from wsi_ips.slides.codecs.jpeg import EOI, FRAMES, SOS, Colours, JpegTiles, decode_jpeg_into, segments
from wsi_ips.units import Size

DRI = 0xDD
RST0 = 0xD0
SEQUENTIAL_FRAMES = frozenset({0xC0, 0xC1})
LARGEST_JPEG_SIDE = 65_500
"""libjpeg's limit. Frames of larger images state 0, or a larger number."""
END_OF_IMAGE = bytes([0xFF, EOI])


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """A JPEG's bytes up to its first scan's data, and what they say."""

    data: bytes
    frame_at: int
    """Where in ``data`` the frame's height stands; its width follows."""
    size: Size
    """(width, height) as the frame states them, maybe not the image's."""
    block: Size
    """(width, height) in pixels of the blocks that are coded together (MCU)."""
    restart_interval: int
    """Blocks between two restart markers; 0 where there are none."""

    @classmethod
    def parse(cls, start: bytes) -> "JpegHeader":
        """``start``: the beginning of a JPEG, its header at least.

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
        """Whether the frame's size can be the image's."""
        return all(0 < side <= LARGEST_JPEG_SIDE for side in self.size)

    def with_size(self, size: Size) -> bytes:
        """The header of an image of another size (width, height)."""
        width, height = size
        at = self.frame_at
        sides = height.to_bytes(2, "big") + width.to_bytes(2, "big")
        return self.data[:at] + sides + self.data[at + 4 :]


@dataclass(frozen=True, slots=True, kw_only=True)
class StackedIntervals:
    """Each tile is a stack of restart intervals; a part of it is an interval with the marker that ends it."""

    header: JpegHeader
    interval: Size
    """(width, height) of an interval in pixels."""
    per_tile: int
    """Intervals in a stack. The last row's stacks may have fewer: their last parts are empty."""
    cols: int
    """Intervals side by side: that many further on in the JPEG lies the one below."""
    reduction: int = 1
    """1, 2, 4 or 8: tiles are decoded smaller by this, as levels that are not stored."""

    @property
    def size(self) -> Size:
        width, height = self.interval
        return width // self.reduction, height * self.per_tile // self.reduction

    def reduced(self, reduction: int) -> "StackedIntervals":
        """The same stacks for a level that is smaller by ``reduction``."""
        return replace(self, reduction=reduction)

    def divides(self, factor: int) -> bool:
        """Whether intervals can be decoded smaller by ``factor`` without cutting a pixel."""
        return factor <= 8 and not any(side % factor for side in self.interval)

    def decoder(self) -> "StackDecoder":
        return StackDecoder(self)

    def refusal(self, start: bytes) -> None:
        """Nothing in an interval could tell; the header was looked at before."""
        return


class StackDecoder:
    """See :class:`TileDecoder`."""

    def __init__(self, tiles: StackedIntervals) -> None:
        self._tiles = tiles
        self._headers = {n: self._header(n) for n in (1, tiles.per_tile)}

    @property
    def scales(self) -> tuple[int, ...]:
        """Those of libjpeg's reduced inverse transforms that divide an interval evenly."""
        tiles = self._tiles
        return tuple(scale for scale in (1, 2, 4, 8) if tiles.divides(scale * tiles.reduction))

    def decode(self, parts: Parts, out: RgbImage) -> None:
        """See :meth:`TileDecoder.decode`. Of a stack with fewer intervals the rest of ``out`` is left as it is."""
        tiles = self._tiles
        n = sum(1 for part in parts if len(part))
        width, height = tiles.interval[0], tiles.interval[1] * n
        # `out` may be smaller still than the level's tiles.
        factor = tiles.interval[1] * tiles.per_tile // len(out)
        decode_jpeg_into(self._joined(parts, n), out[: height // factor], (width, height))

    def jpeg(self, parts: Parts) -> bytes | None:
        """See :meth:`TileDecoder.jpeg`. None for a stack that is no whole tile, and for a reduced level."""
        n = sum(1 for part in parts if len(part))
        if n < self._tiles.per_tile or self._tiles.reduction > 1:
            return None
        return bytes(self._joined(parts, n))

    def _joined(self, parts: Parts, n: int) -> bytearray:
        """One JPEG of the first ``n`` parts. Raises :class:`TileError` where one does not end in its marker."""
        if not n:
            raise TileError("no interval has data")
        header = self._headers.get(n) or self._header(n)
        jpeg = bytearray().join((header, *parts))
        data = np.frombuffer(jpeg, np.uint8)
        # Where each part's marker is: FF, and its number.
        at_n = len(header) - 1 + np.cumsum([len(part) for part in parts[:n]])
        numbers_n = data[at_n].astype(np.int64) - RST0
        wrong_n = (data[at_n - 1] != 0xFF) | (numbers_n < 0) | (numbers_n > 7)
        if wrong_n[-1] and bytes(parts[n - 1]).rfind(END_OF_IMAGE) > 0:
            # The image's end, and maybe padding behind it, at which no decoder looks.
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
