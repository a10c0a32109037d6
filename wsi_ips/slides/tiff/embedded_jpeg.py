"""Pictures that come with a slide as JPEGs inside its metadata."""

from dataclasses import dataclass
from pathlib import Path

from wsi_ips.errors import SlideReadError
from wsi_ips.slides.base import RgbImage
from wsi_ips.slides.codecs.base import TileError
from wsi_ips.slides.codecs.jpeg import decode_jpeg_into, jpeg_size
from wsi_ips.slides.limits import LARGEST_BLOCK_PX
from wsi_ips.slides.region import white_region
from wsi_ips.units import Size


@dataclass(frozen=True, slots=True)
class EmbeddedJpeg:
    """A whole JPEG out of a slide's metadata, kept as it is stored. See :class:`AssociatedImage`."""

    size: Size
    jpeg: bytes

    @classmethod
    def of(cls, jpeg: bytes) -> "EmbeddedJpeg":
        """Raises :class:`TileError` where the bytes are no JPEG, or one that is too large for a picture."""
        width, height = jpeg_size(jpeg)
        if not 0 < width * height <= LARGEST_BLOCK_PX:
            raise TileError(f"JPEG that claims {width}x{height} px")
        return cls((width, height), jpeg)

    def read(self, path: Path) -> RgbImage:
        """See :meth:`AssociatedImage.read`."""
        pixels = white_region(self.size)
        try:
            decode_jpeg_into(self.jpeg, pixels, self.size)
        except TileError as error:
            raise SlideReadError(path, f"its {self.size[0]}x{self.size[1]} px picture: {error}") from error
        return pixels
