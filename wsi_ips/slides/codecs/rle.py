"""DICOM's run-length encoding (PS3.5, annex G): PackBits, a segment for each colour."""

import struct
from dataclasses import dataclass

import imagecodecs
import numpy as np

from wsi_ips.slides.base import RgbImage
from wsi_ips.slides.codecs.base import Parts, TileError
from wsi_ips.units import Size

HEADER = 64
"""The number of segments and where they start, sixteen integers of four bytes."""
COLOURS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RleTiles:
    """Each tile is three segments of 8-bit samples: red, green, blue."""

    size: Size

    def decoder(self) -> "RleDecoder":
        return RleDecoder(self.size)

    def refusal(self, start: bytes) -> str | None:
        """None that another reader could read."""
        return None


class RleDecoder:
    """See :class:`TileDecoder`."""

    scales = (1,)

    def __init__(self, size: Size) -> None:
        self._size = size

    def decode(self, parts: Parts, out: RgbImage) -> None:
        """See :meth:`TileDecoder.decode`."""
        data, (width, height) = bytes(parts[0]), self._size
        if len(data) < HEADER:
            raise TileError("a frame shorter than its header")
        count, *starts = struct.unpack("<16I", data[:HEADER])
        if count != COLOURS:
            raise TileError(f"{count} segments where {COLOURS} belong")
        ends = [*starts[1:COLOURS], len(data)]
        for channel, (start, end) in enumerate(zip(starts[:COLOURS], ends, strict=True)):
            if not HEADER <= start <= end <= len(data):
                raise TileError(f"segment {channel} from byte {start} to {end} of {len(data)}")
            try:
                # The output's size is given: a small segment cannot unpack to a huge one.
                plane = imagecodecs.packbits_decode(data[start:end], out=width * height)
            except (ValueError, RuntimeError, TypeError, OverflowError) as error:
                raise TileError(str(error) or type(error).__name__) from error
            if len(plane) < width * height:
                raise TileError(f"{len(plane)} samples where {width * height} belong")
            out[..., channel] = np.frombuffer(plane, np.uint8, width * height).reshape(height, width)

    def jpeg(self, parts: Parts) -> None:
        """See :meth:`TileDecoder.jpeg`: there is none."""
        return
