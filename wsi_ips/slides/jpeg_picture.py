"""Pictures that come with a slide as whole JPEGs, in a file beside it or inside one of its data files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from wsi_ips.errors import SlideReadError
from wsi_ips.slides.base import RgbImage
from wsi_ips.slides.codecs.base import TileError
from wsi_ips.slides.codecs.jpeg import Colours, JpegTiles, jpeg_size
from wsi_ips.slides.limits import LARGEST_BLOCK_PX
from wsi_ips.slides.region import white_region
from wsi_ips.units import Size

HEADER_BYTES = 1 << 20
MOST_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class JpegInFile:
    """``count`` bytes of ``file`` from ``offset`` on. See :class:`AssociatedImage`."""

    file: Path
    offset: int
    count: int
    size: Size

    @classmethod
    def of(cls, file: Path, *, offset: int = 0, count: int | None = None) -> Self:
        """Looks at the header. count: None for all that follows.

        Raises :class:`TileError` for what is no JPEG or too large for a picture, ``OSError``.
        """
        left = file.stat().st_size - offset
        count = left if count is None else count
        if not 0 < count <= min(left, MOST_BYTES) or offset < 0:
            raise TileError(f"{count} bytes from byte {offset}, of which {max(0, left)} are there")
        size = jpeg_size(_bytes(file, offset, min(count, HEADER_BYTES)))
        if not 0 < size[0] * size[1] <= LARGEST_BLOCK_PX:
            raise TileError(f"JPEG that claims {size[0]}x{size[1]} px")
        return cls(file, offset, count, size)

    def read(self, path: Path) -> RgbImage:
        """See :meth:`AssociatedImage.read`."""
        pixels = white_region(self.size)
        try:
            data = memoryview(_bytes(self.file, self.offset, self.count))
            JpegTiles(size=self.size, colours=Colours.AS_STATED).decoder().decode((data,), pixels)
        except (OSError, TileError) as error:
            raise SlideReadError(path, f"its picture in {self.file.name} cannot be read: {error}") from error
        return pixels


def _bytes(file: Path, offset: int, count: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(offset)
        return opened.read(count)
