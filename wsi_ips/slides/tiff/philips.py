"""Philips TIFF, as Philips' export from iSyntax writes it and CAMELYON16 holds it (CONTAINERS.md, section 1).

Every tiled top-level image is a level. Level 0 is as large as its image says. The images of the other levels are
padded to whole tiles and state the padded size. Their true size follows from the pixel spacings in the XML of the
first image's description. Label and macro are images of their own, or JPEGs in the XML.

Levels are those of OpenSlide, with three exceptions. A text in the XML may be longer than 10 MB; OpenSlide would
then take the slide for a generic TIFF with padded sizes. A tiled image of another shape than the slide is left
out; OpenSlide refuses such a slide. And an image that is not as large as its spacing says is left out too.
"""

import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import floor, isfinite
from xml.etree.ElementTree import Element

from wsi_ips.errors import UnsupportedSlide
from wsi_ips.slides.codecs.base import TileError
from wsi_ips.slides.resolution import believable_xy, number
from wsi_ips.slides.tiff.associated import EmbeddedJpeg, pictures
from wsi_ips.slides.tiff.directories import (
    ICC_PROFILE,
    SOFTWARE,
    TILE_LENGTH,
    TILE_WIDTH,
    TiffDirectories,
    TiffImage,
    local_name,
    parsed_xml,
)
from wsi_ips.slides.tiff.generic import left_out_images, of_one_shape
from wsi_ips.slides.tiff.tile_formats import resolution_mpp, tiled_level
from wsi_ips.slides.tile_layout import AssociatedImage, SlideLayout
from wsi_ips.units import Mpp, Size

LARGEST_PICTURE_BYTES = 16 << 20
"""The most bytes of a JPEG in the XML, which is kept in memory while the slide is open."""


def recognises(file: TiffDirectories) -> bool:
    """Whether both the software and the XML are Philips'.

    OpenSlide takes other files for generic TIFFs, and so do we.
    """
    if not file.first.text(SOFTWARE).startswith("Philips"):
        return False
    root = parsed_xml(file.path, file.first.description)
    return root is not None and local_name(root) == "DataObject" and root.get("ObjectType") == "DPUfsImport"


def read_layout(file: TiffDirectories) -> SlideLayout:
    """Where the tiles of the levels lie.

    Raises :class:`UnsupportedSlide` for what is better left to OpenSlide, :class:`DamagedSlide` for a file that is
    cut short or contradicts itself, and :class:`RefusedSlide` for one that OpenSlide would show wrongly.
    """
    root = parsed_xml(file.path, file.first.description)
    scanned = [] if root is None else list(_scanned_images(root))
    slides = [image for image in scanned if _is_of_type(image, "WSI")]
    if len(slides) != 1:
        raise UnsupportedSlide(file.path, f"its XML describes {len(slides)} whole-slide images, not one")
    levels, why = _levels(file, slides[0])
    named = _named_images(file)
    in_xml = {
        name: picture
        for name, kind in (("label", "LABELIMAGE"), ("macro", "MACROIMAGE"))
        if name not in named and (picture := _picture_in_xml(scanned, kind))
    }
    associated: dict[str, AssociatedImage] = pictures(named) | in_xml
    images = [level.image for level in levels]
    return SlideLayout(
        vendor="philips",
        files=(file.path,),
        levels=tuple(tiled_level(file, level.image, level_size=level.size) for level in levels),
        downsamples=tuple(float(level.downsample) for level in levels),
        mpp_xy=_mpp(slides[0]) or resolution_mpp(file.first),
        associated={name: associated[name] for name in sorted(associated)},
        left_out=left_out_images(file, [*images, *named.values()], why),
        icc_profile=ICC_PROFILE in file.first.tags,
    )


@dataclass(frozen=True, slots=True)
class _Level:
    image: TiffImage
    downsample: int
    size: Size


def _levels(file: TiffDirectories, slide: Element) -> tuple[list[_Level], dict[int, str]]:
    """The levels from fine to coarse, and why other tiled images, by their number, are no levels."""
    tiled = file.tiled
    if not tiled or tiled[0] is not file.first:
        raise UnsupportedSlide(file.path, "its first image is not tiled")
    if unmarked := [image.number for image in tiled[1:] if not image.is_reduced]:
        raise UnsupportedSlide(file.path, f"its tiled image {unmarked[0]} is not marked as a reduced one")
    spacings = _level_spacings(file, slide)
    why: dict[int, str] = {}
    if len(spacings) != len(tiled):
        tiled, why = of_one_shape(tiled)
    if len(spacings) != len(tiled):
        raise UnsupportedSlide(
            file.path, f"its XML states the pixel spacings of {len(spacings)} levels, and it has {len(tiled)}"
        )
    for finer, coarser in pairwise(tiled):
        if any(small > large for small, large in zip(coarser.size, finer.size, strict=True)):
            raise UnsupportedSlide(file.path, "its levels are not ordered from fine to coarse")
    levels: list[_Level] = []
    for image, downsample in zip(tiled, _downsamples(file, spacings), strict=True):
        width, height = file.first.size
        level = _Level(image, downsample, (width // downsample, height // downsample))
        if image is file.first or _fits(level, file.first.size):
            levels.append(level)
        else:
            why[image.number] = (
                f"its pixel spacing says 1/{downsample} of the slide, which is not its size; it is not used"
            )
    return levels, why


def _fits(level: _Level, l0_size: Size) -> bool:
    """Whether the image is about as large as the level, or is padded to whole tiles."""
    tile = level.image.integer(TILE_WIDTH), level.image.integer(TILE_LENGTH)
    sides = zip(level.image.size, level.size, l0_size, tile, strict=True)
    return min(level.size) > 0 and all(
        clipped <= stored + 1 and stored < full / level.downsample + max(1, block)
        for stored, clipped, full, block in sides
    )


def _downsamples(file: TiffDirectories, spacings: Sequence[tuple[float, float]]) -> list[int]:
    """Downsamples as whole numbers, rounded half away from zero as in OpenSlide."""
    x0, y0 = spacings[0]
    factors = [1, *(floor((x / x0 + y / y0) / 2 + 0.5) for x, y in spacings[1:])]
    if min(factors) < 1 or any(coarser < finer for finer, coarser in pairwise(factors)):
        raise UnsupportedSlide(file.path, f"its XML states levels of 1/{', 1/'.join(map(str, factors))}")
    return factors


def _level_spacings(file: TiffDirectories, slide: Element) -> list[tuple[float, float]]:
    """mm per pixel (x, y) of each level, in file order."""
    texts = [
        spacing.text
        for sequence in _attributes(slide, "PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE")
        for level in sequence.iterfind("Array/DataObject[@ObjectType='PixelDataRepresentation']")
        for spacing in _attributes(level, "DICOM_PIXEL_SPACING")
        if spacing.text
    ]
    spacings: list[tuple[float, float]] = []
    for text in texts:
        spacing = _spacing(text)
        if spacing is None:
            raise UnsupportedSlide(
                file.path, f"its XML states the pixel spacing {text[:40]!r} for level {len(spacings)}"
            )
        spacings.append(spacing)
    return spacings


def _mpp(slide: Element) -> tuple[Mpp, Mpp] | None:
    """µm per pixel of the slide. If it is stated several times, the last statement counts."""
    stated = [
        attribute.text or "" for attribute in _attributes(slide, "DICOM_PIXEL_SPACING") if not len(attribute)
    ]
    spacing = _spacing(stated[-1]) if stated else None
    return None if spacing is None else believable_xy(1000 * spacing[0], 1000 * spacing[1])


def _spacing(text: str) -> tuple[float, float] | None:
    """mm per pixel (x, y) from the text ``"row" "column"``, whose quotation marks belong to it."""
    parts = [number(part.replace('"', " ")) for part in text.split(" ")]
    if len(parts) != 2 or any(part is None or not isfinite(part) or part <= 0 for part in parts):
        return None
    row, column = (part or 0.0 for part in parts)
    return column, row


def _scanned_images(root: Element) -> Iterator[Element]:
    for attribute in _attributes(root, "PIM_DP_SCANNED_IMAGES"):
        for image in attribute.iterfind("Array/DataObject"):
            if any(True for _ in _attributes(image, "PIM_DP_IMAGE_TYPE")):
                yield image


def _attributes(element: Element, name: str) -> Iterator[Element]:
    return element.iterfind(f"Attribute[@Name='{name}']")


def _is_of_type(image: Element, kind: str) -> bool:
    return any(attribute.text == kind for attribute in image.iterfind("Attribute"))


def _named_images(file: TiffDirectories) -> dict[str, TiffImage]:
    """Label and macro that are images of their own and not tiled. Of several, the last one counts."""
    named: dict[str, TiffImage] = {}
    for image in file.images:
        for name in ("Label", "Macro"):
            if not image.is_tiled and image.description.startswith(name):
                named[name.lower()] = image
    return named


def _picture_in_xml(scanned: Sequence[Element], kind: str) -> EmbeddedJpeg | None:
    """A JPEG in the XML, or None if there is none that can be understood, which is no reason to refuse a slide."""
    texts = [
        data.text
        for image in scanned
        if _is_of_type(image, kind)
        for data in _attributes(image, "PIM_DP_IMAGE_DATA")
        if data.text
    ]
    if not texts or len(texts[0]) > LARGEST_PICTURE_BYTES // 3 * 4:
        return None
    try:
        return EmbeddedJpeg.of(binascii.a2b_base64(texts[0]))
    except (ValueError, TileError):
        return None
