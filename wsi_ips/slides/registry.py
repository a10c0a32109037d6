"""Which reader opens a slide: the built-in readers, in order, and those of other packages.

:func:`open_slide` tries them until one accepts the file. A reader is a name and an import path, which is imported
when the reader is first tried.
"""

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from wsi_ips.errors import (
    DamagedSlide,
    NameTaken,
    ReaderBroken,
    ReaderNotInstalled,
    ReaderRaised,
    RefusedSlide,
    SeveralSlides,
    SlideNotFound,
    SlideReadError,
    UnsupportedSlide,
    WsiIpsError,
    one_line,
)
from wsi_ips.registry import LONGEST_REASON, Registry
from wsi_ips.slides.base import SlideInfo, SlideReader
from wsi_ips.slides.folder import is_dicom_folder, is_zarr
from wsi_ips.storage.files import system_cause
from wsi_ips.storage.location import Location, Url, is_there, locate
from wsi_ips.timeline import staged

OME_ZARR, TIFFSLIDE = "ome-zarr", "tiffslide"
"""Name of the reader of slides at a URL."""

ReaderClass = Callable[[Location], SlideReader]
"""Opens a slide: called with a path or a Url. Raises :class:`UnsupportedSlide` for what it does not read."""

READERS: Registry[ReaderClass] = Registry(
    "reader",
    {
        # First match wins. Those before "openslide" read what OpenSlide reads pixel for pixel, faster, and what
        # OpenSlide shows wrongly or not at all; they leave the rest to OpenSlide.
        "dicom": "wsi_ips.slides.dicom.layout:DicomReader",
        "mirax": "wsi_ips.slides.mirax_reader:MiraxReader",
        "tiff": "wsi_ips.slides.tiff.layout:TiffReader",
        "openslide": "wsi_ips.slides.openslide_reader:OpenSlideReader",
        "image": "wsi_ips.slides.image_reader:ImageReader",
        OME_ZARR: "wsi_ips.slides.ome_zarr_reader:OmeZarrReader",
        TIFFSLIDE: "wsi_ips.slides.tiffslide_reader:TiffSlideReader",
    },
    group="wsi_ips.readers",
    extras={OME_ZARR: "'wsi_ips[zarr]'", TIFFSLIDE: "'wsi_ips[remote]'"},
    not_installed=ReaderNotInstalled,
    broken=ReaderBroken,
)
"""Readers by name. Another package adds one under the entry point group ``wsi_ips.readers``: its name, and a class
or a function that takes a path or a Url."""

THEIR_FAULT = "the reader"
"""How the reason of a reader of another package that raised begins."""

PROBED_PX = 8
"""Side of the region by which another package's reader is checked."""


@runtime_checkable
class Renamed(Protocol):
    """A reader that can be told under which name it is known."""

    def called(self, reader: str) -> None: ...


CONVERTED_BY: Mapping[str, str] = MappingProxyType(
    {
        suffix: f"{kind} is read by Bio-Formats alone: make it an OME-TIFF with QuPath or bfconvert, and give that"
        for suffix, kind in {
            ".vsi": "Olympus' format",
            ".ets": "Olympus' format",
            ".lif": "Leica's LIF",
        }.items()
    }
)
"""What to do with a slide in a format that no reader here knows, by suffix."""


@staged("open")
def open_slide(path: Location | str, *, reader: str | None = None) -> SlideReader:
    """Open a slide with the first reader that accepts it.

    ``path`` is a file, a folder of one slide (DICOM, OME-Zarr), or a URL. A DICOM file stands for all files of its
    series in its folder. ``reader`` asks for one reader: a name in :data:`READERS`, or that of another package's
    reader, which are otherwise tried last.

    Raises:
        ConfigError: There is no reader of this name.
        SlideNotFound: There is no such file, or the folder holds no slide.
        SlideUnreachable: The URL cannot be read.
        UnsupportedSlide: No reader accepts the file. The message gives the reason of each.
        DamagedSlide: The file is of a known format, and is cut short or contradicts itself.
        RefusedSlide: The file is of a kind that would be shown wrongly.
        SeveralSlides: The folder holds several DICOM series.
        ReaderBroken: The reader of another package that was asked for cannot be imported.
    """
    path = locate(path)
    check_name(path)
    if reader is not None and reader not in READERS:
        raise READERS.unknown(reader)
    if not isinstance(path, Url) and not is_there(path):
        raise SlideNotFound(path, "no such file", _fix_of_missing(path))
    if reader is not None and reader not in READERS.members:
        return open_with_other(reader, path)
    refused: dict[str, str] = {}
    fix = "is it a whole-slide image?"
    for name in _fitting(path) if reader is None else [reader]:
        try:
            return _open_with_ours(name, path)
        except (DamagedSlide, RefusedSlide, SeveralSlides):
            raise
        except UnsupportedSlide as error:
            if (cause := system_cause(error)) and cause.number != errno.ENOENT:
                raise UnsupportedSlide(path, cause.problem, cause.fix) from error
            refused[name] = _reason(error)
        except ReaderNotInstalled as error:
            refused[name], fix = str(error), ""
    if reader is None:
        opened, refused_by_others = _ask_others(path)
        if opened is not None:
            return opened
        refused |= refused_by_others
    if not refused:
        raise SlideNotFound(
            path,
            "is a folder without .dcm files, and no Zarr folder",
            "give a slide file, or a folder of DICOM files",
        )
    raise UnsupportedSlide.refused_by(path, refused, _fix_of_refused(path, refused, fix))


def _fix_of_refused(path: Location, refused: Mapping[str, str], fix: str) -> str:
    if any(why.startswith(THEIR_FAULT) for why in refused.values()):
        return "tell the authors of that package"
    suffix = (path.suffix if isinstance(path, Path) else Path(path.name).suffix).lower()
    return CONVERTED_BY.get(suffix, fix)


def _ask_others(path: Location) -> tuple[SlideReader | None, dict[str, str]]:
    """The slide as a reader of another package opened it, or None; and the reasons of those that refused."""
    refused: dict[str, str] = {}
    for entry in READERS.others():
        try:
            return open_with_other(entry.name, path), refused
        except (UnsupportedSlide, ReaderBroken, NameTaken) as error:
            raised = isinstance(error, ReaderRaised)
            refused[entry.name] = str(error.args[1]) if raised else _reason(error)
    return None, refused


def check_name(path: Location) -> None:
    """Raise :class:`UnsupportedSlide` if the file's name is not UTF-8, since no table of results could name it."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise UnsupportedSlide(shown, "its name is not text in UTF-8", "rename it") from None


def _fitting(path: Location) -> list[str]:
    """The built-in readers to try, in order. None are tried for a folder that is no slide."""
    if is_zarr(path):
        return [OME_ZARR]
    if isinstance(path, Url):
        return [TIFFSLIDE]
    if path.is_dir() and not is_dicom_folder(path):
        return []
    return [name for name in READERS.members if name not in (OME_ZARR, TIFFSLIDE)]


def _open_with_ours(name: str, path: Location) -> SlideReader:
    if isinstance(path, Url) and name not in (OME_ZARR, TIFFSLIDE):
        raise UnsupportedSlide(path, "reads files, not URLs")
    return READERS.load(name)(path)


def open_with_other(name: str, path: Location) -> SlideReader:
    """Open a slide with the reader of another package.

    Whatever exception that package raises becomes an error of wsi_ips, so that it does not end the whole run.
    """
    opened = READERS.load(name)
    try:
        slide = opened(path)
    except WsiIpsError:
        raise
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}", most=LONGEST_REASON)
        raise ReaderRaised(
            path, f"{THEIR_FAULT} {name} of {READERS.provider(name)} raised {reason}", "tell its authors"
        ) from error
    if isinstance(slide, Renamed):
        slide.called(name)
    try:
        _check_region_of_other(slide, path, f"the reader {name} of {READERS.provider(name)}")
    except SlideReadError:
        if hasattr(slide, "close"):
            slide.close()
        raise
    return slide


def _check_region_of_other(slide: SlideReader, path: Location, whose: str) -> None:
    """Raise :class:`SlideReadError` if a reader gives no region of the size that was asked for.

    It reads one small region, across the corner of the coarsest level, where readers most easily go wrong. What
    the reader raises there is left to the reading itself.
    """
    tell = "tell its authors: wsi_ips.testing.readers checks this and more"
    info = getattr(slide, "info", None)
    if not isinstance(info, SlideInfo):
        raise SlideReadError(
            path, f"{whose} returned a {type(slide).__name__}, whose info is no SlideInfo", tell
        )
    coarsest = info.levels[-1]
    corner_px = [int((side - PROBED_PX // 2) * coarsest.downsample) for side in coarsest.size]
    try:
        region = slide.read(
            (corner_px[0], corner_px[1]), level=len(info.levels) - 1, size_px=(PROBED_PX, PROBED_PX)
        )
    except Exception:  # noqa: BLE001 - a damaged tile, whatever the package makes of it
        return
    shape, dtype = getattr(region, "shape", None), getattr(region, "dtype", type(region).__name__)
    if shape != (PROBED_PX, PROBED_PX, 3) or str(dtype) != "uint8":
        came = "a region" if shape is None else f"{shape}"
        raise SlideReadError(
            path,
            f"{whose} returned {came} {dtype} for {PROBED_PX}x{PROBED_PX} px at the corner of level "
            f"{len(info.levels) - 1}, not ({PROBED_PX}, {PROBED_PX}, 3) uint8",
            tell,
        )


def _reason(error: WsiIpsError) -> str:
    if isinstance(error, UnsupportedSlide):
        return ", ".join(filter(None, error.args[1:]))
    return str(error)


def _fix_of_missing(path: Path) -> str:
    scheme = path.parts[0] if path.parts else ""
    if scheme.endswith(":") and len(scheme) > 2:  # Path("http://host/a.svs")
        return "give a URL as text, not as a Path"
    return "check the path"
