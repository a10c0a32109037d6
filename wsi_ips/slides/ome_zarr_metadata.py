"""What an OME-Zarr image says of itself: NGFF 0.4 (Zarr 2, ``multiscales``) and 0.5 (Zarr 3, ``ome``).

https://ngff.openmicroscopy.org/0.5/ and /0.4/, section "multiscales" metadata.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError

from wsi_ips.errors import DamagedSlide, UnsupportedSlide
from wsi_ips.location import Location
from wsi_ips.slides.limits import MOST_LEVELS
from wsi_ips.slides.stated_mpp import believable_xy
from wsi_ips.units import Mpp

VERSIONS = ("0.4", "0.5")

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

RGB_COLOURS = ["FF0000", "00FF00", "0000FF"]

# One name, or several with slashes between; "." and ".." are none.
_ARRAY_PATH = re.compile(r"(?!\.\.?(?:/|$))[\w.+ -]+(?:/(?!\.\.?(?:/|$))[\w.+ -]+)*")

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


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


@dataclass(frozen=True, slots=True)
class Multiscale:
    """The image's axes (``t``, ``c``, ``z``, ``y``, ``x``) with their units, and its levels.

    scales: of each level the physical size of a pixel, axis by axis; None where nothing is stated.
    """

    axes: tuple[str, ...]
    units: tuple[str | None, ...]
    paths: tuple[str, ...]
    scales: tuple[tuple[float, ...] | None, ...]

    def axis(self, name: Literal["x", "y", "c"]) -> int:
        """Where the axis stands in the shape of every level."""
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
        """µm per pixel (x, y) of the first level; None without a scale, or with a unit that is no length."""
        scale, places = self.scales[0], (self.axis("x"), self.axis("y"))
        if scale is None:
            return None
        x, y = (MICRONS_PER.get(self.units[place] or "", 0.0) * scale[place] for place in places)
        return believable_xy(x, y)


def image_group(attributes: Mapping[str, Any]) -> str:
    """Where below the folder the first image lies: ``""``, the folder itself, or ``"0"`` (bioformats2raw)."""
    ome = attributes.get("ome", attributes)
    below = isinstance(ome, Mapping) and BIOFORMATS2RAW in ome and "multiscales" not in ome
    return "0" if below else ""


def read_multiscale(path: Location, attributes: Mapping[str, Any]) -> Multiscale:
    """The first multiscale image of a group's attributes.

    Raises :class:`UnsupportedSlide` for another version or another kind of image than y, x with colours,
    :class:`DamagedSlide` for metadata that cannot be.
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
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the top"
        raise DamagedSlide(path, f"its multiscales metadata is wrong at {where}: {problem['msg']}") from None
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
    """Physical size of a pixel, axis by axis: the level's scale times the whole image's; None for neither."""
    scales = [step.scale for step in (*level, *whole) if step.type == "scale" and step.scale is not None]
    if any(len(scale) != ndim for scale in scales):
        raise DamagedSlide(path, f"a scale has not the length of its {ndim} axes")
    if not scales:
        return None
    product = [1.0] * ndim
    for scale in scales:
        product = [a * b for a, b in zip(product, scale, strict=True)]
    return tuple(product)


def _refuse_other_colours(path: Location, omero: Any) -> None:
    """Three channels may be stains: where the file colours them otherwise than red, green, blue, they are."""
    channels = omero.get("channels") if isinstance(omero, Mapping) else None
    if not isinstance(channels, list) or not all(isinstance(channel, Mapping) for channel in channels):
        return
    colours = [str(channel.get("color")).upper() for channel in channels]
    if len(colours) == 3 and len(set(colours)) == 3 and colours != RGB_COLOURS:
        raise UnsupportedSlide(
            path, f"its channels are coloured {', '.join(c[:8] for c in colours)}: not RGB"
        )
