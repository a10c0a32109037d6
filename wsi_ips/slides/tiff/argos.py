"""Argos AVS.

XML in a tag of its own says how many focal planes there are. Each plane is a pyramid: tiled top-level images of
falling width, where the next plane begins with the first image that is not narrower. The plane in the middle is
the slide, as in OpenSlide (CONTAINERS.md, section 14). The other planes are left out.
"""

from itertools import pairwise
from xml.etree.ElementTree import Element

from wsi_ips.errors import UnsupportedSlide
from wsi_ips.slides.tiff.associated import pictures
from wsi_ips.slides.tiff.directories import ICC_PROFILE, TiffDirectories, TiffImage, parsed_xml
from wsi_ips.slides.tiff.generic import left_out_images, of_one_shape, refuse_disordered
from wsi_ips.slides.tiff.tile_formats import resolution_mpp, tiled_level
from wsi_ips.slides.tile_layout import SlideLayout, hull_of_written_tiles

METADATA = 65000
"""Number of the tag that holds the XML."""

ROOT = "Argos.Scan.Metadata"
"""Name of the root element of the XML."""


def recognises(file: TiffDirectories) -> bool:
    """Whether the first image has Argos' XML in its tag."""
    return file.first.is_tiled and _metadata(file) is not None


def read_layout(file: TiffDirectories) -> SlideLayout:
    """Where the tiles of the levels lie.

    Raises :class:`UnsupportedSlide` for what is better left to OpenSlide, :class:`DamagedSlide` for a file that is
    cut short or contradicts itself, and :class:`RefusedSlide` for one that OpenSlide would show wrongly.
    """
    tiled, why = of_one_shape(file.tiled)
    planes = _focal_planes(tiled)
    middle = _middle_plane(file)
    if not 0 <= middle < len(planes):
        raise UnsupportedSlide(
            file.path,
            f"its metadata says that the slide is focal plane {middle}, counted from 0; it holds {len(planes)}",
        )
    images = planes[middle]
    for number, plane in enumerate(planes):
        if number != middle:
            why |= {
                image.number: f"focal plane {number + 1} of {len(planes)}; the one in the middle is read"
                for image in plane
            }
    levels = [tiled_level(file, image) for image in images]
    refuse_disordered(file, levels)
    named = _pictures_at_the_end(file)
    return SlideLayout(
        vendor="argos",
        files=(file.path,),
        levels=tuple(levels),
        mpp_xy=resolution_mpp(images[0]),
        bounds=hull_of_written_tiles(levels[0]),
        associated=pictures(named),
        left_out=left_out_images(file, [*images, *named.values()], why),
        icc_profile=ICC_PROFILE in file.first.tags,
    )


def _metadata(file: TiffDirectories) -> Element | None:
    text = file.first.data(METADATA)
    if ROOT.encode() not in text:
        return None
    root = parsed_xml(file.path, text.decode("utf-8", "replace"))
    return root if root is not None and root.tag == ROOT else None


def _middle_plane(file: TiffDirectories) -> int:
    root = _metadata(file)
    stated = [None if root is None else root.findtext(name) for name in ("MinZ", "MaxZ")]
    try:
        lowest, highest = (int((text or "")[:20]) for text in stated)
    except ValueError as error:
        raise UnsupportedSlide(file.path, f"its metadata states the focal planes {stated}") from error
    return int((highest - lowest) / 2)  # towards 0


def _focal_planes(tiled: list[TiffImage]) -> list[list[TiffImage]]:
    """The tiled images, cut before each one that is not narrower than the one before it."""
    planes = [[tiled[0]]]
    for before, image in pairwise(tiled):
        if image.size[0] >= before.size[0]:
            planes.append([])
        planes[-1].append(image)
    return planes


def _pictures_at_the_end(file: TiffDirectories) -> dict[str, TiffImage]:
    """The last image is the macro, and the one before it the thumbnail, unless they are tiled."""
    named = {"macro": file.images[-1], "thumbnail": file.images[-2]} if len(file.images) > 1 else {}
    return {name: image for name, image in named.items() if not image.is_tiled}
