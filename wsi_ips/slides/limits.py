"""What a file may claim before it is taken for damaged or hostile."""

from collections.abc import Sequence
from pathlib import Path

from wsi_ips.errors import DamagedSlide
from wsi_ips.units import Size

LARGEST_SIDE_PX = 1 << 24
"""16.8 million: at 0.1 µm per pixel that is 1.7 m of glass."""

LARGEST_BLOCK_PX = 1 << 26
"""A file's own block (tile, chunk) is decoded whole, however little of it is asked for."""

MOST_LEVELS = 64


def check_levels(path: Path | str, sizes: Sequence[Size], blocks: Sequence[Size]) -> None:
    """Raise :class:`DamagedSlide` for sizes that no slide has, or levels that do not show the same field.

    ``sizes`` are (width, height) of the levels from fine to coarse, ``blocks`` those of their blocks.
    """
    if not 1 <= len(sizes) <= MOST_LEVELS:
        raise DamagedSlide(path, f"has {len(sizes)} levels")
    for level, (size, block) in enumerate(zip(sizes, blocks, strict=True)):
        if not all(1 <= side <= LARGEST_SIDE_PX for side in size):
            raise DamagedSlide(path, f"level {level} claims {size[0]}x{size[1]} px")
        if min(block) < 1 or block[0] * block[1] > LARGEST_BLOCK_PX:
            raise DamagedSlide(path, f"level {level} claims blocks of {block[0]}x{block[1]} px")
        wide, high = sizes[0][0] / size[0], sizes[0][1] / size[1]
        # A level's sides were rounded, up or down, maybe to whole blocks of the coarsest level.
        if abs(wide - high) > 0.02 * max(wide, high) + 2 * max(wide / size[0], high / size[1]):
            raise DamagedSlide(
                path, f"level {level} of {size[0]}x{size[1]} px has another shape than level 0"
            )
