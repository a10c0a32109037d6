"""The reader of OME-Zarr images in RGB of 8 bits, in a folder or at a URL, through zarr.

Start with :class:`OmeZarrReader`. :func:`read_multiscale` understands the metadata: NGFF 0.4 (Zarr 2,
``multiscales``) and NGFF 0.5 (Zarr 3, ``ome``). Source: https://ngff.openmicroscopy.org/0.4/ and /0.5/, section
"multiscales" metadata.

A chunk that was never written has the array's fill value, as Zarr defines it.
"""

import logging
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import Annotated, Any, Literal, Self

import numpy as np
import zarr
from pydantic import BaseModel, Field, ValidationError
from zarr.abc.store import ByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, WrapperStore

from wsi_ips.config.section import first_problem
from wsi_ips.errors import (
    DamagedSlide,
    FileError,
    ReaderNotInstalled,
    SlideClosed,
    SlideInterrupted,
    SlideReadError,
    UnsupportedSlide,
    one_line,
)
from wsi_ips.slides.base import (
    ClosingReader,
    Level,
    RgbImage,
    SlideInfo,
    check_region,
    level_pixel,
    paste,
    white_region,
)
from wsi_ips.slides.resolution import believable_xy
from wsi_ips.slides.tile_places import MOST_LEVELS, check_levels
from wsi_ips.slides.zarr_chunks import UnknownCodecs, bounded, first_bad_chunk
from wsi_ips.storage.files import outside_cause, system_cause
from wsi_ips.storage.location import Location, Url, locate
from wsi_ips.units import L0Point, Mpp, Size

VERSIONS = ("0.4", "0.5")
"""The versions of NGFF that are read."""

TRANSFORMATIONS = frozenset({"identity", "scale", "translation"})
"""The kinds of coordinate transformations of an image."""

BIOFORMATS2RAW = "bioformats2raw.layout"
"""An attribute of a folder whose images lie in ``0``, ``1``, … below it."""

MICRONS_PER = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
    "inch": 25_400.0,
}
"""µm per unit of length."""

RGB_COLOURS = ["FF0000", "00FF00", "0000FF"]
"""The colours of the channels of an RGB image."""

# One name, or several with slashes between them. "." and ".." are not names.
_ARRAY_PATH = re.compile(r"(?!\.\.?(?:/|$))[\w.+ -]+(?:/(?!\.\.?(?:/|$))[\w.+ -]+)*")
LARGEST_READ_BYTES = 1 << 29
"""The largest file of a folder that is read whole."""

LARGEST_FETCH_BYTES = 1 << 27
"""The largest file at a URL, be it metadata or a chunk."""

KEPT_BYTES = 1 << 26
"""How many bytes of the files at a URL are kept, compressed.

Of a folder the operating system keeps what was read last.
"""

TIMEOUT_SECONDS = 30.0
"""How long to wait for a connection, and for data."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A number above 0."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Multiscale:
    """The metadata of one image: its axes (``t``, ``c``, ``z``, ``y``, ``x``) with their units, and its levels.

    ``paths`` are the names of the arrays below the folder. ``scales`` holds, for each level, the physical size of
    a pixel along each axis, or None if it is not stated.
    """

    axes: tuple[str, ...]
    units: tuple[str | None, ...]
    paths: tuple[str, ...]
    scales: tuple[tuple[float, ...] | None, ...]

    def axis(self, name: Literal["x", "y", "c"]) -> int:
        """The index of an axis in the shape of every level."""
        return self.axes.index(name)

    def in_order(self, order: Sequence[int]) -> Self:
        """The same image with its levels in this order."""
        return replace(
            self,
            paths=tuple(self.paths[i] for i in order),
            scales=tuple(self.scales[i] for i in order),
        )

    @property
    def mpp_xy(self) -> tuple[Mpp, Mpp] | None:
        """µm per pixel (x, y) of the first level. None without a scale, or if its unit is no length."""
        scale, places = self.scales[0], (self.axis("x"), self.axis("y"))
        if scale is None:
            return None
        x, y = (MICRONS_PER.get(self.units[place] or "", 0.0) * scale[place] for place in places)
        return believable_xy(x, y)


Levels = tuple[zarr.Array[Any], ...]
"""The arrays of all levels, from fine to coarse."""


class OmeZarrReader(ClosingReader):
    """A reader of an OME-Zarr image in a folder or at a URL.

    A folder as bioformats2raw writes it is read as its first image. ``timeout_s`` is how many seconds to wait for
    a connection, and for data. Raises :class:`UnsupportedSlide` and :class:`DamagedSlide`, and for a URL also
    :class:`SlideNotFound` and :class:`SlideUnreachable`.
    """

    def __init__(self, path: Location | str, *, timeout_s: float = TIMEOUT_SECONDS) -> None:
        self._path = locate(path)
        self._timeout_s = timeout_s
        self._lock = RLock()
        self._closed = False
        image, levels = self._open()
        self._levels: Levels | None = levels
        self._axes = image.axes
        sizes = _sizes(image, levels)
        self._info = SlideInfo(
            path=self._path,
            reader="ome-zarr",
            vendor="ome-zarr",
            levels=tuple(Level(size, _downsample(size, sizes[0])) for size in sizes),
            mpp_xy=image.mpp_xy,
        )

    @property
    def info(self) -> SlideInfo:
        """The description of the slide."""
        return self._info

    def read(self, l0_xy: L0Point, *, level: int, size_px: Size) -> RgbImage:
        """Read a region of a level.

        ``size_px`` is (width, height) in pixels of ``level``, ``l0_xy`` its top left corner in level-0 pixels. A
        position between two pixels of the level goes to the nearest one. What lies outside the slide is white.
        Returns (height, width, 3) uint8, a new array.

        Raises :class:`SlideReadError` if a chunk cannot be decoded, and :class:`SlideInterrupted` if the network
        or the system is to blame.
        """
        check_region(self._info, level=level, size_px=size_px)
        array = self._opened()[level]
        level_width, level_height = self._info.levels[level].size
        lv_x, lv_y = level_pixel(l0_xy, self._info.levels[level].downsample)
        left, top = max(0, lv_x), max(0, lv_y)
        right, bottom = min(level_width, lv_x + int(size_px[0])), min(level_height, lv_y + int(size_px[1]))
        region = white_region(size_px)
        if left < right and top < bottom:
            inside = self._read_inside(array, level, x=slice(left, right), y=slice(top, bottom))
            paste(region, inside, at=(left - lv_x, top - lv_y))
        return region

    def close(self) -> None:
        """Release the arrays. May be called twice."""
        with self._lock:
            self._closed, self._levels = True, None

    def _read_inside(self, array: zarr.Array[Any], level: int, *, x: slice, y: slice) -> RgbImage:
        selection = tuple({"x": x, "y": y, "c": slice(None)}.get(axis, 0) for axis in self._axes)
        kept = [axis for axis in self._axes if axis in "cyx"]
        try:
            return np.asarray(array[selection]).transpose([kept.index(axis) for axis in "yxc"])
        except Exception as error:  # the disk's, the network's, zarr's and the codecs' errors
            known = _network_error(self._path, error)
            bad = None if known else first_bad_chunk(array, selection)
            chunk, why = bad or ("", error)
            cause = outside_cause(why)
            kind = SlideInterrupted if known or system_cause(why) else SlideReadError
            failed = kind(
                self._path,
                f"level {level} cannot be read at its pixel ({x.start}, {y.start}): "
                + (f"its chunk {chunk}: " if chunk else "")
                + (
                    known.args[1]
                    if known
                    else cause.problem
                    if cause
                    else f"{type(why).__name__}: {one_line(why)}"
                ),
                "try again" if known else cause.fix if cause else "copy it again: it may be damaged",
            )
            logger.debug("%s", failed, exc_info=error)
        raise failed

    def _opened(self) -> Levels:
        with self._lock:
            if self._closed:
                raise SlideClosed(self._path)
            if self._levels is None:
                try:
                    self._levels = self._open()[1]
                except UnsupportedSlide as error:  # it was a slide when the reader was pickled
                    kind = SlideInterrupted if system_cause(error) else SlideReadError
                    raise kind(*error.args) from error
            return self._levels

    def _open(self) -> tuple[Multiscale, Levels]:
        try:
            keep_bytes = KEPT_BYTES if isinstance(self._path, Url) else 0
            most_bytes = LARGEST_FETCH_BYTES if isinstance(self._path, Url) else LARGEST_READ_BYTES
            store = _BoundedStore(
                _store(self._path, self._timeout_s), most_bytes=most_bytes, keep_bytes=keep_bytes
            )
            return _open_image(self._path, store)
        except (FileError, ReaderNotInstalled):
            raise
        # zarr meets hostile metadata with whatever its parsing runs into.
        except Exception as error:
            failed = _network_error(self._path, error)
            if failed is None and (cause := system_cause(error)):
                failed = UnsupportedSlide(self._path, cause.problem, cause.fix)
            failed = failed or UnsupportedSlide(
                self._path, f"not a Zarr folder that can be understood: {error}"
            )
            logger.debug("%s", failed, exc_info=error)
        raise failed

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in ("_path", "_timeout_s", "_closed", "_axes", "_info")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = RLock()
        self._levels = None  # the first read opens


class _BoundedStore(WrapperStore[Store]):
    """A store that reads no file of unbounded length into memory, and keeps the files that were read last.

    Neighbouring patches share a chunk, which each of them would fetch again over a network. It needs no lock,
    because it is called on zarr's one event loop only.
    """

    def __init__(self, store: Store, *, most_bytes: int, keep_bytes: int = 0) -> None:
        super().__init__(store)
        self._most_bytes = most_bytes
        self._keep_bytes, self._kept_bytes = keep_bytes, 0
        self._kept: OrderedDict[str, Buffer] = OrderedDict()

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a file, or a range of its bytes. Raises ``ValueError`` if it is too long."""
        if byte_range is None and key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        asked = byte_range or RangeByteRequest(0, self._most_bytes + 1)
        if isinstance(asked, RangeByteRequest) and asked.end - asked.start > self._most_bytes + 1:
            raise ValueError(f"{key} claims {asked.end - asked.start} bytes")
        value = await self._store.get(key, prototype, asked)
        if value is not None and len(value) > self._most_bytes:
            raise ValueError(f"{key} holds more than {self._most_bytes} bytes")
        if value is not None and byte_range is None:
            self._keep(key, value)
        return value

    def _keep(self, key: str, value: Buffer) -> None:
        if key in self._kept or len(value) > self._keep_bytes:
            return
        self._kept[key] = value
        self._kept_bytes += len(value)
        while self._kept_bytes > self._keep_bytes:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])


def _store(path: Location, timeout_s: float) -> Store:
    if isinstance(path, Path):
        return LocalStore(path, read_only=True)
    try:
        from zarr.storage import FsspecStore

        from wsi_ips.slides.remote import storage_options
    except ImportError as error:
        raise ReaderNotInstalled("ome-zarr", "'wsi_ips[remote]'") from error
    options = storage_options(path, reader="ome-zarr", timeout_s=timeout_s)
    return FsspecStore.from_url(path.rstrip("/"), storage_options=options, read_only=True)


def _open_image(path: Location, store: Store) -> tuple[Multiscale, Levels]:
    group = _group(path, store, "")
    below = image_group(dict(group.attrs))
    if below:
        group = _group(path, store, below)
    image = read_multiscale(path, dict(group.attrs))
    levels: list[zarr.Array[Any]] = []
    for name in image.paths:
        array = group.get(name)
        if not isinstance(array, zarr.Array):
            raise DamagedSlide(path, f"names a level {name!r} that is not there", "copy it again")
        levels.append(array)
    _check_arrays(path, image, levels)
    sizes = _sizes(image, levels)
    order = sorted(range(len(sizes)), key=lambda number: sizes[number], reverse=True)
    image, levels, sizes = image.in_order(order), [levels[i] for i in order], [sizes[i] for i in order]
    x, y = image.axis("x"), image.axis("y")
    check_levels(path, sizes, [(array.chunks[x], array.chunks[y]) for array in levels])
    _check_scales(path, image, sizes)
    return image, tuple(levels)


def _group(path: Location, store: Store, name: str) -> zarr.Group:
    try:
        return zarr.open_group(store, path=name, mode="r", use_consolidated=False)
    except FileNotFoundError as error:
        raise UnsupportedSlide(path, "holds no zarr.json or .zgroup, so is no Zarr group") from error


def _check_arrays(path: Location, image: Multiscale, levels: Sequence[zarr.Array[Any]]) -> None:
    """Check the arrays of all levels before any chunk is decoded."""
    for number, array in enumerate(levels):
        if array.ndim != len(image.axes):
            raise DamagedSlide(path, f"level {number} has {array.ndim} axes, not {len(image.axes)}")
        lengths = dict(zip(image.axes, array.shape, strict=True))
        if array.dtype != np.uint8 or lengths["c"] != 3:
            raise UnsupportedSlide(
                path, f"level {number} has {lengths['c']} channels of {array.dtype}, not RGB in 8 bits"
            )
        if any(lengths[axis] != 1 for axis in "tz" if axis in lengths):
            raise UnsupportedSlide(path, f"level {number} is a stack or a film: {lengths}")
        try:
            bounded(array)
        except UnknownCodecs as error:
            raise UnsupportedSlide(path, f"level {number} is compressed with {str(error)[:80]}") from None


def _check_scales(path: Location, image: Multiscale, sizes: list[Size]) -> None:
    """Check that each level is as much coarser as its stated pixels are larger, or patches would lie elsewhere."""
    finest = image.scales[0]
    for number, (scale, size) in enumerate(zip(image.scales, sizes, strict=True)):
        if finest is None or scale is None:
            continue
        for axis, side, l0_side in zip("xy", size, sizes[0], strict=True):
            place = image.axes.index(axis)
            stated, measured = scale[place] / finest[place], l0_side / side
            if abs(stated - measured) > 0.02 * measured + 2 * measured / side:
                raise DamagedSlide(
                    path,
                    f"level {number} is {measured:.4g} times coarser by its shape, {stated:.4g} by its scale",
                )


def _sizes(image: Multiscale, levels: Sequence[zarr.Array[Any]]) -> list[Size]:
    return [(array.shape[image.axis("x")], array.shape[image.axis("y")]) for array in levels]


def _downsample(size: Size, l0_size: Size) -> float:
    return (l0_size[0] / size[0] + l0_size[1] / size[1]) / 2


def _network_error(path: Location, error: Exception) -> FileError | None:
    if not isinstance(path, Url):
        return None
    from wsi_ips.slides.remote import network_error

    return network_error(path, error)


class _Axis(BaseModel):
    name: str
    unit: str | None = None


class _Transformation(BaseModel):
    type: str
    scale: list[Positive] | None = None


class _Dataset(BaseModel):
    path: str
    coordinateTransformations: list[_Transformation] = []


class _Multiscale(BaseModel):
    version: str | None = None
    axes: Annotated[list[_Axis], Field(min_length=2, max_length=5)]
    datasets: Annotated[list[_Dataset], Field(min_length=1, max_length=MOST_LEVELS)]
    coordinateTransformations: list[_Transformation] = []


def image_group(attributes: Mapping[str, Any]) -> str:
    """Where below the folder the first image lies.

    ``""`` is the folder itself, ``"0"`` is where bioformats2raw puts it.
    """
    ome = attributes.get("ome", attributes)
    below = isinstance(ome, Mapping) and BIOFORMATS2RAW in ome and "multiscales" not in ome
    return "0" if below else ""


def read_multiscale(path: Location, attributes: Mapping[str, Any]) -> Multiscale:
    """Read the metadata of the first image from the attributes of a Zarr group.

    Raises :class:`UnsupportedSlide` for another version of NGFF, or an image that is not y and x with colours, and
    :class:`DamagedSlide` for metadata that cannot be right.
    """
    ome = attributes.get("ome", attributes)
    if not isinstance(ome, Mapping) or not ome.get("multiscales"):
        raise UnsupportedSlide(path, "a Zarr folder without multiscales metadata, so no OME-Zarr image")
    listed = ome["multiscales"]
    first = listed[0] if isinstance(listed, list) else None
    version = ome.get("version") or (first.get("version") if isinstance(first, Mapping) else None)
    if version is not None and version not in VERSIONS:
        raise UnsupportedSlide(path, f"OME-Zarr {version!s:.20}; this reads {' and '.join(VERSIONS)}")
    try:
        image = _Multiscale.model_validate(first)
    except ValidationError as error:
        raise DamagedSlide(path, f"its multiscales metadata is wrong: {first_problem(error)}") from None
    _refuse_other_colours(path, ome.get("omero"))
    return _checked(path, image)


def _checked(path: Location, image: _Multiscale) -> Multiscale:
    axes = tuple(axis.name for axis in image.axes)
    if len(set(axes)) != len(axes) or not {"y", "x"} <= set(axes) <= {"t", "c", "z", "y", "x"}:
        raise UnsupportedSlide(
            path, f"its axes are {', '.join(axes)}; expected y and x, with c, maybe t and z"
        )
    if "c" not in axes:
        raise UnsupportedSlide(path, "has no channels, so is not RGB")
    for dataset in image.datasets:
        if not _ARRAY_PATH.fullmatch(dataset.path):
            raise DamagedSlide(
                path, f"names a level {dataset.path[:80]!r}, which is no path below the folder"
            )
    return Multiscale(
        axes=axes,
        units=tuple(axis.unit for axis in image.axes),
        paths=tuple(dataset.path for dataset in image.datasets),
        scales=tuple(
            _scale(path, len(axes), dataset.coordinateTransformations, image.coordinateTransformations)
            for dataset in image.datasets
        ),
    )


def _scale(
    path: Location, ndim: int, level: Sequence[_Transformation], whole: Sequence[_Transformation]
) -> tuple[float, ...] | None:
    """The physical size of a pixel along each axis: the scale of the level times that of the whole image.

    None if the level states no scale, even if the whole image does: then the product is not known.
    """
    of_level, of_whole = _stated_scale(path, ndim, level), _stated_scale(path, ndim, whole)
    if of_level is None or (of_whole is None and any(step.type == "scale" for step in whole)):
        return None
    return tuple(a * b for a, b in zip(of_level, of_whole or [1.0] * ndim, strict=True))


def _stated_scale(path: Location, ndim: int, steps: Sequence[_Transformation]) -> list[float] | None:
    """The scale among the transformations of a level or of an image; None without one, or if it is in a file.

    Raises :class:`DamagedSlide` for more than one, and for transformations that NGFF does not know.
    """
    if strange := sorted({step.type for step in steps} - TRANSFORMATIONS):
        known = ", ".join(sorted(TRANSFORMATIONS))
        raise DamagedSlide(path, f"has a coordinate transformation {strange[0][:40]!r}; NGFF has {known}")
    scales = [step.scale for step in steps if step.type == "scale"]
    if len(scales) > 1:
        raise DamagedSlide(path, f"states {len(scales)} scales where one belongs")
    if not scales or scales[0] is None:
        return None
    if len(scales[0]) != ndim:
        raise DamagedSlide(path, f"a scale has not the length of its {ndim} axes")
    return scales[0]


def _refuse_other_colours(path: Location, omero: Any) -> None:
    """Refuse an image whose three channels are not coloured red, green and blue, since they are then stains."""
    channels = omero.get("channels") if isinstance(omero, Mapping) else None
    if not isinstance(channels, list) or not all(isinstance(channel, Mapping) for channel in channels):
        return
    colours = [str(channel.get("color")).upper() for channel in channels]
    if len(colours) == 3 and len(set(colours)) == 3 and colours != RGB_COLOURS:
        raise UnsupportedSlide(
            path, f"its channels are coloured {', '.join(c[:8] for c in colours)}: not RGB"
        )
