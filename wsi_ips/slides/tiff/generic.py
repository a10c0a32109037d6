"""A TIFF of no vendor's: a tiled pyramid, as vips, libtiff, ASAP and PANDA's authors write it.

Levels are chosen as OpenSlide 4.0 does: the first image, and every tiled one marked as reduced, by width.
"""

from itertools import pairwise

from wsi_ips.errors import UnsupportedSlide
from wsi_ips.slides.codecs.jpeg2000 import Jpeg2000Tiles
from wsi_ips.slides.tiff.directories import ICC_PROFILE, TiffDirectories
from wsi_ips.slides.tiff.tiled_image import resolution_mpp, tiled_level
from wsi_ips.slides.tile_layout import SlideLayout, TileLayout, size_downsample


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
    levels = [tiled_level(file, image) for image in (file.first, *reduced)]
    levels.sort(key=lambda level: -level.level_size[0])
    refuse_disordered(file, levels)
    if any(isinstance(level.tile, Jpeg2000Tiles) for level in levels):
        raise UnsupportedSlide(file.path, "JPEG 2000 outside an Aperio file")
    return SlideLayout(
        vendor="generic-tiff",
        files=(file.path,),
        levels=tuple(levels),
        mpp_xy=resolution_mpp(file.first),
        icc_profile=ICC_PROFILE in file.first.tags,
    )


def refuse_disordered(file: TiffDirectories, levels: list[TileLayout]) -> None:
    """OpenSlide opens no slide whose downsamples fall from one level to the next."""
    factors = [size_downsample(level, levels[0]) for level in levels]
    if any(coarser < finer for finer, coarser in pairwise(factors)):
        raise UnsupportedSlide(file.path, "its levels are not ordered from fine to coarse")
