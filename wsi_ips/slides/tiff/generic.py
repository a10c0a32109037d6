"""Which tiled images of a TIFF show the slide at another scale, and what becomes of its other images.

A TIFF of no vendor's: a tiled pyramid, as vips, libtiff, ASAP and PANDA's authors write it.

Levels are chosen as OpenSlide 4.0 does: the first image, and every tiled one marked as reduced, by width. An image
of another shape is no level, though OpenSlide takes it for one.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from wsi_ips.errors import UnsupportedSlide
from wsi_ips.slides.base import LeftOut
from wsi_ips.slides.tiff.associated import by_description, pictures
from wsi_ips.slides.tiff.directories import ICC_PROFILE, TILE_LENGTH, TILE_WIDTH, TiffDirectories, TiffImage
from wsi_ips.slides.tiff.tile_formats import orientation_note, resolution_mpp, tiled_level
from wsi_ips.slides.tile_layout import (
    ANOTHER_SHAPE,
    SlideLayout,
    TileLayout,
    hull_of_written_tiles,
    shows_same_field,
    size_downsample,
)


def of_one_shape(images: Sequence[TiffImage]) -> tuple[list[TiffImage], dict[int, str]]:
    """Those of the images that show the same field as the largest of them, in the same order.

    Also returns, by :attr:`TiffImage.number`, why each of the others is no level. Rounded sides, and sides padded
    to whole tiles, are no other shape.
    """
    largest = max(images, key=lambda image: image.size[0] * image.size[1])
    levels = [image for image in images if _same_field(largest, image)]
    kept = {image.number for image in levels}
    why = ANOTHER_SHAPE.format(*largest.size)
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
    if min(*slide.size, *image.size) < 1:
        return True  # a damaged header, which is refused where the level is read
    return shows_same_field(slide.size, image.size, (image.integer(TILE_WIDTH), image.integer(TILE_LENGTH)))


def recognises(file: TiffDirectories) -> bool:
    """Every TIFF that no other container claims."""
    return True


def read_layout(file: TiffDirectories) -> SlideLayout:
    """See :data:`wsi_ips.slides.tiff.layout.CONTAINERS`."""
    if not file.first.is_tiled:
        width, height = file.first.size
        raise UnsupportedSlide(
            file.path,
            f"not tiled: a flat image of {width}x{height}",
            "make it a tiled pyramid, e.g. vips tiffsave --tile --pyramid",
        )
    reduced = [image for image in file.tiled if image is not file.first and image.is_reduced]
    masks = {image.number: "it is a mask of transparency" for image in reduced if image.is_mask}
    images, why = of_one_shape([file.first, *(image for image in reduced if not image.is_mask)])
    why |= masks
    images.sort(key=lambda image: -image.size[0])
    levels = [tiled_level(file, image) for image in images]
    refuse_disordered(file, levels)
    named = by_description(file, images)
    return SlideLayout(
        vendor="generic-tiff",
        files=(file.path,),
        levels=tuple(levels),
        mpp_xy=resolution_mpp(images[0]),
        bounds=hull_of_written_tiles(levels[0]),
        associated=pictures(named),
        left_out=(*orientation_note(file.first), *left_out_images(file, [*images, *named.values()], why)),
        icc_profile=ICC_PROFILE in images[0].tags,
    )
