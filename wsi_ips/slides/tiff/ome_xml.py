"""What OME-XML says of the images in an OME-TIFF.

Schema 2016-06 (https://docs.openmicroscopy.org/ome-model/6.3.1/ome-tiff/specification.html); of older schemas,
what they have in common with it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from wsi_ips.errors import DamagedSlide, RefusedSlide
from wsi_ips.location import Location
from wsi_ips.slides.stated_mpp import believable_xy, number
from wsi_ips.slides.tiff.directories import MOST_IMAGES
from wsi_ips.units import Mpp, Size

LONGEST_XML = 8 << 20
"""Characters. The XML of a slide has a few thousand, and some hundred for each plane of a stack."""

MICRONS_PER: Mapping[str, float] = MappingProxyType(
    {
        "pm": 1e-6, "Å": 1e-4, "nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "dm": 1e5,
        "m": 1e6, "km": 1e9, "in": 25_400.0, "thou": 25.4, "mil": 25.4,
    }
)  # fmt: skip
"""OME's symbols for units of length that may be a pixel's; "pixel" and "reference frame" are no lengths. The micro
sign and the Greek letter are two characters."""


@dataclass(frozen=True, slots=True)
class TiffData:
    """Which planes lie in which of the file's images (``TiffData``); None: not stated."""

    ifd: int | None
    first_channel: int
    planes: int | None
    file_name: str
    """Of the file that holds them, and its UUID; empty where none is stated."""
    uuid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OmeImage:
    """One ``Image``: its name, and what its ``Pixels`` say."""

    name: str
    size: Size
    channels: int
    depths: int
    times: int
    mpp_xy: tuple[Mpp, Mpp] | None
    """µm per pixel along x and y."""
    channel_names: tuple[str, ...]
    """In order, empty where a ``Channel`` has none; () where there are no ``Channel`` elements."""
    channel_colours: tuple[int, ...]
    """24-bit RGB of each channel; () where not every channel states one."""
    tiff_data: tuple[TiffData, ...]

    def ifds(self, planes: int, start: int) -> list[int] | None:
        """Which of the file's images hold the ``planes`` channels; None where that is not stated of each.

        start: the first image that is not an earlier ``Image``'s, for a writer that states nothing.
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
    """A file's images in document order, and the UUID that the file gives itself."""

    images: tuple[OmeImage, ...]
    uuid: str


def read_ome_xml(path: Location, text: str) -> OmeXml:
    """The images that the XML describes, at least one.

    Raises :class:`DamagedSlide` for XML that is broken, hostile or states what cannot be,
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
    """Those of this name, in whatever version's namespace."""
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
    """An attribute's integer; None where it is absent."""
    text = element.get(name)
    if text is None:
        return None
    value = int(text) if text.strip().isascii() and text.strip().isdigit() and len(text) < 12 else -1
    if value < least:
        raise DamagedSlide(path, f"its OME-XML states {name}={text!r:.40}")
    return value


def _colour(text: str | None) -> int | None:
    """OME keeps a colour as a signed 32-bit integer of red, green, blue and alpha."""
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
