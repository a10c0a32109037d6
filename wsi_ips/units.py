"""Types and names for units: resolutions, areas, positions and sizes.

Throughout the package the name of a coordinate begins with its frame of reference:

- ``l0_``: level-0 pixels of the slide, (x, y), from the top left corner,
- ``lv_``: pixels of one pyramid level, (x, y),
- ``g_``: column, then row of the patch grid.
"""

from typing import Literal, NewType

Mpp = NewType("Mpp", float)
"""A resolution in µm per pixel."""

SquareMicrons = NewType("SquareMicrons", float)
"""An area on the glass, in µm²."""

L0Point = tuple[int, int]
"""A position in level-0 pixels, (x, y)."""

Size = tuple[int, int]
"""A size in pixels, (width, height)."""

PlaceKind = Literal["ids", "um"]
"""How the position of a patch is given.

``"ids"``: (n,) int64, the raster index of each patch in the grid of its slide. ``"um"``: (n, 2) float64, the
centre (x, y) of each patch in µm from the top left corner of the slide.
"""

LARGEST_COORDINATE = 2.0**31
"""Limit for coordinates in pixels. It lies far beyond any slide, and arithmetic on larger numbers could overflow.
"""

MAGNIFICATION_MPP = 10.0
"""Magnification times µm per pixel, by the convention of the field: 20x is 0.5 µm per pixel."""


def mpp_of_magnification(magnification: float) -> Mpp:
    """The resolution in µm per pixel of a magnification: 0.5 for ``20`` (written "20x"), 0.25 for ``40``."""
    return Mpp(MAGNIFICATION_MPP / magnification)
