"""Where the tiles of a level lie: which of them show under a box of the level's pixels, and which covers which.

Readers and streams ask the same questions of a regular grid (:class:`RegularTiles`, here) and of tiles that have
places of their own (:class:`wsi_ips.slides.placed_tiles.PlacedTiles`), so that neither has to know the kind.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from wsi_ips.units import Size

Box = tuple[int, int, int, int]
"""Left, top, width, height in whole pixels of a level."""

Window = tuple[slice, slice]
"""Rows and columns of an image."""


@dataclass(frozen=True, slots=True)
class Painting:
    """How a box is painted out of tiles. A later move covers what an earlier one has painted."""

    numbers: list[int]
    """The tiles that it takes, each once."""
    moves: list[tuple[int, Window, Window]]
    """A tile's place in ``numbers``, the window of the box that is painted, and the window of the tile that goes
    there. A window may end beyond its image, as slices may."""
    filled: bool
    """Whether the moves paint every pixel. Where they may not, the box has to be white before."""

    def is_one_whole_tile(self, tile_size: Size) -> bool:
        """Whether a box of a tile's size is one tile, from corner to corner, and nothing else."""
        if len(self.moves) != 1:
            return False
        _, into, window = self.moves[0]
        whole = (slice(0, tile_size[1]), slice(0, tile_size[0]))
        return into == whole == window


class TilesUnder(Protocol):
    """The tiles under each of n boxes."""

    def rows(self, rows_k: NDArray[np.int64]) -> "TilesUnder":
        """The tiles under some of the boxes."""
        ...

    def numbers(self) -> NDArray[np.int64]:
        """The tiles under any of the boxes, ascending, each once."""
        ...

    def exact(self) -> NDArray[np.int64]:
        """(n,) the number of the one whole tile that is all that shows in the box, or -1."""
        ...

    def paintings(self) -> Iterator[Painting]:
        """How each of the boxes is painted, in their order."""
        ...


class TilePlaces(Protocol):
    """Where the tiles of one level lie. They are numbered from 0 to ``n_tiles - 1``."""

    @property
    def tile_size(self) -> Size: ...

    @property
    def n_tiles(self) -> int: ...

    def painting(self, box: Box) -> Painting:
        """How one box, which may lie beyond the level's edges, is painted."""
        ...

    def under(self, boxes_n4: NDArray[np.int64]) -> TilesUnder:
        """The tiles under many boxes: (n, 4) left, top, width, height, as in :data:`Box`."""
        ...

    def uses(self, blocks: Iterable[NDArray[np.int64]]) -> NDArray[np.int32]:
        """(n_tiles,) how many of the boxes show some of each tile. blocks: (n, 4) boxes, some at a time."""
        ...

    def inside(self, number: int) -> Size:
        """(width, height) of what may show of a tile, from its top left on; the rest is to be white.

        Zero or less for a tile that lies wholly beyond the level's edge.
        """
        ...

    def divides(self, scale: int) -> bool:
        """Whether every tile still lies on whole pixels when the level is made smaller by this factor."""
        ...

    def smaller(self, scale: int) -> "TilePlaces":
        """The places of tiles decoded smaller by a factor for which :meth:`divides` holds."""
        ...


@dataclass(frozen=True, slots=True)
class RegularTiles:
    """Tiles row by row without gaps: tile ``row * cols + col`` begins at pixel (col, row) * tile_size."""

    level_size: Size
    tile_size: Size
    cols: int
    rows: int

    @property
    def n_tiles(self) -> int:
        return self.cols * self.rows

    def painting(self, box: Box) -> Painting:
        """See :meth:`TilePlaces.painting`."""
        left, top, width, height = box
        tile_width, tile_height = self.tile_size
        col, row = max(0, left // tile_width), max(0, top // tile_height)
        end_col = min(self.cols, (left + width - 1) // tile_width + 1)
        end_row = min(self.rows, (top + height - 1) // tile_height + 1)
        return self._painting(box, col, end_col, row, end_row)

    def under(self, boxes_n4: NDArray[np.int64]) -> "TileSpans":
        """See :meth:`TilePlaces.under`."""
        return TileSpans.under(boxes_n4, self)

    def uses(self, blocks: Iterable[NDArray[np.int64]]) -> NDArray[np.int32]:
        """See :meth:`TilePlaces.uses`. Each box adds a rectangle of ones, as four corners of a table of
        differences."""
        corners = np.zeros((self.rows + 1, self.cols + 1), np.int32)
        flat, width = corners.ravel(), self.cols + 1  # one index into a view is much faster than two
        for boxes_n4 in blocks:
            spans = self.under(boxes_n4)
            np.add.at(flat, spans.first_row_n * width + spans.first_col_n, 1)
            np.add.at(flat, spans.first_row_n * width + spans.end_col_n, -1)
            np.add.at(flat, spans.end_row_n * width + spans.first_col_n, -1)
            np.add.at(flat, spans.end_row_n * width + spans.end_col_n, 1)
        np.cumsum(corners, axis=0, out=corners)
        np.cumsum(corners, axis=1, out=corners)
        return np.ascontiguousarray(corners[:-1, :-1]).ravel()

    def inside(self, number: int) -> Size:
        """See :meth:`TilePlaces.inside`."""
        row, col = divmod(number, self.cols)
        (width, height), (level_width, level_height) = self.tile_size, self.level_size
        return min(width, level_width - col * width), min(height, level_height - row * height)

    def divides(self, scale: int) -> bool:
        """See :meth:`TilePlaces.divides`."""
        return not any(side % scale for side in self.tile_size)

    def smaller(self, scale: int) -> "RegularTiles":
        """See :meth:`TilePlaces.smaller`."""
        (level_width, level_height), (tile_width, tile_height) = self.level_size, self.tile_size
        return RegularTiles(
            (-(-level_width // scale), -(-level_height // scale)),
            (tile_width // scale, tile_height // scale),
            self.cols,
            self.rows,
        )

    def _painting(self, box: Box, col: int, end_col: int, row: int, end_row: int) -> Painting:
        left, top, width, height = box
        tile_width, tile_height = self.tile_size
        filled = (
            left >= col * tile_width
            and top >= row * tile_height
            and left + width <= end_col * tile_width
            and top + height <= end_row * tile_height
        )
        cols = self.cols
        numbers: list[int] = []
        moves: list[tuple[int, Window, Window]] = []
        for r in range(row, end_row):
            y = r * tile_height - top
            # Slices end at the arrays' ends by themselves; only beginnings must not be negative.
            box_rows = slice(y if y > 0 else 0, y + tile_height)
            tile_rows = slice(-y if y < 0 else 0, height - y)
            for c in range(col, end_col):
                x = c * tile_width - left
                moves.append((
                    len(numbers),
                    (box_rows, slice(x if x > 0 else 0, x + tile_width)),
                    (tile_rows, slice(-x if x < 0 else 0, width - x)),
                ))  # fmt: skip
                numbers.append(r * cols + c)
        return Painting(numbers, moves, filled)


@dataclass(frozen=True, slots=True)
class TileSpans:
    """Per box the half-open ranges of tile columns and rows under it, (n,) int64 each; empty off the level."""

    tiles: RegularTiles
    boxes_n4: NDArray[np.int64]
    first_col_n: NDArray[np.int64]
    end_col_n: NDArray[np.int64]
    first_row_n: NDArray[np.int64]
    end_row_n: NDArray[np.int64]

    @classmethod
    def under(cls, boxes_n4: NDArray[np.int64], tiles: RegularTiles) -> Self:
        """``boxes_n4``: (n, 4) left, top, width, height in pixels of the level."""
        left, top, width, height = boxes_n4.T
        tile_width, tile_height = tiles.tile_size
        first_col = np.clip(left // tile_width, 0, tiles.cols)
        first_row = np.clip(top // tile_height, 0, tiles.rows)
        end_col = np.clip((left + width - 1) // tile_width + 1, first_col, tiles.cols)
        end_row = np.clip((top + height - 1) // tile_height + 1, first_row, tiles.rows)
        return cls(tiles, boxes_n4, first_col, end_col, first_row, end_row)

    def rows(self, rows_k: NDArray[np.int64]) -> "TileSpans":
        """See :meth:`TilesUnder.rows`."""
        return TileSpans(
            self.tiles,
            self.boxes_n4[rows_k],
            self.first_col_n[rows_k],
            self.end_col_n[rows_k],
            self.first_row_n[rows_k],
            self.end_row_n[rows_k],
        )

    def numbers(self) -> NDArray[np.int64]:
        """See :meth:`TilesUnder.numbers`."""
        cols_nk = self.first_col_n[:, None] + np.arange((self.end_col_n - self.first_col_n).max(initial=0))
        rows_nk = self.first_row_n[:, None] + np.arange((self.end_row_n - self.first_row_n).max(initial=0))
        inside = (cols_nk < self.end_col_n[:, None])[:, None, :] & (rows_nk < self.end_row_n[:, None])[
            :, :, None
        ]
        return np.unique((rows_nk[:, :, None] * self.tiles.cols + cols_nk[:, None, :])[inside])

    def exact(self) -> NDArray[np.int64]:
        """See :meth:`TilesUnder.exact`."""
        tile_width, tile_height = self.tiles.tile_size
        wanted_n4 = np.stack(
            [
                self.first_col_n * tile_width,
                self.first_row_n * tile_height,
                np.full_like(self.first_col_n, tile_width),
                np.full_like(self.first_row_n, tile_height),
            ],
            axis=1,
        )
        one = (self.end_col_n - self.first_col_n == 1) & (self.end_row_n - self.first_row_n == 1)
        same = one & (self.boxes_n4 == wanted_n4).all(axis=1)
        return np.where(same, self.first_row_n * self.tiles.cols + self.first_col_n, -1)

    def paintings(self) -> Iterator[Painting]:
        """See :meth:`TilesUnder.paintings`."""
        spans_n4 = np.stack([self.first_col_n, self.end_col_n, self.first_row_n, self.end_row_n], axis=1)
        for box, (col, end_col, row, end_row) in zip(self.boxes_n4.tolist(), spans_n4.tolist(), strict=True):
            yield self.tiles._painting(box, col, end_col, row, end_row)
