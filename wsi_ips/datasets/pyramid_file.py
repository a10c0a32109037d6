"""Writes an image as the kind of file that CAMELYON's slides are: a tiled JPEG BigTIFF pyramid."""

from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class StoredLevel:
    """A level that is encoded already. tiles: a JPEG stream each, YCbCr, row by row. subsampling: of chroma, along
    x and y, as TIFF has it: (1, 1) for none."""

    tiles: Iterator[bytes]
    tile_px: int
    subsampling: tuple[int, int]


def write_pyramid(path: Path, image: RgbImage, *, mpp: Mpp, finest: StoredLevel | None = None) -> None:
    """Levels halve until the shorter side would fall under 512 px; JPEG YCbCr 4:2:0; mpp in the resolution tags.

    ``finest`` is stored as level 0 in place of ``image``, which has to show the same. Reduced levels are top-level
    images with NewSubfileType 1 (TIFF 6.0), which OpenSlide reads as a generic tiled TIFF. The same image gives
    the same bytes.
    """
    level, number = image, 0
    stored = finest or _encoded(image)
    with whole_file(path) as partial, tifffile.TiffWriter(partial, bigtiff=True) as writer:
        while True:
            writer.write(
                stored.tiles,
                shape=level.shape,
                dtype=np.uint8,
                tile=(stored.tile_px, stored.tile_px),
                photometric="ycbcr",
                subsampling=stored.subsampling,
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
            stored = _encoded(level)


def _encoded(level: RgbImage) -> StoredLevel:
    return StoredLevel(_encoded_tiles(level), tile_px=TILE_PX, subsampling=(2, 2))


def _encoded_tiles(level: RgbImage) -> Iterator[bytes]:
    height, width = level.shape[:2]
    padded = np.pad(level, ((0, -height % TILE_PX), (0, -width % TILE_PX), (0, 0)), "edge")
    for top in range(0, height, TILE_PX):
        for left in range(0, width, TILE_PX):
            tile = np.ascontiguousarray(padded[top : top + TILE_PX, left : left + TILE_PX])
            yield bytes(simplejpeg.encode_jpeg(tile, JPEG_QUALITY, "RGB", "420"))
