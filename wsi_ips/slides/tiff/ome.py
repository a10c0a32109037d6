"""OME-TIFF: what the OME-XML of the first image describes (CONTAINERS.md, section 3).

OpenSlide has no reader for it: it shows the finest level alone, of three grey planes only the first, and knows no
resolution. The levels are the SubIFDs of the slide's image; where there are none, further images of the same
shape. A file is refused, and left to no other reader, where it holds other channels than red, green and blue or
grey, several depths or times: which of them is the slide is not stated.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import NoReturn

from wsi_ips.errors import DamagedSlide, RefusedSlide, UnsupportedSlide
from wsi_ips.slides.base import LeftOut
from wsi_ips.slides.codecs.samples import Samples
from wsi_ips.slides.level_shape import shows_same_field
from wsi_ips.slides.limits import check_levels
from wsi_ips.slides.tiff.directories import (
    BITS,
    EXTRA_SAMPLES,
    ICC_PROFILE,
    PHOTOMETRIC,
    SAMPLES,
    TILE_LENGTH,
    TILE_WIDTH,
    TiffDirectories,
    TiffImage,
)
from wsi_ips.slides.tiff.ome_xml import OmeImage, OmeXml, read_ome_xml
from wsi_ips.slides.tiff.pictures import TiffPicture
from wsi_ips.slides.tiff.tile_formats import GREYS, Photometric, is_planar, orientation_note, tile_format
from wsi_ips.slides.tiff.tiled_image import resolution_mpp, tiled_level
from wsi_ips.slides.tile_layout import AssociatedImage, SlideLayout, TileLayout
from wsi_ips.units import Size

ASSOCIATED = {"label": "label", "macro": "macro", "overview": "macro", "thumbnail": "thumbnail"}
"""Words in an Image's name, and what the picture is."""

COLOURS = (("r", "red"), ("g", "green"), ("b", "blue"))
COLOUR_VALUES = [0xFF0000, 0x00FF00, 0x0000FF]
NO_NAME = re.compile(r"(channel|ch|c)?[ :_#-]*\d*([ :_#-]\d+)*")
"""What writers call a channel that nobody has named: ``Channel 0``, ``C:1``."""

SAME_RESOLUTION = 0.1
"""By which share a level's stated resolution may differ from what its size makes of the slide's."""

Planes = tuple[TiffImage, ...]
"""The images of a file that together are one picture: one, or one each for red, green and blue."""


def recognises(file: TiffDirectories) -> bool:
    """By the end of the first image's description."""
    return file.first.description.rstrip("\0 \r\n\t").endswith("OME>")


def read_layout(file: TiffDirectories) -> SlideLayout:
    """See :data:`wsi_ips.slides.tiff.containers.CONTAINERS`."""
    document = read_ome_xml(file.path, file.first.description)
    pictures = _Pictures.of(file, document)
    slide = _checked(file, document, pictures.slide)
    samples = _samples(file, slide)
    levels, left_out = _levels(file, pictures, slide, samples)
    check_levels(file.path, [level.level_size for level in levels], [level.tile_size for level in levels])
    associated, others = _associated(pictures)
    return SlideLayout(
        vendor="ome-tiff",
        files=(file.path,),
        levels=tuple(levels),
        mpp_xy=slide.described.mpp_xy or resolution_mpp(slide.planes[0]),
        associated=associated,
        left_out=(*orientation_note(slide.planes[0]), *left_out, *others),
        icc_profile=ICC_PROFILE in slide.planes[0].tags,
    )


@dataclass(frozen=True, slots=True)
class _Picture:
    """An Image of the XML, and the file's images that hold it; () where these are not in the file."""

    described: OmeImage
    planes: Planes

    @property
    def title(self) -> str:
        """``image 'Scene 2'``."""
        return f"image {self.described.name[:60]!r}"

    @property
    def label(self) -> str:
        width, height = self.described.size
        return f"{self.title}, {width}x{height} px"


@dataclass(slots=True)
class _Pictures:
    """All that the XML describes, and the file's images that it does not name."""

    slide: _Picture
    associated: dict[str, _Picture] = field(default_factory=dict)
    others: list[_Picture] = field(default_factory=list)
    unnamed: list[TiffImage] = field(default_factory=list)

    @classmethod
    def of(cls, file: TiffDirectories, document: OmeXml) -> "_Pictures":
        """The slide is the largest image that is not called a label, macro or thumbnail."""
        pictures = []
        used: set[int] = set()
        for described in document.images:
            start = max(used, default=-1) + 1
            planes = _planes(file, described, start)
            used |= {plane.number for plane in planes}
            pictures.append(_Picture(described, planes))
        candidates = [picture for picture in pictures if not _name(picture)] or pictures
        found = cls(max(candidates, key=lambda picture: _area(picture.described)))
        for picture in pictures:
            name = _name(picture)
            if picture is found.slide:
                continue
            if name and name not in found.associated and len(picture.planes) == 1:
                found.associated[name] = picture
            else:
                found.others.append(picture)
        found.unnamed = [image for image in file.images if image.number not in used]
        return found


def _planes(file: TiffDirectories, described: OmeImage, start: int) -> Planes:
    """The images that hold a picture's channels at the first depth and time; () where they are not in the file."""
    first = described.ifds(1, start)
    if first is None or first[0] >= len(file.images):
        return ()
    in_one = file.images[first[0]].integer(SAMPLES, 1)
    count = max(1, min(described.channels // max(1, in_one), len(file.images)))
    places = described.ifds(count, start)
    if places is None or max(places) >= len(file.images):
        return ()
    return tuple(file.images[place] for place in places)


def _checked(file: TiffDirectories, document: OmeXml, slide: _Picture) -> _Picture:
    """The slide's image with its planes in the order red, green, blue. Raises as :func:`read_layout` does."""
    path, described = file.path, slide.described
    if described.depths > 1 or described.times > 1:
        _refuse(
            file,
            f"its OME-XML states {described.depths} planes of depth and {described.times} points in time",
        )
    if elsewhere := _elsewhere(file, document, described):
        _refuse(
            file, f"its OME-XML places pixels in another file, {elsewhere!r:.200}", "convert it to one file"
        )
    if not slide.planes:
        raise DamagedSlide(path, "its OME-XML names images that are not in the file")
    first, n_planes = slide.planes[0], len(slide.planes)
    for plane in slide.planes:
        if plane.size != described.size:
            raise DamagedSlide(
                path,
                "its OME-XML states {}x{} px, and the image itself {}x{}".format(
                    *described.size, *plane.size
                ),
            )
    in_one, extra = (
        first.integer(SAMPLES, 1),
        len(first.integers(EXTRA_SAMPLES, 0)) * (EXTRA_SAMPLES in first.tags),
    )
    shown = (n_planes * in_one, in_one - extra if n_planes == 1 else 0)
    if described.channels not in shown or n_planes not in (1, 3) or (n_planes == 3 and in_one > 1):
        names = ", ".join(filter(None, described.channel_names))[:200]
        _refuse(file, f"it has {described.channels} channels" + (f" ({names})" if names else ""))
    if not first.is_tiled:
        if n_planes > 1:
            _refuse(file, "its colours lie apart and are not stored in tiles")
        width, height = first.size
        raise UnsupportedSlide(
            path,
            f"not tiled: a flat image of {width}x{height}",
            "make it a tiled pyramid, e.g. vips tiffsave --tile --pyramid",
        )
    if described.channels < 3:
        return slide
    said_by_tags = n_planes == 1 and first.value(PHOTOMETRIC) not in GREYS
    order = _colour_order(file, described, likely=said_by_tags or max(first.integers(BITS, 1)) == 8)
    if n_planes == 1 and order != [0, 1, 2]:
        _refuse(file, "its channels are not in the order red, green, blue")
    return slide if n_planes == 1 else replace(slide, planes=tuple(slide.planes[place] for place in order))


def _colour_order(file: TiffDirectories, described: OmeImage, *, likely: bool) -> list[int]:
    """Where red, green and blue are among the channels.

    Three channels must be named so or coloured so. likely: whether three without names and colours may be taken
    for red, green and blue, as channels of 8 bits may; stains under a microscope mostly have more.
    """
    if len(described.channel_names) not in (0, 3):  # one Channel holds all three samples
        return [0, 1, 2]
    names = [
        "" if NO_NAME.fullmatch(name.strip().lower()) else name.strip().lower()
        for name in described.channel_names
    ]
    order = [next((at for at, name in enumerate(names) if name in known), -1) for known in COLOURS]
    if min(order) >= 0:
        return order
    colours = list(described.channel_colours)
    if not any(names) and sorted(colours) == sorted(COLOUR_VALUES):
        return [colours.index(value) for value in COLOUR_VALUES]
    if any(names) or len(set(colours)) > 1 or not likely:
        listed = ", ".join(name or "without a name" for name in described.channel_names)[:200]
        _refuse(file, f"its channels ({listed or 'without names'}) are not called red, green and blue")
    return [0, 1, 2]


def _elsewhere(file: TiffDirectories, document: OmeXml, described: OmeImage) -> str:
    """The name of another file that holds some of the image; "" for none. A file may have been renamed."""
    known = {data.file_name for image in document.images for data in image.tiff_data if data.file_name}
    for data in described.tiff_data:
        own = not data.file_name or data.file_name == file.path.name or len(known) == 1
        if not own and not (data.uuid and data.uuid == document.uuid):
            return data.file_name
    return ""


def _samples(file: TiffDirectories, slide: _Picture) -> Samples | None:
    """What the samples mean where the XML knows it better than the tags: three planes, or three samples that the
    tags call grey, are red, green and blue. None: what the tags say."""
    first = slide.planes[0]
    bits = first.integers(BITS, 1)
    if (
        slide.described.channels != 3
        or first.integer(SAMPLES, 1) not in (1, 3)
        or set(bits) not in ({8}, {16})
    ):
        return None
    white_is_zero = first.value(PHOTOMETRIC) == Photometric.WHITE_IS_ZERO
    if len(slide.planes) == 1:
        grey = first.value(PHOTOMETRIC) in GREYS
        return Samples(colours=3, bits=bits[0], white_is_zero=white_is_zero) if grey else None
    try:
        kinds = {tile_format(file.path, plane) for plane in slide.planes}
    except (DamagedSlide, RefusedSlide):
        raise
    except UnsupportedSlide as error:
        _refuse(file, f"its three colours cannot be read: {error.args[1]}")
    if len(kinds) > 1 or first.value(PHOTOMETRIC) not in GREYS:
        _refuse(file, "its three colours are not stored alike, as grey")
    return Samples(colours=3, bits=bits[0], white_is_zero=white_is_zero)


def _levels(
    file: TiffDirectories, pictures: _Pictures, slide: _Picture, samples: Samples | None
) -> tuple[list[TileLayout], list[LeftOut]]:
    """The slide's levels from fine to coarse, and the images that might have been some and are not."""
    of_parts = [plane.sub_images for plane in slide.planes]
    if len({len(subs) for subs in of_parts}) > 1:
        raise DamagedSlide(file.path, "its three colours have different numbers of levels")
    candidates = [(planes, "sub-image") for planes in zip(*of_parts, strict=True)]
    left_out: list[LeftOut] = []
    has_subs = bool(candidates)
    for other in pictures.others:
        reason = "it is another image of the file" if has_subs else _other_field(slide, other)
        if reason:
            left_out.append(LeftOut(other.label, reason))
        else:
            candidates.append((other.planes, other.title))
    for image in pictures.unnamed:
        if has_subs or len(slide.planes) > 1 or not image.is_reduced or image.is_mask:
            what = _sized(f"page {image.number}", (image,))
            left_out.append(LeftOut(what, "the OME-XML does not name it"))
        else:
            candidates.append(((image,), f"page {image.number}"))
    taken = {slide.planes[0].size: slide.planes}
    for planes, title in candidates:
        if reason := _no_level(slide, planes, taken):
            left_out.append(LeftOut(_sized(title, planes), reason))
        else:
            taken[planes[0].size] = planes
    in_order = sorted(taken.values(), key=lambda planes: planes[0].size, reverse=True)
    levels = [tiled_level(file, planes[0], samples=samples, planes=planes[1:]) for planes in in_order]
    return levels, left_out


def _other_field(slide: _Picture, other: _Picture) -> str:
    """Why another Image of the XML is no level of the slide; "" where it may be one.

    Of one that states the slide's own resolution, a smaller size is a smaller field.
    """
    ours, theirs = slide.described, other.described
    if len(other.planes) != len(slide.planes) or theirs.channels != ours.channels:
        return "it has other channels than the slide, or they are not in the file"
    if theirs.depths > 1 or theirs.times > 1:
        return "it has several depths or times"
    if theirs.mpp_xy and ours.mpp_xy:
        scale = ours.size[0] / theirs.size[0]
        if abs(theirs.mpp_xy[0] / (ours.mpp_xy[0] * scale) - 1) > SAME_RESOLUTION:
            return "it shows another field than the slide, by its size and resolution"
    return ""


def _no_level(slide: _Picture, planes: Planes, taken: Collection[Size]) -> str:
    """Why these images are no level besides those of the sizes ``taken``; "" where they are one."""
    first, size = slide.planes[0], planes[0].size
    if any(plane.size != size for plane in planes):
        return "its colours are of different sizes"
    if not all(plane.is_tiled for plane in planes):
        return "it is not stored in tiles"
    tile = planes[0].integer(TILE_WIDTH), planes[0].integer(TILE_LENGTH)
    if min(size) < 1 or not shows_same_field(first.size, size, tile):
        return "its shape is not that of the slide"
    if size[0] > first.size[0] or planes[0].integer(SAMPLES, 1) != first.integer(SAMPLES, 1):
        return "it is no smaller version of the slide"
    return "it has the size of another level" if size in taken else ""


def _sized(title: str, planes: Planes) -> str:
    width, height = planes[0].size
    return f"{title}, {width}x{height} px"


def _associated(pictures: _Pictures) -> tuple[dict[str, AssociatedImage], list[LeftOut]]:
    """The pictures beside the slide by name, and those that cannot be read."""
    found: dict[str, AssociatedImage] = {}
    left_out: list[LeftOut] = []
    for name, picture in pictures.associated.items():
        (image,) = picture.planes
        if is_planar(image) or image.size != picture.described.size:
            left_out.append(LeftOut(picture.label, "it is not stored as one picture"))
        else:
            found[name] = TiffPicture.of(image)
    return found, left_out


def _name(picture: _Picture) -> str:
    words = set(re.findall("[a-z]+", picture.described.name.lower()))
    return next((name for word, name in ASSOCIATED.items() if word in words), "")


def _area(image: OmeImage) -> int:
    return image.size[0] * image.size[1]


def _refuse(
    file: TiffDirectories, reason: str, mend: str = "export one plane in red, green and blue"
) -> NoReturn:
    raise RefusedSlide(file.path, f"{reason}; a slide is one plane of red, green and blue, or of grey", mend)
