"""Tiles of samples as they are, or packed by a lossless codec that knows nothing of images.

DICOM's run-length encoding (PS3.5, annex G): PackBits, a segment for each colour.

Tiles that are WebP or JPEG XL pictures, as GDAL and newer scanners' exports write them into TIFF.

OpenSlide opens neither. A picture of another size than the tile's is refused by the codec before it decodes.
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


class PictureCodec(Enum):
    WEBP = "WebP"
    JPEG_XL = "JPEG XL"


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureTiles:
    """Each part of a tile is a picture by itself: of all samples, or of one sample (planes)."""

    size: Size
    codec: PictureCodec
    samples: Samples = RGB_8

    def decoder(self) -> "PictureDecoder":
        return PictureDecoder(self)

    def refusal(self, start: bytes) -> str | None:
        """Nothing that another reader could read."""
        return None


class PictureDecoder:
    """See :class:`TileDecoder`."""

    scales = (1,)

    def __init__(self, tiles: PictureTiles) -> None:
        self._tiles = tiles

    def decode(self, parts: Parts, out: RgbImage) -> None:
        """See :meth:`TileDecoder.decode`."""
        tiles = self._tiles
        tiles.samples.write(joined(parts, self._picture, tiles.samples, tiles.size), out)

    def jpeg(self, parts: Parts) -> None:
        """See :meth:`TileDecoder.jpeg`: there is none."""
        return

    def _picture(self, part: memoryview, samples: int) -> Pixels:
        """(height, width, samples)."""
        tiles, (width, height) = self._tiles, self._tiles.size
        pixels = np.empty((height, width, samples), tiles.samples.dtype)
        # The codecs give one sample without its axis. They compare the size of ``out`` with the picture's.
        out = pixels[..., 0] if samples == 1 else pixels
        try:
            if tiles.codec is PictureCodec.WEBP:
                imagecodecs.webp_decode(bytes(part), hasalpha=samples == 4, out=out)
            else:
                imagecodecs.jpegxl_decode(bytes(part), numthreads=1, out=out)
        except (ValueError, RuntimeError, TypeError, OverflowError) as error:
            raise TileError(f"{tiles.codec.value}: {error}") from error
        return pixels
