"""Units in the type and in the name.

Coordinates carry their frame of reference as a prefix:

- ``l0_``  level-0 pixels of the slide, x then y, from the top left,
- ``lv_``  pixels of one pyramid level,
- ``g_``   grid column, then row.
"""

from typing import NewType

Mpp = NewType("Mpp", float)
"""Resolution: µm covered by one pixel."""

SquareMicrons = NewType("SquareMicrons", float)
"""Area on the glass, in µm²."""

L0Point = tuple[int, int]
"""A position in level-0 pixels, (x, y)."""

Size = tuple[int, int]
"""A size in pixels, (width, height)."""

MAGNIFICATION_MPP = 10.0


def mpp_of_magnification(magnification: float) -> Mpp:
    """``20`` (the field's "20x") means 0.5 µm per pixel, ``40`` means 0.25."""
    return Mpp(MAGNIFICATION_MPP / magnification)
