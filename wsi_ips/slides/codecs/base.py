"""What a way of storing tiles offers to the reader, and what the samples of a decoded tile mean.

A :class:`TileFormat` describes how the tiles of a level are stored, and its :class:`TileDecoder` decodes them.
:class:`Samples` turns decoded samples of 8 or 16 bits, grey or RGB, with or without transparency, into 8-bit RGB
on white.
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
"""The stored bytes of one tile.

Most containers store a tile in one part. Several parts occur if a container spreads a tile over the file: one for
each colour plane, or one for each restart interval.
"""

Pixels = NDArray[np.unsignedinteger[Any]]
"""(height, width, samples), unsigned samples of 8 or 16 bits in the machine's byte order."""


class TileError(ValueError):
    """The bytes are no tile of the stated format and size. The reader adds to the message where they lie."""


class TileDecoder(Protocol):
    """Decodes the tiles of one level. It may be used from several threads, and trusts no length in the bytes."""

    @property
    def scales(self) -> tuple[int, ...]:
        """The whole factors by which tiles can be decoded smaller. 1 is among them."""
        ...

    def decode(self, parts: Parts, out: RgbImage) -> None:
        """Write the pixels of a tile into ``out``, a contiguous array (height, width, 3 or 4) uint8.

        A fourth channel may be left holding anything. If height and width are those of the tile divided by one of
        :attr:`scales`, the tile is decoded at that size. Raises :class:`TileError`; ``out`` may then hold
        anything.
        """
        ...

    def jpeg(self, parts: Parts) -> bytes | None:
        """The tile as one JPEG file that states its own colour space. None if tiles are not stored as JPEGs.

        Raises :class:`TileError` for a header that cannot be understood.
        """
        ...


class TileFormat(Protocol):
    """How the tiles of one level are stored."""

    @property
    def size(self) -> Size:
        """(width, height) of a decoded tile."""
        ...

    def decoder(self) -> TileDecoder:
        """A decoder for the tiles of the level."""
        ...

    def refusal(self, start: bytes) -> str | None:
        """Why tiles whose bytes begin like this are better left to another reader. None if there is no reason.

        ``start`` is the beginning of one tile, or all of it. A header that cannot be understood is no reason,
        since one bad tile must not decide for the whole slide.
        """
        ...


class Alpha(Enum):
    """What the sample after the colours says about transparency."""

    NONE = "none"
    ASSOCIATED = "associated"
    """The colours are already multiplied by it."""
    UNASSOCIATED = "unassociated"
    """The colours are not multiplied by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The samples of one pixel: grey, or red, green and blue, and then maybe transparency.

    ``colours`` is 1 or 3, ``bits`` is 8 or 16 for each sample. ``white_is_zero`` says that grey counts from white.
    """

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
        """Type of the samples, uint8 or uint16."""
        return np.dtype(np.uint8) if self.bits == 8 else np.dtype(np.uint16)

    def write(self, pixels: Pixels, out: RgbImage) -> None:
        """Write ``pixels``, (height, width, :attr:`count`), into ``out``, (height, width, 3 or 4) uint8.

        Grey is written to all three colours, 16 bits become 8 (:func:`eight_bits`), and transparent pixels are
        laid over white.
        """
        eight = eight_bits(pixels)
        colours: NDArray[np.uint8] = eight[..., : self.colours]
        if self.white_is_zero:
            colours = 255 - colours
        if self.alpha is not Alpha.NONE:
            colours = _over_white(colours, eight[..., self.colours :], self.alpha)
        out[..., :3] = colours


RGB_8 = Samples()
"""The samples of 8-bit RGB."""


def eight_bits(pixels: Pixels) -> NDArray[np.uint8]:
    """Reduce samples of 16 bits to 8: floor((v + 128) / 257), so that 65535 becomes 255 and 257 * n becomes n.

    The whole range of 16 bits is used, as OpenSlide does for RGB, so the 12 bits of a camera stay as dark as the
    file has them. Samples of 8 bits are returned unchanged.
    """
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    # This equals floor((v + 128) / 257) for every 16-bit v, without a division.
    wide = pixels.astype(np.uint32)
    wide *= 255
    wide += 32895
    wide >>= 16
    return wide.astype(np.uint8)


def joined(parts: Parts, decode: Callable[[memoryview, int], Pixels], samples: Samples, size: Size) -> Pixels:
    """The pixels of a tile, (height, width, samples), from its parts.

    Args:
        parts: One part that holds all samples, or one part for each sample, as in a planar image.
        decode: ``decode(part, n)`` returns (height, width, n).
        samples: The samples of a pixel.
        size: (width, height) of the tile.

    Raises :class:`TileError` for another number of parts, and whatever ``decode`` raises.
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
    """Lay ``colours`` over white. ``alpha`` is (height, width, 1)."""
    share = alpha.astype(np.uint32)
    over: NDArray[np.uint32]
    if kind is Alpha.ASSOCIATED:
        over = np.minimum(colours + (255 - share), np.uint32(255))
    else:
        over = (colours * share + 255 * (255 - share) + 127) // np.uint32(255)
    return over.astype(np.uint8)
