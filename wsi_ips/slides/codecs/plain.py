"""Tiles of plain samples, of DICOM's run-length encoding, and of pictures that other libraries decode.

- :class:`PlainTiles`: samples as they are, or packed by a lossless codec that knows nothing of images.
- :class:`RleTiles`: DICOM's run-length encoding (PS3.5, annex G), which is PackBits with a segment for each
  colour.
- :class:`PictureTiles`: WebP or JPEG XL pictures, as GDAL and newer scanners' exports write them into TIFF.
  OpenSlide opens neither. The codec refuses a picture of another size than the tile's before it decodes it.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Any

import imagecodecs
import numpy as np

from wsi_ips.slides.base import RgbImage
from wsi_ips.slides.codecs.base import RGB_8, Parts, Pixels, Samples, TileError, joined
from wsi_ips.units import Size


class Packing(IntEnum):
    """How samples are packed, with the numbers of TIFF's Compression tag."""

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
"""The decoder of each packing."""

NOT_DIFFERENCED = frozenset({Packing.NONE, Packing.PACKBITS})
"""Packings to which TIFF's predictor does not apply; libtiff ignores the tag for them."""

HEADER = 64
"""Bytes of the number of segments and their places, sixteen integers of four bytes."""

COLOURS = 3
"""Number of segments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainTiles:
    """Tiles of interleaved samples, or with one part for each sample (planes)."""

    size: Size
    """(width, height) of a tile."""
    packing: Packing
    horizontal_predictor: bool = False
    """Whether each sample is stored as the difference to its left neighbour (TIFF's Predictor 2)."""
    samples: Samples = RGB_8
    big_endian: bool = False
    """Which byte of a 16-bit sample comes first."""
    reversed_bits: bool = False
    """Whether the lowest bit of each stored byte comes first (TIFF's FillOrder 2)."""

    def decoder(self) -> "PlainDecoder":
        """A decoder for these tiles."""
        return PlainDecoder(self)

    def refusal(self, start: bytes) -> str | None:
        """Always None, since nothing in the bytes could tell."""
        return None


class PlainDecoder:
    """Decodes :class:`PlainTiles`, at full size only."""

    scales = (1,)

    def __init__(self, tiles: PlainTiles) -> None:
        self._tiles = tiles
        order = ">" if tiles.big_endian else "<"
        self._stored: np.dtype[np.unsignedinteger[Any]] = np.dtype(f"{order}u{tiles.samples.bits // 8}")

    def decode(self, parts: Parts, out: RgbImage) -> None:
        """Write the pixels of a tile into ``out``, (height, width, 3 or 4) uint8.

        Raises :class:`TileError` if the bytes do not unpack, or to fewer than a tile has.
        """
        tiles = self._tiles
        tiles.samples.write(joined(parts, self._unpacked, tiles.samples, tiles.size), out)

    def jpeg(self, parts: Parts) -> None:
        """Always None, since tiles are not stored as JPEGs."""
        return

    def _unpacked(self, part: memoryview, samples: int) -> Pixels:
        """Unpack one part to (height, width, samples)."""
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
    """Unpack the bytes of samples, at least ``expected`` of them.

    The codec is told the size of its output, so that a small tile cannot unpack to a huge one. Raises
    :class:`TileError` if the bytes do not unpack, or to fewer than expected.
    """
    try:
        raw = data if packing is Packing.NONE else UNPACKERS[packing](data, out=expected)
    # The codecs raise classes of their own; LzwError, ZlibError and the like are RuntimeErrors.
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise TileError(str(error) or type(error).__name__) from error
    if len(raw) < expected:
        raise TileError(f"{len(raw)} bytes of pixels where {expected} belong")
    return raw


@dataclass(frozen=True, slots=True, kw_only=True)
class RleTiles:
    """Tiles of three segments of 8-bit samples: red, green, blue. ``size`` is (width, height)."""

    size: Size

    def decoder(self) -> "RleDecoder":
        """A decoder for these tiles."""
        return RleDecoder(self.size)

    def refusal(self, start: bytes) -> str | None:
        """Always None, since no other reader could read what this one cannot."""
        return None


class RleDecoder:
    """Decodes :class:`RleTiles`, at full size only."""

    scales = (1,)

    def __init__(self, size: Size) -> None:
        self._size = size

    def decode(self, parts: Parts, out: RgbImage) -> None:
        """Write the pixels of a tile into ``out``, (height, width, 3 or 4) uint8.

        Raises :class:`TileError` if the segments are broken, or hold fewer samples than a tile has.
        """
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
                # The size of the output is given, so that a small segment cannot unpack to a huge one.
                plane = imagecodecs.packbits_decode(data[start:end], out=width * height)
            except (ValueError, RuntimeError, TypeError, OverflowError) as error:
                raise TileError(str(error) or type(error).__name__) from error
            if len(plane) < width * height:
                raise TileError(f"{len(plane)} samples where {width * height} belong")
            out[..., channel] = np.frombuffer(plane, np.uint8, width * height).reshape(height, width)

    def jpeg(self, parts: Parts) -> None:
        """Always None, since tiles are not stored as JPEGs."""
        return


class PictureCodec(Enum):
    """The kinds of pictures."""

    WEBP = "WebP"
    JPEG_XL = "JPEG XL"


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureTiles:
    """Tiles each part of which is a picture by itself, of all samples or of one sample (planes)."""

    size: Size
    codec: PictureCodec
    samples: Samples = RGB_8

    def decoder(self) -> "PictureDecoder":
        """A decoder for these tiles."""
        return PictureDecoder(self)

    def refusal(self, start: bytes) -> str | None:
        """Always None, since no other reader could read what this one cannot."""
        return None


class PictureDecoder:
    """Decodes :class:`PictureTiles`, at full size only."""

    scales = (1,)

    def __init__(self, tiles: PictureTiles) -> None:
        self._tiles = tiles

    def decode(self, parts: Parts, out: RgbImage) -> None:
        """Write the pixels of a tile into ``out``, (height, width, 3 or 4) uint8.

        Raises :class:`TileError` if a picture cannot be decoded, or has another size than the tile.
        """
        tiles = self._tiles
        tiles.samples.write(joined(parts, self._picture, tiles.samples, tiles.size), out)

    def jpeg(self, parts: Parts) -> None:
        """Always None, since tiles are not stored as JPEGs."""
        return

    def _picture(self, part: memoryview, samples: int) -> Pixels:
        """Decode one part to (height, width, samples)."""
        tiles, (width, height) = self._tiles, self._tiles.size
        pixels = np.empty((height, width, samples), tiles.samples.dtype)
        # The codecs return one sample without its axis. They compare the size of `out` with the picture's.
        out = pixels[..., 0] if samples == 1 else pixels
        try:
            if tiles.codec is PictureCodec.WEBP:
                imagecodecs.webp_decode(bytes(part), hasalpha=samples == 4, out=out)
            else:
                imagecodecs.jpegxl_decode(bytes(part), numthreads=1, out=out)
        except (ValueError, RuntimeError, TypeError, OverflowError) as error:
            raise TileError(f"{tiles.codec.value}: {error}") from error
        return pixels
