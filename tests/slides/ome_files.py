"""OME-TIFFs written for a test: their levels as SubIFDs, or as further images; colours together or apart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import tifffile
from numpy.typing import NDArray

from tests.slides.tiff_files import Rgb, halved

NAMESPACE = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


def ome_xml(*images: str, uuid: str = "") -> str:
    own = f' UUID="{uuid}"' if uuid else ""
    return f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{NAMESPACE}"{own}>{"".join(images)}</OME>'


def ome_image(
    width: int,
    height: int,
    *,
    name: str = "slide",
    channels: Sequence[str | None] = (None,),
    samples: int = 3,
    planes: str = "",
    colours: Sequence[int] = (),
    mpp: float | None = 0.5,
    unit: str = "µm",
    **sizes: object,
) -> str:
    """An ``Image`` element. channels: a name for each ``Channel``, None for one without. planes: its TiffData."""
    attributes = {"SizeX": width, "SizeY": height, "SizeC": len(channels) * samples, "SizeZ": 1, "SizeT": 1}
    if mpp is not None:
        attributes |= {
            "PhysicalSizeX": mpp,
            "PhysicalSizeY": mpp,
            "PhysicalSizeXUnit": unit,
            "PhysicalSizeYUnit": unit,
        }
    attributes |= sizes
    listed = " ".join(f"{key}={quoteattr(str(value))}" for key, value in attributes.items())
    parts = []
    for number, channel in enumerate(channels):
        named = f" Name={quoteattr(channel)}" if channel is not None else ""
        coloured = f' Color="{colours[number]}"' if colours else ""
        parts.append(f'<Channel ID="Channel:0:{number}" SamplesPerPixel="{samples}"{named}{coloured}/>')
    start = f'<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" {listed}>'
    pixels = f"{start}{''.join(parts)}{planes}</Pixels>"
    return f"<Image ID={quoteattr('Image:' + name)} Name={quoteattr(name)}>{pixels}</Image>"


def halves(image: Rgb, levels: int) -> list[Rgb]:
    images = [image]
    for _ in range(levels - 1):
        images.append(halved(images[-1]))
    return images


def write_ome(
    path: Path,
    image: Rgb,
    *,
    levels: int = 1,
    apart: bool = False,
    tile: int = 128,
    xml: str | None = None,
    order: Sequence[int] = (0, 1, 2),
    scale: int = 1,
    **options: Any,
) -> list[NDArray[Any]]:
    """An OME-TIFF with its levels as SubIFDs. Returns the levels' pixels.

    apart: red, green and blue are images of their own, in this ``order``; xml: instead of what describes it
    rightly; scale: 257 makes 16 bits of 8.
    """
    height, width = image.shape[:2]
    if xml is None:
        described = {"channels": (None, None, None), "samples": 1} if apart else {}
        xml = ome_xml(ome_image(width, height, **described))
    images = [(level.astype(np.uint16) * scale if scale > 1 else level) for level in halves(image, levels)]
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for number, channel in enumerate(order if apart else (None,)):
            for depth, pixels in enumerate(images):
                planar = options.get("planarconfig") == "separate"
                stored = pixels if channel is None else pixels[..., channel].copy()
                writer.write(
                    stored.transpose(2, 0, 1).copy() if planar else stored,
                    tile=(tile, tile),
                    subifds=levels - 1 if depth == 0 else None,
                    subfiletype=min(depth, 1),
                    photometric="minisblack" if apart else "rgb",
                    description=xml.encode() if number == depth == 0 else None,
                    metadata=None,
                    software=False,
                    **options,
                )
    return images
