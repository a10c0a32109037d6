"""Whether an image shows the same field as the slide, at another scale, by its shape.

Files mark a tiled macro or label in the same way as a level, and OpenSlide takes it for one: patches would then be
read from it.
"""

from wsi_ips.units import Size

ROUNDING = 0.01
"""By which share a level's side may differ from the slide's divided by the downsample: some writers make sides
even, or multiples of 16."""

ANOTHER_SHAPE = "its shape is not that of the slide, {0}x{1} px, so it is no level of it"


def shows_same_field(slide: Size, image: Size, tile: Size) -> bool:
    """Whether one downsample explains both sides of the image; all sizes are (width, height), 1 or more.

    Either both sides were rounded, or both were padded to whole tiles. A padded side is less than a tile longer
    than what it shows.
    """
    rounded: list[tuple[float, float]] = []
    padded: list[tuple[float, float]] = []
    for full, side, block in zip(slide, image, tile, strict=True):
        rounded.append((full / (side * (1 + ROUNDING) + 1), _over(full, side * (1 - ROUNDING) - 1)))
        padded.append((full / side, _over(full, side - block)))
    (from_x, to_x), (from_y, to_y) = rounded
    if max(from_x, from_y) <= min(to_x, to_y):
        return True
    (from_x, to_x), (from_y, to_y) = padded
    in_whole_tiles = not any(block and side % block for side, block in zip(image, tile, strict=True))
    return in_whole_tiles and max(from_x, from_y) < min(to_x, to_y)


def _over(full: float, side: float) -> float:
    return full / side if side > 0 else float("inf")
