"""Which container a TIFF is. They are asked in OpenSlide's order: another order would give a file other levels.

Tiled pyramidal TIFF of many scanners, read by its own tiles (see :mod:`wsi_ips.slides.tiff.layout`).
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
"""Each a module with ``recognises(file: TiffDirectories) -> bool`` and ``read_layout(file) -> SlideLayout``, which
raises :class:`UnsupportedSlide` for what is better left to OpenSlide, :class:`DamagedSlide` and
:class:`RefusedSlide` for what no reader should be asked for. The last one recognises everything."""


def read_layout(path: Path, *, file_size: int) -> SlideLayout:
    """Read a TIFF slide's directories; no pixels.

    Raises :class:`UnsupportedSlide` for what is better left to OpenSlide, :class:`DamagedSlide` for a file
    that is cut short or whose header states what cannot be.
    """
    # Asked first: its directories are not quite TIFF's.
    hamamatsu = ndpi.read_layout(path, file_size=file_size)
    if hamamatsu is not None:
        return hamamatsu
    with opened_directories(path, file_size=file_size) as file:
        container = next(module for module in CONTAINERS if module.recognises(file))
        layout: SlideLayout = container.read_layout(file)
        return layout


def scanner_of(file: TiffDirectories) -> str:
    """Whose container a TIFF is (``Leica``, ``Ventana``); empty where it is no scanner's that is known here."""
    if NDPI_FORMAT in file.first.tags:
        return "Hamamatsu"
    container = next(module for module in CONTAINERS if module.recognises(file))
    return "" if container in (generic, ome) else container.__name__.rpartition(".")[2].capitalize()


def refuse_misread(path: Path) -> None:
    """Raise :class:`RefusedSlide` for a TIFF that OpenSlide opens and then shows wrongly, or cannot show at all.

    What is no TIFF, or cannot be understood here, is not judged.
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


class TiffReader(StoredTileReader):
    """``TiffReader(path)``: see :class:`StoredTileReader`."""

    name = "tiff"

    def read_layout(self) -> SlideLayout:
        """See :meth:`StoredTileReader.read_layout`."""
        if self._path.is_dir():
            raise UnsupportedSlide(self._path, "a folder, not a TIFF file")
        return read_layout(self._path, file_size=self._path.stat().st_size)
