"""TIFF files of any pages, written for a test: tiled or stripped, padded to whole tiles, with empty tiles."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from tests.slides.tiff_files import Rgb, _blocks, _encode


@dataclass(frozen=True)
class Page:
    """One image of a file. tile 0: stripped. padded: the stated size is that of whole tiles, filled with white."""

    image: Rgb
    tile: int = 256
    padded: bool = False
    compression: str = "jpeg"
    subfile_type: int = 0
    empty_tiles: Sequence[int] = ()
    description: str | None = None
    software: str | bool = False
    mpp: float | None = None
    extra_tags: Sequence[tuple[Any, ...]] = ()


def write_pages(path: Path, pages: Sequence[Page], *, bigtiff: bool = False) -> None:
    """compression: jpeg (YCbCr, 4:2:0), lzw, deflate, none."""
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as writer:
        for page in pages:
            options: dict[str, Any] = {
                "photometric": "rgb",
                "compression": {"none": None, "deflate": 8}.get(page.compression, page.compression),
                "subfiletype": page.subfile_type,
                "description": page.description,
                "software": page.software,
                "metadata": None,
                "extratags": list(page.extra_tags),
            }
            if page.mpp:
                options |= {"resolution": (1e4 / page.mpp, 1e4 / page.mpp), "resolutionunit": "CENTIMETER"}
            if not page.tile:
                writer.write(page.image, **options)
                continue
            image = padded_to_tiles(page.image, page.tile) if page.padded else page.image
            encoded = [
                _encode(block, page.compression, "ycbcr", "4:2:0", False, False)
                for block in _blocks(image, page.tile)
            ]
            for empty in page.empty_tiles:
                encoded[empty] = b""
            if page.compression == "jpeg":
                options |= {"photometric": "ycbcr", "subsampling": (2, 2)}
            writer.write(
                iter(encoded), shape=image.shape, dtype=np.uint8, tile=(page.tile, page.tile), **options
            )


def padded_to_tiles(image: Rgb, tile: int) -> Rgb:
    height, width = image.shape[:2]
    return np.pad(image, ((0, -height % tile), (0, -width % tile), (0, 0)), constant_values=255)


def reduced(image: Rgb, factor: int) -> Rgb:
    """The mean of ``factor`` by ``factor`` pixels, the size rounded down."""
    height, width = image.shape[:2]
    size = max(1, width // factor), max(1, height // factor)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
