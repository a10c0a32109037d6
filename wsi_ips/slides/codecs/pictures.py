"""Tiles that are WebP or JPEG XL pictures, as GDAL and newer scanners' exports write them into TIFF.

OpenSlide opens neither. A picture of another size than the tile's is refused by the codec before it decodes.
"""

from dataclasses import dataclass
from enum import Enum

import imagecodecs
import numpy as np

from wsi_ips.slides.base import RgbImage
from wsi_ips.slides.codecs.base import Parts, TileError
from wsi_ips.slides.codecs.samples import RGB_8, Pixels, Samples, joined
from wsi_ips.units import Size


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
