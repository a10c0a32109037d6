"""Aperio SVS.

Levels are all tiled top-level images, in file order. The resolution is the field ``MPP`` of the description.
"""

from wsi_ips.errors import UnsupportedSlide
from wsi_ips.slides.resolution import believable_xy, number
from wsi_ips.slides.tiff.associated import by_subfile_type, pictures
from wsi_ips.slides.tiff.directories import ICC_PROFILE, TiffDirectories, TiffImage
from wsi_ips.slides.tiff.generic import left_out_images, of_one_shape, refuse_disordered
from wsi_ips.slides.tiff.tile_formats import orientation_note, resolution_mpp, tiled_level
from wsi_ips.slides.tile_layout import SlideLayout
from wsi_ips.units import Mpp


def recognises(file: TiffDirectories) -> bool:
    """Whether the first image's description is Aperio's."""
    return file.first.description.startswith("Aperio") and file.first.is_tiled


def read_layout(file: TiffDirectories) -> SlideLayout:
    """Where the tiles of the levels lie.

    Raises :class:`UnsupportedSlide` for what is better left to OpenSlide, :class:`DamagedSlide` for a file that is
    cut short or contradicts itself, and :class:`RefusedSlide` for one that OpenSlide would show wrongly.
    """
    images, why = of_one_shape(file.tiled)
    levels = [tiled_level(file, image, aperio=True) for image in images]
    refuse_disordered(file, levels)
    if len(levels) > 1 and any(level.missing.any() for level in levels):
        raise UnsupportedSlide(
            file.path, "has tiles without data, which OpenSlide fills in from a finer level"
        )
    named = by_subfile_type(file, images)
    return SlideLayout(
        vendor="aperio",
        files=(file.path,),
        levels=tuple(levels),
        mpp_xy=_stated_mpp(file.first) or resolution_mpp(file.first),
        associated=pictures(named),
        left_out=(*orientation_note(file.first), *left_out_images(file, [*images, *named.values()], why)),
        icc_profile=ICC_PROFILE in file.first.tags,
    )


def _stated_mpp(first: TiffImage) -> tuple[Mpp, Mpp] | None:
    """The last field ``MPP = 0.25`` of the description."""
    fields = [field.partition("=") for field in first.description.split("|")[1:]]
    stated = [value for name, _, value in fields if name.strip() == "MPP"]
    mpp = number(stated[-1]) if stated else None
    return believable_xy(mpp, mpp)
