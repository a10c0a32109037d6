"""Which container a TIFF is. They are asked in OpenSlide's order: another order would give a file other levels."""

from pathlib import Path
from types import ModuleType

from wsi_ips.errors import UnsupportedSlide
from wsi_ips.slides.tiff import aperio, generic, ndpi
from wsi_ips.slides.tiff.directories import (
    SOFTWARE,
    XMP,
    TiffImage,
    opened_directories,
)
from wsi_ips.slides.tile_layout import SlideLayout

CONTAINERS: tuple[ModuleType, ...] = (aperio, generic)
"""Each a module with ``recognises(file: TiffDirectories) -> bool`` and ``read_layout(file) -> SlideLayout``, which
raises :class:`UnsupportedSlide` for what is better left to OpenSlide and :class:`DamagedSlide` for what no reader
should be asked for. The last one recognises everything."""


def read_layout(path: Path, *, file_size: int) -> SlideLayout:
    """Read a TIFF slide's directories; no pixels.

    Raises :class:`UnsupportedSlide` for what is better left to OpenSlide, :class:`DamagedSlide` for a file
    that is cut short or whose header states what cannot be.
    """
    hamamatsu = ndpi.read_layout(
        path, file_size=file_size
    )  # asked first: its directories are not quite TIFF's
    if hamamatsu is not None:
        return hamamatsu
    with opened_directories(path, file_size=file_size) as file:
        if vendor := _left_to_openslide(file.first):
            raise UnsupportedSlide(path, f"{vendor} is left to OpenSlide")
        container = next(module for module in CONTAINERS if module.recognises(file))
        layout: SlideLayout = container.read_layout(file)
        return layout


def _left_to_openslide(first: TiffImage) -> str:
    """Containers that no module here reads yet (OpenSlide's own detection)."""
    description, software = first.description, first.text(SOFTWARE)
    return (
        ("Trestle" if software.startswith("MedScan") else "")
        or ("Leica SCN" if "leica-microsystems.com/scn" in description else "")
        or ("Philips TIFF" if software.startswith("Philips") else "")
        or ("Ventana BIF" if b"iScan" in first.data(XMP) else "")
        or ("OME-TIFF" if description.rstrip().endswith("OME>") else "")
    )
