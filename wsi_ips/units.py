"""Units in the type and in the name.

Coordinates carry their frame of reference as a prefix:

- ``l0_``  level-0 pixels of the slide, x then y, from the top left,
- ``lv_``  pixels of one pyramid level,
- ``g_``   grid column, then row.
"""

from typing import Literal, NewType

Mpp = NewType("Mpp", float)
"""Resolution: µm covered by one pixel."""

SquareMicrons = NewType("SquareMicrons", float)
"""Area on the glass, in µm²."""

L0Point = tuple[int, int]
"""A position in level-0 pixels, (x, y)."""

Size = tuple[int, int]
"""A size in pixels, (width, height)."""

PlaceKind = Literal["ids", "um"]
"""How a patch's place is told. ``ids``: (n,) int64, raster index in its slide's grid. ``um``: (n, 2) float64, the
patch's centre (x, y) in µm from the slide's top-left corner."""

LARGEST_COORDINATE = 2.0**31
"""In pixels, far beyond any slide: what is made of larger numbers overflows."""

MAGNIFICATION_MPP = 10.0


def mpp_of_magnification(magnification: float) -> Mpp:
    """``20`` (the field's "20x") means 0.5 µm per pixel, ``40`` means 0.25."""
    return Mpp(MAGNIFICATION_MPP / magnification)
