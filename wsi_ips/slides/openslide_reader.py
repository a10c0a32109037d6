"""The reader of every format that OpenSlide knows.

Slides that another reader here reads never get to it, except where that reader leaves them to OpenSlide.
Transparent pixels are laid over white.
"""

import errno
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from openslide import OpenSlide, OpenSlideError, OpenSlideUnsupportedFormatError

from wsi_ips.errors import SlideClosed, SlideInterrupted, SlideReadError, UnsupportedSlide
from wsi_ips.slides.base import (
    WHITE,
    Bounds,
    ClosingReader,
    LeftOut,
    Level,
    RgbImage,
    SlideInfo,
    check_associated,
    check_region,
)
from wsi_ips.slides.dicom.series import series_of
from wsi_ips.slides.resolution import believable_xy, mpp_of_resolution, number
from wsi_ips.slides.tiff.layout import refuse_misread
from wsi_ips.slides.tile_layout import ANOTHER_SHAPE, shows_same_field
from wsi_ips.storage.files import outside_cause, system_cause
from wsi_ips.units import L0Point, Mpp, Size

BROKEN = "the file is damaged or incomplete; copy it again, or leave the slide out"
"""The fix for a region that cannot be read."""

LEVELS_BY_MARK = frozenset({"aperio", "argos", "generic-tiff", "huron"})
"""Vendors whose levels OpenSlide finds by marks that a macro or label image may have too."""


class OpenSlideReader(ClosingReader):
    """A reader of a slide file, or of a folder with one series of DICOM files, through OpenSlide.

    At levels above 0 OpenSlide interpolates if a position falls between two pixels. An image in a TIFF that
    OpenSlide takes for a level, although its shape is not that of the slide, is left out.

    Raises :class:`UnsupportedSlide` if OpenSlide does not open the file, and :class:`RefusedSlide` if it would
    open it and then return wrong pixels or none.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._lock = RLock()
        self._closed = False
        refuse_misread(self._path)
        self._handle: OpenSlide | None = _open(self._path)
        self._levels, left_out = _levels(self._path, self._handle)
        self._info = _info(self._path, self._handle, self._levels, left_out)

    @property
    def info(self) -> SlideInfo:
        """The description of the slide."""
        return self._info

    def read(self, l0_xy: L0Point, *, level: int, size_px: Size) -> RgbImage:
        """Read a region of a level.

        ``size_px`` is (width, height) in pixels of ``level``, ``l0_xy`` its top left corner in level-0 pixels.
        What lies outside the slide is white. Returns (height, width, 3) uint8, a new array. A region that fails is
        tried once more on a new handle.

        Raises :class:`SlideReadError` if that fails too, or :class:`SlideInterrupted` if the file is not to blame.
        """
        check_region(self._info, level=level, size_px=size_px)
        number = self._levels[level]
        try:
            handle = self._current()
            try:
                return _region(handle, l0_xy, number, size_px)
            except OpenSlideError:
                # OpenSlide poisons a handle by its first error. It may also be another thread's error that
                # surfaces here, which is why the second try must not share its handle with anyone.
                self._discard(handle)
            fresh = _open(self._path)
            region = _region(fresh, l0_xy, number, size_px)
        except (OpenSlideError, UnsupportedSlide) as error:
            reason = error.args[1] if isinstance(error, UnsupportedSlide) else error
            # A slide of several files is incomplete if one of them is missing.
            if (cause := system_cause(error)) and cause.number != errno.ENOENT:
                raise SlideInterrupted(self._path, cause.problem, cause.fix) from error
            cause = None if cause else outside_cause(error)
            raise SlideReadError(
                self._path,
                f"level {level} cannot be read at level-0 position ({l0_xy[0]}, {l0_xy[1]}): {reason}",
                cause.fix if cause else BROKEN,
            ) from error
        self._adopt(fresh)
        return region

    def read_associated(self, name: str) -> RgbImage:
        """Read the label, macro or thumbnail as (height, width, 3) uint8.

        Raises :class:`ConfigError` if the slide has no image of this name, and :class:`SlideReadError` if it
        cannot be decoded.
        """
        size = check_associated(self._info, name)
        try:
            image = _open(self._path).associated_images[name]
        except (OpenSlideError, UnsupportedSlide, KeyError) as error:
            raise SlideReadError(self._path, f"its {name} picture cannot be read: {error}") from error
        if image.size != size:
            raise SlideReadError(self._path, f"its {name} picture is {image.size}, not {size} as stated")
        return _on_white(np.asarray(image))

    def close(self) -> None:
        # The handle is dropped rather than closed: another thread may still be reading from it, and OpenSlide
        # frees it with the last reference.
        """Release the file. May be called twice."""
        with self._lock:
            self._closed, self._handle = True, None

    def _current(self) -> OpenSlide:
        with self._lock:
            if self._closed:
                raise SlideClosed(self._path)
            if self._handle is None:
                self._handle = _open(self._path)
            return self._handle

    def _discard(self, handle: OpenSlide) -> None:
        with self._lock:
            if self._handle is handle:
                self._handle = None

    def _adopt(self, handle: OpenSlide) -> None:
        with self._lock:
            if self._handle is None and not self._closed:
                self._handle = handle

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in ("_path", "_levels", "_info", "_closed")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = RLock()
        self._handle = None  # opened by the first read


def _open(path: Path) -> OpenSlide:
    # Any file of a series opens all of it.
    file = series_of(path).files[0] if path.is_dir() else path
    try:
        with file.open("rb"):  # OpenSlide takes what it cannot open for a format that it does not know
            pass
        return OpenSlide(file)
    except OSError as error:
        raise UnsupportedSlide(path, f"cannot be read: {error.strerror or error}") from error
    except OpenSlideUnsupportedFormatError:
        # OpenSlide's words here are "Unsupported or missing image file", and the file is there.
        refusal = "not a slide format that OpenSlide knows"
    except OpenSlideError as error:
        refusal = str(error)
    raise UnsupportedSlide(path, refusal)


def _region(handle: OpenSlide, l0_xy: L0Point, level: int, size_px: Size) -> RgbImage:
    x, y = l0_xy
    width, height = size_px
    image = handle.read_region((int(x), int(y)), int(level), (int(width), int(height)))
    return _on_white(np.asarray(image))


def _on_white(rgba: np.ndarray[Any, np.dtype[np.uint8]]) -> RgbImage:
    """Lay (h, w, 4) uint8 RGBA, not premultiplied, over white. Returns (h, w, 3) uint8."""
    alpha = rgba[..., 3:]
    rgb = np.ascontiguousarray(rgba[..., :3])
    # Nearly every read is opaque, so the arithmetic is kept for the few pixels that are not.
    see_through = alpha[..., 0] != 255
    if see_through.any():
        share = alpha[see_through].astype(np.float32) / 255
        rgb[see_through] = np.rint(rgb[see_through] * share + WHITE * (1 - share)).astype(np.uint8)
    return rgb


def _levels(path: Path, handle: OpenSlide) -> tuple[tuple[int, ...], tuple[LeftOut, ...]]:
    """OpenSlide's numbers of the levels that show the slide, and what else it takes for a level.

    Raises :class:`UnsupportedSlide` if its level 0 does not show the slide, since positions are counted in its
    pixels.
    """
    sizes, properties = handle.level_dimensions, handle.properties
    if properties.get("openslide.vendor") not in LEVELS_BY_MARK:
        return tuple(range(len(sizes))), ()
    tiles = [
        tuple(int(properties.get(f"openslide.level[{at}].tile-{side}", 0)) for side in ("width", "height"))
        for at in range(len(sizes))
    ]
    slide = max(sizes, key=lambda size: size[0] * size[1])
    kept = tuple(
        at
        for at, ((width, height), tile) in enumerate(zip(sizes, tiles, strict=True))
        if shows_same_field(slide, (width, height), (tile[0], tile[1]))
    )
    if kept[0] != 0:
        raise UnsupportedSlide(path, "its widest image is not the slide but a picture of another shape")
    left_out = tuple(
        LeftOut(f"OpenSlide's level {at}, {size[0]}x{size[1]} px", ANOTHER_SHAPE.format(*slide))
        for at, size in enumerate(sizes)
        if at not in kept
    )
    return kept, left_out


def _info(path: Path, handle: OpenSlide, levels: Sequence[int], left_out: tuple[LeftOut, ...]) -> SlideInfo:
    properties = handle.properties
    return SlideInfo(
        path=path,
        reader="openslide",
        vendor=properties.get("openslide.vendor", "unknown"),
        levels=tuple(Level(handle.level_dimensions[at], handle.level_downsamples[at]) for at in levels),
        mpp_xy=_mpp_xy(properties),
        bounds=_bounds(properties),
        associated=tuple((name, _associated_size(properties, name)) for name in _associated(properties)),
        left_out=left_out,
        icc_profile="openslide.icc-size" in properties,
    )


def _associated(properties: Mapping[str, str]) -> list[str]:
    """Names of the associated images, from the properties. The images themselves are decoded on access."""
    start, end = "openslide.associated.", ".width"
    return sorted(
        key[len(start) : -len(end)] for key in properties if key.startswith(start) and key.endswith(end)
    )


def _associated_size(properties: Mapping[str, str], name: str) -> Size:
    width, height = (int(properties[f"openslide.associated.{name}.{side}"]) for side in ("width", "height"))
    return width, height


def _mpp_xy(properties: Mapping[str, str]) -> tuple[Mpp, Mpp] | None:
    # OpenSlide leaves some generic TIFFs without mpp, though their resolution tags say it; of others it believes
    # the resolutions that image programs write for print.
    unit = properties.get("tiff.ResolutionUnit", "none")
    of_tags = [mpp_of_resolution(number(properties.get(f"tiff.{axis}Resolution")), unit) for axis in "XY"]
    x, y = (number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
    if properties.get("openslide.vendor") == "generic-tiff":
        return believable_xy(*of_tags)
    return believable_xy(x, y) or believable_xy(*of_tags)


def _bounds(properties: Mapping[str, str]) -> Bounds | None:
    try:
        return Bounds(*(int(properties[f"openslide.bounds-{key}"]) for key in ("x", "y", "width", "height")))
    except (KeyError, ValueError):
        return None
