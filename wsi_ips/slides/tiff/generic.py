"""TIFF of no particular vendor: a tiled pyramid, as vips, libtiff, ASAP and the authors of PANDA write it.

Levels are chosen as in OpenSlide 4.0: the first image, and every tiled one that is marked as reduced, by width. An
image of another shape is no level here, though OpenSlide takes it for one.

The file also holds what the other formats need to tell levels from other images: :func:`of_one_shape`,
:func:`refuse_disordered` and :func:`left_out_images`.
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


def recognises(file: TiffDirectories) -> bool:
    """True for every TIFF, since this format is asked last."""
    return True


def read_layout(file: TiffDirectories) -> SlideLayout:
    """Where the tiles of the levels lie.

    Raises :class:`UnsupportedSlide` for a file that is not tiled or is better left to OpenSlide,
    :class:`DamagedSlide` for one that is cut short or contradicts itself, and :class:`RefusedSlide` for one that
    OpenSlide would show wrongly.
    """
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


def of_one_shape(images: Sequence[TiffImage]) -> tuple[list[TiffImage], dict[int, str]]:
    """Those of the images that show the same field as the largest of them, in the same order.

    Also returns, by :attr:`TiffImage.number`, why each of the other images is no level. Sides that were rounded,
    or padded to whole tiles, do not count as another shape.
    """
    largest = max(images, key=lambda image: image.size[0] * image.size[1])
    levels = [image for image in images if _same_field(largest, image)]
    kept = {image.number for image in levels}
    why = ANOTHER_SHAPE.format(*largest.size)
    return levels, {image.number: why for image in images if image.number not in kept}


def refuse_disordered(file: TiffDirectories, levels: Sequence[TileLayout]) -> None:
    """Raise :class:`UnsupportedSlide` if downsamples fall from one level to the next.

    OpenSlide opens no such slide.
    """
    factors = [size_downsample(level, levels[0]) for level in levels]
    if any(coarser < finer for finer, coarser in pairwise(factors)):
        raise UnsupportedSlide(file.path, "its levels are not ordered from fine to coarse")


def left_out_images(
    file: TiffDirectories, used: Collection[TiffImage], why: Mapping[int, str]
) -> tuple[LeftOut, ...]:
    """Every image of the file that is not used, and why.

    Args:
        file: The directories of the file.
        used: The images that are levels or associated images.
        why: Reasons by :attr:`TiffImage.number`. An image that is named here is listed even if it is used.

    Images are called pages, and are counted from 0.
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
    """How an image is called in messages: ``page 3, 600x250 px``."""
    width, height = image.size
    return f"page {image.number}, {width}x{height} px"


def _same_field(slide: TiffImage, image: TiffImage) -> bool:
    if min(*slide.size, *image.size) < 1:
        return True  # a damaged header, which is refused where the level is read
    return shows_same_field(slide.size, image.size, (image.integer(TILE_WIDTH), image.integer(TILE_LENGTH)))
