"""OME-TIFF: the images that the OME-XML of the first image describes (CONTAINERS.md, section 3).

OpenSlide has no reader for it: it shows the finest level alone, of three grey planes only the first, and knows no
resolution. The levels are the SubIFDs of the slide's image or, if there are none, further images of the same
shape. A file is refused, and left to no other reader, if it holds other channels than red, green and blue or grey,
or several depths or times, because it is not stated which of them is the slide.

:func:`read_ome_xml` understands the XML: schema 2016-06
(https://docs.openmicroscopy.org/ome-model/6.3.1/ome-tiff/specification.html), and of older schemas what they have
in common with it.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NoReturn

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from wsi_ips.errors import DamagedSlide, RefusedSlide, UnsupportedSlide
from wsi_ips.slides.base import LeftOut
from wsi_ips.slides.codecs.base import Samples
from wsi_ips.slides.resolution import believable_xy, number
from wsi_ips.slides.tiff.associated import TiffPicture
from wsi_ips.slides.tiff.directories import (
    BITS,
    EXTRA_SAMPLES,
    ICC_PROFILE,
    MOST_IMAGES,
    PHOTOMETRIC,
    SAMPLES,
    TILE_LENGTH,
    TILE_WIDTH,
    TiffDirectories,
    TiffImage,
)
from wsi_ips.slides.tiff.tile_formats import (
    GREYS,
    Photometric,
    is_planar,
    orientation_note,
    resolution_mpp,
    tile_format,
    tiled_level,
)
from wsi_ips.slides.tile_layout import AssociatedImage, SlideLayout, TileLayout, shows_same_field
from wsi_ips.slides.tile_places import check_levels
from wsi_ips.storage.location import Location
from wsi_ips.units import Mpp, Size

LONGEST_XML = 8 << 20
"""The most characters of the XML.

That of a slide has a few thousand, and a few hundred for each plane of a stack.
"""

MICRONS_PER: Mapping[str, float] = MappingProxyType(
    {
        "pm": 1e-6, "Å": 1e-4, "nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "dm": 1e5,
        "m": 1e6, "km": 1e9, "in": 25_400.0, "thou": 25.4, "mil": 25.4,
    }
)  # fmt: skip
"""µm per unit, by OME's symbols for units of length. "pixel" and "reference frame" are no lengths.

The micro sign and the Greek letter are two characters.
"""

ASSOCIATED = {"label": "label", "macro": "macro", "overview": "macro", "thumbnail": "thumbnail"}
"""Words in the name of an Image, and which associated image it is."""

COLOURS = (("r", "red"), ("g", "green"), ("b", "blue"))
"""Names of the channels of an RGB image."""

COLOUR_VALUES = [0xFF0000, 0x00FF00, 0x0000FF]
"""24-bit RGB values of the channels of an RGB image."""

NO_NAME = re.compile(r"(channel|ch|c)?[ :_#-]*\d*([ :_#-]\d+)*")
"""What writers call a channel that nobody has named: ``Channel 0``, ``C:1``."""

SAME_RESOLUTION = 0.1
"""By how much, as a share, the stated resolution of a level may differ from what its size makes of the slide's."""

Planes = tuple[TiffImage, ...]
"""The images of a file that together are one picture: one, or one each for red, green and blue."""


@dataclass(frozen=True, slots=True)
class TiffData:
    """Which planes lie in which image of the file (``TiffData``). None means that it is not stated."""

    ifd: int | None
    """The first image that holds planes."""
    first_channel: int
    """The channel of the first plane."""
    planes: int | None
    """The number of planes."""
    file_name: str
    """Name of the file that holds the planes, empty if it is not stated."""
    uuid: str
    """UUID of the file that holds the planes, empty if it is not stated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OmeImage:
    """One ``Image``: its name, and what its ``Pixels`` say."""

    name: str
    size: Size
    """(width, height) in pixels."""
    channels: int
    depths: int
    times: int
    mpp_xy: tuple[Mpp, Mpp] | None
    """µm per pixel along x and y."""
    channel_names: tuple[str, ...]
    """Names in order, empty for a ``Channel`` without one. () if there are no ``Channel`` elements."""
    channel_colours: tuple[int, ...]
    """24-bit RGB of each channel. () if not every channel states one."""
    tiff_data: tuple[TiffData, ...]
    """Where the planes lie."""

    def ifds(self, planes: int, start: int) -> list[int] | None:
        """Which images of the file hold the channels 0 to ``planes - 1``.

        None if that is not stated for each of them.

        ``start`` is the first image that does not belong to an earlier ``Image``, for writers that state nothing.
        """
        places: dict[int, int] = {}
        for data in self.tiff_data or (TiffData(None, 0, None, "", ""),):
            rest = planes - data.first_channel
            count = data.planes if data.planes is not None else rest if data.ifd is None else 1
            first = start if data.ifd is None else data.ifd
            for plane in range(max(0, min(count, rest))):
                places[data.first_channel + plane] = first + plane
        listed = [places.get(plane, -1) for plane in range(planes)]
        return listed if min(listed) >= 0 else None


@dataclass(frozen=True, slots=True)
class OmeXml:
    """The images of a file in document order, and the UUID that the file gives itself."""

    images: tuple[OmeImage, ...]
    uuid: str


def recognises(file: TiffDirectories) -> bool:
    """Whether the first image's description ends as OME-XML does."""
    return file.first.description.rstrip("\0 \r\n\t").endswith("OME>")


def read_layout(file: TiffDirectories) -> SlideLayout:
    """Where the tiles of the levels lie.

    Raises :class:`UnsupportedSlide` for a slide that is not tiled, :class:`DamagedSlide` for a file that is cut
    short or contradicts itself, and :class:`RefusedSlide` for one that OpenSlide would show wrongly.
    """
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
    """An Image of the XML, and the images of the file that hold it; () if these are not in the file."""

    described: OmeImage
    planes: Planes

    @property
    def title(self) -> str:
        """Its name for messages: ``image 'Scene 2'``."""
        return f"image {self.described.name[:60]!r}"

    @property
    def label(self) -> str:
        """Its name and size for messages."""
        width, height = self.described.size
        return f"{self.title}, {width}x{height} px"


@dataclass(slots=True)
class _Pictures:
    """Everything that the XML describes, and the images of the file that it does not name."""

    slide: _Picture
    associated: dict[str, _Picture] = field(default_factory=dict)
    others: list[_Picture] = field(default_factory=list)
    unnamed: list[TiffImage] = field(default_factory=list)

    @classmethod
    def of(cls, file: TiffDirectories, document: OmeXml) -> "_Pictures":
        """Sort the images. The slide is the largest one that is not called a label, macro or thumbnail."""
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
    """The images that hold the channels of a picture at the first depth and time.

    () if they are not in the file.
    """
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
    """The slide's image with its planes in the order red, green, blue.

    Raises :class:`UnsupportedSlide`, :class:`DamagedSlide` or :class:`RefusedSlide` for an image that is not read
    here.
    """
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

    Three channels must have these names or colours. ``likely`` says whether three channels without names and
    colours may be taken for red, green and blue. Channels of 8 bits may; stains under a microscope mostly have
    more bits.
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
    """The name of another file that holds some of the image, empty if there is none.

    A file may have been renamed.
    """
    known = {data.file_name for image in document.images for data in image.tiff_data if data.file_name}
    for data in described.tiff_data:
        own = not data.file_name or data.file_name == file.path.name or len(known) == 1
        if not own and not (data.uuid and data.uuid == document.uuid):
            return data.file_name
    return ""


def _samples(file: TiffDirectories, slide: _Picture) -> Samples | None:
    """What the samples mean if the XML knows it better than the tags. None to believe the tags.

    Three planes, or three samples that the tags call grey, are red, green and blue.
    """
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
    """The levels of the slide from fine to coarse, and the images that might have been levels and are not."""
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
    """Why another Image of the XML is no level of the slide, empty if it may be one.

    If it states the resolution of the slide itself, a smaller size means a smaller field.
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
    """Why these images are no level besides those of the sizes ``taken``, empty if they are one."""
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
    """The associated images by name, and those that cannot be read."""
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
    file: TiffDirectories, reason: str, fix: str = "export one plane in red, green and blue"
) -> NoReturn:
    raise RefusedSlide(file.path, f"{reason}; a slide is one plane of red, green and blue, or of grey", fix)


def read_ome_xml(path: Location, text: str) -> OmeXml:
    """The images that the XML describes, at least one. ``path`` is the slide, for messages.

    Raises :class:`DamagedSlide` for XML that is broken, hostile or states what cannot be, and
    :class:`RefusedSlide` for XML that only names another file.
    """
    root = _parsed(path, text)
    only = next(_children(root, "BinaryOnly"), None)
    if only is not None:
        where = only.get("MetadataFile", "another file")
        raise RefusedSlide(
            path,
            f"one of several files of an OME-TIFF, described by {where!r:.200}",
            "convert it to one file",
        )
    images: list[OmeImage] = []
    for element in _children(root, "Image"):
        if len(images) == MOST_IMAGES:
            raise DamagedSlide(path, f"its OME-XML describes more than {MOST_IMAGES} images")
        pixels = next(_children(element, "Pixels"), None)
        if pixels is not None:
            images.append(_image(path, element.get("Name", ""), pixels))
    if not images:
        raise DamagedSlide(path, "its OME-XML describes no image")
    return OmeXml(tuple(images), root.get("UUID", ""))


def _parsed(path: Location, text: str) -> Any:
    if len(text) > LONGEST_XML:
        raise DamagedSlide(path, f"its OME-XML is longer than {LONGEST_XML >> 20} million characters")
    try:
        # The declaration may state another encoding than that of the bytes made here.
        body = text.strip("\0\ufeff \r\n\t")
        if body.startswith("<?xml"):
            body = body.partition("?>")[2]
        return ElementTree.fromstring(body.encode("utf-8", "replace"), forbid_dtd=True)
    except (ElementTree.ParseError, DefusedXmlException, ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise DamagedSlide(path, f"its OME-XML cannot be understood: {reason}") from error


def _children(element: Any, name: str) -> Iterator[Any]:
    """The child elements of this name, in the namespace of any version."""
    return (child for child in element if child.tag.rpartition("}")[2] == name)


def _image(path: Location, name: str, pixels: Any) -> OmeImage:
    channels = list(_children(pixels, "Channel"))[:MOST_IMAGES]
    colours = [_colour(channel.get("Color")) for channel in channels]
    tiff_data: list[TiffData] = []
    for element in _children(pixels, "TiffData"):
        if len(tiff_data) == MOST_IMAGES:
            break
        tiff_data.append(_tiff_data(path, element))
    return OmeImage(
        name=name,
        size=(_integer(path, pixels, "SizeX", least=1) or 0, _integer(path, pixels, "SizeY", least=1) or 0),
        channels=_integer(path, pixels, "SizeC", least=1) or 1,
        depths=_integer(path, pixels, "SizeZ", least=1) or 1,
        times=_integer(path, pixels, "SizeT", least=1) or 1,
        mpp_xy=_mpp_xy(pixels),
        channel_names=tuple(channel.get("Name", "") for channel in channels),
        channel_colours=tuple(c for c in colours if c is not None) if None not in colours else (),
        tiff_data=tuple(tiff_data),
    )


def _tiff_data(path: Location, element: Any) -> TiffData:
    file = next(_children(element, "UUID"), None)
    return TiffData(
        ifd=_integer(path, element, "IFD"),
        first_channel=_integer(path, element, "FirstC") or 0,
        planes=_integer(path, element, "PlaneCount"),
        file_name="" if file is None else file.get("FileName", ""),
        uuid="" if file is None else (file.text or "").strip(),
    )


def _integer(path: Location, element: Any, name: str, *, least: int = 0) -> int | None:
    """The integer of an attribute, None if it is missing."""
    text = element.get(name)
    if text is None:
        return None
    value = int(text) if text.strip().isascii() and text.strip().isdigit() and len(text) < 12 else -1
    if value < least:
        raise DamagedSlide(path, f"its OME-XML states {name}={text!r:.40}")
    return value


def _colour(text: str | None) -> int | None:
    """The 24-bit RGB of a colour, which OME stores as a signed 32-bit integer of red, green, blue and alpha."""
    try:
        return None if text is None else (int(text) & 0xFFFFFFFF) >> 8
    except ValueError:
        return None


def _mpp_xy(pixels: Any) -> tuple[Mpp, Mpp] | None:
    sizes: list[float | None] = []
    for axis in "XY":
        value, unit = number(pixels.get(f"PhysicalSize{axis}")), pixels.get(f"PhysicalSize{axis}Unit", "µm")
        per = MICRONS_PER.get(unit.strip())
        sizes.append(value * per if value is not None and per is not None else None)
    return believable_xy(*sizes)
