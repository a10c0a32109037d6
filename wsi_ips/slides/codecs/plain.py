"""Tiles of samples as they are, or packed by a lossless codec that knows nothing of images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Any

import imagecodecs
import numpy as np

from wsi_ips.slides.base import RgbImage
from wsi_ips.slides.codecs.base import Parts, TileError
from wsi_ips.slides.codecs.samples import RGB_8, Pixels, Samples, joined
from wsi_ips.units import Size


class Packing(IntEnum):
    """How the samples are packed, as TIFF's Compression tag numbers it."""

    NONE = 1
    LZW = 5
    DEFLATE = 8
    PACKBITS = 32773
    DEFLATE_OLD = 32946
    LZMA = 34925
    ZSTD_OLD = 34926
    ZSTD = 50000


UNPACKERS: Mapping[Packing, Callable[..., bytes | bytearray]] = MappingProxyType(
    {
        Packing.LZW: imagecodecs.lzw_decode,
        Packing.DEFLATE: imagecodecs.zlib_decode,
        Packing.DEFLATE_OLD: imagecodecs.zlib_decode,
        Packing.PACKBITS: imagecodecs.packbits_decode,
        Packing.LZMA: imagecodecs.lzma_decode,
        Packing.ZSTD: imagecodecs.zstd_decode,
        Packing.ZSTD_OLD: imagecodecs.zstd_decode,
    }
)

NOT_DIFFERENCED = frozenset({Packing.NONE, Packing.PACKBITS})
"""TIFF has the predictor for the other schemes only (libtiff passes over the tag here)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainTiles:
    """Tiles of interleaved samples, or of one part a sample (planes)."""

    size: Size
    packing: Packing
    horizontal_predictor: bool = False
    samples: Samples = RGB_8
    big_endian: bool = False
    """Of 16-bit samples: which of their bytes comes first."""
    reversed_bits: bool = False
    """Whether the lowest bit of each stored byte comes first (TIFF's FillOrder 2)."""

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
        order = ">" if tiles.big_endian else "<"
        self._stored: np.dtype[np.unsignedinteger[Any]] = np.dtype(f"{order}u{tiles.samples.bits // 8}")

    def decode(self, parts: Parts, out: RgbImage) -> None:
        """See :meth:`TileDecoder.decode`."""
        tiles = self._tiles
        tiles.samples.write(joined(parts, self._unpacked, tiles.samples, tiles.size), out)

    def jpeg(self, parts: Parts) -> None:
        """See :meth:`TileDecoder.jpeg`: there is none."""
        return

    def _unpacked(self, part: memoryview, samples: int) -> Pixels:
        """(height, width, samples)."""
        tiles, (width, height) = self._tiles, self._tiles.size
        n_samples = width * height * samples
        data = bytes(imagecodecs.bitorder_decode(bytes(part))) if tiles.reversed_bits else bytes(part)
        raw = unpacked(data, tiles.packing, n_samples * self._stored.itemsize)
        pixels: Pixels = np.frombuffer(raw, self._stored, n_samples).reshape(height, width, samples)
        native: Pixels = pixels.astype(tiles.samples.dtype, copy=False)
        if tiles.horizontal_predictor and tiles.packing not in NOT_DIFFERENCED:
            return np.add.accumulate(native, axis=1, dtype=native.dtype)
        return native


def unpacked(data: bytes, packing: Packing, expected: int) -> bytes | bytearray:
    """The samples' bytes, at least ``expected`` of them.

    The output's size is given to the codec, so that a small tile cannot unpack to a huge one. Raises
    :class:`TileError` for bytes that do not unpack, or to fewer than expected.
    """
    try:
        raw = data if packing is Packing.NONE else UNPACKERS[packing](data, out=expected)
    # The codecs raise their own kinds (LzwError, ZlibError, … are RuntimeErrors).
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise TileError(str(error) or type(error).__name__) from error
    if len(raw) < expected:
        raise TileError(f"{len(raw)} bytes of pixels where {expected} belong")
    return raw
