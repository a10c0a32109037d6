"""A drawn slide of any size, as a mosaic of square tiles of which only the distinct ones are drawn.

Tissue is drawn on a torus, one picture per kind of tissue, so that tiles of a kind fit each other; the tiles at
the tissue's outline are cut by it, each by itself. The same seed gives the same pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from wsi_ips.drawn.synthetic import EOSIN, HAEMATOXYLIN, NORMAL, Density, NucleusKind, draw_nuclei, scatter
from wsi_ips.slides.base import WHITE, RgbImage
from wsi_ips.units import Mpp

TILE_PX = 256
MPP = Mpp(0.25)
TISSUE_SHARE = 0.40
HOLE_SHARE = 0.012

CELLULARITIES = (0.10, 0.22, 0.35, 0.50, 0.65, 0.80, 0.95)
"""Share of the places of nuclei that are taken, from stroma to lymphoid tissue."""
GLANDS = len(CELLULARITIES)
KINDS = GLANDS + 1
BACKGROUND_BLOCK = 4
"""Tiles along a side of the torus of glass."""

COARSE_PX = 32
"""The outline is laid out on a map that is this much coarser than level 0."""
MARGIN = 2
"""Pixels of that map beside a tile that bicubic interpolation looks at."""

FIBROBLAST = NucleusKind((4.0, 5.0), (3.0, 5.0), 0.03, 150, 0.12, 0)
NUCLEUS_REACH_PX = 48
"""No nucleus reaches further from its centre."""

BEYOND = -1
"""The number of a tile that lies beyond the slide's right or lower edge."""

Field = NDArray[np.float32]
Tiles = NDArray[np.uint8]
"""(n, side, side, 3) uint8 RGB."""


@dataclass(frozen=True, slots=True)
class Mosaic:
    """A picture laid out of square tiles.

    g_tiles: (rows, columns) int64, which distinct tile lies where. tile: draws one of them, (tile_px, tile_px, 3).
    glass: (distinct tiles,) bool, those that show nothing but glass.
    """

    g_tiles: NDArray[np.int64]
    tile: Callable[[int], RgbImage]
    glass: NDArray[np.bool_]
    tile_px: int

    def in_larger_tiles(self) -> "Mosaic":
        """The same picture in tiles of twice the side, each made of four; equal fours make one tile.

        An odd number of tiles along a side is filled up with white.
        """
        rows, cols = self.g_tiles.shape
        g_even = np.pad(self.g_tiles, ((0, rows % 2), (0, cols % 2)), constant_values=BEYOND)
        rows, cols = g_even.shape[0] // 2, g_even.shape[1] // 2
        fours = g_even.reshape(rows, 2, cols, 2).swapaxes(1, 2).reshape(-1, 4)
        distinct, where = np.unique(fours, axis=0, return_inverse=True)
        white = np.full((self.tile_px, self.tile_px, 3), WHITE, np.uint8)

        def tile(number: int) -> RgbImage:
            quarters = [white if four == BEYOND else self.tile(four) for four in distinct[number].tolist()]
            return np.concatenate(
                [np.concatenate(quarters[:2], axis=1), np.concatenate(quarters[2:], axis=1)]
            )

        glass = ((distinct == BEYOND) | self.glass[distinct]).all(axis=1)
        return Mosaic(where.reshape(rows, cols), tile, glass, 2 * self.tile_px)

    def pixels(self) -> RgbImage:
        """All of the picture, (rows * tile_px, columns * tile_px, 3) uint8."""
        rows, cols = self.g_tiles.shape
        picture = np.empty((rows, self.tile_px, cols, self.tile_px, 3), np.uint8)
        for number in range(len(self.glass)):
            at_row, at_col = np.nonzero(self.g_tiles == number)
            picture[at_row, :, at_col] = self.tile(number)
        return picture.reshape(rows * self.tile_px, cols * self.tile_px, 3)


def draw_slide(side_px: int, library: Tiles, *, block: int, seed: int = 0) -> Mosaic:
    """A slide of ``side_px`` pixels a side, a multiple of 256, in tiles of 256 px at 0.25 µm per pixel.

    library: of :func:`draw_library`, with the same ``block`` and ``seed``.
    """
    rng, tiles = np.random.default_rng(seed + 1), side_px // TILE_PX
    outline = draw_outline(tiles, rng=rng)
    inside, edge = split_tiles(outline)
    rows, columns = np.indices((tiles, tiles))
    tissue = (draw_kinds(tiles, rng=rng) * block + rows % block) * block + columns % block
    first_glass = KINDS * block**2
    glass = first_glass + rows % BACKGROUND_BLOCK * BACKGROUND_BLOCK + columns % BACKGROUND_BLOCK
    g_tiles = np.where(inside, tissue, glass)
    g_edges = np.argwhere(edge)
    g_tiles[edge] = len(library) + np.arange(len(g_edges))

    def tile(number: int) -> RgbImage:
        if number < len(library):
            return np.asarray(library[number])
        row, column = (int(place) for place in g_edges[number - len(library)])
        alpha = edge_alpha(outline, row, column)
        over, under = library[tissue[row, column]], library[glass[row, column]]
        return np.asarray((over * alpha + under * (1 - alpha) + 0.5).astype(np.uint8))

    numbers = np.arange(len(library) + len(g_edges))
    return Mosaic(g_tiles, tile, (numbers >= first_glass) & (numbers < len(library)), TILE_PX)


def draw_outline(tiles: int, *, rng: np.random.Generator) -> Field:
    """Three long, bent pieces with rough edges and some holes: > 0 where tissue, on the coarse map."""
    side = tiles * TILE_PX // COARSE_PX
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    nearest = second = np.full((side, side), -np.inf, np.float32)
    for place in range(3):
        bend, lean = rng.uniform(-0.08, 0.08), rng.uniform(-0.03, 0.03)
        width, height = rng.uniform(0.105, 0.125), rng.uniform(0.30, 0.40)
        down = (y - rng.uniform(0.46, 0.54)) / height
        across = (x - (place + 0.8) / 3.6 - lean * down - bend * (down**2 - 0.4)) / width
        depth = 1 - np.hypot(across, down)
        nearest, second = np.maximum(nearest, depth), np.maximum(second, np.minimum(nearest, depth))
    octaves = ((6, 0.10), (18, 0.05), (60, 0.018), (240, 0.005))
    rough = sum(reach * noise(side, cells, rng=rng) for cells, reach in octaves)
    pieces = nearest + rough
    holes = noise(side, 40, rng=rng) + 0.3 * noise(side, 150, rng=rng)
    tissue = np.minimum(
        pieces - np.quantile(pieces, 1 - TISSUE_SHARE), np.quantile(holes, 1 - HOLE_SHARE) - holes
    )
    # A gap stays between neighbours, as between sections of one block.
    tissue = np.minimum(tissue, nearest - second - np.maximum(0.15, 0.22 - 0.5 * rough))
    # The scanned area ends in glass.
    tissue[:8], tissue[-8:], tissue[:, :8], tissue[:, -8:] = -1, -1, -1, -1
    return np.asarray(tissue, np.float32)


def draw_kinds(tiles: int, *, rng: np.random.Generator) -> NDArray[np.int64]:
    """(tiles, tiles) int64: the kind of tissue, in regions that are some millimetres large."""
    cellular = noise(tiles, tiles // 90 + 3, rng=rng) + 0.5 * noise(tiles, tiles // 28 + 3, rng=rng)
    cellular += 0.2 * noise(tiles, tiles // 12 + 3, rng=rng)
    limits = np.quantile(cellular, np.linspace(0, 1, GLANDS + 1)[1:-1])
    kinds = np.searchsorted(limits, cellular.ravel()).reshape(tiles, tiles)
    glandular = noise(tiles, tiles // 50 + 3, rng=rng)
    return np.where(glandular > np.quantile(glandular, 0.85), GLANDS, kinds).astype(np.int64)


def split_tiles(outline: Field) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which tiles lie wholly in the tissue, and which the outline runs through."""
    step = TILE_PX // COARSE_PX
    padded = np.pad(outline > 0, MARGIN, "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (step + 2 * MARGIN,) * 2)[::step, ::step]
    inside = np.asarray(windows.all(axis=(2, 3)))
    return inside, np.asarray(windows.any(axis=(2, 3))) & ~inside


def edge_alpha(outline: Field, row: int, column: int) -> Field:
    """(256, 256, 1) float32, the tissue's share of each pixel of one tile."""
    step = TILE_PX // COARSE_PX
    rows, columns = (
        np.arange(at * step - MARGIN, (at + 1) * step + MARGIN).clip(0, len(outline) - 1)
        for at in (row, column)
    )
    window = Image.fromarray(outline[np.ix_(rows, columns)])
    side = len(rows) * COARSE_PX
    smooth = np.asarray(window.resize((side, side), Image.Resampling.BICUBIC))
    soft = Image.fromarray((smooth > 0).astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(1.2))
    inner = slice(MARGIN * COARSE_PX, side - MARGIN * COARSE_PX)
    return np.asarray(soft, np.float32)[inner, inner, None] / np.float32(255)


def noise(side: int, cells: int, *, rng: np.random.Generator) -> Field:
    """(side, side) smooth noise of about unit deviation, ``cells`` bumps along a side."""
    cells = min(cells, side)
    coarse = Image.fromarray(rng.normal(0, 1.4, (cells + 4, cells + 4)).astype(np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC, box=(2, 2, cells + 2, cells + 2)))


@dataclass(frozen=True, slots=True)
class Texture:
    """What all kinds of tissue share, so that fibres and nuclei go on where two kinds meet.

    Fields (side, side) on a torus: waves of fibres, unevenness of cytoplasm and stain, how crowded nuclei are.
    """

    waves: Field
    patches: Field
    cells: Field
    grain: Field
    crowded: Field
    nuclei: list[Density]
    spindles: list[Density]


def draw_library(block: int, *, seed: int) -> Tiles:
    """The distinct tiles: ``block`` x ``block`` of each kind of tissue, then those of the glass.

    block: tiles along a side of each kind's torus, a power of two.
    """
    rng = np.random.default_rng(seed)
    texture = draw_texture(block * TILE_PX, rng=rng)
    pictures = [draw_kind(kind, texture, seed=seed) for kind in range(KINDS)]
    clear = np.zeros((BACKGROUND_BLOCK * TILE_PX, BACKGROUND_BLOCK * TILE_PX), np.float32)
    return np.concatenate([cut(picture) for picture in (*pictures, develop(clear, clear, rng=rng))])


def cut(picture: RgbImage) -> Tiles:
    """A picture's tiles, row by row."""
    tiles = len(picture) // TILE_PX
    return picture.reshape(tiles, TILE_PX, tiles, TILE_PX, 3).swapaxes(1, 2).reshape(-1, TILE_PX, TILE_PX, 3)


def draw_texture(side: int, *, rng: np.random.Generator) -> Texture:
    patches, warp, cells, grain, clumps = (torus_noise(side, px, rng=rng) for px in (60, 40, 7, 1.1, 20))
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    # Whole numbers of waves, for the torus.
    waves = np.sin(2 * np.pi * (side // 34 * x + side // 47 * y) + 3.5 * warp)
    nuclei, spindles = (draw_nuclei(shape, 72, mpp=MPP, rng=rng) for shape in (NORMAL, FIBROBLAST))
    return Texture(waves, patches, cells, grain, patches + 0.8 * clumps, nuclei, spindles)


def draw_kind(kind: int, texture: Texture, *, seed: int) -> RgbImage:
    """One kind of tissue: stroma with spindles, nuclei where it is crowded enough, glands with their lumen."""
    dense = CELLULARITIES[kind] if kind < GLANDS else 0.3
    gland = lumen = np.zeros(texture.waves.shape, bool)
    if kind == GLANDS:
        gland, lumen = draw_glands(len(gland), rng=np.random.default_rng(seed))
    eosin = 128 - 62 * dense + (16 - 12 * dense) * texture.waves + 8 * texture.patches
    eosin += (8 + 8 * dense) * texture.cells + 10 * texture.grain - 24 * gland
    haematoxylin = 10 + 26 * dense + 5 * texture.cells + 4 * texture.grain + 30 * gland
    limit = np.quantile(texture.crowded, dense)
    lymphoid, stroma = (texture.crowded < limit) & ~gland, (texture.crowded >= limit) & ~gland
    for number, (sprites, where, spacing_px) in enumerate(
        ((texture.nuclei, lymphoid, 34), (texture.spindles, stroma, 70), (texture.nuclei, gland & ~lumen, 28))
    ):
        stamps = stamped(sprites, where, spacing_px=spacing_px, rng=np.random.default_rng([seed, number]))
        haematoxylin = np.maximum(haematoxylin, stamps)
    eosin, haematoxylin = (np.where(lumen, 0, stain).astype(np.float32) for stain in (eosin, haematoxylin))
    return develop(eosin, haematoxylin, rng=np.random.default_rng(seed))


def draw_glands(side: int, *, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Glands and their lumina, one to a tile and within it, so that no other kind of tissue cuts them."""
    gland, lumen = np.zeros((2, side, side), bool)
    y, x = np.mgrid[0:TILE_PX, 0:TILE_PX].astype(np.float32)
    for top in range(0, side, TILE_PX):
        for left in range(0, side, TILE_PX):
            dx, dy = (axis - TILE_PX / 2 - rng.uniform(-12, 12) for axis in (x, y))
            angle, stretch = np.arctan2(dy, dx) - rng.uniform(0, np.pi), rng.uniform(0, 0.22)
            reach = rng.uniform(78, 96) * (1 + stretch * np.cos(2 * angle) - stretch / 2)
            reach += 3 * np.cos(3 * angle) + 2 * np.cos(5 * angle)
            at = (slice(top, top + TILE_PX), slice(left, left + TILE_PX))
            distance = np.hypot(dx, dy)
            gland[at], lumen[at] = distance < reach, distance < reach - 48
    return gland, lumen


def stamped(
    sprites: list[Density], where: NDArray[np.bool_], *, spacing_px: float, rng: np.random.Generator
) -> Density:
    """Nuclei with their centres in ``where``; one that crosses the edge goes on at the other side."""
    reach = NUCLEUS_REACH_PX
    canvas: Density = np.zeros((len(where) + 2 * reach,) * 2, np.uint8)
    scatter(canvas, sprites, np.pad(where, reach), 1, spacing_px=spacing_px, jitter=0.42, rng=rng)
    for _ in range(2):  # both axes
        inner = canvas[reach:-reach]
        np.maximum(inner[:reach], canvas[-reach:], out=inner[:reach])
        np.maximum(inner[-reach:], canvas[:reach], out=inner[-reach:])
        canvas = inner.T
    return canvas


def torus_noise(side: int, scale_px: float, *, rng: np.random.Generator) -> Field:
    """(side, side) noise of unit deviation, smooth over about ``scale_px``, that goes on past its edges."""
    frequency = np.fft.fftfreq(side)
    blur = np.exp(-2 * (np.pi * scale_px / 2 * frequency) ** 2).astype(np.float32)
    spectrum = np.fft.rfft2(rng.standard_normal((side, side), np.float32))
    smooth = np.fft.irfft2(spectrum * blur[:, None] * blur[None, : side // 2 + 1], s=(side, side))
    return np.asarray(smooth / smooth.std(), np.float32)


def develop(eosin: Field, haematoxylin: Field, *, rng: np.random.Generator) -> RgbImage:
    """Stain (0 to 255) to colour by Beer and Lambert's law, with the camera's noise."""
    rgb_HWC = np.empty((*eosin.shape, 3), np.uint8)
    for channel, glass in enumerate((243.0, 241.0, 244.0)):
        absorbed = eosin.clip(0) * EOSIN[channel] + 1.25 * haematoxylin.clip(0) * HAEMATOXYLIN[channel]
        seen = glass * np.exp(-absorbed / 255) + rng.normal(0, 1.1, eosin.shape)
        rgb_HWC[..., channel] = np.rint(seen).clip(0, 255)
    return rgb_HWC
