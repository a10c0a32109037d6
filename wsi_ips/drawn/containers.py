"""Drawn pictures in the containers of public data sets: Philips TIFF, PANDA's TIFF with its masks, Aperio SVS.

Each file has what readers look at, and nothing that a scanner adds beside it. Rules: Philips TIFF as OpenSlide
reads it (tiles of 512 px, levels padded to whole tiles, tiles outside the tissue missing, sizes in the XML of the
first page); SVS as its image descriptions say; PANDA's three levels by inventories of its files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from PIL import Image

from wsi_ips.slides.base import RgbImage
from wsi_ips.storage.files import whole_file
from wsi_ips.units import Mpp

PHILIPS_TILE_PX = 512
"""Side of the tiles of a Philips TIFF."""
SVS_TILE_PX = 240
"""Side of the tiles of an SVS."""
PANDA_FACTORS = (1, 4, 16)
"""Downsamples of PANDA's levels."""
GLASS = 215
"""A tile without a darker pixel than this shows nothing but glass."""

_UM_PER_CM = 1e4
_JPEG_QUALITY = 85
_APERIO = "Aperio Image Library v10.0.51"


def write_philips(path: Path, image: RgbImage, *, mpp: Mpp, levels: int = 3) -> None:
    """Write a picture, (H, W, 3) uint8, as Philips TIFF; tiles of glass are missing, as outside a scanned area."""
    with whole_file(path) as partial, tifffile.TiffWriter(partial, bigtiff=True) as writer:
        for number in range(levels):
            padded = _whole_tiles(_reduced(image, 2**number), PHILIPS_TILE_PX)
            writer.write(
                _jpeg_tiles(padded, PHILIPS_TILE_PX, without_glass=True),
                shape=padded.shape,
                dtype=np.uint8,
                tile=(PHILIPS_TILE_PX, PHILIPS_TILE_PX),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                subfiletype=1 if number else 0,
                metadata=None,
                description=None if number else philips_xml(levels, mpp),
                software="Philips DP v1.0",
            )
        macro = _reduced(image, max(1, max(image.shape) // 256))
        for name, picture in (("Macro", macro), ("Label", _label())):
            writer.write(picture, photometric="rgb", metadata=None, description=name, subfiletype=1)


def philips_xml(count: int, mpp: Mpp) -> str:
    """The XML of a Philips TIFF with ``count`` levels: millimetres between pixels, of each level."""
    spacings = [f"&quot;{mm:.9f}&quot; &quot;{mm:.9f}&quot;" for mm in mpp / 1000 * 2.0 ** np.arange(count)]
    spacing = '<Attribute Name="DICOM_PIXEL_SPACING">{}</Attribute>'.format
    levels = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{spacing(text)}</DataObject>' for text in spacings
    )
    return (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="PIM_DP_SCANNED_IMAGES"><Array><DataObject ObjectType="DPScannedImage">'
        f'<Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>{spacing(spacings[0])}'
        f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{levels}</Array></Attribute>'
        "</DataObject></Array></Attribute></DataObject>"
    )


def write_panda(path: Path, image: RgbImage, *, mpp: Mpp) -> None:
    """Write a picture, (H, W, 3) uint8, as a biopsy of PANDA: three levels of 512-px JPEG tiles."""
    levels = [_whole_tiles(_reduced(image, factor), PHILIPS_TILE_PX) for factor in PANDA_FACTORS]
    with whole_file(path) as partial, tifffile.TiffWriter(partial, bigtiff=True) as writer:
        for number, (factor, level) in enumerate(zip(PANDA_FACTORS, levels, strict=True)):
            per_cm = _UM_PER_CM / (mpp * factor)
            writer.write(
                _jpeg_tiles(level, PHILIPS_TILE_PX),
                shape=_reduced(image, factor).shape,
                dtype=np.uint8,
                tile=(PHILIPS_TILE_PX, PHILIPS_TILE_PX),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                subfiletype=1 if number else 0,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                metadata=None,
            )


def write_panda_mask(path: Path, values: NDArray[np.uint8], *, mpp: Mpp) -> None:
    """Write a mask, (H, W) uint8, as PANDA's: three levels, the values in the first of three channels."""
    with whole_file(path) as partial, tifffile.TiffWriter(partial, bigtiff=True) as writer:
        for number, factor in enumerate(PANDA_FACTORS):
            level = np.zeros((*values[::factor, ::factor].shape, 3), np.uint8)
            level[..., 0] = values[::factor, ::factor]
            per_cm = _UM_PER_CM / (mpp * factor)
            writer.write(
                level,
                tile=(PHILIPS_TILE_PX, PHILIPS_TILE_PX),
                photometric="rgb",
                compression="zlib",
                subfiletype=1 if number else 0,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                metadata=None,
            )


@dataclass(frozen=True, slots=True)
class _SvsPage:
    image: RgbImage
    tiled: bool
    words: str


def write_svs(path: Path, image: RgbImage, *, mpp: Mpp) -> None:
    """Write a picture, (H, W, 3) uint8, as Aperio SVS: two levels, a thumbnail, a label and a macro."""
    height, width = image.shape[:2]
    quarter = _reduced(image, 4)
    words = f"{_APERIO}\r\n{width}x{height} [0,0 {width}x{height}] (240x240) JPEG/RGB Q=70"
    small = _reduced(image, max(1, max(height, width) // 256))
    size = f"{quarter.shape[1]}x{quarter.shape[0]}"
    pages: Sequence[_SvsPage] = (
        _SvsPage(image, tiled=True, words=f"{words}|AppMag = 40|MPP = {float(mpp)}"),
        _SvsPage(small, tiled=False, words=f"{words} -> {small.shape[1]}x{small.shape[0]} - "),
        _SvsPage(
            quarter, tiled=True, words=f"{words} -> {size} JPEG/RGB Q=70|AppMag = 40|MPP = {float(mpp)}"
        ),
        _SvsPage(_label(), tiled=False, words=f"{_APERIO}\r\nlabel 200x200"),
        _SvsPage(
            small,
            tiled=False,
            words=f"{_APERIO}\r\nmacro {small.shape[1]}x{small.shape[0]}",
        ),
    )
    with whole_file(path) as partial, tifffile.TiffWriter(partial, bigtiff=False) as writer:
        for page in pages:
            if not page.tiled:
                writer.write(page.image, photometric="rgb", metadata=None, description=page.words)
                continue
            writer.write(
                _jpeg_tiles(_whole_tiles(page.image, SVS_TILE_PX), SVS_TILE_PX),
                shape=page.image.shape,
                dtype=np.uint8,
                tile=(SVS_TILE_PX, SVS_TILE_PX),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                metadata=None,
                description=page.words,
            )


def _reduced(image: RgbImage, factor: int) -> RgbImage:
    """The mean of ``factor`` by ``factor`` pixels, the size rounded down."""
    if factor == 1:
        return image
    height, width = (max(1, side // factor) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def _whole_tiles(image: RgbImage, tile_px: int) -> RgbImage:
    height, width = image.shape[:2]
    return np.pad(image, ((0, -height % tile_px), (0, -width % tile_px), (0, 0)), constant_values=255)


def _jpeg_tiles(padded: RgbImage, tile_px: int, *, without_glass: bool = False) -> Iterator[bytes]:
    """JPEG streams row by row. Empty bytes stand for a tile that is missing."""
    for top in range(0, padded.shape[0], tile_px):
        for left in range(0, padded.shape[1], tile_px):
            tile = np.ascontiguousarray(padded[top : top + tile_px, left : left + tile_px])
            if without_glass and tile.min() >= GLASS:
                yield b""
            else:
                yield bytes(simplejpeg.encode_jpeg(tile, _JPEG_QUALITY, "RGB", "420"))


def _label() -> RgbImage:
    """White paper with black bars."""
    label = np.full((200, 200, 3), 255, np.uint8)
    label[60:140, 20:180][:, np.arange(160) // 5 % 3 == 0] = 0
    return label
