"""Tiles of samples as they are, or packed by a lossless codec that knows nothing of images."""

from dataclasses import dataclass
from enum import IntEnum

import imagecodecs
import numpy as np

from wsi_ips.slides.base import RgbImage
from wsi_ips.slides.codecs.base import Parts, TileError
from wsi_ips.units import Size


class Packing(IntEnum):
    """How the samples are packed, as TIFF's Compression tag numbers it."""

    NONE = 1
    LZW = 5
    DEFLATE = 8
    DEFLATE_OLD = 32946


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainTiles:
    """Tiles of three interleaved samples of 8 bits, red, green, blue."""

    size: Size
    packing: Packing
    horizontal_predictor: bool = False

    def decoder(self) -> "PlainDecoder":
        return PlainDecoder(self)

    def refusal(self, start: bytes) -> str | None:
        """Nothing in the bytes could tell."""
        return None


class PlainDecoder:
    """See :class:`TileDecoder`."""

    scales = (1,)

    def __init__(self, tiles: PlainTiles) -> None:
        self._tiles = tiles

    def decode(self, parts: Parts, out: RgbImage) -> None:
        """See :meth:`TileDecoder.decode`."""
        width, height = self._tiles.size
        expected = width * height * 3
        raw = unpacked(bytes(parts[0]), self._tiles.packing, expected)
        rgb = np.frombuffer(raw, np.uint8, expected).reshape(height, width, 3)
        if self._tiles.horizontal_predictor and self._tiles.packing is not Packing.NONE:
            rgb = np.add.accumulate(rgb, axis=1, dtype=np.uint8)
        out[..., :3] = rgb

    def jpeg(self, parts: Parts) -> None:
        """See :meth:`TileDecoder.jpeg`: there is none."""
        return


def unpacked(data: bytes, packing: Packing, expected: int) -> bytes | bytearray:
    """The samples' bytes, at least ``expected`` of them.

    The output's size is given to the codec, so that a small tile cannot unpack to a huge one. Raises
    :class:`TileError` for bytes that do not unpack, or to fewer than expected.
    """
    try:
        if packing is Packing.NONE:
            raw: bytes | bytearray = data
        elif packing is Packing.LZW:
            raw = imagecodecs.lzw_decode(data, out=expected)
        else:
            raw = imagecodecs.zlib_decode(data, out=expected)
    # The codecs raise their own kinds (LzwError, ZlibError, … are RuntimeErrors).
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise TileError(str(error) or type(error).__name__) from error
    if len(raw) < expected:
        raise TileError(f"{len(raw)} bytes of pixels where {expected} belong")
    return raw
