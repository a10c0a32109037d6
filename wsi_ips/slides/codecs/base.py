"""What a way of storing tiles offers to the reader.

What the samples of a decoded tile mean, and how they become 8-bit RGB on white.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_ips.slides.base import RgbImage
from wsi_ips.units import Size

Parts = Sequence[memoryview]
"""The stored bytes of one tile: one part for most containers, several where a container spreads a tile over
the file (one per colour plane, or one per restart interval)."""


class TileError(ValueError):
    """The bytes are no tile of the stated format and size. The reader adds where they lie."""


class TileDecoder(Protocol):
    """Decodes the tiles of one level. May be used from several threads, and trusts no length in the bytes."""

    @property
    def scales(self) -> tuple[int, ...]:
        """The whole factors by which tiles can be decoded smaller, 1 among them."""
        ...

    def decode(self, parts: Parts, out: RgbImage) -> None:
        """Write the tile's pixels into ``out``, (height, width, 3 or 4) uint8, contiguous.

        A fourth channel may be left holding anything. Where height and width are the tile's divided by one
        of :attr:`scales`, the tile is decoded at that size. Raises :class:`TileError`; ``out`` may then hold
        anything.
        """
        ...

    def jpeg(self, parts: Parts) -> bytes | None:
        """The tile as one JPEG file that states its own colour space; None where tiles are not JPEGs.

        Raises :class:`TileError` for a header that cannot be understood.
        """
        ...


class TileFormat(Protocol):
    """How the tiles of one level are stored."""

    @property
    def size(self) -> Size:
        """(width, height) of a decoded tile."""
        ...

    def decoder(self) -> TileDecoder: ...

    def refusal(self, start: bytes) -> str | None:
        """Why tiles whose bytes begin like this are better left to another reader; None: no reason.

        ``start`` is the beginning of one tile, or all of it. A header that cannot be understood is no
        reason: one bad tile must not decide for the whole slide.
        """
        ...


Pixels = NDArray[np.unsignedinteger[Any]]
"""(height, width, samples), unsigned samples of 8 or 16 bits in the machine's byte order."""


class Alpha(Enum):
    """What the sample after the colours says of transparency."""

    NONE = "none"
    ASSOCIATED = "associated"
    """Colours are already multiplied by it."""
    UNASSOCIATED = "unassociated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The samples of one pixel: one of grey or three of red, green, blue, then maybe transparency."""

    colours: int = 3
    bits: int = 8
    alpha: Alpha = Alpha.NONE
    white_is_zero: bool = False

    @property
    def count(self) -> int:
        """Samples per pixel."""
        return self.colours + (self.alpha is not Alpha.NONE)

    @property
    def dtype(self) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
        return np.dtype(np.uint8) if self.bits == 8 else np.dtype(np.uint16)

    def write(self, pixels: Pixels, out: RgbImage) -> None:
        """Write ``pixels``, (height, width, :attr:`count`), into ``out``, (height, width, 3 or 4) uint8.

        Grey goes to all three colours; 16 bits become :func:`eight_bits`; transparent pixels go over white.
        """
        eight = eight_bits(pixels)
        colours: NDArray[np.uint8] = eight[..., : self.colours]
        if self.white_is_zero:
            colours = 255 - colours
        if self.alpha is not Alpha.NONE:
            colours = _over_white(colours, eight[..., self.colours :], self.alpha)
        out[..., :3] = colours


RGB_8 = Samples()


def eight_bits(pixels: Pixels) -> NDArray[np.uint8]:
    """Samples of 16 bits as 8: floor((v + 128) / 257), so that 65535 becomes 255 and 257 * n becomes n.

    The whole range of 16 bits is meant, as OpenSlide takes it for RGB: a camera's 12 bits stay as dark as the
    file has them.
    """
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    # floor((v + 128) / 257) of every 16-bit v, without a division.
    wide = pixels.astype(np.uint32)
    wide *= 255
    wide += 32895
    wide >>= 16
    return wide.astype(np.uint8)


def joined(parts: Parts, decode: Callable[[memoryview, int], Pixels], samples: Samples, size: Size) -> Pixels:
    """The tile's pixels, (height, width, samples). ``decode(part, n)`` gives (height, width, n).

    One part holds all samples; several hold one sample each, as a planar image has them. Raises
    :class:`TileError` for another number of parts, and passes on that of ``decode``.
    """
    if len(parts) == 1:
        return decode(parts[0], samples.count)
    if len(parts) != samples.count:
        raise TileError(f"{len(parts)} planes where {samples.count} belong")
    pixels = np.empty((size[1], size[0], samples.count), samples.dtype)
    for number, part in enumerate(parts):
        if not len(part):
            raise TileError(f"plane {number} has no data, and others have")
        pixels[..., number] = decode(part, 1)[..., 0]
    return pixels


def _over_white(colours: NDArray[np.uint8], alpha: NDArray[np.uint8], kind: Alpha) -> NDArray[np.uint8]:
    """``colours`` over white; ``alpha`` is (height, width, 1)."""
    share = alpha.astype(np.uint32)
    over: NDArray[np.uint32]
    if kind is Alpha.ASSOCIATED:
        over = np.minimum(colours + (255 - share), np.uint32(255))
    else:
        over = (colours * share + 255 * (255 - share) + 127) // np.uint32(255)
    return over.astype(np.uint8)
