"""The image directories (IFDs) of a TIFF file: tags only, no pixels; and XML that tags hold.

:func:`opened_directories` reads the directories through tifffile. Every number of the file is compared with the
size of the file before anything is allocated for it. :func:`parsed_xml` reads XML within limits, and without
anything that XML can do beyond holding data.
"""

import logging
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import numpy as np
import tifffile
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from wsi_ips.errors import DamagedSlide, UnsupportedSlide
from wsi_ips.slides.tile_layout import TRUNCATED
from wsi_ips.units import Size

MOST_IMAGES = 1000
"""The most images of a file."""

LARGEST_SHARE = 64 << 20
"""Bytes of tags' values that may be counted twice or more. Images may point to the same tables or profile."""

MOST_CHARACTERS = 64 << 20
"""The most characters of XML. That of Philips holds pictures of the slide, a few megabytes in base64."""

MOST_ELEMENTS = 100_000
"""The most elements of XML by default.

There may be twice as many attributes. Each takes a few hundred bytes once it is read.
"""

PARSING_ERRORS = (
    tifffile.TiffFileError,
    ArithmeticError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    struct.error,
)
"""What tifffile, and code that reads its tags, may raise for a hostile file."""

# Tags by their names in TIFF 6.0, shortened.
NEW_SUBFILE_TYPE, IMAGE_WIDTH, IMAGE_LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
FILL_ORDER, DESCRIPTION, MAKE, ORIENTATION, SAMPLES = 266, 270, 271, 274, 277
X_RESOLUTION, Y_RESOLUTION, PLANAR, RESOLUTION_UNIT, SOFTWARE, PREDICTOR = 282, 283, 284, 296, 305, 317
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTE_COUNTS, EXTRA_SAMPLES = 322, 323, 324, 325, 338
SAMPLE_FORMAT, JPEG_TABLES, XMP, ICC_PROFILE, NDPI_FORMAT = 339, 347, 700, 34675, 65420

# tifffile logs what it meets in a broken file, and the reader says it in one error. Without any handler, Python
# would print both. What a program with handlers shows is set in progress.py.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class TiffImage:
    """One image directory of a file, and those of its SubIFDs tag (330), in order."""

    number: int
    """Its place in the file's chain of directories. A sub-image has that of its parent."""
    tags: tifffile.TiffTags
    sub_images: "tuple[TiffImage, ...]" = ()
    big_endian: bool = False
    """Whether the file stores the highest byte of a number first."""

    @property
    def is_tiled(self) -> bool:
        """Whether the image is stored in tiles."""
        return TILE_WIDTH in self.tags and TILE_LENGTH in self.tags

    @property
    def is_reduced(self) -> bool:
        """Whether it is marked as a smaller version of another image (NewSubfileType bit 0)."""
        return bool(self.integer(NEW_SUBFILE_TYPE) & 1)

    @property
    def is_mask(self) -> bool:
        """Whether it is marked as a transparency mask (NewSubfileType bit 2)."""
        return bool(self.integer(NEW_SUBFILE_TYPE) & 4)

    @property
    def size(self) -> Size:
        """(width, height) as stated, 0 if a tag is missing."""
        return self.integer(IMAGE_WIDTH), self.integer(IMAGE_LENGTH)

    @property
    def description(self) -> str:
        """The text of ImageDescription."""
        return self.text(DESCRIPTION)

    def value(self, code: int, default: Any = None) -> Any:
        """The value of a tag as tifffile returns it, ``default`` if it is missing."""
        return self.tags.valueof(code, default)

    def integer(self, code: int, default: int = 0) -> int:
        """The one integer of a tag, ``default`` if the tag is missing or is something else."""
        value = self.tags.valueof(code, default)
        return int(value) if isinstance(value, int) else default

    def integers(self, code: int, default: int) -> list[int]:
        """The integers of a tag, one or several."""
        return [int(value) for value in np.atleast_1d(self.tags.valueof(code, default)).tolist()]

    def text(self, code: int) -> str:
        """The text of a tag, empty if it is missing."""
        value = self.tags.valueof(code, "")
        return value.decode("latin-1") if isinstance(value, bytes) else str(value)

    def data(self, code: int) -> bytes:
        """The bytes of a tag. A text becomes UTF-8."""
        value = self.tags.valueof(code, b"")
        return value if isinstance(value, bytes) else bytes(str(value), "utf-8", "replace")

    def ratio(self, code: int) -> float | None:
        """The value of a rational tag, None if it is missing or its denominator is 0."""
        value = self.tags.valueof(code)
        return value[0] / value[1] if isinstance(value, tuple) and len(value) == 2 and value[1] else None


@dataclass(frozen=True, slots=True)
class TiffDirectories:
    """The top-level image directories of a file, at least one, in file order."""

    path: Path
    file_size: int
    images: tuple[TiffImage, ...]

    @property
    def first(self) -> TiffImage:
        """The first image."""
        return self.images[0]

    @property
    def tiled(self) -> list[TiffImage]:
        """The tiled top-level images, in file order."""
        return [image for image in self.images if image.is_tiled]


@contextmanager
def opened_directories(path: Path, *, file_size: int) -> Iterator[TiffDirectories]:
    """Open the image directories of a file, for the length of a ``with`` block. ``file_size`` is in bytes.

    Long values are read when they are first asked for, inside the block. Raises :class:`UnsupportedSlide` if the
    file is no TIFF, and for whatever the code inside the block runs into while it interprets tags. Raises
    :class:`DamagedSlide` if the file is cut short.
    """
    _check_start(path, file_size)
    try:
        with tifffile.TiffFile(path, is_ndpi=False) as tiff:  # NDPI is read elsewhere, whatever a name says
            images = [
                TiffImage(
                    number, page.tags, _sub_images(path, number, page), big_endian=tiff.byteorder == ">"
                )
                for number, page in enumerate(_pages(path, tiff))
            ]
            yield TiffDirectories(path, file_size, tuple(images))
    except UnsupportedSlide:
        raise
    except OSError as error:
        raise UnsupportedSlide(path, f"cannot be read: {error.strerror or error}") from error
    except PARSING_ERRORS as error:
        raise UnsupportedSlide(path, f"not a TIFF that can be understood: {error}") from error


def _check_start(path: Path, file_size: int) -> None:
    with path.open("rb") as file:
        start = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None or len(start) < 8:
        raise UnsupportedSlide(path, "an empty file" if not start else "not a TIFF file")
    big = struct.unpack(f"{order}H", start[2:4])[0] == 43
    field = start[8:16] if big else start[4:8]
    if len(field) == (8 if big else 4):
        first = struct.unpack(f"{order}{'Q' if big else 'I'}", field)[0]
        if first >= file_size:
            raise DamagedSlide(
                path,
                f"truncated: its directory should be at byte {first}, the file has {file_size}",
                TRUNCATED,
            )


def _pages(path: Path, tiff: tifffile.TiffFile) -> Sequence[Any]:
    """The top-level images. A chain of directories that breaks off means that the file is cut short."""
    pages: list[Any] = []
    images = value_bytes = 0
    read: Iterator[Any] = iter(tiff.pages)
    for page in read:
        pages.append(page)
        images += 1 + len(page.subifds or ())
        if images > MOST_IMAGES:
            raise UnsupportedSlide(path, f"more than {MOST_IMAGES} images")
        # Values are read with their image, so a few bytes that say "the same 1 GB again" could fill the memory.
        value_bytes += sum(tag.valuebytecount for tag in page.tags)
        if value_bytes > tiff.filehandle.size + LARGEST_SHARE:
            raise DamagedSlide(
                path, "its images' tags claim more bytes than the file holds", "the file is damaged"
            )
    if not pages:
        raise UnsupportedSlide(path, "a TIFF without images")
    last, handle, form = pages[-1], tiff.filehandle, tiff.tiff
    handle.seek(last.offset)
    count = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))[0]
    handle.seek(last.offset + form.tagnosize + count * form.tagsize)
    after = handle.read(form.offsetsize)
    if len(after) < form.offsetsize or struct.unpack(form.offsetformat, after)[0] >= handle.size:
        raise DamagedSlide(path, f"truncated: the list of images breaks off after {len(pages)}", TRUNCATED)
    return pages


def _sub_images(path: Path, number: int, page: Any) -> tuple[TiffImage, ...]:
    if not page.subifds:
        return ()
    big_endian = page.parent.byteorder == ">"
    return tuple(TiffImage(number, sub.tags, big_endian=big_endian) for sub in page.pages)


def parsed_xml(path: Path, text: str, *, most_elements: int = MOST_ELEMENTS) -> Element | None:
    """Parse XML, and return the root element. None if it is not well-formed.

    ``most_elements`` limits the elements, and attributes to twice as many. ``path`` is the slide, for messages.
    Raises :class:`UnsupportedSlide` for XML that is too large, or that declares entities or a document type.
    """
    text = text.partition("\0")[0]
    # Counted before the parser sees the text, since each "<" may be an element and each "=" an attribute.
    if (
        len(text) > MOST_CHARACTERS
        or text.count("<") > 2 * most_elements
        or text.count("=") > 2 * most_elements
    ):
        raise UnsupportedSlide(path, "its XML is larger than that of any scanner")
    try:
        root: Element = ElementTree.fromstring(text, forbid_dtd=True)
    except DefusedXmlException as error:
        raise UnsupportedSlide(
            path, f"its XML declares a document type or entities, and holds no plain data: {error}"
        ) from error
    except (ParseError, ValueError):
        return None
    return root


def local_name(element: Element) -> str:
    """The name of an element without its namespace."""
    return element.tag.rpartition("}")[2]
