"""Tiled pyramidal TIFFs, drawn and written for a test. Other rooms' tests may import this."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from wsi_ips.testing.exporters import halved as halved
from wsi_ips.testing.exporters import tissue_like as tissue_like

Rgb = NDArray[np.uint8]

JPEG_TABLES = 347
# For each: simplejpeg's name, and the tag's factors (tifffile has none for 4:4:0; OpenSlide reads the JPEG's).
SUBSAMPLING = {
    "4:4:4": ("444", (1, 1)),
    "4:2:2": ("422", (2, 1)),
    "4:2:0": ("420", (2, 2)),
    "4:4:0": ("440", (1, 1)),
}


def write_pyramid(
    path: Path,
    image: Rgb,
    *,
    mpp: float | None = 0.5,
    tile: int = 256,
    levels: int = 1,
    compression: str = "jpeg",
    photometric: str = "ycbcr",
    subsampling: str = "4:2:0",
    bigtiff: bool = False,
    tables_apart: bool = False,
    description: str | None = None,
    predictor: bool = False,
    empty_tiles: Sequence[int] = (),
    progressive: bool = False,
    byteorder: str = "<",
) -> list[Rgb]:
    """Write ``image`` and its halves as top-level images with NewSubfileType 1, as CAMELYON's files have.

    compression: jpeg, lzw, deflate, none, jpeg2000. photometric (of JPEG): ycbcr or rgb. tables_apart: the
    JPEG tables stand in their own tag. empty_tiles: numbers of level-0 tiles that get no data. A description
    that starts with "Aperio" makes it an Aperio file. Returns the levels' images before compression.
    """
    images = [image]
    for _ in range(levels - 1):
        images.append(halved(images[-1]))
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder) as writer:
        for number, level in enumerate(images):
            jpeg = compression == "jpeg"
            encoded = [
                _encode(block, compression, photometric, subsampling, predictor, progressive)
                for block in _blocks(level, tile)
            ]
            extra: list[tuple[Any, ...]] = []
            if tables_apart:
                extra.append((JPEG_TABLES, 7, None, _tables_of(encoded[0]), True))
                encoded = [_without_tables(data) for data in encoded]
            for empty in empty_tiles if number == 0 else ():
                encoded[empty] = b""
            writer.write(
                iter(encoded),
                shape=level.shape,
                dtype=np.uint8,
                tile=(tile, tile),
                photometric=photometric if jpeg else "rgb",
                subsampling=SUBSAMPLING[subsampling][1] if jpeg and photometric == "ycbcr" else None,
                compression={"none": None, "deflate": 8, "jpeg2000": 33005}.get(compression, compression),
                predictor=predictor,
                subfiletype=1 if number else 0,
                resolution=(1e4 / mpp, 1e4 / mpp) if mpp else None,
                resolutionunit="CENTIMETER" if mpp else None,
                description=description if number == 0 else None,
                metadata=None,
                extratags=extra,
                software=False,
            )
    return images


def _blocks(level: Rgb, tile: int) -> Iterator[Rgb]:
    height, width = level.shape[:2]
    padded = np.pad(level, ((0, -height % tile), (0, -width % tile), (0, 0)), "edge")
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            yield np.ascontiguousarray(padded[top : top + tile, left : left + tile])


def _encode(
    block: Rgb, compression: str, photometric: str, subsampling: str, predictor: bool, progressive: bool
) -> bytes:
    if compression == "jpeg" and photometric == "ycbcr" and not progressive:
        return bytes(simplejpeg.encode_jpeg(block, 85, "RGB", SUBSAMPLING[subsampling][0]))
    if compression == "jpeg":
        stored = "rgb" if photometric == "rgb" else "ycbcr"
        return bytes(imagecodecs.jpeg8_encode(block, 85, colorspace="rgb", outcolorspace=stored,
                                              subsampling=SUBSAMPLING[subsampling][1]))  # fmt: skip
    if compression == "jpeg2000":
        return bytes(imagecodecs.jpeg2k_encode(block, codecformat="j2k", level=45, mct=True))
    if predictor:
        block = np.diff(block, axis=1, prepend=np.zeros_like(block[:, :1]))
    raw = block.tobytes()
    return {"lzw": imagecodecs.lzw_encode, "deflate": imagecodecs.zlib_encode, "none": bytes}[compression](
        raw
    )


def _segments(jpeg: bytes) -> Iterator[tuple[int, bytes]]:
    position = 2
    while True:
        marker = jpeg[position + 1]
        length = int.from_bytes(jpeg[position + 2 : position + 4], "big")
        end = len(jpeg) if marker == 0xDA else position + 2 + length
        yield marker, jpeg[position:end]
        if marker == 0xDA:
            return
        position = end


def _tables_of(jpeg: bytes) -> bytes:
    return (
        b"\xff\xd8"
        + b"".join(data for marker, data in _segments(jpeg) if marker in (0xDB, 0xC4))
        + b"\xff\xd9"
    )


def _without_tables(jpeg: bytes) -> bytes:
    return b"\xff\xd8" + b"".join(data for marker, data in _segments(jpeg) if marker not in (0xDB, 0xC4))
