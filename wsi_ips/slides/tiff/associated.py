"""The images that come with a TIFF slide and are no levels: label, macro, thumbnail.

Three classes read them, depending on where they lie: :class:`TiffPicture` an image directory of the file,
:class:`JpegPicture` a stretch of the file, and :class:`EmbeddedJpeg` the slide's metadata. :func:`by_subfile_type`
and :func:`by_description` find image directories and give them OpenSlide's names.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from wsi_ips.errors import SlideReadError
from wsi_ips.slides.base import RgbImage, white_region
from wsi_ips.slides.codecs.base import TileError
from wsi_ips.slides.codecs.jpeg import Colours, JpegTiles, decode_jpeg_into, jpeg_size
from wsi_ips.slides.tiff.directories import NEW_SUBFILE_TYPE, PARSING_ERRORS, TiffDirectories, TiffImage
from wsi_ips.slides.tile_layout import AssociatedImage, TileFile
from wsi_ips.slides.tile_places import LARGEST_BLOCK_PX
from wsi_ips.units import Size

READABLE_COLOURS = frozenset({"MINISBLACK", "RGB", "YCBCR"})
"""tifffile's names of the colour spaces that are read."""

NAMES = ("label", "macro", "thumbnail")
"""The names that images may have."""

LABEL, MACRO = 1, 9
"""Values of NewSubfileType in the files of Aperio and Huron."""


@dataclass(frozen=True, slots=True)
class EmbeddedJpeg:
    """A JPEG in the metadata of a slide, kept in memory as it is stored."""

    size: Size
    jpeg: bytes

    @classmethod
    def of(cls, jpeg: bytes) -> "EmbeddedJpeg":
        """Take the bytes of a JPEG.

        Raises :class:`TileError` if they are none, or one that is too large for such an image.
        """
        width, height = jpeg_size(jpeg)
        if not 0 < width * height <= LARGEST_BLOCK_PX:
            raise TileError(f"JPEG that claims {width}x{height} px")
        return cls((width, height), jpeg)

    def read(self, path: Path) -> RgbImage:
        """Decode the image to (height, width, 3) uint8. ``path`` is the slide, for messages.

        Raises :class:`SlideReadError` if it cannot be decoded.
        """
        pixels = white_region(self.size)
        try:
            decode_jpeg_into(self.jpeg, pixels, self.size)
        except TileError as error:
            raise SlideReadError(path, f"its {self.size[0]}x{self.size[1]} px picture: {error}") from error
        return pixels


@dataclass(frozen=True, slots=True)
class TiffPicture:
    """A top-level image of a TIFF file that is decoded whole.

    ``number`` is its place in the chain of directories, ``size`` is (width, height). The caller compares the size
    with what may be decoded whole.
    """

    number: int
    size: Size

    @classmethod
    def of(cls, image: TiffImage) -> "TiffPicture":
        """The picture in this image directory."""
        return cls(image.number, image.size)

    def read(self, path: Path) -> RgbImage:
        """Decode the image from the file at ``path`` to (height, width, 3) uint8.

        Raises :class:`SlideReadError` if it cannot be decoded, or if its colours are not known.
        """
        try:
            with tifffile.TiffFile(path, is_ndpi=False) as tiff:
                page = tiff.pages[self.number]
                _check_page(path, self, page)
                pixels = page.asarray()
                if page.axes == "SYX":  # each colour by itself
                    pixels = np.moveaxis(pixels, 0, -1)
        except OSError as error:
            raise SlideReadError(path, f"cannot be read: {error.strerror or error}") from error
        except PARSING_ERRORS as error:
            raise SlideReadError(path, f"its image {self.number} cannot be decoded: {error}") from error
        return _as_rgb(path, self.number, pixels)


def _check_page(path: Path, picture: TiffPicture, page: Any) -> None:
    """Raise :class:`SlideReadError` for an image that would take too much memory, or come out in wrong colours."""
    width, height = picture.size
    if (page.imagewidth, page.imagelength) != picture.size or not 0 < width * height <= LARGEST_BLOCK_PX:
        raise SlideReadError(path, f"its image {picture.number} claims {width}x{height} px")
    tile = page.tilewidth * page.tilelength * page.tiledepth if page.is_tiled else 1
    if max(page.nbytes, tile * page.samplesperpixel) > 4 * LARGEST_BLOCK_PX or page.bitspersample != 8:
        raise SlideReadError(
            path,
            f"its image {picture.number} has {page.samplesperpixel} samples of {page.bitspersample} bits a pixel",
        )
    colours = getattr(page.photometric, "name", str(page.photometric))
    # For other compressions tifffile returns YCbCr as it is stored.
    if colours not in READABLE_COLOURS or (colours == "YCBCR" and page.compression != 7):
        raise SlideReadError(path, f"its image {picture.number} has colours as {colours}")


def _as_rgb(path: Path, number: int, pixels: np.ndarray) -> RgbImage:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise SlideReadError(path, f"its image {number} is {pixels.dtype}, not 8 bits a sample")
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    if pixels.shape[2] < 3:
        return np.repeat(pixels[..., :1], 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3])


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegPicture:
    """A JPEG that lies in the file in one piece. Its colours are as it states them.

    ``size`` is (width, height), ``offset`` and ``byte_count`` are in bytes.
    """

    size: Size
    offset: int
    byte_count: int

    def read(self, path: Path) -> RgbImage:
        """Decode the image from the file at ``path`` to (height, width, 3) uint8.

        Raises :class:`SlideReadError` if it cannot be decoded.
        """
        width, height = self.size
        if not 0 < width * height <= LARGEST_BLOCK_PX or self.byte_count > LARGEST_BLOCK_PX * 3:
            raise SlideReadError(
                path, f"a picture in it claims {width}x{height} px in {self.byte_count} bytes"
            )
        pixels = white_region(self.size)
        try:
            data = memoryview(TileFile(path).read(self.offset, self.byte_count))
            JpegTiles(size=self.size, colours=Colours.AS_STATED).decoder().decode((data,), pixels)
        except OSError as error:
            raise SlideReadError(path, f"cannot be read: {error.strerror or error}") from error
        except TileError as error:
            raise SlideReadError(
                path, f"its picture at byte {self.offset} cannot be decoded: {error}"
            ) from error
        return pixels


def by_subfile_type(file: TiffDirectories, levels: Collection[TiffImage]) -> dict[str, TiffImage]:
    """The associated images of Aperio and Huron by name.

    None of them is tiled, and the second image is the thumbnail.

    An image that its NewSubfileType does not name may be named by its description. Of two images with one name the
    later one is taken, as in OpenSlide. ``levels`` are the images that are levels.
    """
    found: dict[str, TiffImage] = {}
    for image in file.images:
        if image.is_tiled:
            continue
        if image.number == 1:
            found["thumbnail"] = image
        elif name := {LABEL: "label", MACRO: "macro"}.get(image.integer(NEW_SUBFILE_TYPE)):
            found[name] = image
    return by_description(file, [*levels, *found.values()]) | found


def by_description(file: TiffDirectories, others: Collection[TiffImage]) -> dict[str, TiffImage]:
    """Images whose description has a line that begins with the name of an associated image.

    ``others`` are images to ignore. Of two images with one name the first one is taken.
    """
    numbers = {image.number for image in others}
    found: dict[str, TiffImage] = {}
    for image in file.images:
        name = _described(image)
        if name and image.number not in numbers:
            found.setdefault(name, image)
    return found


def pictures(images: Mapping[str, TiffImage]) -> dict[str, AssociatedImage]:
    """Readable pictures of these image directories, in alphabetical order, for :attr:`SlideLayout.associated`."""
    return {name: TiffPicture.of(images[name]) for name in sorted(images)}


def _described(image: TiffImage) -> str:
    for line in image.description[:1000].splitlines():
        word = line.strip().lower()
        if name := next((name for name in NAMES if word.startswith(name)), ""):
            return name
    return ""
