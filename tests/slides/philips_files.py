"""Philips TIFFs, written for a test: the parts of their XML that readers look at, and padded levels."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import simplejpeg

from tests.slides.tiff_files import Rgb
from tests.slides.tiff_pages import Page, reduced, write_pages

SOFTWARE = "Philips DP v1.0"


def philips_xml(
    factors: Sequence[float],
    *,
    mpp_xy: tuple[float, float] = (0.25, 0.25),
    root: str = '<DataObject ObjectType="DPUfsImport">',
    slides: int = 1,
    label: Rgb | None = None,
    macro: Rgb | None = None,
    l0_mpp_xy: tuple[float, float] | None = None,
) -> str:
    """factors: of the levels' pixel spacings. l0_mpp_xy: of the levels' own spacings, where they differ from the
    slide's."""
    levels = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{_spacing(l0_mpp_xy or mpp_xy, factor)}</DataObject>'
        for factor in factors
    )
    slide = (
        f'<DataObject ObjectType="DPScannedImage">{_attribute("PIM_DP_IMAGE_TYPE", "WSI")}{_spacing(mpp_xy, 1)}'
        f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{levels}</Array></Attribute>'
        "</DataObject>"
    )
    pictures = "".join(
        f'<DataObject ObjectType="DPScannedImage">{_attribute("PIM_DP_IMAGE_TYPE", kind)}'
        f"{_attribute('PIM_DP_IMAGE_DATA', base64.b64encode(picture_jpeg(image)).decode())}</DataObject>"
        for kind, image in (("MACROIMAGE", macro), ("LABELIMAGE", label))
        if image is not None
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8" ?>\n{root}'
        f'{_attribute("DICOM_MANUFACTURER", "PHILIPS")}<Attribute Name="PIM_DP_SCANNED_IMAGES"><Array>'
        f"{slide * slides}{pictures}</Array></Attribute></DataObject>"
    )


def picture_jpeg(image: Rgb) -> bytes:
    return bytes(simplejpeg.encode_jpeg(image, 90, "RGB", "420"))


def write_philips(
    path: Path,
    image: Rgb,
    *,
    factors: Sequence[int] = (1, 2, 4),
    tile: int = 256,
    padded: bool = True,
    xml: str | None = None,
    software: str = SOFTWARE,
    empty_tiles: Sequence[Sequence[int]] = (),
    marked: bool = True,
    more: Sequence[Page] = (),
    **page: Any,
) -> list[Rgb]:
    """Write the image reduced by each factor, padded to whole tiles. empty_tiles: of each level.

    Returns the levels' images before padding.
    """
    images = [reduced(image, factor) if factor > 1 else image for factor in factors]
    pages = [
        Page(
            level,
            tile=tile,
            padded=padded,
            subfile_type=int(bool(number) and marked),
            empty_tiles=empty_tiles[number] if number < len(empty_tiles) else (),
            description=(philips_xml(factors) if xml is None else xml) if number == 0 else None,
            software=software if number == 0 else False,
            **page,
        )
        for number, level in enumerate(images)
    ]
    write_pages(path, [*pages, *more], bigtiff=True)
    return images


def _attribute(name: str, text: str) -> str:
    return f'<Attribute Name="{name}">{text}</Attribute>'


def _spacing(mpp_xy: tuple[float, float], factor: float) -> str:
    x, y = (f"&quot;{mpp * factor / 1000:.9g}&quot;" for mpp in mpp_xy)
    return _attribute("DICOM_PIXEL_SPACING", f"{y} {x}")
