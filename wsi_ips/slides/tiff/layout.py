"""The reader of tiled pyramidal TIFF, and which vendor's format a file is.

Start with :class:`TiffReader`. The formats are asked in OpenSlide's order, since another order would give a file
other levels.
"""

from contextlib import suppress
from pathlib import Path
from types import ModuleType

from wsi_ips.errors import RefusedSlide, UnsupportedSlide
from wsi_ips.slides.stored_tile_reader import StoredTileReader
from wsi_ips.slides.tiff import aperio, argos, generic, huron, leica, ndpi, ome, philips, trestle, ventana
from wsi_ips.slides.tiff.directories import NDPI_FORMAT, TiffDirectories, opened_directories
from wsi_ips.slides.tiff.tile_formats import misread_by_openslide
from wsi_ips.slides.tile_layout import SlideLayout

CONTAINERS: tuple[ModuleType, ...] = (trestle, aperio, huron, argos, leica, philips, ventana, ome, generic)
"""The formats, in the order in which they are asked.

Each is a module with ``recognises(file: TiffDirectories) -> bool`` and ``read_layout(file) -> SlideLayout``. The
latter raises :class:`UnsupportedSlide` for what is better left to OpenSlide, and :class:`DamagedSlide` or
:class:`RefusedSlide` if no other reader should be asked. The last module recognises every file.
"""


class TiffReader(StoredTileReader):
    """A reader of TIFF slides by their own stored tiles."""

    name = "tiff"

    def read_layout(self) -> SlideLayout:
        """Read the image directories of the file, but no pixels.

        Raises :class:`UnsupportedSlide` for what is better left to OpenSlide, :class:`DamagedSlide` for a file
        that is cut short or contradicts itself, and :class:`RefusedSlide` for one that OpenSlide would show
        wrongly.
        """
        if self._path.is_dir():
            raise UnsupportedSlide(self._path, "a folder, not a TIFF file")
        return read_layout(self._path, file_size=self._path.stat().st_size)


def read_layout(path: Path, *, file_size: int) -> SlideLayout:
    """Read the image directories of a TIFF slide, but no pixels. ``file_size`` is in bytes.

    Raises :class:`UnsupportedSlide` for what is better left to OpenSlide, :class:`DamagedSlide` for a file that is
    cut short or whose header states what cannot be, and :class:`RefusedSlide` for one that OpenSlide would show
    wrongly.
    """
    # NDPI is asked first, because its directories are not quite those of TIFF.
    hamamatsu = ndpi.read_layout(path, file_size=file_size)
    if hamamatsu is not None:
        return hamamatsu
    with opened_directories(path, file_size=file_size) as file:
        container = next(module for module in CONTAINERS if module.recognises(file))
        layout: SlideLayout = container.read_layout(file)
        return layout


def scanner_of(file: TiffDirectories) -> str:
    """The vendor whose format a TIFF is (``Leica``, ``Ventana``).

    Empty if it is no vendor's that is known here.
    """
    if NDPI_FORMAT in file.first.tags:
        return "Hamamatsu"
    container = next(module for module in CONTAINERS if module.recognises(file))
    return "" if container in (generic, ome) else container.__name__.rpartition(".")[2].capitalize()


def refuse_misread(path: Path) -> None:
    """Raise :class:`RefusedSlide` for a TIFF that OpenSlide opens and then shows wrongly, or cannot show at all.

    A file that is no TIFF, or cannot be understood here, is not judged.
    """
    if not path.is_file():
        return
    wrong: str | None = None
    with suppress(UnsupportedSlide, OSError), opened_directories(path, file_size=path.stat().st_size) as file:
        images = [image for image in file.tiled if image is file.first or image.is_reduced]
        wrong = next(filter(None, map(misread_by_openslide, images)), None)
    if wrong:
        raise RefusedSlide(
            path, f"OpenSlide would not show it rightly: {wrong}", "let another reader open it, or convert it"
        )
