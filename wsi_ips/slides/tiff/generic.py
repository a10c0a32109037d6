"""A TIFF of no vendor's: a tiled pyramid, as vips, libtiff, ASAP and PANDA's authors write it.

Levels are chosen as OpenSlide 4.0 does: the first image, and every tiled one marked as reduced, by width. An image
of another shape is no level, though OpenSlide takes it for one.
"""

from wsi_ips.errors import UnsupportedSlide
from wsi_ips.slides.tiff.associated import by_description, pictures
from wsi_ips.slides.tiff.directories import ICC_PROFILE, TiffDirectories
from wsi_ips.slides.tiff.pyramid import left_out_images, of_one_shape, refuse_disordered
from wsi_ips.slides.tiff.tile_formats import orientation_note
from wsi_ips.slides.tiff.tiled_image import resolution_mpp, tiled_level
from wsi_ips.slides.tile_layout import SlideLayout, hull_of_written_tiles


def recognises(file: TiffDirectories) -> bool:
    """Every TIFF that no other container claims."""
    return True


def read_layout(file: TiffDirectories) -> SlideLayout:
    """See :data:`wsi_ips.slides.tiff.containers.CONTAINERS`."""
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
