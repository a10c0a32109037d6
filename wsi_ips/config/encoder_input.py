"""How a patch becomes the picture that an encoder takes."""

from typing import Annotated, Literal

from pydantic import Field

from wsi_ips.config.section import Section

LARGEST_SIDE_PX = 4096
"""Largest side of a picture, in pixels."""
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE_PX)]
"""A side of a picture, in pixels."""


class TransformConfig(Section):
    """Resize a square patch, then cut out its centre, both on grey levels 0 to 255."""

    resize: Side | None = None
    """Side in pixels that a patch is resized to. None: it is not resized."""
    crop: Side | None = None
    """Side in pixels of the centre that is kept after resizing. None: all of it."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """The kernel: Pillow's triangle, or its cubic with a = -0.5. (Without ``antialias``, that of PyTorch, a =
    -0.75.)
    """
    antialias: bool = True
    """Widen the kernel by the factor that the patch shrinks by, as Pillow always does."""
