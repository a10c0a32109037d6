"""What a way of storing tiles offers to the reader."""

from collections.abc import Sequence
from typing import Protocol

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
