"""One DICOM file of a slide: what its header states about the image, checked.

:func:`read_image` reads a header, :func:`check_sizes` and :func:`tile_format` check it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from wsi_ips.errors import DamagedSlide, UnsupportedSlide
from wsi_ips.slides.codecs.base import TileFormat
from wsi_ips.slides.codecs.jpeg import Colours, EncapsulatedTiles, JpegTiles
from wsi_ips.slides.codecs.jpeg2000 import Jpeg2000Tiles
from wsi_ips.slides.codecs.plain import Packing, PlainTiles, RleTiles
from wsi_ips.slides.dicom import elements as tags
from wsi_ips.slides.dicom.elements import BrokenHeader, DataSet, Header, read_header
from wsi_ips.slides.dicom.series import image_kind
from wsi_ips.slides.tile_layout import TRUNCATED
from wsi_ips.slides.tile_places import LARGEST_BLOCK_PX, LARGEST_SIDE_PX
from wsi_ips.units import Size

JPEG = {tags.JPEG_BASELINE, tags.JPEG_EXTENDED}
"""Transfer syntaxes of JPEG."""

NATIVE = {tags.EXPLICIT_LITTLE, tags.IMPLICIT_LITTLE}
"""Transfer syntaxes of frames that are not compressed."""

JPEG_COLOURS = {"YBR_FULL_422": Colours.YCBCR, "YBR_FULL": Colours.YCBCR, "RGB": Colours.RGB}
"""The colour space of the components of a JPEG, by photometric interpretation."""

COLOURS: Mapping[str, Collection[str]] = MappingProxyType(
    {
        tags.EXPLICIT_LITTLE: {"RGB"},
        tags.IMPLICIT_LITTLE: {"RGB"},
        tags.RLE: {"RGB"},
        tags.JPEG_BASELINE: JPEG_COLOURS,
        tags.JPEG_EXTENDED: JPEG_COLOURS,
        tags.JPEG2000_LOSSLESS: {"YBR_RCT", "YBR_ICT", "RGB"},
        tags.JPEG2000: {"YBR_RCT", "YBR_ICT", "RGB"},
    }
)
"""The photometric interpretations that are read, by transfer syntax. JPEG 2000 decodes to RGB with all of them."""

SMALLEST_SPACING, LARGEST_SPACING = 1e-6, 10.0
"""Limits, in mm and exclusive, for the distance of two pixels, so that ratios of distances are numbers."""


@dataclass(frozen=True, slots=True)
class Part:
    """The place of a file in a concatenation, which is one image cut into several files.

    Source: PS3.3, C.7.6.16.2.2.4.
    """

    concatenation: str
    """UID of the concatenation."""
    number: int
    """Number of the part, from 1."""
    count: int | None
    """The number of parts, if it is stated."""
    first_frame: int
    """How many frames of the image lie in the parts before this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomImage:
    """The header of one file as it states it. :func:`check_sizes` and :func:`tile_format` check the values."""

    path: Path
    header: Header
    instance: str
    """The UID of the file itself."""
    kind: str
    """VOLUME, LABEL, OVERVIEW, THUMBNAIL, or something else."""
    matrix: Size
    """(width, height) of the whole image in pixels."""
    tile_size: Size
    """(width, height) of a frame in pixels."""
    frames: int
    """Number of frames in this file."""
    part: Part | None
    """The file's place in a concatenation, None if it is whole."""
    spacing_mm: tuple[float, float] | None
    """The distance of neighbouring pixels along (x, y) in mm, if it is stated."""

    @property
    def elements(self) -> DataSet:
        """The elements of the data set."""
        return self.header.body

    @property
    def is_native(self) -> bool:
        """Whether the frames are not compressed, and so lie one behind the other without items."""
        return self.header.transfer_syntax in NATIVE

    def damaged(self, problem: str, fix: str = "the file is damaged; copy it again") -> DamagedSlide:
        """Make the error for this file, to be raised by the caller."""
        return DamagedSlide(self.path, problem, fix)


def read_image(path: Path) -> DicomImage:
    """Read the header of a file, but no pixels.

    Raises :class:`DamagedSlide` if the header is broken, and ``OSError``.
    """
    try:
        header = read_header(path)
        if header is None:
            raise DamagedSlide(path, "is no DICOM file any more", "do not write to it while it is read")
        body = header.body
        measures = _first(_first(body, tags.SHARED_GROUPS), tags.PIXEL_MEASURES)
    except BrokenHeader as error:
        raise DamagedSlide(path, f"its header is broken: {error}", TRUNCATED) from error
    tile_size = body.unsigned(tags.COLUMNS) or 0, body.unsigned(tags.ROWS) or 0
    matrix = body.unsigned(tags.MATRIX_COLUMNS) or 0, body.unsigned(tags.MATRIX_ROWS) or 0
    frames = body.numbers(tags.FRAMES) if tags.FRAMES in body else [1.0]
    return DicomImage(
        path=path,
        header=header,
        instance=body.text(tags.SOP_INSTANCE),
        kind=image_kind(body.texts(tags.IMAGE_TYPE)),
        matrix=matrix,
        tile_size=tile_size,
        frames=int(frames[0]) if len(frames) == 1 else 0,
        part=_part(body),
        spacing_mm=_spacing(measures),
    )


def check_sizes(image: DicomImage) -> None:
    """Raise :class:`DamagedSlide` if the header states sizes or counts that no image has."""
    for what, (width, height) in (("an image", image.matrix), ("tiles", image.tile_size)):
        if not all(1 <= side <= LARGEST_SIDE_PX for side in (width, height)):
            raise image.damaged(f"states {what} of {width}x{height} px")
    if image.tile_size[0] * image.tile_size[1] > LARGEST_BLOCK_PX:
        raise image.damaged(f"states tiles of {image.tile_size[0]}x{image.tile_size[1]} px")
    if image.frames < 1:
        raise image.damaged(f"states {image.elements.text(tags.FRAMES) or 'no'} frames")


def tile_format(image: DicomImage) -> TileFormat:
    """How the frames of the image are stored. Raises :class:`UnsupportedSlide` for what is not read here."""
    body, syntax = image.elements, image.header.transfer_syntax
    photometric = body.text(tags.PHOTOMETRIC)
    stated = {
        "samples per pixel": (body.unsigned(tags.SAMPLES), 3),
        "bits allocated": (body.unsigned(tags.BITS_ALLOCATED), 8),
        "bits stored": (body.unsigned(tags.BITS_STORED), 8),
        "high bit": (body.unsigned(tags.HIGH_BIT), 7),
        "pixel representation": (body.unsigned(tags.PIXEL_REPRESENTATION), 0),
    }
    if image.is_native:
        stated["planar configuration"] = (body.unsigned(tags.PLANAR), 0)
    odd = [f"{name} {value}" for name, (value, plain) in stated.items() if value != plain]
    if syntax not in COLOURS:
        odd.append(tags.OTHER_SYNTAXES.get(syntax, f"transfer syntax {syntax or 'not stated'}"))
    elif photometric not in COLOURS[syntax]:
        odd.append(f"colours as {photometric or 'not stated'}")
    if odd:
        raise UnsupportedSlide(
            image.path, f"{image.path.name} is not 8-bit RGB as it is read here ({', '.join(odd)})"
        )
    size = image.tile_size
    if image.is_native:
        return PlainTiles(size=size, packing=Packing.NONE)
    if syntax in JPEG:
        return EncapsulatedTiles(JpegTiles(size=size, colours=JPEG_COLOURS[photometric]))
    return EncapsulatedTiles(RleTiles(size=size) if syntax == tags.RLE else Jpeg2000Tiles(size=size))


def _part(body: DataSet) -> Part | None:
    if not body.text(tags.CONCATENATION):
        return None
    return Part(
        body.text(tags.CONCATENATION),
        body.unsigned(tags.PART_NUMBER) or 0,
        body.unsigned(tags.PART_COUNT),
        body.unsigned(tags.PART_FRAME_OFFSET) or 0,
    )


def _spacing(measures: DataSet | None) -> tuple[float, float] | None:
    """The distance of pixels along (x, y).

    PixelSpacing states that of rows first (PS3.3, 10.7.1.3), which is along y.
    """
    spacing = [] if measures is None else measures.numbers(tags.PIXEL_SPACING)
    known = len(spacing) == 2 and min(spacing) > SMALLEST_SPACING and max(spacing) < LARGEST_SPACING
    return (spacing[1], spacing[0]) if known else None


def _first(holder: DataSet | None, sequence: int) -> DataSet | None:
    return None if holder is None else next(iter(holder.items(sequence)), None)
