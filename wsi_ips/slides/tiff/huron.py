"""Huron TIFF.

Levels are all tiled top-level images, in file order. The resolution is that of the TIFF tags (CONTAINERS.md,
section 14). A tile without data is white here, while OpenSlide opens such a slide and fails when the tile is read.
OpenSlide also requires a description, which is not needed here.
"""

from wsi_ips.slides.tiff.associated import by_subfile_type, pictures
from wsi_ips.slides.tiff.directories import ICC_PROFILE, MAKE, TiffDirectories
from wsi_ips.slides.tiff.generic import left_out_images, of_one_shape, refuse_disordered
from wsi_ips.slides.tiff.tile_formats import resolution_mpp, tiled_level
from wsi_ips.slides.tile_layout import SlideLayout


def recognises(file: TiffDirectories) -> bool:
    """Whether the tag of the scanner's make says Huron."""
    return file.first.is_tiled and file.first.text(MAKE).startswith("Huron")


def read_layout(file: TiffDirectories) -> SlideLayout:
    """Where the tiles of the levels lie.

    Raises :class:`UnsupportedSlide` for what is better left to OpenSlide, :class:`DamagedSlide` for a file that is
    cut short or contradicts itself, and :class:`RefusedSlide` for one that OpenSlide would show wrongly.
    """
    images, why = of_one_shape(file.tiled)
    levels = [tiled_level(file, image) for image in images]
    refuse_disordered(file, levels)
    named = by_subfile_type(file, images)
    return SlideLayout(
        vendor="huron",
        files=(file.path,),
        levels=tuple(levels),
        mpp_xy=resolution_mpp(images[0]),
        associated=pictures(named),
        left_out=left_out_images(file, [*images, *named.values()], why),
        icc_profile=ICC_PROFILE in file.first.tags,
    )
