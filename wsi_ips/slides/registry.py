"""Which reader opens a slide. A reader is a name and an import path, loaded when first asked for."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import cast

from wsi_ips.errors import ConfigError, DamagedSlide, ReaderNotInstalled, SlideNotFound, UnsupportedSlide
from wsi_ips.slides.base import SlideReader
from wsi_ips.slides.folder import dicom_files

READERS: Mapping[str, str] = MappingProxyType(
    {
        # First match wins. "tiff" reads what OpenSlide reads pixel for pixel, faster, and refuses the rest.
        "tiff": "wsi_ips.slides.tiff_reader:TiffReader",
        "openslide": "wsi_ips.slides.openslide_reader:OpenSlideReader",
    }
)


def open_slide(path: Path | str, *, reader: str | None = None) -> SlideReader:
    """Open a slide file, or a folder with the .dcm files of one slide, with the first reader that can.

    ``reader`` (a name in :data:`READERS`) asks for one in particular. Raises :class:`SlideNotFound`,
    :class:`UnsupportedSlide` with every reader's reason, or :class:`ConfigError` for an unknown reader.
    """
    path = Path(path)
    if reader is not None and reader not in READERS:
        raise ConfigError(f"there is no reader {reader!r}; known are {', '.join(READERS)}")
    if not path.exists():
        raise SlideNotFound(path, "no such file", "check the path")
    if path.is_dir() and not dicom_files(path):
        raise SlideNotFound(
            path, "is a folder without .dcm files", "give a slide file, or a folder of DICOM files"
        )
    refused: dict[str, str] = {}
    for name in READERS if reader is None else [reader]:
        try:
            return _reader_class(name)(path)
        except DamagedSlide:
            raise
        except UnsupportedSlide as error:
            _, problem, mend = error.args
            refused[name] = ", ".join(filter(None, (problem, mend)))
        except ReaderNotInstalled as error:
            refused[name] = str(error)
    raise UnsupportedSlide.refused_by(path, refused)


def _reader_class(name: str) -> Callable[[Path], SlideReader]:
    module, _, attribute = READERS[name].partition(":")
    try:
        loaded = import_module(module)
    except ImportError as error:
        # openslide-python without its library says so in an ImportError without a name.
        raise ReaderNotInstalled(name, error.name or name) from error
    return cast(Callable[[Path], SlideReader], getattr(loaded, attribute))
