"""The file of a composite lymph node: tiles of level 0 that are patches or glass, and smaller levels."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import simplejpeg

from wsi_ips.datasets.pyramid_file import StoredLevel, write_pyramid
from wsi_ips.slides.base import RgbImage
from wsi_ips.units import Mpp

GLASS = (243, 242, 244)
GLASS_QUALITY = 95


def write_node_slide(
    path: Path,
    stored: Mapping[tuple[int, int], tuple[RgbImage, bytes]],
    size: tuple[int, int],
    *,
    side_px: int,
    mpp: Mpp,
) -> None:
    """Write a pyramid whose level-0 tiles are the cells of a grid of ``size`` (rows, columns).

    stored: the pixels and the JPEG stream (YCbCr, no chroma subsampling) of each cell (row, column) with tissue,
    as :func:`wsi_ips.datasets.node_patches.read_as_jpeg` returns them. All other cells are glass. The same cells
    give the same bytes.
    """
    rows, columns = size
    noise = np.random.default_rng(0).integers(-1, 2, (side_px, side_px, 3))
    glass = (np.array(GLASS) + noise).astype(np.uint8)
    glass_jpeg = bytes(simplejpeg.encode_jpeg(glass, GLASS_QUALITY, "RGB", "444"))
    image = np.tile(glass, (rows, columns, 1))
    for (row, column), (rgb_HWC, _) in stored.items():
        top, left = row * side_px, column * side_px
        image[top : top + side_px, left : left + side_px] = rgb_HWC

    def tiles() -> Iterator[bytes]:
        for row in range(rows):
            for column in range(columns):
                held = stored.get((row, column))
                yield held[1] if held else glass_jpeg

    finest = StoredLevel(tiles(), tile_px=side_px, subsampling=(1, 1))
    write_pyramid(path, image, mpp=mpp, finest=finest)
