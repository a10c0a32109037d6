"""JPEG 2000 tiles, decoded by OpenJPEG. :class:`Jpeg2000Tiles` describes how they are stored."""

import struct
from dataclasses import dataclass

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wsi_ips.slides.base import RgbImage
from wsi_ips.slides.codecs.base import RGB_8, Parts, Pixels, Samples, TileError, joined
from wsi_ips.units import Size

J2K_START = b"\xff\x4f\xff\x51"
"""First bytes of a codestream."""

SUBSAMPLED = ([(1, 1), (2, 1), (2, 1)], [(1, 1), (2, 2), (2, 2)])
"""Steps of the components Y, Cb, Cr if chroma is halved along x, or along both axes."""

_CHROMA = np.arange(256, dtype=np.int32) - 128
# JFIF's conversion in fixed point of 16 bits. Green takes the sum of its two tables, shifted down by 16 bits. Each
# entry is rounded by itself, as in OpenSlide and unlike libjpeg: 22 of the 65,536 pairs of Cb and Cr differ by 1.
RED_OF_CR = ((91881 * _CHROMA + 32768) >> 16).astype(np.int16)
"""What Cr adds to red."""

BLUE_OF_CB = ((116130 * _CHROMA + 32768) >> 16).astype(np.int16)
"""What Cb adds to blue."""

GREEN_OF_CB = np.rint(-0.34414 * 65536 * _CHROMA).astype(np.int32) + 32768
"""What Cb adds to green, in 16-bit fixed point."""

GREEN_OF_CR = np.rint(-0.71414 * 65536 * _CHROMA).astype(np.int32)
"""What Cr adds to green, in 16-bit fixed point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Jpeg2000Tiles:
    """Tiles each part of which is a JPEG 2000 codestream, of all samples or of one sample.

    ``planes`` says that there is a part for each sample. ``ycbcr`` says that the components are Y, Cb, Cr, which
    the codestream itself does not say (Aperio's compression 33003). If Cb and Cr are subsampled, OpenJPEG converts
    them to RGB, which differs from OpenSlide's result by no more than 1 (CONTAINERS.md, section 6).
    """

    size: Size
    samples: Samples = RGB_8
    planes: bool = False
    ycbcr: bool = False

    def decoder(self) -> "Jpeg2000Decoder":
        """A decoder for these tiles."""
        return Jpeg2000Decoder(self)

    def refusal(self, start: bytes) -> str | None:
        """Why tiles that begin like this are left to another reader, or None.

        The reason is a codestream with other components than expected.
        """
        try:
            return self.oddity(_components(start))
        except TileError:
            return None

    def oddity(self, components: "Components") -> str | None:
        """What is wrong with a codestream of these components, or None."""
        count = 1 if self.planes else self.samples.count
        whole = [(1, 1)] * count
        allowed = [whole, *(SUBSAMPLED if self.ycbcr else ())]
        if components.bits == {self.samples.bits} and components.steps in allowed:
            return None
        number = {1: "one", 3: "three"}.get(count, str(count))
        return f"JPEG 2000 that is not {number} full {self.samples.bits}-bit components"


@dataclass(frozen=True, slots=True)
class Components:
    """What the SIZ segment of a codestream states (ISO/IEC 15444-1, A.5.1)."""

    size: Size
    """(width, height) in pixels."""
    bits: frozenset[int]
    """The numbers of bits of the components; 0 stands for signed ones."""
    steps: list[tuple[int, int]]
    """How many pixels apart the samples of each component are, (x, y)."""


class Jpeg2000Decoder:
    """Decodes :class:`Jpeg2000Tiles`, at full size only."""

    scales = (1,)

    def __init__(self, tiles: Jpeg2000Tiles) -> None:
        self._tiles = tiles

    def decode(self, parts: Parts, out: RgbImage) -> None:
        """Write the pixels of a tile into ``out``, (height, width, 3 or 4) uint8.

        Raises :class:`TileError` if the codestream is broken, or is not of the stated size and components.
        """
        tiles = self._tiles
        if not tiles.ycbcr:
            tiles.samples.write(joined(parts, self._decoded, tiles.samples, tiles.size), out)
            return
        pixels = self._decoded(parts[0], 3)
        if _components(bytes(parts[0])).steps not in SUBSAMPLED:
            rgb_of_ycbcr(pixels, out)
        else:  # OpenJPEG has converted them to RGB
            out[..., :3] = pixels

    def jpeg(self, parts: Parts) -> None:
        """Always None, since tiles are not stored as JPEGs."""
        return

    def _decoded(self, part: memoryview, samples: int) -> Pixels:
        """Decode one part to (height, width, samples).

        The header is compared with the tile before anything is decoded.
        """
        data, (width, height) = bytes(part), self._tiles.size
        components = _components(data)
        if oddity := self._tiles.oddity(components):
            raise TileError(oddity)
        if components.size != (width, height):
            stated = "{}x{}".format(*components.size)
            raise TileError(f"JPEG 2000 of {stated} px in a tile of {width}x{height} px")
        try:
            pixels: Pixels = imagecodecs.jpeg2k_decode(data, numthreads=1)
        except (ValueError, RuntimeError, TypeError, OverflowError) as error:
            raise TileError(str(error) or type(error).__name__) from error
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        if pixels.shape != (height, width, samples) or pixels.dtype != self._tiles.samples.dtype:
            raise TileError(f"decoded to {pixels.shape} {pixels.dtype}, not to a tile of {width}x{height} px")
        return pixels


def rgb_of_ycbcr(pixels: Pixels, out: RgbImage) -> None:
    """Write Y, Cb, Cr, (height, width, 3) uint8, as RGB into ``out``, (height, width, 3 or 4) uint8."""
    luma, cb, cr = (np.ascontiguousarray(pixels[..., channel]) for channel in range(3))
    green = GREEN_OF_CB.take(cb)
    green += GREEN_OF_CR.take(cr)
    green >>= 16
    colours: tuple[NDArray[np.int16], ...] = (RED_OF_CR.take(cr), green.astype(np.int16), BLUE_OF_CB.take(cb))
    for channel, colour in enumerate(colours):
        colour += luma
        out[..., channel] = np.clip(colour, 0, 255, out=colour)


def _components(data: bytes) -> Components:
    if data[:4] != J2K_START or len(data) < 42:
        raise TileError("not a JPEG 2000 codestream")
    right, bottom, left, top = struct.unpack_from(">4I", data, 8)
    if (left, top) != (0, 0):
        raise TileError(f"JPEG 2000 that begins at ({left}, {top})")
    count = int.from_bytes(data[40:42], "big")
    fields = data[42 : 42 + 3 * count]
    if len(fields) < 3 * count or not count:
        raise TileError("a JPEG 2000 header that is cut short")
    bits = frozenset(0 if byte & 0x80 else byte + 1 for byte in fields[::3])
    return Components((right, bottom), bits, list(zip(fields[1::3], fields[2::3], strict=True)))
