"""Writes an image as the kind of file that CAMELYON's slides are: a tiled JPEG BigTIFF pyramid."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile
from PIL import Image

from wsi_ips.files import whole_file
from wsi_ips.slides.base import RgbImage
from wsi_ips.units import Mpp

TILE_PX = 256
JPEG_QUALITY = 85
SMALLEST_SIDE_PX = 512
REDUCED_IMAGE = 1


def write_pyramid(path: Path, image: RgbImage, *, mpp: Mpp) -> None:
    """Levels halve until the shorter side would fall under 512 px; JPEG YCbCr 4:2:0; mpp in the resolution tags.

    Reduced levels are top-level images with NewSubfileType 1 (TIFF 6.0), which OpenSlide reads as a generic
    tiled TIFF. The same image gives the same bytes.
    """
    level, number = image, 0
    with whole_file(path) as partial, tifffile.TiffWriter(partial, bigtiff=True) as writer:
        while True:
            writer.write(
                _encoded_tiles(level),
                shape=level.shape,
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                subfiletype=REDUCED_IMAGE if number else 0,
                resolution=(1e4 / (mpp * 2**number), 1e4 / (mpp * 2**number)),
                resolutionunit="CENTIMETER",
                metadata=None,
                software="wsi_ips",
            )
            if min(level.shape[:2]) < 2 * SMALLEST_SIDE_PX:
                return
            level, number = np.asarray(Image.fromarray(level).reduce(2)), number + 1


def _encoded_tiles(level: RgbImage) -> Iterator[bytes]:
    height, width = level.shape[:2]
    padded = np.pad(level, ((0, -height % TILE_PX), (0, -width % TILE_PX), (0, 0)), "edge")
    for top in range(0, height, TILE_PX):
        for left in range(0, width, TILE_PX):
            tile = np.ascontiguousarray(padded[top : top + TILE_PX, left : left + TILE_PX])
            yield bytes(simplejpeg.encode_jpeg(tile, JPEG_QUALITY, "RGB", "420"))
