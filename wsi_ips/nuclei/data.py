"""Images whose nuclei are outlined one by one: MoNuSeg (Kumar et al. 2017), PNG and Aperio XML by the same name.

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
LARGEST_SIDE_PX = 8192
SMALLEST_PX = 1.0
"""Side of the smallest box that is a nucleus."""


@dataclass(frozen=True)
class OutlinedImage:
    """rgb_HWC: uint8. outlines: a (V, 2) float array of x, y a nucleus, in pixels of the image."""

    name: str
    rgb_HWC: NDArray[np.uint8]
    outlines: tuple[NDArray[np.float64], ...]

    @cached_property
    def boxes_N4(self) -> NDArray[np.float32]:  # noqa: N802 - a shape suffix
        """Around each outline, cut at the image's edge: left, top, right, bottom."""
        if not self.outlines:
            return np.zeros((0, 4), np.float32)
        height, width = self.rgb_HWC.shape[:2]
        boxes = np.array([[*o.min(axis=0), *o.max(axis=0)] for o in self.outlines], np.float32)
        return boxes.clip(0, np.array([width, height, width, height], np.float32))


def read_outlined_images(folder: Path) -> list[OutlinedImage]:
    """All pairs of a folder, by name. Raises :class:`DatasetError` for none or a PNG that is none,
    :class:`AnnotationError` for outlines that are missing or cannot be understood."""
    pictures = sorted(folder.glob("*.png"))
    if not pictures:
        raise DatasetError(folder, "has no *.png", "name a folder of images with outlines (*.xml)")
    return [
        OutlinedImage(path.stem, _pixels(path), tuple(read_outlines(path.with_suffix(".xml"))))
        for path in pictures
    ]


def read_outlines(path: Path) -> list[NDArray[np.float64]]:
    """The regions of an Aperio XML as (V, 2) arrays; what encloses less than a pixel is left out.

    Raises :class:`AnnotationError`.
    """
    if not path.is_file():
        raise AnnotationError(path, "no such annotation", "outlines lie beside their image")
    check_size(path, AnnotationError, most=LARGEST_BYTES, mend="is it an annotation?")
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
        raise DatasetError(path, f"is no PNG that can be read ({error})") from None


def boxes_within(
    boxes_N4: NDArray[np.float32], *, left: int, top: int, side: int, least: float = 0.5
) -> NDArray[np.float32]:
    """Boxes as a crop of ``side`` pixels sees them; of those cut, those with at least this share left."""
    return _cut(boxes_N4, left=left, top=top, side=side)[
        rows_within(boxes_N4, left=left, top=top, side=side, least=least)
    ]


def rows_within(
    boxes_N4: NDArray[np.float32], *, left: int, top: int, side: int, least: float = 0.5
) -> NDArray[np.int64]:
    """Which of them those are."""
    cut = _cut(boxes_N4, left=left, top=top, side=side)
    area = (boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1])
    left_area = (cut[:, 2] - cut[:, 0]) * (cut[:, 3] - cut[:, 1])
    sides = np.minimum(cut[:, 2] - cut[:, 0], cut[:, 3] - cut[:, 1])
    return np.flatnonzero((left_area >= least * area) & (sides > SMALLEST_PX))


def _cut(boxes_N4: NDArray[np.float32], *, left: int, top: int, side: int) -> NDArray[np.float32]:
    moved = boxes_N4 - np.array([left, top, left, top], np.float32)
    return moved.clip(0, side)


def drawn(outlines: Sequence[NDArray[np.float64]], *, left: int, top: int, side: int) -> NDArray[np.uint8]:
    """(N, side, side): 1 where a pixel's centre is inside the outline, in a crop."""
    masks = np.zeros((len(outlines), side, side), np.uint8)
    for mask, outline in zip(masks, outlines, strict=True):
        # Vertices count from the corner of the first pixel, skimage from its centre.
        x, y = (outline - (left + 0.5, top + 0.5)).T
        mask[polygon(y, x, mask.shape)] = 1
    return masks


def split_off(images: Sequence[OutlinedImage], count: int) -> tuple[list[OutlinedImage], list[OutlinedImage]]:
    """The images but the last ``count``, and those: to choose a threshold on."""
    return list(images[: len(images) - count]), list(images[len(images) - count :])
