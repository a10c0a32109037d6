"""Which tiled images of a TIFF show the slide at another scale, and what becomes of its other images.

Containers mark a tiled macro or label the same way as a level (NewSubfileType 1), and OpenSlide takes it for one.
It is told apart here by its shape.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from wsi_ips.errors import UnsupportedSlide
from wsi_ips.slides.base import LeftOut
from wsi_ips.slides.tiff.directories import TILE_LENGTH, TILE_WIDTH, TiffDirectories, TiffImage
from wsi_ips.slides.tile_layout import TileLayout, size_downsample

ROUNDING = 0.01
"""By which share a level's side may differ from the slide's divided by the downsample: some writers make sides
even, or multiples of 16."""


def of_one_shape(images: Sequence[TiffImage]) -> tuple[list[TiffImage], dict[int, str]]:
    """Those of the images that show the same field as the largest of them, in the same order.

    Also returns, by :attr:`TiffImage.number`, why each of the others is no level. Rounded sides, and sides padded
    to whole tiles, are no other shape.
    """
    largest = max(images, key=lambda image: image.size[0] * image.size[1])
    levels = [image for image in images if _same_field(largest, image)]
    kept = {image.number for image in levels}
    width, height = largest.size
    why = f"its shape is not that of the slide, {width}x{height} px, so it is no level of it"
    return levels, {image.number: why for image in images if image.number not in kept}


def refuse_disordered(file: TiffDirectories, levels: Sequence[TileLayout]) -> None:
    """OpenSlide opens no slide whose downsamples fall from one level to the next."""
    factors = [size_downsample(level, levels[0]) for level in levels]
    if any(coarser < finer for finer, coarser in pairwise(factors)):
        raise UnsupportedSlide(file.path, "its levels are not ordered from fine to coarse")


def left_out_images(
    file: TiffDirectories, used: Collection[TiffImage], why: Mapping[int, str]
) -> tuple[LeftOut, ...]:
    """Every image of the file that is not ``used`` as a level or a picture, and why.

    ``why`` gives reasons by :attr:`TiffImage.number`; an image that it names is listed even if it is a picture.
    Images are called pages and counted from 0.
    """
    numbers = {image.number for image in used}
    left_out: list[LeftOut] = []
    for image in file.images:
        if image.number in why or image.number not in numbers:
            reason = why.get(image.number) or (
                "it is not marked as a smaller version of the slide"
                if image.is_tiled
                else "it is not tiled, and no picture of a known name"
            )
            left_out.append(LeftOut(page_name(image), reason))
        if image.sub_images:
            what = f"{len(image.sub_images)} sub-images of page {image.number}"
            left_out.append(LeftOut(what, "levels of this container are pages of their own"))
    return tuple(left_out)


def page_name(image: TiffImage) -> str:
    """``page 3, 600x250 px``."""
    width, height = image.size
    return f"page {image.number}, {width}x{height} px"


def _same_field(slide: TiffImage, image: TiffImage) -> bool:
    """Whether one downsample explains both sides of the image.

    Either both sides were rounded, or both were padded to whole tiles. A padded side is less than a tile longer
    than what it shows.
    """
    if min(*slide.size, *image.size) < 1:
        return True  # a damaged header, which is refused where the level is read
    tile = image.integer(TILE_WIDTH), image.integer(TILE_LENGTH)
    rounded: list[tuple[float, float]] = []
    padded: list[tuple[float, float]] = []
    for full, side, block in zip(slide.size, image.size, tile, strict=True):
        rounded.append((full / (side * (1 + ROUNDING) + 1), _over(full, side * (1 - ROUNDING) - 1)))
        padded.append((full / side, _over(full, side - block)))
    (from_x, to_x), (from_y, to_y) = rounded
    if max(from_x, from_y) <= min(to_x, to_y):
        return True
    (from_x, to_x), (from_y, to_y) = padded
    in_whole_tiles = not any(block and side % block for side, block in zip(image.size, tile, strict=True))
    return in_whole_tiles and max(from_x, from_y) < min(to_x, to_y)


def _over(full: float, side: float) -> float:
    return full / side if side > 0 else float("inf")
