"""JPEG 2000 tiles, by OpenJPEG."""

from dataclasses import dataclass

import imagecodecs
import numpy as np

from wsi_ips.slides.base import RgbImage
from wsi_ips.slides.codecs.base import Parts, TileError
from wsi_ips.units import Size

J2K_START = b"\xff\x4f\xff\x51"
RGB_COMPONENTS = bytes([7, 1, 1]) * 3
"""Three components of 8 unsigned bits, none of them subsampled (ISO 15444-1, A.5.1)."""
NOT_RGB = "JPEG 2000 that is not three full 8-bit components"


@dataclass(frozen=True, slots=True, kw_only=True)
class Jpeg2000Tiles:
    """Each tile is a JPEG 2000 codestream that decodes to RGB (Aperio's compression 33005)."""

    size: Size

    def decoder(self) -> "Jpeg2000Decoder":
        return Jpeg2000Decoder(self.size)

    def refusal(self, start: bytes) -> str | None:
        """Codestreams of other components."""
        try:
            return None if _components(start) == RGB_COMPONENTS else NOT_RGB
        except TileError:
            return None


class Jpeg2000Decoder:
    """See :class:`TileDecoder`."""

    scales = (1,)

    def __init__(self, size: Size) -> None:
        self._size = size

    def decode(self, parts: Parts, out: RgbImage) -> None:
        """See :meth:`TileDecoder.decode`."""
        data, (width, height) = bytes(parts[0]), self._size
        if _components(data) != RGB_COMPONENTS:
            raise TileError(NOT_RGB)
        right, bottom, left, top = (int.from_bytes(data[at : at + 4], "big") for at in (8, 12, 16, 20))
        if (left, top) != (0, 0) or (right, bottom) != self._size:
            raise TileError(f"JPEG 2000 of {right}x{bottom} px in a tile of {width}x{height} px")
        try:
            rgb = imagecodecs.jpeg2k_decode(data, numthreads=1)
        except (ValueError, RuntimeError, TypeError, OverflowError) as error:
            raise TileError(str(error) or type(error).__name__) from error
        if rgb.shape != (height, width, 3) or rgb.dtype != np.uint8:
            raise TileError(f"decoded to {rgb.shape} {rgb.dtype}, not to a tile of {width}x{height} px")
        out[..., :3] = rgb

    def jpeg(self, parts: Parts) -> None:
        """See :meth:`TileDecoder.jpeg`: there is none."""
        return


def _components(data: bytes) -> bytes:
    if data[:4] != J2K_START or len(data) < 42:
        raise TileError("not a JPEG 2000 codestream")
    return data[42 : 42 + 3 * int.from_bytes(data[40:42], "big")]
