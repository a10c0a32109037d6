"""Images whose nuclei are outlined one by one: :func:`read_outlined_images`.

The format is MoNuSeg's (Kumar et al. 2017): PNG, and Aperio XML with the same name.

Shape suffixes: H rows, W columns, C colours, V vertices, N nuclei.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException
from numpy.typing import NDArray
from PIL import Image
from skimage.draw import polygon

from wsi_ips.errors import AnnotationError, DatasetError
from wsi_ips.storage.files import check_size

LARGEST_BYTES = 2**28
"""The largest file of outlines that is read."""
LARGEST_SIDE_PX = 8192
"""The longest side of an image."""
SMALLEST_PX = 1.0
"""Side of the smallest box that counts as a nucleus, in pixels."""


@dataclass(frozen=True)
class OutlinedImage:
    """An image, (H, W, 3) uint8, with one outline per nucleus, (V, 2) float64 x, y in pixels of the image."""

    name: str
    rgb_HWC: NDArray[np.uint8]
    outlines: tuple[NDArray[np.float64], ...]

    @cached_property
    def boxes_N4(self) -> NDArray[np.float32]:  # noqa: N802 - a shape suffix
        """Boxes around the outlines, cut at the image's edge: left, top, right, bottom, (N, 4) float32."""
        if not self.outlines:
            return np.zeros((0, 4), np.float32)
        height, width = self.rgb_HWC.shape[:2]
        boxes = np.array([[*o.min(axis=0), *o.max(axis=0)] for o in self.outlines], np.float32)
        return boxes.clip(0, np.array([width, height, width, height], np.float32))


def read_outlined_images(folder: Path) -> list[OutlinedImage]:
    """All pairs of image and outlines in a folder, by name.

    Raises :class:`DatasetError` if there are none or a PNG cannot be read, and :class:`AnnotationError` for
    outlines that are missing or cannot be read.
    """
    pictures = sorted(folder.glob("*.png"))
    if not pictures:
        raise DatasetError(folder, "has no *.png", "name a folder of images with outlines (*.xml)")
    return [
        OutlinedImage(path.stem, _pixels(path), tuple(read_outlines(path.with_suffix(".xml"))))
        for path in pictures
    ]


def read_outlines(path: Path) -> list[NDArray[np.float64]]:
    """The regions of an Aperio XML as (V, 2) arrays; those that enclose less than a pixel are left out.

    Raises :class:`AnnotationError` for a file that is missing, too large, or no such XML.
    """
    if not path.is_file():
        raise AnnotationError(path, "no such annotation", "outlines lie beside their image")
    check_size(path, AnnotationError, most=LARGEST_BYTES, fix="give outlines as Aperio XML")
    try:
        root = ElementTree.fromstring(path.read_bytes())
        found = [
            np.array(
                [(float(v.attrib["X"]), float(v.attrib["Y"])) for v in region.iter("Vertex")], np.float64
            )
            for region in root.iter("Region")
        ]
    except (ElementTree.ParseError, DefusedXmlException, TypeError, ValueError, LookupError) as error:
        raise AnnotationError(path, f"is not XML that can be read ({error})", "export it again") from None
    outlines = [outline for outline in found if len(outline) >= 3]
    if not all(np.isfinite(outline).all() for outline in outlines):
        raise AnnotationError(path, "has a vertex that is no number", "export it again")
    return [outline for outline in outlines if (np.ptp(outline, axis=0) > SMALLEST_PX).all()]


def _pixels(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if max(image.size) > LARGEST_SIDE_PX:
                raise DatasetError(path, f"is larger than {LARGEST_SIDE_PX} px", "cut it into pieces")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(path, f"is no PNG that can be read ({error})", "save it again as PNG") from None


def boxes_within(
    boxes_N4: NDArray[np.float32], *, left: int, top: int, side: int, least: float = 0.5
) -> NDArray[np.float32]:
    """Boxes in the coordinates of a crop of ``side`` pixels, cut at its edge.

    Boxes with less than the share ``least`` of their area inside are left out.
    """
    return _cut(boxes_N4, left=left, top=top, side=side)[
        rows_within(boxes_N4, left=left, top=top, side=side, least=least)
    ]


def rows_within(
    boxes_N4: NDArray[np.float32], *, left: int, top: int, side: int, least: float = 0.5
) -> NDArray[np.int64]:
    """Rows of the boxes that :func:`boxes_within` returns, (n,) int64."""
    cut = _cut(boxes_N4, left=left, top=top, side=side)
    area = (boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1])
    left_area = (cut[:, 2] - cut[:, 0]) * (cut[:, 3] - cut[:, 1])
    sides = np.minimum(cut[:, 2] - cut[:, 0], cut[:, 3] - cut[:, 1])
    return np.flatnonzero((left_area >= least * area) & (sides > SMALLEST_PX))


def _cut(boxes_N4: NDArray[np.float32], *, left: int, top: int, side: int) -> NDArray[np.float32]:
    moved = boxes_N4 - np.array([left, top, left, top], np.float32)
    return moved.clip(0, side)


def drawn(outlines: Sequence[NDArray[np.float64]], *, left: int, top: int, side: int) -> NDArray[np.uint8]:
    """Masks of outlines in a crop, (N, side, side) uint8: 1 where a pixel's centre is inside the outline."""
    masks = np.zeros((len(outlines), side, side), np.uint8)
    for mask, outline in zip(masks, outlines, strict=True):
        # Vertices count from the corner of the first pixel, skimage from its centre.
        x, y = (outline - (left + 0.5, top + 0.5)).T
        mask[polygon(y, x, mask.shape)] = 1
    return masks


def split_off(images: Sequence[OutlinedImage], count: int) -> tuple[list[OutlinedImage], list[OutlinedImage]]:
    """The images without the last ``count``, and those ``count``, on which a threshold is chosen."""
    return list(images[: len(images) - count]), list(images[len(images) - count :])
