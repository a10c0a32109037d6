"""An open slide (:class:`Slide`): its size, its pixels, its picture. :func:`open_slide` opens one."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image

from wsi_ips.errors import ConfigError, WsiIpsError
from wsi_ips.slides import registry
from wsi_ips.slides.base import AssociatedReader, RgbImage, SlideInfo, SlideReader
from wsi_ips.slides.folder import slide_id
from wsi_ips.storage.location import Location
from wsi_ips.tiling.picture import thumbnail

logger = logging.getLogger(__name__)

NOTEBOOK_PX = 512
"""Longer side, in pixels, of the picture that a notebook shows of a slide."""


class Slide:
    """An open slide, as :func:`wsi_ips.open_slide` returns it. Close it, or use it in a ``with`` block.

    Positions are (x, y) in level-0 pixels from the top-left corner of the slide; sizes are (width, height) in
    pixels. In a notebook a slide is shown as its thumbnail. ``reader`` is the package's own reader behind it.

    >>> import wsi_ips as wi
    >>> with wi.open_slide("slide.svs") as slide:
    ...     print(slide.size, slide.mpp, len(slide.levels))
    ...     region = slide.read((256, 128), (64, 32))  # from level 0
    (1367, 1413) 0.5 2
    >>> region.shape, region.dtype
    ((32, 64, 3), dtype('uint8'))
    """

    def __init__(self, reader: SlideReader) -> None:
        self.reader = reader

    @property
    def info(self) -> SlideInfo:
        """What is known of the slide without reading a pixel: levels, vendor, reader, pictures, bounds."""
        return self.reader.info

    @property
    def path(self) -> Location:
        """Where the slide is, a path or a URL."""
        return self.info.path

    @property
    def slide_id(self) -> str:
        """What results call the slide: the name of its file without the suffix."""
        return slide_id(self.path)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in level-0 pixels."""
        return self.info.l0_size

    @property
    def mpp(self) -> float | None:
        """µm per level-0 pixel, the mean over x and y. None if the file does not state it."""
        return self.info.mpp

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of every level in pixels, the finest first."""
        return tuple(level.size for level in self.info.levels)

    def read(self, xy: tuple[int, int], size: tuple[int, int], *, level: int = 0) -> RgbImage:
        """Read a region of the slide.

        Args:
            xy: The top-left corner (x, y) in level-0 pixels, whatever the level. It may be outside the slide,
                where pixels are white.
            size: (width, height) of the region in pixels of ``level``.
            level: The level to read from, 0 is the finest.

        Returns:
            (height, width, 3) uint8 RGB.

        Raises:
            ConfigError: The slide has no such level, or the size is not positive.
            SlideReadError: Pixels cannot be decoded.
            SlideClosed: The slide is closed.
        """
        if not 0 <= level < len(self.info.levels):
            raise ConfigError(
                f"{self.path}: there is no level {level}; it has 0 to {len(self.info.levels) - 1}"
            )
        if min(size) < 1:
            raise ConfigError(f"{self.path}: a region of {size[0]}x{size[1]} px cannot be read")
        return self.reader.read(xy, level=level, size_px=size)

    def thumbnail(self, side: int = 1024) -> Image.Image:
        """The whole slide as a PIL image whose longer side has ``side`` pixels, made from its levels.

        A smaller slide is not enlarged. Raises :class:`ConfigError` for a side below 1, and
        :class:`SlideReadError` for pixels that cannot be decoded.
        """
        if side < 1:
            raise ConfigError(f"a thumbnail of {side} px cannot be made")
        return Image.fromarray(thumbnail(self.reader, side_px=side))

    def picture(self, name: str) -> Image.Image:
        """A picture that comes with the slide (``label``, ``macro``, ``thumbnail``), as a PIL image.

        Raises :class:`ConfigError` if the slide has no picture of this name.
        """
        if not isinstance(self.reader, AssociatedReader):
            raise ConfigError(f"{self.path} comes with no pictures")
        return Image.fromarray(self.reader.read_associated(name))

    def close(self) -> None:
        """Release the file. It may be called twice."""
        self.reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        width, height = self.size
        resolution = "resolution unknown" if self.mpp is None else f"{self.mpp:.4g} µm/px"
        levels = f"{len(self.levels)} level{'s' if len(self.levels) > 1 else ''}"
        return f"Slide({str(self.path)!r}, {width}x{height} px, {resolution}, {levels}, reader {self.info.reader})"

    def _repr_png_(self) -> bytes | None:
        return png_in_notebook(lambda: self.thumbnail(NOTEBOOK_PX))


AnySlide = Slide | SlideReader | Path | str
"""A slide that is open already, or where it is: a path, a folder of one slide (DICOM, OME-Zarr), or a URL."""


def open_slide(path: Path | str, *, reader: str | None = None) -> Slide:
    """Open a slide: a file, a folder of one slide (DICOM, OME-Zarr), or a URL.

    The first reader that can open it is used; ``reader`` selects one by its name (``tiff``, ``openslide``, …).

    Raises:
        WsiIpsError: The slide cannot be opened. Its kind (:class:`SlideNotFound`, :class:`UnsupportedSlide`,
            :class:`DamagedSlide`, …) and its message say what is wrong with the file, and what to do.

    >>> import wsi_ips as wi
    >>> slide = wi.open_slide("slide.svs")
    >>> slide
    Slide('slide.svs', 1367x1413 px, 0.5 µm/px, 2 levels, reader tiff)
    >>> slide.thumbnail(256).size
    (248, 256)
    >>> slide.close()
    """
    return Slide(registry.open_slide(path, reader=reader))


@contextmanager
def reading(slide: AnySlide) -> Iterator[SlideReader]:
    """A reader of the slide for the length of the ``with`` block.

    A slide that is given by its path is opened here and closed afterwards; one that is open stays open.
    """
    if isinstance(slide, Path | str):
        with registry.open_slide(slide) as reader:
            yield reader
    else:
        yield slide.reader if isinstance(slide, Slide) else slide


def place_of(slide: AnySlide) -> Location | str:
    """Where the slide is, as a path, a URL, or the text that was given.

    Raises :class:`ConfigError` for anything else, such as a list of slides.
    """
    if isinstance(slide, Path | str):
        return slide
    info = getattr(slide, "info", None)
    if not isinstance(info, SlideInfo):
        raise ConfigError(
            f"a slide is a path, a URL or an open slide, not a {type(slide).__name__}; of several slides, give "
            "the folder that holds them, or go through them one by one"
        )
    return info.path


def png_in_notebook(draw: Callable[[], Image.Image]) -> bytes | None:
    """What ``draw`` draws, as PNG. None, with a warning, if that fails, so that the text is shown instead."""
    try:
        buffer = BytesIO()
        draw().save(buffer, format="PNG")
    except WsiIpsError as error:
        logger.warning("no picture: %s", error)
        return None
    return buffer.getvalue()
