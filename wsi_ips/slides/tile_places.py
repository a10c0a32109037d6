"""Where the tiles of a level lie: which of them show in a box of the level's pixels, and which covers which.

Readers and streams ask the same questions (:class:`TilePlaces`) of a regular grid (:class:`RegularTiles`) and of
tiles that have places of their own, overlap, leave gaps, or are cut into pieces (:class:`PlacedTiles`), and do not
have to know which kind it is.

The module also holds the limits for what a file may claim before it is taken for damaged or hostile
(:func:`check_levels`). Suffixes of array names give the shape: ``n`` boxes, ``k`` hits, ``P`` pieces, ``B``
buckets; a digit is the length of an axis, for example ``boxes_n4``.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, sqrt
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import DamagedSlide
from wsi_ips.units import Size

LARGEST_SIDE_PX = 1 << 24
"""The longest side of a level, 16.8 million pixels. At 0.1 µm per pixel that is 1.7 m of glass."""

LARGEST_BLOCK_PX = 1 << 26
"""The most pixels of a tile or chunk of a file, which is decoded whole, however little of it is asked for."""

MOST_LEVELS = 64
"""The most levels of a slide."""

MOST_PIECES = 1 << 23
"""The most pieces on a level. A slide of 200,000 x 100,000 px in tiles of 64 px has 5 million."""

MOST_BUCKETS = 1 << 21
"""The most buckets in the index of a level, which take 8 MiB."""

MOST_LAYERS = 16
"""How many tiles may lie over each other at one place.

In scanners' files neighbours overlap by a part of their side.
"""

FAR = 1 << 40
"""A coordinate beyond every level, and far from the limit of int64."""

PIECES_AT_A_TIME = 1 << 20
"""How many pieces are looked at together when uses are counted, so that large boxes do not take much memory."""

Box = tuple[int, int, int, int]
"""Left, top, width, height in whole pixels of a level."""

Window = tuple[slice, slice]
"""Rows and columns of an image."""


def check_levels(path: Path | str, sizes: Sequence[Size], blocks: Sequence[Size]) -> None:
    """Check the sizes that a file states for its levels.

    ``sizes`` are (width, height) of the levels from fine to coarse, ``blocks`` those of their tiles or chunks.
    Raises :class:`DamagedSlide` for sizes that no slide has, and for levels that do not show the same field.
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


@dataclass(frozen=True, slots=True)
class Painting:
    """How a box is painted out of tiles. A later move covers what an earlier one has painted."""

    numbers: list[int]
    """The tiles that are needed, each once."""
    moves: list[tuple[int, Window, Window]]
    """For each move: an index into ``numbers``, the window of the box, and the window of the tile to paint there.

    A window may end beyond its image, as slices may.
    """
    filled: bool
    """Whether the moves paint every pixel. If not, the box has to be made white first."""

    def is_one_whole_tile(self, tile_size: Size) -> bool:
        """Whether a box of the size of a tile is exactly one whole tile and nothing else."""
        if len(self.moves) != 1:
            return False
        _, into, window = self.moves[0]
        whole = (slice(0, tile_size[1]), slice(0, tile_size[0]))
        return into == whole == window


class TilesUnder(Protocol):
    """The tiles under each of n boxes."""

    def rows(self, rows_k: NDArray[np.int64]) -> "TilesUnder":
        """The tiles under the boxes with these indices."""
        ...

    def numbers(self) -> NDArray[np.int64]:
        """The numbers of the tiles under any of the boxes, ascending, each once."""
        ...

    def exact(self) -> NDArray[np.int64]:
        """(n,) the number of the tile if exactly one whole tile shows in the box and nothing else, or -1."""
        ...

    def paintings(self) -> Iterator[Painting]:
        """How each box is painted, in the order of the boxes."""
        ...


class TilePlaces(Protocol):
    """Where the tiles of one level lie. They are numbered from 0 to ``n_tiles - 1``."""

    @property
    def tile_size(self) -> Size:
        """Width and height of a tile in pixels."""
        ...

    @property
    def n_tiles(self) -> int:
        """Number of tiles."""
        ...

    def painting(self, box: Box) -> Painting:
        """How one box is painted. It may lie beyond the edges of the level."""
        ...

    def under(self, boxes_n4: NDArray[np.int64]) -> TilesUnder:
        """The tiles under many boxes, given as (n, 4) left, top, width, height."""
        ...

    def uses(self, blocks: Iterable[NDArray[np.int64]]) -> NDArray[np.int32]:
        """(n_tiles,) in how many of the boxes some of each tile shows.

        ``blocks`` yields (n, 4) boxes, some at a time.
        """
        ...

    def inside(self, number: int) -> Size:
        """Width and height of what may show of a tile, from its top left corner on. The rest has to be white.

        Zero or less if the tile lies wholly beyond the edge of the level.
        """
        ...

    def divides(self, scale: int) -> bool:
        """Whether every tile still lies on whole pixels when the level is made smaller by this factor."""
        ...

    def smaller(self, scale: int) -> "TilePlaces":
        """The places of tiles that are decoded smaller by a factor for which :meth:`divides` is true."""
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
        """Number of tiles."""
        return self.cols * self.rows

    def painting(self, box: Box) -> Painting:
        """How one box is painted. It may lie beyond the edges of the level."""
        left, top, width, height = box
        tile_width, tile_height = self.tile_size
        col, row = max(0, left // tile_width), max(0, top // tile_height)
        end_col = min(self.cols, (left + width - 1) // tile_width + 1)
        end_row = min(self.rows, (top + height - 1) // tile_height + 1)
        return self._painting(box, col, end_col, row, end_row)

    def under(self, boxes_n4: NDArray[np.int64]) -> "TileSpans":
        """The tiles under many boxes, given as (n, 4) left, top, width, height."""
        return TileSpans.under(boxes_n4, self)

    def uses(self, blocks: Iterable[NDArray[np.int64]]) -> NDArray[np.int32]:
        """(n_tiles,) in how many of the boxes some of each tile shows.

        ``blocks`` yields (n, 4) boxes, some at a time.

        Each box adds a rectangle of ones, as four corners of a table of differences that is summed up at the end.
        """
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
        """Width and height of what lies within the level, from the top left corner of the tile on.

        Zero or less if the tile lies wholly beyond the edge of the level.
        """
        row, col = divmod(number, self.cols)
        (width, height), (level_width, level_height) = self.tile_size, self.level_size
        return min(width, level_width - col * width), min(height, level_height - row * height)

    def divides(self, scale: int) -> bool:
        """Whether the sides of a tile are multiples of this factor."""
        return not any(side % scale for side in self.tile_size)

    def smaller(self, scale: int) -> "RegularTiles":
        """The places of tiles that are decoded smaller by a factor for which :meth:`divides` is true."""
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
            # Slices are cut at the ends of arrays by themselves, but must not begin at negative places.
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
    """The tiles of a regular grid under n boxes, as half-open ranges of columns and rows.

    Each range is (n,) int64. It is empty for a box that lies off the level.
    """

    tiles: RegularTiles
    boxes_n4: NDArray[np.int64]
    first_col_n: NDArray[np.int64]
    end_col_n: NDArray[np.int64]
    first_row_n: NDArray[np.int64]
    end_row_n: NDArray[np.int64]

    @classmethod
    def under(cls, boxes_n4: NDArray[np.int64], tiles: RegularTiles) -> Self:
        """Find the ranges for ``boxes_n4``, (n, 4) left, top, width, height in pixels of the level."""
        left, top, width, height = boxes_n4.T
        tile_width, tile_height = tiles.tile_size
        first_col = np.clip(left // tile_width, 0, tiles.cols)
        first_row = np.clip(top // tile_height, 0, tiles.rows)
        end_col = np.clip((left + width - 1) // tile_width + 1, first_col, tiles.cols)
        end_row = np.clip((top + height - 1) // tile_height + 1, first_row, tiles.rows)
        return cls(tiles, boxes_n4, first_col, end_col, first_row, end_row)

    def rows(self, rows_k: NDArray[np.int64]) -> "TileSpans":
        """The ranges of the boxes with these indices."""
        return TileSpans(
            self.tiles,
            self.boxes_n4[rows_k],
            self.first_col_n[rows_k],
            self.end_col_n[rows_k],
            self.first_row_n[rows_k],
            self.end_row_n[rows_k],
        )

    def numbers(self) -> NDArray[np.int64]:
        """The numbers of the tiles under any of the boxes, ascending, each once."""
        cols_nk = self.first_col_n[:, None] + np.arange((self.end_col_n - self.first_col_n).max(initial=0))
        rows_nk = self.first_row_n[:, None] + np.arange((self.end_row_n - self.first_row_n).max(initial=0))
        inside = (cols_nk < self.end_col_n[:, None])[:, None, :] & (rows_nk < self.end_row_n[:, None])[
            :, :, None
        ]
        return np.unique((rows_nk[:, :, None] * self.tiles.cols + cols_nk[:, None, :])[inside])

    def exact(self) -> NDArray[np.int64]:
        """(n,) the number of the tile if the box is exactly that tile, or -1."""
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
        """How each box is painted, in the order of the boxes."""
        spans_n4 = np.stack([self.first_col_n, self.end_col_n, self.first_row_n, self.end_row_n], axis=1)
        for box, (col, end_col, row, end_row) in zip(self.boxes_n4.tolist(), spans_n4.tolist(), strict=True):
            yield self.tiles._painting(box, col, end_col, row, end_row)


@dataclass(frozen=True, eq=False)
class PlacedTiles:
    """Tiles that have places of their own. Implements :class:`TilePlaces`.

    What is placed are pieces: rectangles cut out of tiles, often whole tiles. A later piece covers the earlier
    ones. If no piece lies at a place, the level is white there. :meth:`place` makes such a layout.
    """

    level_size: Size
    tile_size: Size
    n_tiles: int
    numbers_P: NDArray[np.int32]
    """The tile that each piece is cut out of."""
    boxes_P4: NDArray[np.int32]
    """Left, top, width, height of each piece on the level. No piece reaches beyond the edges of the level."""
    sources_P2: NDArray[np.int32]
    """Where in its tile each piece begins (x, y)."""
    index: "BucketIndex"
    """Finds the pieces under a box."""
    disjoint: bool
    """Whether it is known that no piece lies over another. Their areas then tell whether they fill a box."""

    @classmethod
    def place(
        cls,
        path: Path,
        *,
        level_size: Size,
        tile_size: Size,
        missing: NDArray[np.bool_],
        numbers_P: NDArray[np.int64],
        xy_P2: NDArray[np.int64],
        sources_P4: NDArray[np.int64] | None = None,
        disjoint: bool = False,
    ) -> Self:
        """Lay pieces out on a level.

        Args:
            path: The slide, for messages.
            level_size: Width and height of the level.
            tile_size: Width and height of a tile.
            missing: (n_tiles,) tiles without data. Their pieces are left out, so that they cover nothing.
            numbers_P: The tile of each piece, in the order of painting.
            xy_P2: Where on the level each piece begins, which may be beyond its edges.
            sources_P4: Left, top, width, height of each piece in its tile. None for whole tiles.
            disjoint: Whether it is known that no piece lies over another.

        Raises :class:`DamagedSlide` for a level or a number of pieces that no slide has, and if too many pieces
        lie over each other.
        """
        if not all(1 <= side <= LARGEST_SIDE_PX for side in level_size) or len(numbers_P) > MOST_PIECES:
            raise DamagedSlide(
                path,
                f"its header states {len(numbers_P)} tiles on a level of {level_size[0]}x{level_size[1]} px",
                "the file is damaged",
            )
        if sources_P4 is None:
            sources_P4 = np.broadcast_to(np.array([0, 0, *tile_size]), (len(numbers_P), 4))
        # Computed in int64 until all lies within the level, since a hostile file may place tiles anywhere.
        xy_P2 = np.clip(xy_P2, -FAR, FAR)
        starts_P2 = np.clip(xy_P2, 0, level_size)
        ends_P2 = np.clip(xy_P2 + sources_P4[:, 2:], 0, level_size)
        shown = (ends_P2 > starts_P2).all(axis=1) & ~missing[numbers_P]
        boxes = np.concatenate([starts_P2, ends_P2 - starts_P2], axis=1)[shown].astype(np.int32)
        sources = (sources_P4[:, :2] + starts_P2 - xy_P2)[shown].astype(np.int32)
        index = BucketIndex.of(boxes)
        if index.most_layers > MOST_LAYERS:
            raise DamagedSlide(
                path,
                f"its header lays {index.most_layers:.0f} tiles or more over each other",
                "the file is damaged",
            )
        numbers = numbers_P[shown].astype(np.int32)
        return cls(level_size, tile_size, len(missing), numbers, boxes, sources, index, disjoint)

    def painting(self, box: Box) -> Painting:
        """How one box is painted. It may lie beyond the edges of the level."""
        return next(self.under(np.array([box], np.int64)).paintings())

    def under(self, boxes_n4: NDArray[np.int64]) -> "PiecesUnder":
        """The tiles under many boxes, given as (n, 4) left, top, width, height."""
        return PiecesUnder(self, boxes_n4)

    def uses(self, blocks: Iterable[NDArray[np.int64]]) -> NDArray[np.int32]:
        """(n_tiles,) in how many of the boxes some of each tile shows.

        ``blocks`` yields (n, 4) boxes, some at a time.
        """
        uses = np.zeros(self.n_tiles, np.int32)
        for block_n4 in blocks:
            parts = ceil(self.index.expected_hits(block_n4) / PIECES_AT_A_TIME)
            for boxes_n4 in np.array_split(block_n4, max(1, min(len(block_n4), parts))):
                box_k, piece_k = self.index.hits(boxes_n4)
                # A tile of which several pieces lie under one box counts once.
                each = np.unique(box_k * self.n_tiles + self.numbers_P[piece_k])
                uses += np.bincount(each % self.n_tiles, minlength=self.n_tiles).astype(np.int32)
        return uses

    def inside(self, number: int) -> Size:
        """Width and height of the whole tile, since pieces end at the edge of the level anyway."""
        return self.tile_size

    def divides(self, scale: int) -> bool:
        """Whether every piece still lies on whole pixels when the level is made smaller by this factor."""
        if scale == 1:
            return True
        starts = (self.boxes_P4[:, :2], self.sources_P2)
        ends = self.boxes_P4[:, :2] + self.boxes_P4[:, 2:]
        whole_ends = (ends % scale == 0) | (ends == self.level_size)
        sides = (side % scale for side in self.tile_size)
        return bool(not any(sides) and whole_ends.all() and not any((s % scale).any() for s in starts))

    def smaller(self, scale: int) -> "PlacedTiles":
        """The places of tiles that are decoded smaller by a factor for which :meth:`divides` is true."""
        if scale == 1:
            return self
        sizes = (-(-side // scale) for side in self.level_size)
        width, height = self.tile_size
        boxes_P4 = -(-self.boxes_P4 // scale)
        return PlacedTiles(
            (next(sizes), next(sizes)),
            (width // scale, height // scale),
            self.n_tiles,
            self.numbers_P,
            boxes_P4,
            self.sources_P2 // scale,
            BucketIndex.of(boxes_P4),
            self.disjoint,
        )


@dataclass(frozen=True, eq=False)
class PiecesUnder:
    """The pieces under n boxes.

    They are looked up only when they are asked for, since many large boxes have millions.
    """

    tiles: PlacedTiles
    boxes_n4: NDArray[np.int64]

    def rows(self, rows_k: NDArray[np.int64]) -> "PiecesUnder":
        """The pieces under the boxes with these indices."""
        return PiecesUnder(self.tiles, self.boxes_n4[rows_k])

    def numbers(self) -> NDArray[np.int64]:
        """The numbers of the tiles under any of the boxes, ascending, each once."""
        _, piece_k = self._hits
        return np.unique(self.tiles.numbers_P[piece_k]).astype(np.int64)

    def exact(self) -> NDArray[np.int64]:
        """(n,) the number of the tile if exactly one whole tile shows in the box and nothing else, or -1."""
        exact_n = np.full(len(self.boxes_n4), -1)
        candidates = np.flatnonzero((self.boxes_n4[:, 2:] == self.tiles.tile_size).all(axis=1))
        box_k, piece_k = self.tiles.index.hits(self.boxes_n4[candidates])
        alone = np.bincount(box_k, minlength=len(candidates))[box_k] == 1
        same = (self.tiles.boxes_P4[piece_k] == self.boxes_n4[candidates[box_k]]).all(axis=1)
        found = alone & same  # a piece as large as its tile is the whole of it
        exact_n[candidates[box_k[found]]] = self.tiles.numbers_P[piece_k[found]]
        return exact_n

    def paintings(self) -> Iterator[Painting]:
        """How each box is painted, in the order of the boxes."""
        box_k, piece_k = self._hits
        boxes_k4 = self.boxes_n4[box_k]
        pieces_k4 = self.tiles.boxes_P4[piece_k].astype(np.int64)
        starts_k2 = np.maximum(boxes_k4[:, :2], pieces_k4[:, :2])
        ends_k2 = np.minimum(boxes_k4[:, :2] + boxes_k4[:, 2:], pieces_k4[:, :2] + pieces_k4[:, 2:])
        into_k2 = starts_k2 - boxes_k4[:, :2]
        from_k2 = self.tiles.sources_P2[piece_k] + starts_k2 - pieces_k4[:, :2]
        sizes_k2 = ends_k2 - starts_k2
        moves = np.concatenate([into_k2, from_k2, sizes_k2], axis=1).tolist()
        n = len(self.boxes_n4)
        filled_n = np.bincount(box_k[(sizes_k2 == boxes_k4[:, 2:]).all(axis=1)], minlength=n) > 0
        if self.tiles.disjoint:
            filled_n |= np.bincount(box_k, sizes_k2.prod(axis=1), n) == self.boxes_n4[:, 2:].prod(axis=1)
        numbers = self.tiles.numbers_P[piece_k].tolist()
        ends = np.cumsum(np.bincount(box_k, minlength=n)).tolist()
        start = 0
        for end, filled in zip(ends, filled_n.tolist(), strict=True):
            yield _painting(numbers[start:end], moves[start:end], filled=filled)
            start = end

    @cached_property
    def _hits(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All pairs of a box and a piece that touch."""
        return self.tiles.index.hits(self.boxes_n4)


def _painting(numbers: list[int], pieces: list[list[int]], *, filled: bool) -> Painting:
    """Make a :class:`Painting`.

    ``pieces`` holds, for each piece, its corner in the box, its corner in the tile, and its size, each as x, y.
    """
    places: dict[int, int] = {}
    moves: list[tuple[int, Window, Window]] = []
    for number, (x, y, from_x, from_y, width, height) in zip(numbers, pieces, strict=True):
        moves.append((
            places.setdefault(number, len(places)),
            (slice(y, y + height), slice(x, x + width)),
            (slice(from_y, from_y + height), slice(from_x, from_x + width)),
        ))  # fmt: skip
    return Painting(list(places), moves, filled)


@dataclass(frozen=True, slots=True, eq=False)
class BucketIndex:
    """An index that finds the rectangles under a box.

    The hull of all rectangles is cut into buckets, none of which is smaller than the largest rectangle. Each
    bucket lists the rectangles that touch it, so every rectangle is listed at most four times.
    """

    boxes_P4: NDArray[np.int32]
    origin: tuple[int, int]
    side: Size
    cols: int
    rows: int
    starts_B1: NDArray[np.int32]
    """(B + 1,) where the list of each bucket begins in ``listed``, and where the last list ends."""
    listed: NDArray[np.int32]
    """The lists of all buckets, one after the other."""
    most_layers: float
    """How many rectangles lie over each other in the fullest bucket on average, if all have the largest size."""

    @classmethod
    def of(cls, boxes_P4: NDArray[np.int32]) -> Self:
        """Build the index for rectangles given as (P, 4) left, top, width, height."""
        if not len(boxes_P4):
            nothing = np.zeros(0, np.int32)
            return cls(boxes_P4, (0, 0), (1, 1), 0, 0, np.zeros(1, np.int32), nothing, 0.0)
        starts_P2 = boxes_P4[:, :2]
        last_P2 = starts_P2 + boxes_P4[:, 2:] - 1
        left, top = starts_P2.min(axis=0).tolist()
        hull = [
            last - first + 1 for last, first in zip(last_P2.max(axis=0).tolist(), (left, top), strict=True)
        ]
        largest = boxes_P4[:, 2:].max(axis=0).tolist()
        least = ceil(sqrt(hull[0] * hull[1] / MOST_BUCKETS))
        side = max(largest[0], least), max(largest[1], least)
        cols, rows = -(-hull[0] // side[0]), -(-hull[1] // side[1])
        first = (starts_P2 - (left, top)) // side
        last = (last_P2 - (left, top)) // side
        buckets, pieces = [], []
        every = np.arange(len(boxes_P4), dtype=np.int32)
        for right in (False, True):
            for below in (False, True):
                col, row = (last if right else first)[:, 0], (last if below else first)[:, 1]
                new = (~np.array(right) | (col > first[:, 0])) & (~np.array(below) | (row > first[:, 1]))
                buckets.append((row * cols + col)[new])
                pieces.append(every[new])
        bucket, piece = np.concatenate(buckets), np.concatenate(pieces)
        counts = np.bincount(bucket, minlength=cols * rows)
        starts_B1 = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        listed = piece[np.argsort(bucket, kind="stable")]
        room = (side[0] / largest[0] + 1) * (side[1] / largest[1] + 1)
        layers = float(counts.max()) / room
        return cls(boxes_P4, (left, top), side, cols, rows, starts_B1, listed, layers)

    def expected_hits(self, boxes_n4: NDArray[np.int64]) -> float:
        """About how many rectangles these boxes touch, all together."""
        first_n2, end_n2 = self._buckets(boxes_n4)
        per_bucket = 1 + len(self.listed) / max(1, self.cols * self.rows)
        return float((end_n2 - first_n2).prod(axis=1).sum() * per_bucket)

    def hits(self, boxes_n4: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All pairs of a box and a rectangle that touch.

        Returns (k,) the boxes, ascending, and (k,) the rectangles, ascending for each box.
        """
        first_n2, end_n2 = self._buckets(boxes_n4)
        size_n2 = end_n2 - first_n2
        box_b, place_b = counted(size_n2.prod(axis=1))
        row_b, col_b = np.divmod(place_b, np.maximum(size_n2[box_b, 0], 1))
        col_b, row_b = col_b + first_n2[box_b, 0], row_b + first_n2[box_b, 1]
        bucket_b = row_b * self.cols + col_b
        list_starts = self.starts_B1[bucket_b]
        bucket_k, place_k = counted(self.starts_B1[bucket_b + 1] - list_starts)
        piece_k = self.listed[list_starts[bucket_k] + place_k].astype(np.int64)
        box_k = box_b[bucket_k]
        pieces_k4, boxes_k4 = self.boxes_P4[piece_k], boxes_n4[box_k]
        touches = (
            (pieces_k4[:, :2] < boxes_k4[:, :2] + boxes_k4[:, 2:])
            & (boxes_k4[:, :2] < pieces_k4[:, :2] + pieces_k4[:, 2:])
        ).all(axis=1)
        # A rectangle that is listed in several buckets counts in the first of them that the box touches.
        home_k2 = np.maximum((pieces_k4[:, :2] - self.origin) // self.side, first_n2[box_k])
        touches &= (col_b[bucket_k] == home_k2[:, 0]) & (row_b[bucket_k] == home_k2[:, 1])
        box_k, piece_k = box_k[touches], piece_k[touches]
        order = np.lexsort((piece_k, box_k))
        return box_k[order], piece_k[order]

    def _buckets(self, boxes_n4: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(n, 2) the first column and row of buckets under each box, and (n, 2) where they end."""
        most = (self.cols, self.rows)
        relative_n2 = boxes_n4[:, :2] - self.origin
        first_n2 = np.clip(relative_n2 // self.side, 0, most)
        end_n2 = np.clip((relative_n2 + boxes_n4[:, 2:] - 1) // self.side + 1, first_n2, most)
        return first_n2, end_n2


def counted(counts_n: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Repeat each index i ``counts_n[i]`` times, and count 0, 1, 2, … within each run of the same i.

    Returns two arrays of length ``counts_n.sum()``.
    """
    total = int(counts_n.sum())
    which = np.repeat(np.arange(len(counts_n)), counts_n)
    starts = np.cumsum(counts_n) - counts_n
    return which, np.arange(total) - starts[which]


@dataclass(frozen=True, slots=True, eq=False)
class StoredGrid:
    """The tiles of one stored image, row by row: their columns, rows, and what of each lies within the image."""

    cols_P: NDArray[np.int64]
    rows_P: NDArray[np.int64]
    sources_P4: NDArray[np.int64]
    """Left, top (both 0), width, height of the part of each tile that lies within the image."""

    @classmethod
    def of(cls, image_size: Size, tile_size: Size) -> Self:
        """The tiles of an image of ``image_size`` (width, height) that is stored in tiles of ``tile_size``."""
        (width, height), (tile_width, tile_height) = image_size, tile_size
        cols, rows = -(-width // tile_width), -(-height // tile_height)
        rows_P, cols_P = np.divmod(np.arange(cols * rows), cols)
        zeros = np.zeros_like(cols_P)
        wide = np.minimum(tile_width, width - cols_P * tile_width)
        high = np.minimum(tile_height, height - rows_P * tile_height)
        return cls(cols_P, rows_P, np.stack([zeros, zeros, wide, high], axis=1))


def parts_of_tiles(
    at_P2: NDArray[np.float64], part_P2: NDArray[np.int64], tile_size: Size, parts: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places and sources, in whole pixels, of tiles that are cut into ``parts`` by ``parts`` pieces.

    Args:
        at_P2: Where each piece lies on the level (x, y), maybe between pixels.
        part_P2: Which piece of its tile it is (column, row).
        tile_size: Width and height of a tile.
        parts: Number of pieces along each side.

    If the side of a tile is no multiple of ``parts``, pieces begin and end between its pixels. Both ends are then
    rounded, and the place moves with the beginning. Returns (P, 2) places and (P, 4) sources as
    :meth:`PlacedTiles.place` takes them.
    """
    exact_P2 = part_P2 * np.array(tile_size) / parts
    starts_P2 = _nearest(exact_P2)
    ends_P2 = _nearest((part_P2 + 1) * np.array(tile_size) / parts)
    sources_P4 = np.concatenate([starts_P2, ends_P2 - starts_P2], axis=1)
    return _nearest(at_P2 + starts_P2 - exact_P2), sources_P4


def _nearest(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Round to whole numbers. Halves are rounded up, so that neighbours stay equally far apart."""
    return np.floor(values + 0.5).astype(np.int64)
